"""What runs over several seeds show: means with 95% intervals, and differences to plain fine-tuning paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytl.data import Task
from pytl.intervals import Interval, interval, paired
from pytl.metrics import Record

BASELINE = "plain"
VERDICTS = ("helps", "hurts", "no difference seen", "needs more seeds")


@dataclass(frozen=True)
class Outcome:
    """One run's history."""

    task: Task
    method: str
    seed: int
    history: list[Record]

    @property
    def accuracy(self) -> float:
        """After the last epoch."""
        return float(self.history[-1]["accuracy"] or 0.0)


@dataclass(frozen=True)
class Row:
    """A method on a task: accuracies in [0, 1], differences to plain fine-tuning paired by seed (None for itself)."""

    task: str
    title: str
    method: str
    accuracy: Interval
    difference: Interval | None
    verdict: str


@dataclass(frozen=True)
class Margin:
    """A method against the best and the worst of the others on a task, by mean accuracy: paired differences.

    Which the best is was seen on the same test images, so the first difference is a little unkind to the method.
    """

    task: str
    method: str
    best: str
    to_best: Interval
    worst: str
    to_worst: Interval


def margins(outcomes: Sequence[Outcome], methods: Sequence[str]) -> list[Margin]:
    """Of each of these methods on each task; none where there is nothing to hold them against."""
    found = _accuracies(outcomes)
    return [
        _margin(task, method, found)
        for task in dict.fromkeys(task for task, _ in found)
        for method in methods
        if any(other not in methods for of, other in found if of == task)
    ]


def _margin(task: str, method: str, found: Mapping[tuple[str, str], Mapping[int, float]]) -> Margin:
    mine = found[task, method]
    others = {
        other: fmean(by_seed.values()) for (of, other), by_seed in found.items() if of == task and other != method
    }
    best, worst = max(others, key=others.__getitem__), min(others, key=others.__getitem__)
    return Margin(task, method, best, paired(mine, found[task, best]), worst, paired(mine, found[task, worst]))


def _accuracies(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], dict[int, float]]:
    """(task, method) -> seed -> accuracy, in the order of the runs."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.task.name, outcome.method), {})[outcome.seed] = outcome.accuracy
    return found


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row for each task and method, in the order of the runs."""
    found = _accuracies(outcomes)
    titles = {outcome.task.name: outcome.task.title for outcome in outcomes}
    return [
        _row(task, titles[task], method, accuracies, found.get((task, BASELINE)))
        for (task, method), accuracies in found.items()
    ]


def _row(task: str, title: str, method: str, accuracies: dict[int, float], plain: dict[int, float] | None) -> Row:
    if plain is None or method == BASELINE:
        return Row(task, title, method, interval([*accuracies.values()]), None, "")
    difference = paired(accuracies, plain)
    return Row(task, title, method, interval([*accuracies.values()]), difference, verdict(difference))


def verdict(difference: Interval) -> str:
    """One of `VERDICTS`; "helps" and "hurts" only where the interval leaves out 0."""
    helps, hurts, unseen, unknown = VERDICTS
    if math.isnan(difference.low):
        return unknown
    return helps if difference.low > 0 else hurts if difference.high < 0 else unseen
