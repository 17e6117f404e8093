"""Means with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pytl.extras import require

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval by Student's t; from a single value the interval is unknown (nan)."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` and its 95% interval.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("values must hold >= 1 number; got none")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    quantile = float(require("scipy.stats", "cli").t.ppf((1 + _CONFIDENCE) / 2, count - 1))
    half = quantile * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval:
    """The mean difference over the seeds that both have, with its interval.

    Pairing by seed takes out what a seed does to both: the same images, the same starting network.
    """
    return interval([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])
