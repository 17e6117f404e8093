"""Features in their singular directions: all that H-score and LogME need to know of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytl.analysis.scores.base import class_sums, classes_of, gram, mean


@dataclass(frozen=True)
class Spectrum:
    """``F = U S V^T`` and one-hot labels Y, by what is left of both: S and ``U^T Y``.

    Attributes:
        squares: S^2 of the r directions in which features differ, descending, float64 [r].
        projections: ``U^T Y``, float64 [r, C].
        counts: samples of each class, float64 [C].
        features: d, constant ones included.
    """

    squares: Tensor
    projections: Tensor
    counts: Tensor
    features: int

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, *, centred: bool) -> Spectrum:
        """Through the Gram matrix of features, or of samples where they are fewer, in float64.

        Directions whose S^2 is below ``max(n, d)`` times float64's epsilon of the largest are rounding, and left out.
        Cost: ``2 n d min(n, d)`` operations and the eigenvalues of a matrix of min(n, d); memory: that matrix, three
        times, and 64 MiB.
        """
        dense, counts = classes_of(labels)
        centre = mean(features) if centred else None
        n, d = features.shape
        squares, vectors = torch.linalg.eigh(gram(features, centre))
        kept = squares > max(n, d) * torch.finfo(torch.float64).eps * squares[-1].clamp(min=0)
        squares, vectors = squares[kept].flip(0), vectors[:, kept].flip(1)
        if d <= n:
            sums = class_sums(features, dense, len(counts), centre)
            projections = (vectors.T @ sums.T) / squares.sqrt()[:, None]
        else:
            projections = torch.zeros(len(squares), len(counts), dtype=torch.float64, device=features.device)
            projections.index_add_(1, dense, vectors.T)
        return cls(squares, projections, counts, d)
