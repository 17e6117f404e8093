"""L1-SP: the distance from the start that keeps most weights where they were, and lets a few go far."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pytl.regularizers.weights import WeightRegularizer, changes, total


def l1_sp(weights: Sequence[Tensor], starts: Sequence[Tensor]) -> Tensor:
    """``sum |w - w0|`` over all elements of all tensors.

    Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018, arXiv:1802.01483.
    The plain absolute value, as in their released code; that code has a variant smoothed by 1e-16 under a root, which
    is not offered. The gradient is ``sign(w - w0)``: 0 at the start, where the value has a corner (our reading).

    Args:
        weights: floating point tensors of any shape.
        starts: w0, one for each weight, of its shape and on its device; any floating point dtype.

    Returns:
        0-dim, on the first weight's device; float32, or float64 where a weight is.

    Raises:
        ValueError: numbers or shapes of tensors disagree.
        TypeError: a tensor that is not floating point.
    """
    return total([change.abs().sum() for change in changes(weights, starts)])


class L1SP(WeightRegularizer):
    """``strength`` times ``l1_sp`` over the transferred weights; arguments as in ``WeightRegularizer``."""

    name = "l1sp"
    formula = staticmethod(l1_sp)
