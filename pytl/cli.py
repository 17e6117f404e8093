"""The command line: ``pytl finetune``, ``pytl bench`` and ``pytl doctor``."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

from pytl.data.digits import TASKS
from pytl.extras import require
from pytl.progress import watching
from pytl.study import comparison as study
from pytl.study import report, table, terms
from pytl.study.comparison import Study
from pytl.study.evidence import rows
from pytl.training.methods import METHODS, OPTIMIZERS
from pytl.training.settings import AMP_DTYPES

_INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C ended
_METHODS = ("plain", "l2sp", "dtnh", "grod")
_NEEDED = (("rich", "cli"), ("jinja2", "cli"), ("scipy", "cli"), ("matplotlib", "plots"))  # asked for before training

_FINETUNE = """\
Compares fine-tuning methods: tasks x methods x seeds, one run each. Writes to --out a table, curves, conflict plots,
report.html (one file, no network needed), results.json, and for each run metrics.jsonl and a checkpoint.
"""

_EXAMPLES = """\
examples:
  pytl finetune --data digits --method plain l2sp dtnh grod --out runs/demo
  pytl finetune --data digits:mirrored --method plain delta+dtnh distillation+dtnh+rifle --seeds 10 --out runs/mirrored
  pytl finetune --data digits --method plain rifle dropout cycliclr tred --out runs/rifle
  pytl finetune --data photos/ --model my_models:resnet --method plain dtnh --out runs/photos
  pytl finetune --data photos/ --model ./vit-base --method plain l2sp --optimizer adamw --lr 1e-4 --out runs/vit

A stopped or killed command goes on, to the same bits, when --resume is added to it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0, 1 after an error (printed without a traceback), 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(arguments).parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}{_resuming(arguments)}", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        print(f"pytl: {error}", file=sys.stderr)
        return 1


def _resuming(arguments: Sequence[str]) -> str:
    if arguments[0] != "finetune":
        return ""
    more = [] if "--resume" in arguments else ["--resume"]
    return f"; to go on:\n  {shlex.join(['pytl', *arguments, *more])}"


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pytl", description="Fine-tuning that keeps what the network knows.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_finetune(commands)
    bench = commands.add_parser("bench", help="time optimizers or feature operations against their rivals here")
    bench.set_defaults(run=lambda options: import_module("pytl.benchmark").run(options))
    if [*arguments[:1]] == ["bench"]:  # the other commands need not import it
        import_module("pytl.benchmark").add_arguments(bench)
    doctor = commands.add_parser("doctor", help="say which code runs for which device and dtype here, and why")
    doctor.set_defaults(run=lambda options: print(import_module("pytl.doctor").doctor()))
    return parser


def _add_finetune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "finetune",
        help="fine-tune and compare methods",
        description=_FINETUNE,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_finetune)
    what = parser.add_argument_group("what is compared")
    what.add_argument("--data", required=True, help=f"digits, digits:TASK ({', '.join(TASKS)}), or a folder of images")
    what.add_argument("--model", help="for a folder of images: module:function, or a local Hugging Face folder")
    what.add_argument("--head", help="name of the model's new head (default: found)")
    names = f"{', '.join(METHODS)}; or several joined by '+' (default: plain l2sp dtnh grod)"
    what.add_argument("--method", dest="methods", nargs="+", metavar="NAME", default=_METHODS, help=names)
    what.add_argument("--seeds", type=int, metavar="N", help="runs of each method (default: %(default)s)")
    what.add_argument("--share", type=float, metavar="X", help="of the digits' target images (default: %(default)s)")
    what.add_argument("--image-size", type=int, metavar="PIXELS", help="for folders (default: %(default)s)")
    _add_training(parser.add_argument_group("training"))
    where = parser.add_argument_group("where")
    where.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    where.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: %(default)s)")
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: runs/DATA)")
    where.add_argument("--resume", action="store_true", help="go on with what is in --out, or begin")
    where.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="also save within epochs")
    parser.set_defaults(**{field.name: field.default for field in fields(Study) if field.default is not MISSING})


def _add_training(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: %(default)s)")
    group.add_argument(
        "--lr", type=float, help="at the start, then along a cosine to 0 (default: 0.03 on digits, 0.01 on folders)"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="(default: %(default)s)")
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: %(default)s)")
    group.add_argument("--amp", choices=tuple(AMP_DTYPES), help="mixed precision (default: the model's precision)")


def _finetune(options: argparse.Namespace) -> None:
    for module, extra in _NEEDED:
        require(module, extra)
    values = {field.name: getattr(options, field.name) for field in fields(Study)}
    values["methods"] = tuple(options.methods)
    values["out"] = options.out or Path("runs", Path(options.data).name.replace(":", "-"))
    plan = Study(**values)
    with watching(plan.runs, plan.epochs) as watch:
        outcomes = study.run(plan, watch)
    page = report.write(plan, outcomes)
    table.show(rows(outcomes), terms.table(outcomes))
    skipped = sorted({str(path) for outcome in outcomes for path in outcome.task.skipped})
    if skipped:
        print(f"left out, {len(skipped)} not readable as images: {', '.join(skipped)}")
    print(f"report: {page}")
