"""What ``pytl bench`` can time: optimizers, or operations on features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytl.benchmark import cases, chart, cuda_cases, table
from pytl.benchmark.case import Case
from pytl.benchmark.features import cases as feature_cases
from pytl.benchmark.features import chart as feature_chart
from pytl.benchmark.features import notes as feature_notes
from pytl.benchmark.records import Run


@dataclass(frozen=True)
class Subject:
    name: str
    timed: str
    """What one figure of time is of."""
    cases: Mapping[str, Mapping[str, Case]]
    """Device -> name -> case."""
    seconds: Mapping[str, float]
    """Of a pairing, by device."""
    time_limit: Mapping[str, float | None]
    """Of the whole run, by device."""
    draw: Callable[[Run, Path], bool]
    """Whether there is anything to draw."""
    notes: Callable[[Run], Sequence[str]]
    """Lines below the tables."""

    @property
    def shapes(self) -> dict[str, list[str]]:
        """Name of a case -> devices that have it."""
        names = dict.fromkeys(name for of_device in self.cases.values() for name in of_device)
        return {name: [device for device, of_device in self.cases.items() if name in of_device] for name in names}


OPTIMIZERS = Subject(
    "optimizers",
    "Step",
    {"cpu": cases.CASES, "cuda": cuda_cases.CASES},
    {"cpu": 10.0, "cuda": 3.0},
    {"cpu": None, "cuda": 240.0},
    chart.draw_optimizers,
    lambda run: [table.allocation_note(run.comparisons)],
)
FEATURES = Subject(
    "features",
    "Value and gradient, or a training step",
    {"cpu": feature_cases.CASES, "cuda": feature_cases.CUDA_CASES},
    {"cpu": 5.0, "cuda": 0.5},
    {"cpu": None, "cuda": 180.0},
    feature_chart.draw_features,
    feature_notes.notes,
)
SUBJECTS = {subject.name: subject for subject in (OPTIMIZERS, FEATURES)}
DEVICES = tuple(OPTIMIZERS.cases)
