"""What features know of a task: a linear classifier's accuracy on them."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_probe(
    train: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, ridge: float = 1e-2
) -> float:
    """The accuracy on held-out samples of the linear classifier that fits the training samples' labels best.

    By least squares to one-hot labels, ``min |X W - Y|^2 / n + ridge s |W|^2`` with s the mean variance of a feature
    and X, Y centred: one solve in float64, of the smaller of n and d, and no steps to choose.

    Args:
        train, held_out: [n, d] and [m, d], any floating point dtype.
        labels, held_out_labels: integers [n] and [m].
        ridge: > 0; it keeps the solution finite where features are constant or fewer samples than features.

    Returns:
        In [0, 1]; of features that are constant, the share of the most frequent class.

    Raises:
        ValueError: shapes that disagree, or no samples.
    """
    shapes = f"{[*train.shape]}, {[*labels.shape]}, {[*held_out.shape]}, {[*held_out_labels.shape]}"
    fit = train.dim() == held_out.dim() == 2 and train.shape[1] == held_out.shape[1]
    if not fit or labels.shape != train.shape[:1] or held_out_labels.shape != held_out.shape[:1]:
        raise ValueError(f"train, labels, held_out and its labels must be [n, d], [n], [m, d], [m]; got {shapes}")
    if not len(train) or not len(held_out):
        raise ValueError(f"train and held_out must have >= 1 sample each; got {len(train)} and {len(held_out)}")
    classes, targets = labels.unique(return_inverse=True)
    y = torch.nn.functional.one_hot(targets, len(classes)).double()
    x, centre, prior = train.double(), train.double().mean(0), y.mean(0)
    scores = (held_out.double() - centre) @ _ridge(x - centre, y - prior, ridge) + prior
    return float((classes[scores.argmax(1)] == held_out_labels).double().mean())


def _ridge(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """[d, classes], through the Gram matrix of samples where they are fewer than features."""
    n, d = x.shape
    variance = x.square().mean()
    strength = ridge * n * torch.where(variance > 0, variance, 1.0)
    if n < d:
        return x.T @ torch.linalg.solve(x @ x.T + strength * torch.eye(n, dtype=x.dtype, device=x.device), y)
    return torch.linalg.solve(x.T @ x + strength * torch.eye(d, dtype=x.dtype, device=x.device), x.T @ y)
