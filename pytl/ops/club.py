"""CLUB: an upper bound of mutual information, and the Gaussian that it needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytl.ops.features import compute_dtype


@dataclass(frozen=True)
class Gaussian:
    """``q(y|x) = N(weight' (x - centre) + offset, diag(variance))``.

    Attributes:
        weight: [k, d].
        centre: [k].
        offset, variance: [d].
    """

    weight: Tensor
    centre: Tensor
    offset: Tensor
    variance: Tensor

    @classmethod
    @torch.no_grad()
    def fitted(cls, x: Tensor, y: Tensor, ridge: float | None = None) -> Gaussian:
        """The one of greatest likelihood, by least squares: no steps, no learning rate.

        Args:
            x, y: [n, k] and [n, d], n >= 2.
            ridge: added to x's variances, in units of their mean; None: k / n, because k numbers fitted to n samples
                explain that share of noise (our reading).

        Raises:
            ValueError: shapes that disagree, or fewer than 2 samples.
        """
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 2:
            raise ValueError(f"x and y must be [n, k] and [n, d], n >= 2; got {[*x.shape]} and {[*y.shape]}")
        dtype, (n, k) = compute_dtype(x, y), x.shape
        x, y = x.to(dtype), y.to(dtype)
        centre, offset = x.mean(0), y.mean(0)
        covariance = (x - centre).T @ (x - centre) / n
        scale = covariance.diagonal().mean()
        floor = (k / n if ridge is None else ridge) * torch.where(scale > 0, scale, 1.0)
        diagonal = floor * torch.eye(k, dtype=dtype, device=x.device)
        weight = torch.linalg.solve(covariance + diagonal, (x - centre).T @ (y - offset) / n)
        variance = (y - offset - (x - centre) @ weight).square().mean(0)
        least = 1e-3 * variance.mean() + torch.finfo(dtype).tiny  # a constant y must not divide by 0
        return cls(weight, centre, offset, variance + least)

    def mean(self, x: Tensor) -> Tensor:
        """Of y given each x, [n, d]; differentiable."""
        return (x.to(self.weight.dtype) - self.centre) @ self.weight + self.offset


def club(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``mean over i of log q(y_i|x_i) - mean over i, j of log q(y_j|x_i)``, in nats; ``q = N(mean, diag(variance))``.

    The contrastive log-ratio upper bound of I(x; y) (Cheng et al. 2020, arXiv:2006.12013): a bound where q is the true
    conditional. All pairs count, at the cost of n x d: the mean over j of ``(y_j - mean_i)^2`` is y's variance and the
    square of ``mean_i - mean(y)``.

    Args:
        y: [n, d], n >= 2; float64, float32, bfloat16 or float16.
        mean: of q(.|x_i), [n, d].
        variance: [d] or [n, d], > 0.

    Returns:
        0-dim, float64 for float64 samples, else float32; differentiable, also twice. Below 0 where q says less of its
        own y than of the others'.

    Raises:
        ValueError: shapes that disagree, or fewer than 2 samples.
    """
    if y.dim() != 2 or y.shape != mean.shape or variance.shape not in (y.shape, y.shape[1:]):
        shapes = f"{[*y.shape]}, {[*mean.shape]} and {[*variance.shape]}"
        raise ValueError(f"y, mean and variance must be [n, d], [n, d] and [d] or [n, d]; got {shapes}")
    if len(y) < 2:
        raise ValueError(f"y must have >= 2 samples; got {len(y)}")
    with torch.autocast(y.device.type, enabled=False):
        dtype = compute_dtype(y, mean)
        y, mean, variance = y.to(dtype), mean.to(dtype), variance.to(dtype)
        others = y.var(0, correction=0) + (mean - y.mean(0)).square()
        return ((others - (y - mean).square()) / (2 * variance)).sum(1).mean()
