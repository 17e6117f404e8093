"""A run cut into periods of equal length, and the cyclic learning rate over them."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Periods:
    """``total_steps`` in ``count`` parts, as equal as whole steps allow, or whole epochs of ``steps_per_epoch``.

    Raises:
        ValueError: fewer steps, or epochs, than periods; steps that are no whole epochs.
    """

    total_steps: int
    count: int
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        unit = self._unit
        if unit < 1 or self.total_steps % unit:
            raise ValueError(f"total_steps must be whole epochs of {unit} steps; got {self.total_steps}")
        known = "total_steps" if self.steps_per_epoch is None else "epochs"
        if not 1 <= self.count <= self.total_steps // unit:
            raise ValueError(f"periods must be in [1, {known} = {self.total_steps // unit}]; got {self.count}")

    @property
    def _unit(self) -> int:
        return 1 if self.steps_per_epoch is None else self.steps_per_epoch

    @property
    def boundaries(self) -> list[int]:
        """The steps at which periods begin, and the last one's end."""
        units = self.total_steps // self._unit
        return [self._unit * round(period * units / self.count) for period in range(self.count + 1)]

    @property
    def resets(self) -> list[int]:
        """The steps after which another period begins: none at the end of the run."""
        return self.boundaries[1:-1]

    def cosine(self, step: int) -> float:
        """``(1 + cos(pi t / T)) / 2`` at step t of a period of T steps: from 1 to 0, and 1 again in the next.

        Warm restarts (Loshchilov & Hutter 2017, arXiv:1608.03983), of periods that fill the run.
        """
        bounds = self.boundaries
        period = min(bisect_right(bounds, step), self.count) - 1
        t = (step - bounds[period]) / (bounds[period + 1] - bounds[period])
        return (1 + math.cos(math.pi * min(1.0, t))) / 2
