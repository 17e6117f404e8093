"""Batch spectral shrinkage: the smallest singular values of a batch's features, through their Gram matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytl.ops.features import compute_dtype


def bss(features: Tensor, k: int = 1) -> Tensor:
    """The sum of the ``k`` smallest squared singular values of a batch's features (Chen et al. 2019, NeurIPS).

    They are the smallest eigenvalues of the Gram matrix ``F F^T`` (or ``F^T F``, whichever is smaller), in float64; the
    gradient is ``2 Q Q^T F`` with their eigenvectors Q. It exists where singular values coincide as well: one of its
    subgradients then. Eigenvectors are computed on the CPU, for which CUDA tensors wait once: on a GPU that takes tens
    of times longer.

    Args:
        features: [samples, features], >= 2 of each; float64, float32, bfloat16 or float16.
        k: how many; 1 <= k <= min(samples, features).

    Returns:
        0-dim, float64 for float64 features, else float32; differentiable, once.

    Raises:
        ValueError: another shape, a batch of one, a k out of range, features that are not finite.
    """
    if features.dim() != 2:
        raise ValueError(f"features must be [samples, features]; got shape {[*features.shape]}")
    if features.shape[0] < 2:
        raise ValueError(f"features must be of >= 2 samples, or shrinkage is decay to 0; got {features.shape[0]}")
    if not 1 <= k <= min(features.shape):
        raise ValueError(f"k must be in [1, {min(features.shape)}], the number of singular values; got {k}")
    return _SmallestEigenvalues.apply(features, k)


class _SmallestEigenvalues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, k: int) -> Tensor:
        ctx.wide = features.shape[0] <= features.shape[1]
        rows = (features if ctx.wide else features.T).double()
        gram = (rows @ rows.T).cpu()
        if not gram.isfinite().all():
            raise ValueError("features must be finite; got NaN or infinity")
        values, vectors = torch.linalg.eigh(gram)
        ctx.save_for_backward(features, vectors[:, :k].to(features.device))
        return values[:k].clamp(min=0).sum().to(features.device, compute_dtype(features))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, vectors = ctx.saved_tensors
        dtype = compute_dtype(features)
        vectors, rows = vectors.to(dtype), features.to(dtype)
        shrunk = vectors @ (vectors.T @ rows) if ctx.wide else (rows @ vectors) @ vectors.T
        return (2 * gradient * shrunk).to(features.dtype), None
