"""H-score: how much of the features' variance the classes explain, plain and regularised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_features, check_labels, mean, scored, variation
from pytl.analysis.scores.spectrum import Spectrum

H_SCORE = Measure("H-score", "Bao et al. 2019 (ICIP)", 0.0, math.inf, True, ("labels",))
REGULARISED = Measure("H-score, regularised", "Ibrahim et al. 2021, arXiv:2110.06893", 0.0, math.inf, True, ("labels",))


def h_score(features: Tensor, labels: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``tr(cov(F)^+ cov(E[F | y]))`` (Bao et al. 2019, ICIP).

    In [0, min(C - 1, d)]: the sum of the squared canonical correlations of features and classes. With more features
    than samples it is C - 1 whatever the features: use `h_score_regularised` there.

    Args:
        features: [n, d], floating point, on any device; float64 inside.
        labels: integers >= 0 [n], of two classes or more.
        bootstrap: draws for a 95% interval; 0: none.
        seed: of the draws.

    Raises:
        ValueError: shapes that disagree, values that are not finite, labels < 0, fewer than two classes.
    """
    check_features(features)
    check_labels(labels, len(features))
    return scored("h_score", H_SCORE, _h_score, [(features, labels)], bootstrap, seed)


def h_score_regularised(features: Tensor, labels: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``tr(((1 - a) cov(F) + a m I)^-1 (1 - a) cov(E[F | y]))``, m the mean variance (Ibrahim et al. 2021).

    The shrinkage a is Ledoit & Wolf's (2004). In [0, min(C - 1, d)]. Arguments and errors as in `h_score`.
    """
    check_features(features)
    check_labels(labels, len(features))
    return scored("h_score_regularised", REGULARISED, _regularised, [(features, labels)], bootstrap, seed)


def _h_score(features: Tensor, labels: Tensor) -> float:
    spectrum = Spectrum.of(features, labels, centred=True)
    return float(_explained(spectrum).sum())


def _regularised(features: Tensor, labels: Tensor) -> float:
    spectrum = Spectrum.of(features, labels, centred=True)
    if not len(spectrum.squares):
        return 0.0
    shrinkage = _ledoit_wolf(features, spectrum)
    variances = spectrum.squares / spectrum.samples
    kept = (1 - shrinkage) * variances
    noise = shrinkage * variances.sum() / spectrum.features
    return float((_explained(spectrum) * kept / (kept + noise)).sum())


def _explained(spectrum: Spectrum) -> Tensor:
    """The share of each singular direction's variance that class means have, [r]."""
    return (spectrum.projections.square() / spectrum.counts).sum(1)


def _ledoit_wolf(features: Tensor, spectrum: Spectrum) -> Tensor:
    """The shrinkage towards m I that has the least expected error, in [0, 1].

    ``b / (n d delta)`` with ``b = (mean |x|^4 - |S|^2)``, ``delta = |S - m I|^2 / d``: |x x^T|^2 is |x|^4, so no matrix
    of squares is needed.
    """
    n, d, centre = len(features), spectrum.features, mean(features)
    variances = spectrum.squares / n
    fourth = variation(features, centre, power=2)
    squared = variances.square().sum()
    delta = squared - variances.sum().square() / d
    beta = (fourth - squared) / n
    return torch.where(delta > 0, (beta / delta).clamp(0, 1), 0.0)
