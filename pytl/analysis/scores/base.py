"""What every measure of fit shares: the checks on its samples, float64 rows by the chunk, the bootstrap, the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

_CHUNK_BYTES = 64 << 20  # of float64 rows in use at a time
_SHARE = 0.8  # of the samples in a draw
_COLUMN_BLOCKS, _LEAST_COLUMNS = 8, 128  # 8: 9/16 of the whole product; narrower blocks cost more than they save
_LARGEST = 1e70  # of a feature: its fourth power is still a float64
_NORMAL_95 = 1.959963984540054  # standard deviations of a normal distribution on each side of 95% of it


@dataclass(frozen=True)
class Measure:
    """What a number means.

    Attributes:
        title: as tables show it.
        paper: where it is from.
        least, most: its range.
        higher_fits: a larger value means a better fit; else a smaller one.
        needs: beside the target's features: "labels", "source labels", "source features"...
    """

    title: str
    paper: str
    least: float
    most: float
    higher_fits: bool
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """A measure's value for one set of samples.

    Attributes:
        name: of the measure, a key of ``pytl.analysis.scores.MEASURES``.
        value: the number; ``float(score)`` is the same.
        low, high: the 95% bootstrap interval; None where none was asked for.
        samples: how many target samples it rests on.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    samples: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        spread = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{spread}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def scored(
    name: str,
    measure: Measure,
    compute: Callable[..., float],
    groups: Sequence[Sequence[Tensor]],
    bootstrap: int,
    seed: int,
) -> Score:
    """The value of all samples, and ``value +- 1.96 s``, s its standard error.

    The bootstrap draws 4/5 of the samples without replacement, ``s = sd sqrt(m / (n - m))`` (the delete-d jackknife:
    Shao & Wu 1989, Annals of Statistics 17). Drawing n with replacement would take samples twice, which features then
    fit exactly: with as many features as samples the values have nothing to do with the one that is wanted.

    Args:
        name, measure: what is computed.
        compute: the groups' tensors, one after another -> value.
        groups: tensors whose rows belong together: (features, labels) of the target, and perhaps of the source.
        bootstrap: how many draws; 0: no interval. Each costs what the value costs.
        seed: of the draws.

    Raises:
        ValueError: ``bootstrap`` is 1 or negative, or there is one sample alone to draw from.
    """
    if bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"bootstrap must be 0, for no interval, or >= 2; got {bootstrap}")
    value, samples = compute(*(tensor for group in groups for tensor in group)), len(groups[0][0])
    if not bootstrap:
        return Score(name, value, None, None, samples)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(bootstrap):
        drawn = [[tensor[rows.to(tensor.device)] for tensor in group] for group, rows in draws(groups, generator)]
        values.append(compute(*(tensor for group in drawn for tensor in group)))
    reach = _NORMAL_95 * standard_error(values, samples) if all(map(math.isfinite, values)) else math.inf
    return Score(name, value, max(measure.least, value - reach), min(measure.most, value + reach), samples)


def draws(groups: Sequence[Sequence[Tensor]], generator: torch.Generator) -> Iterator[tuple[Sequence[Tensor], Tensor]]:
    """Each group, and the indices of 4/5 of its rows."""
    for group in groups:
        count = len(group[0])
        if count < 2:
            raise ValueError(f"bootstrap needs >= 2 samples to draw from; got {count}")
        yield group, torch.randperm(count, generator=generator, device="cpu")[: _drawn(count)]


def _drawn(count: int) -> int:
    return min(count - 1, round(_SHARE * count))


def standard_error(values: Sequence[float], samples: int) -> float:
    """Of a value of all samples, from those of draws."""
    m = _drawn(samples)
    return stdev(values) * math.sqrt(m / (samples - m))


def check_features(features: Tensor, name: str = "features") -> None:
    """Raises ValueError for what is not [n, d] with numbers, or holds values that are not finite."""
    if features.dim() != 2 or not features.is_floating_point() or 0 in features.shape:
        raise ValueError(
            f"{name} must be [n, d], n and d >= 1, floating point; got {features.dtype} {[*features.shape]}"
        )
    parts = features.detach().split(_rows(features))
    largest = torch.stack([rows.abs().amax() for rows in parts]).amax()  # nan where there is one
    if not largest.isfinite():
        bad = sum(int((~rows.isfinite()).sum()) for rows in parts)
        raise ValueError(f"{name} must be finite; {bad} of {features.numel()} values are not")
    if float(largest) > _LARGEST:
        raise ValueError(f"{name} must be <= {_LARGEST:g} in size, or their powers overflow; got {float(largest):g}")


def check_labels(labels: Tensor, samples: int, name: str = "labels", *, least_classes: int = 2) -> None:
    """Raises ValueError for what is not an integer >= 0 for each sample, or names too few classes."""
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.shape != (samples,):
        raise ValueError(f"{name} must be integers [{samples}], one a sample; got {labels.dtype} {[*labels.shape]}")
    if samples and int(labels.min()) < 0:
        raise ValueError(f"{name} must be >= 0; got {int(labels.min())}")
    if (found := len(labels.unique())) < least_classes:
        raise ValueError(f"{name} must name >= {least_classes} classes; got {found}")


def chunks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows in float64, as many at a time as take 64 MiB; copies, which the caller may change."""
    step = _rows(features)
    for start in range(0, len(features), step):
        rows = slice(start, min(start + step, len(features)))
        yield rows, features[rows].to(torch.float64, copy=True)


def _rows(features: Tensor) -> int:
    return max(1, math.floor(_CHUNK_BYTES / (8 * features.shape[1])))


def mean(features: Tensor) -> Tensor:
    """[d], float64."""
    first = features[0].double()  # so that the mean of a constant is that constant
    return first + torch.stack([(rows - first).sum(0) for _, rows in chunks(features)]).sum(0) / len(features)


def classes_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(labels counted from 0 without gaps, [n]; samples of each class, float64 [C])."""
    _, dense, counts = labels.unique(return_inverse=True, return_counts=True)
    return dense, counts.double()


def class_sums(features: Tensor, dense: Tensor, classes: int, centre: Tensor | None = None) -> Tensor:
    """The sum of ``features - centre`` over each class: float64 [C, d]."""
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    for rows, part in chunks(features):
        sums.index_add_(0, dense[rows], part if centre is None else part - centre)
    return sums


def gram(features: Tensor, centre: Tensor | None = None) -> Tensor:
    """``F^T F``, [d, d], or ``F F^T``, [n, n], whichever is smaller, of ``F = features - centre``: float64.

    Its upper half is computed, by blocks of columns, and mirrored.
    """
    across = features if features.shape[1] <= len(features) else features.T
    size = across.shape[1]
    total = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    starts = range(0, size, max(_LEAST_COLUMNS, math.ceil(size / _COLUMN_BLOCKS)))
    for rows, part in chunks(across):
        if centre is not None:
            part.sub_(centre if across is features else centre[rows, None])
        for start in starts:
            columns = slice(start, start + starts.step)
            total[columns, start:].addmm_(part[:, columns].T, part[:, start:])
    return total.triu_().add_(total.triu(1).T)


def variation(features: Tensor, centre: Tensor, power: float = 1.0) -> Tensor:
    """The mean of ``|x - centre|^2``, or of a power of it: float64, 0-dim."""
    parts = [(rows - centre).square().sum(1).pow(power).sum() for _, rows in chunks(features)]
    return torch.stack(parts).sum() / len(features)
