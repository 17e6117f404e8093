"""TransRate: how much shorter features are coded when their classes are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_features, check_labels, classes_of, gram, mean, scored

TRANSRATE = Measure("TransRate", "Huang et al. 2022, arXiv:2106.09362", 0.0, math.inf, True, ("labels",))


def transrate(features: Tensor, labels: Tensor, *, eps: float = 1e-4, bootstrap: int = 0, seed: int = 0) -> Score:
    """``R(Z) - sum over classes of n_c / n R(Z_c)``, ``R(Z) = 1/2 log det(I + Z^T Z / (n eps))``.

    An estimate of the mutual information of features and classes, in nats (Huang et al. 2022, arXiv:2106.09362). Z are
    the features less their mean; Z_c those of a class. Class terms are weighted by their samples; the released code
    weights them alike, which is the same for classes of one size. >= 0.

    Args and errors as in `h_score`, and:
        eps: the distortion allowed, > 0.
    """
    check_features(features)
    check_labels(labels, len(features))
    if not eps > 0:
        raise ValueError(f"eps must be > 0; got {eps}")
    return scored("transrate", TRANSRATE, lambda f, y: _transrate(f, y, eps), [(features, labels)], bootstrap, seed)


def _transrate(features: Tensor, labels: Tensor, eps: float) -> float:
    centre, n = mean(features), len(features)
    dense, counts = classes_of(labels)
    whole = _rate(features, centre, eps)
    parts = sum(len(own) / n * _rate(own, centre, eps) for own in (features[dense == c] for c in range(len(counts))))
    return max(0.0, whole - parts)


def _rate(features: Tensor, centre: Tensor, eps: float) -> float:
    """``1/2 log det(I + Z^T Z / (n eps))``, of the smaller of both Gram matrices, whose determinants are the same."""
    squares = torch.linalg.eigvalsh(gram(features, centre))
    kept = squares > max(features.shape) * torch.finfo(torch.float64).eps * squares[-1]
    return float((squares[kept] / (len(features) * eps)).log1p().sum()) / 2
