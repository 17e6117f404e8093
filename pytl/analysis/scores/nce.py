"""NCE: what source labels tell of target labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_labels, classes_of, scored

NCE = Measure("NCE", "Tran et al. 2019, arXiv:1908.08142", -math.inf, 0.0, True, ("labels", "source head"))


def nce(source_labels: Tensor, labels: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``-H(y | z)``, the negative conditional entropy in nats of the empirical joint distribution (Tran et al. 2019).

    In [-log C, 0]; 0 where the source's label settles the target's. Source classes that do not occur count for nothing.

    Args:
        source_labels: integers >= 0 [n]: the same samples by the source's classes, known or as its head answers.
        labels: integers >= 0 [n], the target's.
        bootstrap, seed: as in `h_score`.

    Raises:
        ValueError: shapes that disagree, no samples, labels < 0, fewer than two target classes.
    """
    check_labels(labels, labels.numel())
    check_labels(source_labels, labels.numel(), "source_labels", least_classes=1)
    return scored("nce", NCE, _nce, [(source_labels, labels)], bootstrap, seed)


def _nce(source_labels: Tensor, labels: Tensor) -> float:
    (z, z_counts), (y, y_counts) = classes_of(source_labels), classes_of(labels)
    joint = torch.zeros(len(z_counts), len(y_counts), dtype=torch.float64, device=labels.device)
    joint.index_put_((z, y), torch.ones((), dtype=torch.float64, device=labels.device), accumulate=True)
    return float(torch.xlogy(joint, joint / joint.sum(1, keepdim=True)).sum()) / len(labels)
