"""``pytl search``: the plan with the highest validation accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import nn

from pytl.commands import subject
from pytl.data import Task, image_folder
from pytl.files import read_json
from pytl.plan import Rules
from pytl.study.subject import Subject, folder_name
from pytl.training.methods import OPTIMIZERS
from pytl.training.settings import AMP_DTYPES
from pytl.trials import Problem, Split, search

_FIRST_SEED = 1000  # other networks and deals than those of reported comparisons, which begin at 0
_VALIDATION = 0.25  # of a folder's training images

_ABOUT = """\
Searches for a transfer plan: how many blocks are new, which are pulled to the start and how strongly, rates, direction.
Each trial trains on several splits of the training images and is judged on others of them; test images are never read.
Writes for each task plan.yaml, which pytl finetune --plan takes, report.html, search.json, figures and search.db.
"""

_EXAMPLES = """\
examples:
  pytl search --data digits --advice runs/advice --trials 30 --out runs/search
  pytl search --data photos/ --model my_models:resnet --trials 50 --parallel 2 --out runs/search
  pytl search --data photos/ --model my_models:resnet --storage postgresql://host/trials --out runs/search

A stopped or killed search goes on when --resume is added to it: finished trials are kept.
"""


def add(commands: subject.Commands) -> None:
    parser = subject.add_command(commands, "search", "search for the best transfer plan", _ABOUT, _EXAMPLES)
    what = subject.add_data(parser, "source and target")
    what.add_argument("--advice", type=Path, metavar="DIR", help="where to begin: the folder of pytl advise")
    what.add_argument("--trials", type=int, default=30, metavar="N", help="in all (default: %(default)s)")
    what.add_argument("--splits", type=int, default=4, metavar="N", help="runs of a trial (default: %(default)s)")
    _add_training(parser.add_argument_group("training"))
    where = subject.add_place(parser, "runs/search-DATA")
    where.add_argument("--parallel", type=int, default=1, metavar="N", help="trials at a time (default: %(default)s)")
    where.add_argument(
        "--storage", metavar="URL", help="a database that several machines share (default: a file in --out)"
    )
    where.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampler (default: %(default)s)")
    where.add_argument("--resume", action="store_true", help="go on with what is in --out, or begin")
    subject.set_defaults(parser, Subject)
    parser.set_defaults(run=run)


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, default=20, metavar="N", help="of each run (default: %(default)s)")
    subject.add_rate(group)
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="(default: %(default)s)")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="(default: %(default)s)")
    group.add_argument("--amp", choices=tuple(AMP_DTYPES), help="mixed precision (default: the model's precision)")


def run(options: argparse.Namespace) -> None:
    subject.require_all(("optuna", "search"), ("jinja2", "cli"), ("yaml", "cli"), ("matplotlib", "plots"))
    if options.splits < 1:
        raise ValueError(f"splits must be >= 1; got {options.splits}")
    about, out = Subject(**subject.values_of(options, Subject)), subject.out_of(options, "search")
    about.check()
    advice = {name: _advice(options.advice, about.task(name, 0).name) for name in about.task_names}
    for name in about.task_names:
        problem = _problem(about, name, options, out)
        result = search(
            problem,
            out / folder_name(problem.name),
            trials=options.trials,
            advice=advice[name],
            workers=options.parallel,
            storage=options.storage,
            resume=options.resume,
            seed=options.seed,
        )
        folder = out / folder_name(problem.name)
        print(f"{problem.name}: {100 * result.accuracy:.1f}% on validation data, best of {len(result.trials)} trials")
        print(f"{result.plan}\n\nplan: {folder / 'plan.yaml'}\nreport: {folder / 'report.html'}\n")


def _problem(about: Subject, name: str, options: argparse.Namespace, out: Path) -> Problem:
    seeds = range(_FIRST_SEED, _FIRST_SEED + options.splits)
    return Problem(
        name=about.task(name, 0).name,
        make=partial(_network, about, name, out / "sources"),
        splits=tuple(_splits(about, name, seeds)),
        lr=about.rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        amp=options.amp,
        head=about.head_name,
        device=about.place,
        workers=about.workers,
        threads=about.torch_threads if about.on_digits or options.parallel == 1 else 1,
    )


def _network(about: Subject, name: str, cache: Path, seed: int) -> nn.Module:
    return about.network(_without_test(about, name, seed), seed, cache)


def _splits(about: Subject, name: str, seeds: range) -> Iterator[Split]:
    if about.on_digits:
        for seed in seeds:
            task = _without_test(about, name, seed)
            yield Split(seed, task.train, task.test)
        return
    train = about.task(name, 0).train
    for seed in seeds:
        yield Split(seed, *image_folder.divided(train, _VALIDATION, seed))


def _without_test(about: Subject, name: str, seed: int) -> Task:
    """On digits the held-out images are others of the target's half."""
    return about.task(name, seed, held_out="validation")


def _advice(folder: Path | None, task: str) -> Rules | None:
    """The rules that `pytl advise` recommended for the task."""
    if folder is None:
        return None
    path = next((p for p in (folder / folder_name(task) / "advice.json", folder / "advice.json") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"advice must be a folder with {folder_name(task)}/advice.json; got {folder}")
    try:
        return Rules(**read_json(path, "advice")["recommendation"]["rules"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no advice: {error!r}") from error
