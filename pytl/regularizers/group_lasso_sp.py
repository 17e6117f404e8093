"""Group-Lasso-SP: whole output channels stay where they were, or move together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pytl.regularizers.weights import WeightRegularizer, changes, total


def group_lasso_sp(weights: Sequence[Tensor], starts: Sequence[Tensor]) -> Tensor:
    """``sum_k sqrt(n_k) * (sqrt(|w_k - w0_k|^2 + 1e-16) - 1e-8)``: Group-Lasso-SP, a group an output channel.

    Group k is one index of a tensor's first dimension (``Linear``, ``Conv``: what feeds an output channel), n_k its
    number of elements; a tensor of one dimension or none is one group. Layers that keep their outputs in another
    dimension (``ConvTranspose``, transformers' ``Conv1D``) are grouped by their inputs.

    Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018, arXiv:1802.01483.
    Groups, sqrt(n_k) and the smoothing by 1e-16 are those of their released code, which knows kernels of four
    dimensions only. Our reading: the other shapes, and that 1e-8 is taken off each norm, which changes no gradient and
    makes the value exactly 0 at the start.

    Args:
        weights: floating point tensors of any shape.
        starts: w0, one for each weight, of its shape and on its device; any floating point dtype.

    Returns:
        0-dim, on the first weight's device; float32, or float64 where a weight is.

    Raises:
        ValueError: numbers or shapes of tensors disagree.
        TypeError: a tensor that is not floating point.
    """
    return total([_sum_of_norms(change) for change in changes(weights, starts)])


def _sum_of_norms(change: Tensor) -> Tensor:
    groups = change.flatten(1) if change.dim() > 1 else change.reshape(1, -1)
    squares = groups.square().sum(dim=1)
    norms = squares / (torch.sqrt(squares + 1e-16) + 1e-8)  # sqrt(squares + 1e-16) - 1e-8, without cancellation
    return math.sqrt(groups.shape[1]) * norms.sum()


class GroupLassoSP(WeightRegularizer):
    """``strength`` times ``group_lasso_sp`` over the transferred weights; arguments as in ``WeightRegularizer``."""

    name = "grouplassosp"
    formula = staticmethod(group_lasso_sp)
