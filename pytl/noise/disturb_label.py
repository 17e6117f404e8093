"""DisturbLabel: some labels are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pytl.noise.base import checked

Loss = Callable[[Tensor, Tensor], Tensor]


def disturb_label(labels: Tensor, classes: int, p: float) -> Tensor:
    """With probability p a label is drawn anew, from all classes alike (Xie et al. 2016, arXiv:1605.00055).

    The true one may be drawn as well: it stays with probability ``1 - p (C - 1) / C``. The paper's alpha is 100 p.

    Args:
        labels: integers of any shape; those outside [0, C), such as -100 (ignore_index), stay as they are.
        classes: C.
        p: the probability to draw anew; 0 returns the labels themselves and draws no random numbers.

    Raises:
        TypeError: labels are no integers.
        ValueError: p is out of range, or classes < 2.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers; got {labels.dtype}")
    if classes < 2:
        raise ValueError(f"classes must be >= 2; got {classes}")
    if checked(p) == 0:
        return labels
    chosen = (torch.rand(labels.shape, device=labels.device) < p) & (labels >= 0) & (labels < classes)
    return torch.where(chosen, torch.randint_like(labels, classes), labels)


def disturbed(loss: Loss, p: float) -> Loss:
    """``loss(logits, disturb_label(labels, C, p))`` where logits need a gradient; under no_grad, the loss itself.

    Our reading of where that is: a loss is not told of training and evaluation, but evaluation needs no gradient.

    Args:
        loss: (logits [B, C, ...], labels [B, ...]) -> mean over the batch; or logits [C], a label [].
        p: the probability to draw anew.

    Raises:
        ValueError: p is out of range; from the loss, fewer than 2 classes.
    """
    checked(p)

    def disturbed_loss(logits: Tensor, labels: Tensor) -> Tensor:
        if not logits.requires_grad:
            return loss(logits, labels)
        return loss(logits, disturb_label(labels, logits.shape[min(1, logits.dim() - 1)], p))

    return disturbed_loss
