"""Centroid distance: how far source and target lie apart, in units of their spread."""

from __future__ import annotations

import math

from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, mean, scored, variation
from pytl.analysis.scores.domain_similarity import check_pair

CENTROID_DISTANCE = Measure("centroid distance", "[reading]", 0.0, math.inf, False, ("source samples",))


def centroid_distance(features: Tensor, source_features: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``|mean(F) - mean(F_s)| / s``, ``s^2`` the mean squared distance of a sample to the centroid of its own domain.

    >= 0; 0 for two domains with one centroid, and where no sample differs from any other. That the distance is taken in
    units of the spread is our reading: without, it would grow with the features' scale.

    Args:
        features, source_features: of target and source, [n, d] and [m, d].
        bootstrap, seed: as in `h_score`.

    Raises:
        ValueError: shapes that disagree, values that are not finite, two points that are repeated and nothing else.
    """
    check_pair(features, source_features)
    if math.isinf(_centroid_distance(features, source_features)):
        raise ValueError("features and source_features must differ within a domain; each is one point repeated")
    groups = [(features,), (source_features,)]
    return scored("centroid_distance", CENTROID_DISTANCE, _centroid_distance, groups, bootstrap, seed)


def _centroid_distance(features: Tensor, source: Tensor) -> float:
    centres = mean(features), mean(source)
    squares = [len(of) * variation(of, centre) for of, centre in zip((features, source), centres, strict=True)]
    spread = math.sqrt(float(sum(squares)) / (len(features) + len(source)))
    distance = float((centres[0] - centres[1]).norm())
    return distance / spread if spread > 0 else (math.inf if distance > 0 else 0.0)
