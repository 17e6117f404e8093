"""Domain similarity: how far the source's classes must be moved to lie where the target's lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_features, check_labels, class_sums, classes_of, scored
from pytl.extras import require

DOMAIN_SIMILARITY = Measure(
    "domain similarity (EMD)", "Cui et al. 2018, arXiv:1806.06193", 0.0, 1.0, True, ("labels", "source samples")
)


def domain_similarity(
    features: Tensor,
    labels: Tensor,
    source_features: Tensor,
    source_labels: Tensor,
    *,
    gamma: float = 0.01,
    bootstrap: int = 0,
    seed: int = 0,
) -> Score:
    """``exp(-gamma EMD)`` of class means, weighted by their samples (Cui et al. 2018, arXiv:1806.06193).

    EMD is the earth mover's distance, with Euclidean distances of means for a ground, by the POT library. In (0, 1]; 1
    where each target class has its like in the source. It depends on the features' unit: compare it by one network.

    Args:
        features, labels: of the target, [n, d] and integers >= 0 [n].
        source_features, source_labels: of the source, [m, d] and [m].
        gamma: > 0; the paper's 0.01.
        bootstrap, seed: as in `h_score`; source and target are drawn, each from its own.

    Raises:
        ValueError: as in `h_score`; other features than the source's, gamma <= 0.
        ImportError: POT is missing.
    """
    _check(features, labels, source_features, source_labels, gamma)
    groups = [(features, labels), (source_features, source_labels)]
    return scored(
        "domain_similarity", DOMAIN_SIMILARITY, lambda *of: math.exp(-gamma * _emd(*of)), groups, bootstrap, seed
    )


def _check(features: Tensor, labels: Tensor, source: Tensor, source_labels: Tensor, gamma: float) -> None:
    check_pair(features, source)
    check_labels(labels, len(features), least_classes=1)
    check_labels(source_labels, len(source), "source_labels", least_classes=1)
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be > 0 and finite; got {gamma}")
    require("ot", "analysis")


def check_pair(features: Tensor, source_features: Tensor) -> None:
    """Raises ValueError where target and source have not the same features."""
    check_features(features)
    check_features(source_features, "source_features")
    if features.shape[1] != source_features.shape[1]:
        raise ValueError(
            f"source_features must have the target's {features.shape[1]} features; got {source_features.shape[1]}"
        )


def _emd(features: Tensor, labels: Tensor, source: Tensor, source_labels: Tensor) -> float:
    (means, weights), (source_means, source_weights) = _clouds(features, labels), _clouds(source, source_labels)
    ground = torch.cdist(means, source_means, compute_mode="donot_use_mm_for_euclid_dist")  # which cancels
    library = require("ot", "analysis")
    return float(library.emd2(*(of.cpu().numpy() for of in (weights, source_weights, ground))))


def _clouds(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each class, [C, d], and its share of the samples, [C]."""
    dense, counts = classes_of(labels)
    return class_sums(features, dense, len(counts)) / counts[:, None], counts / counts.sum()
