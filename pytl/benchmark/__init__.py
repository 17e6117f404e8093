"""``pytl bench``: pytl's steps against their rivals on this machine, in pairs, in one run."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

import torch

from pytl.benchmark import chart, cuda_cases, summary, table
from pytl.benchmark.cases import CASES, Case, Pairing
from pytl.benchmark.comparison import Limits, compare
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.deadline import Deadline
from pytl.benchmark.devices import Device, find_device
from pytl.benchmark.machine import Machine
from pytl.benchmark.records import Comparison, NotTimed
from pytl.extras import require

_QUICK = Limits(pairs=30, seconds=1.0)
_SECONDS = {"cpu": 10.0, "cuda": 3.0}
_TIME_LIMIT = {"cpu": None, "cuda": 240.0}
_CASES: Mapping[str, Mapping[str, Case]] = {"cpu": CASES, "cuda": cuda_cases.CASES}

Selected = Sequence[tuple[Case, Pairing]]

_DESCRIPTION = """\
Times pytl's optimizers against torch's fused ones and against DTNH written in PyTorch, on the parameter shapes of
real networks. Both steps of a pairing run in turn (A B A B ...) on random parameters, after a check that they compute
the same weights. Prints a table, and writes to --out a JSON file of all figures and a bar chart, named by processor
and threads, or by GPU. With --device cuda times are the device's, and the targets stand in a short list at the end.
"""

_EPILOG = """\
shapes:
{shapes}

examples:
  pytl bench --quick
  pytl bench --shapes resnet50 tiny --threads 1
  pytl bench --device cuda
"""


@dataclass(frozen=True)
class Run:
    machine: Machine
    comparisons: list[Comparison]
    not_timed: list[NotTimed]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``pytl bench`` takes."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG.format(shapes="\n".join(map(_described, _all_shapes())))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=tuple(_CASES), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--shapes", nargs="+", choices=_all_shapes(), metavar="NAME", help="which, see below (default: all of them)"
    )
    parser.add_argument("--quick", action="store_true", help="under a minute: small lists, 1 s a pairing, no compiler")
    parser.add_argument("--pairs", type=_count, default=100, metavar="N", help="at most, a pairing (default: 100)")
    parser.add_argument(
        "--seconds", type=_duration, metavar="S", help="at most, a pairing, after 5 pairs (default: 10, with cuda 3)"
    )
    parser.add_argument(
        "--time-limit",
        type=_duration,
        metavar="S",
        help="of the whole run; what no longer fits is told, not timed (default: none, with cuda 240)",
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="of torch and pytl (default: torch's)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="(default: %(default)s)"
    )


def _all_shapes() -> list[str]:
    return [*dict.fromkeys(name for cases in _CASES.values() for name in cases)]


def _described(name: str) -> str:
    devices = [device for device, cases in _CASES.items() if name in cases]
    case = _CASES[devices[0]][name]
    alone = f", {devices[0]} only" if len(devices) == 1 else ""
    return f"  {name:12}{case.words}{alone}{', with --quick' * case.quick}"


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
        0, also where a target is missed; 1 where two contenders disagree on the weights, where one breaks, or where
        nothing was timed.

    Raises:
        ImportError: matplotlib or rich is missing; with ``--device cuda`` there is a run without them. ValueError:
            nothing can be timed there. OSError: ``--out`` cannot be written. All before anything is timed.
    """
    selected = _selected(args)
    device = find_device(args.device)
    if args.device == "cpu":
        require("rich", "cli")
        require("matplotlib", "plots")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    done = _measure(selected, _limits(args), device, Deadline(args.time_limit or _TIME_LIMIT[args.device]))
    table.show(done.comparisons, done.not_timed, done.machine)
    _write(done, args.out / f"{done.machine.slug}{_suffix(args)}.json")
    if args.device == "cuda":
        print("", *summary.lines(selected, done.comparisons, done.not_timed), sep="\n")
    return int(not done.comparisons or any(one.is_failure for one in done.not_timed))


def _limits(args: argparse.Namespace) -> Limits:
    return _QUICK if args.quick else Limits(args.pairs, args.seconds or _SECONDS[args.device])


def _selected(args: argparse.Namespace) -> Selected:
    """Raises ValueError for shapes that are another device's."""
    cases = _CASES[args.device]
    if unknown := [name for name in args.shapes or () if name not in cases]:
        raise ValueError(f"--shapes must be of {', '.join(cases)} with --device {args.device}; got {unknown[0]}")
    names = args.shapes or [name for name, case in cases.items() if case.quick or not args.quick]
    chosen = [(cases[name], pairing) for name in dict.fromkeys(names) for pairing in cases[name].pairings]
    return [(case, pairing) for case, pairing in chosen if pairing.quick or not args.quick]


def _suffix(args: argparse.Namespace) -> str:
    """A part of the benchmark does not overwrite the whole."""
    parts = [*dict.fromkeys(args.shapes or ()), *(["quick"] if args.quick else [])]
    return "".join(f"-{part}" for part in parts)


def _measure(selected: Selected, limits: Limits, device: Device, deadline: Deadline) -> Run:
    done = Run(device.machine(), [], [])
    for k, (case, pairing) in enumerate(_in_time(selected, deadline)):
        words = f"{CONTENDERS[pairing.ours].words} against {CONTENDERS[pairing.rival].words}"
        print(f"{len(selected) - k} to go: {case.words}: {words}", file=sys.stderr)
        found = compare(case, pairing, limits, device, deadline)
        (done.comparisons if isinstance(found, Comparison) else done.not_timed).append(found)  # type: ignore[arg-type]
    return done


def _in_time(selected: Selected, deadline: Deadline) -> Selected:
    """Where time is limited, what takes long comes last, lest it leave none for the others."""
    return selected if deadline.left == inf else sorted(selected, key=lambda one: not one[1].quick)


def _write(done: Run, path: Path) -> None:
    path.write_text(json.dumps(asdict(done), indent=1, allow_nan=False) + "\n")
    print(f"figures: {path}")
    if not done.comparisons:
        return
    try:
        chart.draw(done.comparisons, done.machine, path.with_suffix(".png"))
        print(f"chart: {path.with_suffix('.png')}")
    except ImportError as missing:
        print(f"no chart: {missing}")
