"""Directions in the space of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NORMALISATIONS = ("filter", "layer", "none")


def random_direction(weights: Sequence[Tensor], seed: int, normalisation: str = "filter") -> list[Tensor]:
    """A Gaussian direction, normalised to the weights (Li et al. 2018, arXiv:1712.09913).

    Args:
        weights: of which it is a direction.
        seed: of the numbers drawn, on the CPU: one direction on every device.
        normalisation: ``"filter"``: each filter (the weights of one output channel, a row of a matrix) gets the norm
            of its weights; ``"layer"``: each tensor does. With both, biases and normalisations stay where they are, as
            in the paper. ``"none"``: as drawn, everywhere.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}; got {normalisation!r}")
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(w.shape, generator=generator).to(w.device, w.dtype) for w in weights]
    if normalisation == "none":
        return drawn
    return [_normalised(d, w, normalisation) for d, w in zip(drawn, weights, strict=True)]


def _normalised(d: Tensor, w: Tensor, normalisation: str) -> Tensor:
    if w.dim() < 2:
        return torch.zeros_like(d)
    dims = tuple(range(1 if normalisation == "filter" else 0, w.dim()))
    norm = torch.linalg.vector_norm(d, dim=dims, keepdim=True)
    return d * (torch.linalg.vector_norm(w, dim=dims, keepdim=True) / norm.clamp(min=torch.finfo(d.dtype).tiny))


def moved(weights: Sequence[Tensor], *steps: tuple[float, Sequence[Tensor]]) -> list[Tensor]:
    """``w + sum of factor * direction``, copies."""
    result = [w.detach().clone() for w in weights]
    for factor, direction in steps:
        torch._foreach_add_(result, [*direction], alpha=factor)
    return result


def norm(vectors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all together; float64."""
    return float(torch.stack([torch.linalg.vector_norm(v, dtype=torch.float64) for v in vectors]).norm())


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The inner product of all together; float64."""
    return float(torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum())
