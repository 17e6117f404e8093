"""LEEP: how likely target labels are, given the source head's answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import (
    Measure,
    Score,
    check_features,
    check_labels,
    chunks,
    class_sums,
    classes_of,
    scored,
)

LEEP = Measure("LEEP", "Nguyen et al. 2020, arXiv:2002.12462", -math.inf, 0.0, True, ("labels", "source head"))

_SUM = 2.0**-8  # by which a row of probabilities may miss 1, for 16-bit ones


def leep(probabilities: Tensor, labels: Tensor, *, bootstrap: int = 0, seed: int = 0) -> Score:
    """``mean over samples of log sum_z p(y | z) p(z | x)`` (Nguyen et al. 2020, arXiv:2002.12462).

    ``p(y | z) = sum over samples of class y of p(z | x) / sum over all of p(z | x)``. In nats, <= 0; a source class to
    which no sample has probability counts for nothing.

    Args:
        probabilities: ``p(z | x)``, [n, Z], rows that sum to one: the source head's softmax.
        labels: integers >= 0 [n], the target's.
        bootstrap, seed: as in `h_score`.

    Raises:
        ValueError: as in `h_score`; probabilities that are < 0 or do not sum to one.
    """
    check_features(probabilities, "probabilities")
    check_labels(labels, len(probabilities))
    for _, rows in chunks(probabilities.detach()):
        if float(rows.min()) < 0 or float((rows.sum(1) - 1).abs().max()) > _SUM:
            raise ValueError("probabilities must be >= 0 and sum to one in each row: give softmax(logits)")
    return scored("leep", LEEP, _leep, [(probabilities, labels)], bootstrap, seed)


def _leep(probabilities: Tensor, labels: Tensor) -> float:
    dense, counts = classes_of(labels)
    joint = class_sums(probabilities, dense, len(counts))
    given = torch.where(joint.sum(0) > 0, joint / joint.sum(0), 0.0)
    total = 0.0
    for rows, part in chunks(probabilities):
        total += float((part * given[dense[rows]]).sum(1).log().sum())
    return min(0.0, total / len(labels))
