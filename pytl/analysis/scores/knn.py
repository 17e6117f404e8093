"""kNN: how often a sample's nearest neighbours have its class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytl.analysis.scores.base import Measure, Score, check_features, check_labels, classes_of, scored

KNN = Measure("kNN accuracy", "Cover & Hart 1967", 0.0, 1.0, True, ("labels",))

_CHUNK_BYTES = 64 << 20


def knn(features: Tensor, labels: Tensor, *, k: int = 5, bootstrap: int = 0, seed: int = 0) -> Score:
    """The share of samples whose k nearest others vote for their class, by Euclidean distance; in [0, 1].

    Leave-one-out: no sample votes for itself. Of classes with as many votes the one with the nearest neighbour wins.
    The interval is of the mean over samples, whose neighbours stay: n^2 d operations, once.

    Args and errors as in `h_score`, and:
        k: >= 1; n - 1 where there are not as many others.
    """
    check_features(features)
    check_labels(labels, len(features))
    if k < 1:
        raise ValueError(f"k must be >= 1; got {k}")
    right = _right(features, labels, min(k, len(features) - 1))
    return scored("knn", KNN, lambda hits: float(hits.mean()), [(right,)], bootstrap, seed)


def _right(features: Tensor, labels: Tensor, k: int) -> Tensor:
    """1 for each sample whose neighbours vote for its class, else 0: float64 [n]."""
    dense, counts = classes_of(labels)
    points = features.double()
    points = points - points.mean(0)  # centred: least is lost where |a|^2 + |b|^2 - 2 <a,b> cancels
    n, squares = len(points), points.square().sum(1)
    rank = torch.arange(k, device=points.device)
    answers = []
    for rows in torch.arange(n, device=points.device).split(max(1, math.floor(_CHUNK_BYTES / (8 * n)))):
        distances = squares[rows, None] + squares - 2 * points[rows] @ points.T
        distances[torch.arange(len(rows), device=points.device), rows] = math.inf
        nearest = distances.topk(k, largest=False).indices
        votes = torch.zeros(len(rows), len(counts), dtype=torch.int64, device=points.device)
        votes.scatter_add_(1, dense[nearest], torch.ones_like(nearest))
        first = torch.full_like(votes, k).scatter_reduce_(1, dense[nearest], rank.expand(len(rows), k), "amin")
        answers.append((votes * (k + 1) - first).argmax(1))
    return (torch.cat(answers) == dense).double()
