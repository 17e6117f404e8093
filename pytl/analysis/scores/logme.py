"""LogME: the evidence that a linear model on the features has for the labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_features, check_labels, scored
from pytl.analysis.scores.spectrum import Spectrum

LOGME = Measure("LogME", "You et al. 2021, arXiv:2102.11005", -math.inf, math.inf, True, ("labels",))

_SPAN = (1e-12, 1e8)  # of t, in units of the largest squared singular value
_POINTS, _ROUNDS = 97, 4  # each round looks closer, at two cells around the best t: at last 1e-5 of t apart
_CHUNK_BYTES = 64 << 20


def logme(features: Tensor, labels: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``mean over classes of max over a, b of log p(y | F, a, b) / n`` (You et al. 2021, arXiv:2102.11005).

    y is one class's one-hot label, ``y ~ N(F w, 1/b)``, ``w ~ N(0, 1/a)``. With ``t = a/b`` and F = U S V^T,

    ``log p = -n/2 (log(2 pi q / n) + 1) - 1/2 (sum log(t + s^2) + (n - r) log t)``,
    ``q = sum (u^T y)^2 / (t + s^2) + (|y|^2 - |U^T y|^2) / t``,

    where the best a has been put in. The best t is searched for on ever finer grids: [reading], the
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
    low, high = (torch.full_like(spectrum.counts, math.log(end * largest)) for end in _SPAN)
    steps = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=features.device)[:, None]
    for _ in range(_ROUNDS):
        log_t = low + (high - low) * steps
        evidence = _evidence(spectrum, log_t)
        best = evidence.max(0)
        middle, cell = log_t.gather(0, best.indices[None])[0], (high - low) / (_POINTS - 1)
        low, high = torch.maximum(low, middle - cell), torch.minimum(high, middle + cell)
    return float(best.values.mean()) / spectrum.samples


def _evidence(spectrum: Spectrum, log_t: Tensor) -> Tensor:
    """The log evidence of each class at several log t, [T, C]."""
    rows = max(1, _CHUNK_BYTES // (8 * max(1, spectrum.projections.numel())))
    return torch.cat([_evidence_of(spectrum, part) for part in log_t.split(rows)])


def _evidence_of(spectrum: Spectrum, log_t: Tensor) -> Tensor:
    n, r, t = spectrum.samples, len(spectrum.squares), log_t.exp()
    damped = t[:, None, :] + spectrum.squares[:, None]
    inside = spectrum.projections.square()
    outside = (spectrum.counts - inside.sum(0)).clamp(min=0) if r < n else 0.0
    q = (inside / damped).sum(1) + outside / t
    fit = -n / 2 * ((2 * math.pi * q / n).log() + 1)
    return fit - (damped.log().sum(1) + (n - r) * log_t) / 2
