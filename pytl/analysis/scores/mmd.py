"""MMD: whether source and target features look like samples of one distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, mean, scored, variation
from pytl.analysis.scores.domain_similarity import check_pair
from pytl.ops.mmd import WIDTHS, gaussian_kernels

MMD = Measure("MMD^2", "Gretton et al. 2012 (JMLR 13)", 0.0, float(len(WIDTHS) * 2), False, ("source samples",))

_BLOCK = 2048  # samples on each side of a block of distances: 32 MiB


def mmd(features: Tensor, source_features: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``MMD^2`` of target and source, with the kernels and the scale of `pytl.ops.mmd`; in [0, 10].

    By blocks of distances, so memory does not grow with the samples; ``(n + m)^2 d`` operations.

    Args:
        features, source_features: of target and source, [n, d] and [m, d], n, m >= 2.
        bootstrap, seed: as in `h_score`.

    Raises:
        ValueError: shapes that disagree, values that are not finite, fewer than two samples.
    """
    check_pair(features, source_features)
    if min(len(features), len(source_features)) < 2:
        raise ValueError(
            f"features and source_features must have >= 2 samples; got {len(features)} and {len(source_features)}"
        )
    return scored("mmd", MMD, _mmd, [(features,), (source_features,)], bootstrap, seed)


def _mmd(features: Tensor, source: Tensor) -> float:
    n, m = len(features), len(source)
    centre = (n * mean(features) + m * mean(source)) / (n + m)
    scale = 2 * (n * variation(features, centre) + m * variation(source, centre)) / (n + m - 1)
    if not scale > 0:
        return 0.0
    within = _mean_kernel(features, features, centre, scale) + _mean_kernel(source, source, centre, scale)
    return max(0.0, within - 2 * _mean_kernel(features, source, centre, scale))


def _mean_kernel(x: Tensor, y: Tensor, centre: Tensor, scale: Tensor) -> float:
    """The mean over all pairs; two samples of one set at one place have distance 0."""
    total = 0.0
    for i, a in _blocks(x, centre):
        for j, b in _blocks(y, centre):
            squared = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
            if x is y and i == j:
                squared.fill_diagonal_(0.0)
            total += float(gaussian_kernels(squared, WIDTHS, scale).sum())
    return total / (len(x) * len(y))


def _blocks(x: Tensor, centre: Tensor) -> Iterator[tuple[int, Tensor]]:
    for index in range(math.ceil(len(x) / _BLOCK)):
        yield index, x[index * _BLOCK : (index + 1) * _BLOCK].to(torch.float64) - centre
