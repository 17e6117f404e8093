"""LogME: the evidence that a linear model on the features has for the labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_features, check_labels, scored
from pytl.analysis.scores.spectrum import Spectrum

LOGME = Measure("LogME", "You et al. 2021, arXiv:2102.11005", -math.inf, math.inf, True, ("labels",))

_GRID = 160
_SPAN = (1e-12, 1e8)  # of t, in units of the largest squared singular value
_GOLDEN = (math.sqrt(5) - 1) / 2
_REFINEMENTS = 45  # of a bracket of two grid cells: to 4e-10 of it


def logme(features: Tensor, labels: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``mean over classes of max over a, b of log p(y | F, a, b) / n`` (You et al. 2021, arXiv:2102.11005).

    y is one class's one-hot label, ``y ~ N(F w, 1/b)``, ``w ~ N(0, 1/a)``. With ``t = a/b`` and F = U S V^T,

    ``log p = -n/2 (log(2 pi q / n) + 1) - 1/2 (sum log(t + s^2) + (n - r) log t)``,
    ``q = sum (u^T y)^2 / (t + s^2) + (|y|^2 - |U^T y|^2) / t``,

    where the best a has been put in. The best t is searched for on a grid and then by golden sections: [reading], the
    released code alternates between a and b, to the same maximum where that converges. t stays within 1e-12 and 1e8 of
    the largest s^2, so that labels which features give exactly, or not at all, have a finite value.

    Args and errors as in `h_score`. Any real number; about -0.4 to 1.5 in the paper's tables.
    """
    check_features(features)
    check_labels(labels, len(features))
    return scored("logme", LOGME, _logme, [(features, labels)], bootstrap, seed)


def _logme(features: Tensor, labels: Tensor) -> float:
    spectrum = Spectrum.of(features, labels, centred=False)
    largest = float(spectrum.squares[0]) if len(spectrum.squares) else 1.0
    low, high = (math.log(end * largest) for end in _SPAN)
    grid = torch.linspace(low, high, _GRID, dtype=torch.float64, device=features.device)
    cell = float(grid[1] - grid[0])
    values = torch.stack([_evidence(spectrum, t.expand(len(spectrum.counts))) for t in grid])
    best = grid[values.argmax(0)]
    found = _golden_section(spectrum, (best - cell).clamp(min=low), (best + cell).clamp(max=high))
    return float(torch.maximum(found, values.amax(0)).mean()) / spectrum.samples


def _evidence(spectrum: Spectrum, log_t: Tensor) -> Tensor:
    """The log evidence of each class, [C], at the log of its t."""
    n, r, t = spectrum.samples, len(spectrum.squares), log_t.exp()
    damped = t + spectrum.squares[:, None]
    inside = spectrum.projections.square()
    outside = (spectrum.counts - inside.sum(0)).clamp(min=0) if r < n else 0.0
    q = (inside / damped).sum(0) + outside / t
    fit = -n / 2 * ((2 * math.pi * q / n).log() + 1)
    return fit - (damped.log().sum(0) + (n - r) * log_t) / 2


def _golden_section(spectrum: Spectrum, low: Tensor, high: Tensor) -> Tensor:
    """The highest evidence of each class between two log t, where it rises and then falls."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = _evidence(spectrum, left), _evidence(spectrum, right)
    for _ in range(_REFINEMENTS):
        rises = at_left < at_right
        low, high = torch.where(rises, left, low), torch.where(rises, high, right)
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_left, at_right = _evidence(spectrum, left), _evidence(spectrum, right)
    return torch.maximum(at_left, at_right)
