"""``pytl bench``: pytl's steps against their rivals on this machine, in pairs, in one run."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pytl.benchmark import chart, table
from pytl.benchmark.cases import CASES, Case, Pairing
from pytl.benchmark.comparison import Limits, compare
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.machine import Machine, this_machine
from pytl.benchmark.records import Comparison, NotTimed
from pytl.extras import require

_QUICK = Limits(pairs=30, seconds=1.0)

_DESCRIPTION = """\
Times pytl's optimizers against torch's fused ones and against DTNH written in PyTorch, on the parameter shapes of
real networks. Both steps of a pairing run in turn (A B A B ...) on random parameters, after a check that they compute
the same weights. Prints a table, and writes to --out a JSON file of all figures and a bar chart, named by processor
and threads.
"""

_EPILOG = """\
shapes:
{shapes}

examples:
  pytl bench --quick
  pytl bench --shapes resnet50 tiny --threads 1
"""


@dataclass(frozen=True)
class Run:
    machine: Machine
    comparisons: list[Comparison]
    not_timed: list[NotTimed]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``pytl bench`` takes."""
    parser.description = _DESCRIPTION
    shapes = "\n".join(f"  {case.name:12}{case.words}{', with --quick' * case.quick}" for case in CASES.values())
    parser.epilog = _EPILOG.format(shapes=shapes)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--shapes", nargs="+", choices=tuple(CASES), metavar="NAME", help="which, see below (default: all of them)"
    )
    parser.add_argument("--quick", action="store_true", help="under a minute: small lists, 1 s a pairing, no compiler")
    parser.add_argument("--pairs", type=_count, default=100, metavar="N", help="at most, a pairing (default: 100)")
    parser.add_argument(
        "--seconds", type=_duration, default=10.0, metavar="S", help="at most, a pairing, after 5 pairs (default: 10)"
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="of torch and pytl (default: torch's)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="(default: %(default)s)"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1; got {text}")
    return int(text)


def _duration(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds > 0; got {text}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark.

    Returns:
        0, also where a target is missed; 1 where two contenders disagree on the weights, or where nothing was timed.

    Raises:
        ImportError: matplotlib or rich is missing. OSError: ``--out`` cannot be written. Both before anything is timed.
    """
    require("rich", "cli")
    require("matplotlib", "plots")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    done = _measure(list(_selected(args)), _QUICK if args.quick else Limits(args.pairs, args.seconds))
    table.show(done.comparisons, done.not_timed, done.machine)
    written = args.out / f"{done.machine.slug}{_suffix(args)}.json"
    written.write_text(json.dumps(asdict(done), indent=1, allow_nan=False) + "\n")
    print(f"figures: {written}")
    if done.comparisons:
        chart.draw(done.comparisons, done.machine, written.with_suffix(".png"))
        print(f"chart: {written.with_suffix('.png')}")
    return int(not done.comparisons or any(one.is_failure for one in done.not_timed))


def _selected(args: argparse.Namespace) -> Iterator[tuple[Case, Sequence[Pairing]]]:
    names = args.shapes or [name for name, case in CASES.items() if case.quick or not args.quick]
    for name in dict.fromkeys(names):
        case = CASES[name]
        yield case, [pairing for pairing in case.pairings if pairing.quick or not args.quick]


def _suffix(args: argparse.Namespace) -> str:
    """A part of the benchmark does not overwrite the whole."""
    parts = [*dict.fromkeys(args.shapes or ()), *(["quick"] if args.quick else [])]
    return "".join(f"-{part}" for part in parts)


def _measure(selected: Sequence[tuple[Case, Sequence[Pairing]]], limits: Limits) -> Run:
    done = Run(this_machine(), [], [])
    left = sum(len(pairings) for _, pairings in selected)
    for case, pairings in selected:
        for pairing in pairings:
            words = f"{CONTENDERS[pairing.ours].words} against {CONTENDERS[pairing.rival].words}"
            print(f"{left} to go: {case.words}: {words}", file=sys.stderr)
            found = compare(case, pairing, limits)
            (done.comparisons if isinstance(found, Comparison) else done.not_timed).append(found)  # type: ignore[arg-type]
            left -= 1
    return done
