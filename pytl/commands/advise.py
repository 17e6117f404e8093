"""``pytl advise``: how much to transfer, measured before training."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from pytl.advice import Advice, advise
from pytl.commands import subject
from pytl.data import Task, batches, image_folder
from pytl.study import networks
from pytl.study.subject import Subject, folder_name
from pytl.threads import threads

_BATCH = 64

_ABOUT = """\
Measures, before any training, how well each block of the source network fits the target, and recommends what to
transfer: how many blocks, rates, pulls to the start and to zero, each with its reason. Reads training images alone.
Writes for each task plan.yaml, which pytl finetune --plan takes, advice.txt, advice.json and advice.png.
"""

_EXAMPLES = """\
examples:
  pytl advise --data digits --out runs/advice
  pytl advise --data photos/ --model my_models:resnet --out runs/advice
"""


def add(commands: subject.Commands) -> None:
    parser = subject.add_command(commands, "advise", "say how much of the source to transfer", _ABOUT, _EXAMPLES)
    what = subject.add_data(parser, "source and target")
    subject.add_rate(what)
    what.add_argument(
        "--seed", type=int, default=0, metavar="N", help="which deal of the digits (default: %(default)s)"
    )
    what.add_argument("--bootstrap", type=int, default=30, metavar="N", help="draws for errors (default: %(default)s)")
    subject.add_place(parser, "runs/advise-DATA")
    subject.set_defaults(parser, Subject)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    subject.require_all(("scipy", "cli"), ("yaml", "cli"), ("matplotlib", "plots"), ("ot", "analysis"))
    about, out = Subject(**subject.values_of(options, Subject)), subject.out_of(options, "advise")
    about.check()
    for name in about.task_names:
        task = about.task(name, options.seed)
        with threads(about.torch_threads):
            found = _advised(about, task, options.seed, options.bootstrap, out)
        path = found.save(out / folder_name(task.name))
        print(f"{task.name}: {found}\n\nplan: {path}\n")


def _advised(about: Subject, task: Task, seed: int, bootstrap: int, out: Path) -> Advice:
    network = about.network(task, seed, out / "sources")
    source: nn.Module | None = None
    if about.on_digits:
        source = networks.source_digits(task, seed, out / "sources").to(about.place)
    return advise(
        network,
        batches(image_folder.unaugmented(task.train), _BATCH, shuffle=False, workers=about.workers),
        head=about.head_name,
        source_model=source,
        source_data=None if task.source is None else batches(task.source, _BATCH, shuffle=False),
        lr=about.rate,
        bootstrap=bootstrap,
        seed=seed,
        device=about.place,
    )
