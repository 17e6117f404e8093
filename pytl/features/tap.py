"""An identity in the network's graph through which a penalty's gradient joins the task's, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Gradient = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(features, gradient of the value, task's gradient or None) -> the sum of both gradients for the features."""


class Tap:
    """The place of one forward pass where a penalty may be added to what comes back."""

    def __init__(self) -> None:
        self.pending: Callable[[Tensor, Tensor | None], Tensor] | None = None

    def onward(self, features: Tensor, copied: bool) -> Tensor:
        """What the network goes on with: the features, or a copy for layers that overwrite their input."""
        return _Onward.apply(features, self, copied)

    def value(self, onward: Tensor, value: Tensor, gradient: Gradient) -> Tensor:
        """``value``, differentiable with respect to the features by ``gradient``."""
        return _Value.apply(onward, value, self, gradient)


class _Onward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, tap: Tap, copied: bool) -> Tensor:
        ctx.tap = tap
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features)
        return features.clone() if copied else features.view_as(features)

    @staticmethod
    def backward(ctx: Any, task: Tensor | None) -> tuple[Tensor | None, None, None]:
        (features,) = ctx.saved_tensors
        pending, ctx.tap.pending = ctx.tap.pending, None
        return (pending(features, task) if pending else task), None, None


class _Value(torch.autograd.Function):
    """The graph's edge to the tap makes autograd come here first; what goes along it is left in the tap instead."""

    @staticmethod
    def forward(ctx: Any, onward: Tensor, value: Tensor, tap: Tap, gradient: Gradient) -> Tensor:
        ctx.tap, ctx.gradient = tap, gradient
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        formula: Gradient = ctx.gradient
        ctx.tap.pending = partial(_both, formula, gradient)
        return None, None, None, None


def _both(formula: Gradient, gradient: Tensor, features: Tensor, task: Tensor | None) -> Tensor:
    return formula(features, gradient, task)
