"""``pytl bench``: pytl against its rivals on this machine, in pairs, in one run."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path

import torch

from pytl.benchmark import summary, table
from pytl.benchmark.arguments import add_arguments
from pytl.benchmark.attempt import attempt
from pytl.benchmark.case import Case
from pytl.benchmark.cases import CASES
from pytl.benchmark.comparison import Limits, compare
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.deadline import Deadline
from pytl.benchmark.devices import Device, find_device
from pytl.benchmark.pairing import Pairing
from pytl.benchmark.records import Comparison, Memory, NotTimed, Run
from pytl.benchmark.subjects import SUBJECTS, Subject
from pytl.extras import require

__all__ = ["CASES", "add_arguments", "run"]

_QUICK = Limits(pairs=30, seconds=1.0)

Selected = Sequence[tuple[Case, Pairing]]


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark.

    Returns:
        0, also where a target is missed; 1 where two contenders disagree on what they compute, where one breaks, or
        where nothing was timed.

    Raises:
        ImportError: matplotlib or rich is missing; with ``--device cuda`` there is a run without them. ValueError:
            nothing can be timed there. OSError: ``--out`` cannot be written. All before anything is timed.
    """
    subject = SUBJECTS[args.what]
    selected = _selected(args, subject)
    device = find_device(args.device)
    if args.device == "cpu":
        require("rich", "cli")
        require("matplotlib", "plots")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    deadline = Deadline(args.time_limit or subject.time_limit[args.device])
    done = _measure(selected, _limits(args, subject), device, deadline)
    table.show(done, subject.timed, subject.notes(done))
    _write(done, subject, args.out / f"{done.machine.slug}{_suffix(args)}.json")
    if args.device == "cuda":
        print("", *summary.lines(selected, done.comparisons, done.not_timed), sep="\n")
    return int(not done.comparisons or any(one.is_failure for one in done.not_timed))


def _limits(args: argparse.Namespace, subject: Subject) -> Limits:
    return _QUICK if args.quick else Limits(args.pairs, args.seconds or subject.seconds[args.device])


def _selected(args: argparse.Namespace, subject: Subject) -> Selected:
    """Raises ValueError for shapes that are another device's, or another subject's."""
    cases = subject.cases[args.device]
    if unknown := [name for name in args.shapes or () if name not in cases]:
        which = f"{subject.name} with --device {args.device}"
        raise ValueError(f"--shapes must be of {', '.join(cases)} for {which}; got {unknown[0]}")
    names = args.shapes or [name for name, case in cases.items() if case.quick or not args.quick]
    chosen = [(cases[name], pairing) for name in dict.fromkeys(names) for pairing in cases[name].pairings]
    return [(case, pairing) for case, pairing in chosen if pairing.quick or not args.quick]


def _suffix(args: argparse.Namespace) -> str:
    """A part of the benchmark does not overwrite the whole."""
    whole = ["features"] if args.what == "features" else []
    parts = [*whole, *dict.fromkeys(args.shapes or ()), *(["quick"] if args.quick else [])]
    return "".join(f"-{part}" for part in parts)


def _measure(selected: Selected, limits: Limits, device: Device, deadline: Deadline) -> Run:
    done = Run(device.machine())
    for k, (case, pairing) in enumerate(_in_time(selected, deadline)):
        words = f"{CONTENDERS[pairing.ours].words} against {CONTENDERS[pairing.rival].words}"
        print(f"{len(selected) - k} to go: {case.words}: {words}", file=sys.stderr)
        found = compare(case, pairing, limits, device, deadline)
        (done.comparisons if isinstance(found, Comparison) else done.not_timed).append(found)  # type: ignore[arg-type]
    for case in dict.fromkeys(case for case, _ in selected):
        _measure_memory(case, device, deadline, done)
    return done


def _measure_memory(case: Case, device: Device, deadline: Deadline, done: Run) -> None:
    found = attempt(lambda: case.memory(device), deadline)
    if isinstance(found, Memory):
        done.memory.append(found)
    elif found is not None:
        done.not_timed.append(NotTimed(case.name, case.words, "memory with", "memory without", *found))


def _in_time(selected: Selected, deadline: Deadline) -> Selected:
    """Where time is limited, what takes long comes last, lest it leave none for the others."""
    return selected if deadline.left == inf else sorted(selected, key=lambda one: not one[1].quick)


def _write(done: Run, subject: Subject, path: Path) -> None:
    path.write_text(json.dumps(asdict(done), indent=1, allow_nan=False) + "\n")
    print(f"figures: {path}")
    try:
        if subject.draw(done, path.with_suffix(".png")):
            print(f"chart: {path.with_suffix('.png')}")
    except ImportError as missing:
        print(f"no chart: {missing}")
