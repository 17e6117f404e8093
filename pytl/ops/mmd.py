"""Maximum mean discrepancy of two samples, through one Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytl.ops.features import compute_dtype

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


def mmd(x: Tensor, y: Tensor, widths: Sequence[float] = WIDTHS, scale: Tensor | None = None) -> Tensor:
    """``MMD^2 = mean k(x,x') + mean k(y,y') - 2 mean k(x,y)``, ``k = sum over widths of exp(-|a - b|^2 / (width s))``.

    The biased estimate of Gretton et al. 2012 (JMLR 13): all pairs count. The sum over widths is our reading.
    Distances come from one matrix product of the centred points, so memory is ``(n + m)^2`` and not ``(n + m)^2 d``.

    Args:
        x, y: [n, d] and [m, d], n, m >= 2; float64, float32, bfloat16 or float16.
        widths: of the Gaussian kernels, > 0, in units of s.
        scale: s; None: the mean squared distance of two different points of both samples together. No gradient flows
            through it.

    Returns:
        0-dim, >= 0 but for rounding, float64 for float64 samples, else float32; differentiable, also twice. 0 where all
        points are the same.

    Raises:
        ValueError: shapes that disagree, fewer than 2 points in a sample, widths that are not > 0.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be [n, d] and [m, d]; got shapes {[*x.shape]} and {[*y.shape]}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x and y must have >= 2 points each; got {len(x)} and {len(y)}")
    if not widths or not all(width > 0 for width in widths):
        raise ValueError(f"widths must be > 0, and one of them at least; got {[*widths]}")
    with torch.autocast(x.device.type, enabled=False):  # whose products of 16 bits would drown the distances
        squared = _squared_distances(torch.cat([x, y]).to(compute_dtype(x, y)))
    count = len(squared)
    mean = squared.sum() / (count * (count - 1)) if scale is None else scale
    scale = torch.where(mean > 0, mean, 1.0).detach()
    kernel = gaussian_kernels(squared, widths, scale)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def gaussian_kernels(squared: Tensor, widths: Sequence[float], scale: Tensor) -> Tensor:
    """``sum over widths of exp(-squared / (width scale))``, of squared distances in any shape."""
    return torch.stack([torch.exp(squared / (-width * scale)) for width in widths]).sum(0)


def _squared_distances(points: Tensor) -> Tensor:
    """[n, n], exactly 0 on the diagonal. Centred points lose least where ``|a|^2 + |b|^2 - 2 <a,b>`` cancels."""
    points = points - points.mean(0)
    gram = points @ points.T
    square = gram.diagonal()
    squared = (square[:, None] + square[None, :] - 2 * gram).clamp(min=0)
    return squared.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), 0.0)
