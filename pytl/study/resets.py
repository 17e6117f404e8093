"""RIFLE's re-initialisations, read from runs' records: when they were, and how far gradients reached around them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from pytl.metrics import Record
from pytl.study.evidence import Outcome
from pytl.training.resets import WHEN

Norms = dict[str, float]


def epochs(history: Sequence[Record]) -> list[float]:
    """The epochs done at each re-initialisation."""
    return [float(value or 0) for record in history for key, value in record.items() if key.startswith("reset/")]


def norms(outcomes: Sequence[Outcome]) -> dict[int, dict[str, Norms]]:
    """Re-initialisation -> "before" and "after" -> block -> gradient norm, the geometric mean over a method's seeds."""
    merged = [{key: value for record in one.history for key, value in record.items()} for one in outcomes]
    found: dict[int, dict[str, Norms]] = {}
    for number in sorted(int(key.removeprefix("reset/")) for key in merged[0] if key.startswith("reset/")):
        found[number] = {when: _means(merged, f"gradient/{number} {when}/") for when in WHEN}
    return found


def _means(merged: Sequence[Record], prefix: str) -> Norms:
    blocks = [key.removeprefix(prefix) for key in merged[0] if key.startswith(prefix)]
    values = {block: [float(one.get(prefix + block) or 0) for one in merged] for block in blocks}
    return {block: geometric_mean(of) if min(of) > 0 else 0.0 for block, of in values.items()}
