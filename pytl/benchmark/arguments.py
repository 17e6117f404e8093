"""What ``pytl bench`` takes."""

import argparse
from pathlib import Path

from pytl.benchmark.subjects import DEVICES, OPTIMIZERS, SUBJECTS, Subject

_DESCRIPTION = """\
Times pytl's optimizers against torch's fused ones and against DTNH written in PyTorch, on the parameter shapes of
real networks; or its operations on features, forward and backward, against the same in PyTorch, eager and compiled.
Both of a pairing run in turn (A B A B ...) on random data, after a check that they compute the same. Prints a table,
and writes to --out a JSON file of all figures and a bar chart, named by processor and threads, or by GPU. With
--device cuda times are the device's, and the targets stand in a short list at the end.
"""

_EPILOG = """\
shapes of optimizers:
{optimizers}

shapes of features:
{features}

examples:
  pytl bench --quick
  pytl bench --shapes resnet50 tiny --threads 1
  pytl bench features
  pytl bench features --device cuda
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG.format(**{name: _described(subject) for name, subject in SUBJECTS.items()})
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "what", nargs="?", choices=tuple(SUBJECTS), default=OPTIMIZERS.name, help="(default: %(default)s)"
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="(default: cpu)")
    shapes = [*dict.fromkeys(name for subject in SUBJECTS.values() for name in subject.shapes)]
    parser.add_argument(
        "--shapes", nargs="+", choices=shapes, metavar="NAME", help="which, see below (default: all of them)"
    )
    parser.add_argument("--quick", action="store_true", help="under a minute: small lists, 1 s a pairing, no compiler")
    _add_limits(parser)
    parser.add_argument("--threads", type=_count, metavar="N", help="of torch and pytl (default: torch's)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="(default: %(default)s)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    defaults = "optimizers 10, with cuda 3; features 5, with cuda 0.5"
    parser.add_argument("--pairs", type=_count, default=100, metavar="N", help="at most, a pairing (default: 100)")
    parser.add_argument(
        "--seconds", type=_duration, metavar="S", help=f"at most, a pairing, after 5 pairs (default: {defaults})"
    )
    parser.add_argument(
        "--time-limit",
        type=_duration,
        metavar="S",
        help="of the whole run; what no longer fits is told, not timed (default: none, with cuda 240; features 180)",
    )


def _described(subject: Subject) -> str:
    return "\n".join(_line(subject, name, devices) for name, devices in subject.shapes.items())


def _line(subject: Subject, name: str, devices: list[str]) -> str:
    case = subject.cases[devices[0]][name]
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
