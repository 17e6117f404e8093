"""``pytl finetune``: methods compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytl.commands import subject
from pytl.progress import watching
from pytl.study import comparison as study
from pytl.study import report, table, terms
from pytl.study.comparison import Study
from pytl.study.evidence import rows
from pytl.training.methods import METHODS, OPTIMIZERS
from pytl.training.settings import AMP_DTYPES

_ABOUT = """\
Compares fine-tuning methods: tasks x methods x seeds, one run each. Writes to --out a table, curves, conflict plots,
report.html (one file, no network needed), results.json, and for each run metrics.jsonl and a checkpoint.
"""

_EXAMPLES = """\
examples:
  pytl finetune --data digits --method plain l2sp dtnh grod --out runs/demo
  pytl finetune --data digits:mirrored --method plain delta+dtnh distillation+dtnh+rifle --seeds 10 --out runs/mirrored
  pytl finetune --data digits --method plain rifle dropout cycliclr tred --out runs/rifle
  pytl finetune --data digits --method plain scratch l2sp plan --plan runs/search --seeds 10 --out runs/planned
  pytl finetune --data digits:mirrored --method scratch plain l2sp --snapshots 4 --record 10 --out runs/claims
  pytl finetune --data photos/ --model my_models:resnet --method plain dtnh --out runs/photos
  pytl finetune --data photos/ --model ./vit-base --method plain l2sp --optimizer adamw --lr 1e-4 --out runs/vit

A stopped or killed command goes on, to the same bits, when --resume is added to it.
"""

_METHODS, _PLANNED = ("plain", "l2sp", "dtnh", "grod"), ("plain", "plan")


def add(commands: subject.Commands) -> None:
    parser = subject.add_command(commands, "finetune", "fine-tune and compare methods", _ABOUT, _EXAMPLES)
    what = subject.add_data(parser, "what is compared")
    names = f"{', '.join(METHODS)}; or several joined by '+' (default: plain l2sp dtnh grod; with --plan: plain plan)"
    what.add_argument("--method", dest="methods", nargs="+", metavar="NAME", help=names)
    plans = "for the method plan: a file, or a folder with TASK/plan.yaml, as advise and search write it"
    what.add_argument("--plan", type=Path, metavar="PATH", help=plans)
    what.add_argument("--seeds", type=int, metavar="N", help="runs of each method (default: %(default)s)")
    _add_training(parser.add_argument_group("training"))
    where = subject.add_place(parser, "runs/DATA")
    where.add_argument("--resume", action="store_true", help="go on with what is in --out, or begin")
    where.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="also save within epochs")
    where.add_argument("--snapshots", type=int, metavar="N", help="weights kept on the way, for pytl analyze")
    where.add_argument("--record", type=int, metavar="STEPS", help="distances, gradients and conflict by block")
    subject.set_defaults(parser, Study)
    parser.set_defaults(run=run)


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: %(default)s)")
    subject.add_rate(group)
    group.add_argument("--batch-size", type=int, metavar="N", help="(default: %(default)s)")
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: %(default)s)")
    group.add_argument("--amp", choices=tuple(AMP_DTYPES), help="mixed precision (default: the model's precision)")


def run(options: argparse.Namespace) -> None:
    subject.require_all(("rich", "cli"), ("jinja2", "cli"), ("scipy", "cli"), ("matplotlib", "plots"))
    values = subject.values_of(options, Study)
    values["methods"] = tuple(options.methods or (_METHODS if options.plan is None else _PLANNED))
    values["out"] = options.out or Path("runs", Path(options.data).name.replace(":", "-"))
    plan = Study(**values)
    with watching(plan.runs, plan.epochs) as watch:
        outcomes = study.run(plan, watch)
    page = report.write(plan, outcomes)
    table.show(rows(outcomes), terms.table(outcomes), report.margins_of(plan, outcomes))
    skipped = sorted({str(path) for outcome in outcomes for path in outcome.task.skipped})
    if skipped:
        print(f"left out, {len(skipped)} not readable as images: {', '.join(skipped)}")
    print(f"report: {page}")
