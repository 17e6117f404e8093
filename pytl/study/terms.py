"""The named terms of a run's penalty, read from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytl.metrics import Record
from pytl.study.evidence import Outcome


@dataclass(frozen=True)
class Term:
    """A regulariser in the last epochs of a method's runs on a task: means over seeds.

    Attributes:
        parts: the values of its own terms, by layer.
        conflict: the share of weight tensors where its gradient opposes the task's; None where it has none.
        cosine: mean cosine of its gradient and the task's; None where it has none.
        facts: what else there is to know of it, as of TRED's split.
    """

    task: str
    method: str
    name: str
    parts: dict[str, float]
    conflict: float | None
    cosine: float | None
    facts: dict[str, float]

    @property
    def value(self) -> float | None:
        return sum(self.parts.values()) if self.parts else None


def names(history: Sequence[Record]) -> list[str]:
    """The regularisers that the records tell of, in their order."""
    keys = dict.fromkeys(key for record in history for key in record if key.startswith("conflict/"))
    return [key.removeprefix("conflict/") for key in keys]


def of(name: str, history: Sequence[Record]) -> list[Record]:
    """One regulariser's ``epoch``, ``value``, ``conflict`` and ``cosine`` in each record that tells of it."""
    return [
        {
            "epoch": record["epoch"],
            "value": sum(_parts("term", name, record).values()) or None,
            "conflict": record[f"conflict/{name}"],
            "cosine": record[f"cosine/{name}"],
        }
        for record in history
        if f"conflict/{name}" in record
    ]


def table(outcomes: Sequence[Outcome]) -> list[Term]:
    """Each task's, method's and regulariser's last epoch."""
    runs: dict[tuple[str, str], list[Record]] = {}
    for outcome in outcomes:
        runs.setdefault((outcome.task.name, outcome.method), []).append(outcome.history[-1])
    return [_term(task, method, name, last) for (task, method), last in runs.items() for name in names(last)]


def _term(task: str, method: str, name: str, last: Sequence[Record]) -> Term:
    parts, facts = (_means([_parts(kind, name, record) for record in last]) for kind in ("term", "fact"))
    conflict, cosine = (_mean([record.get(f"{kind}/{name}") for record in last]) for kind in ("conflict", "cosine"))
    return Term(task, method, name, parts, conflict, cosine, facts)


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: fmean(one[part] for one in found) for part in found[0]}


def _parts(kind: str, name: str, record: Mapping[str, float | int | None]) -> dict[str, float]:
    prefix = f"{kind}/{name} "
    return {key.removeprefix(prefix): float(value or 0) for key, value in record.items() if key.startswith(prefix)}


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
