from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pytl.directions import Direction, find
from pytl.ops.operands import GroupOptions, Operands
from pytl.ops.step import functional_step, runner


@dataclass
class SGDOptions(GroupOptions):
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False


def formula(d: Tensor, o: Operands, step: int, group: GroupOptions) -> Tensor:
    """What csrc/formulas/sgd.h says, on whole tensors."""
    assert isinstance(group, SGDOptions)
    if group.momentum == 0:
        return group.lr * d
    (buffer,) = o.states
    inflow = 1 if o.fresh else 1 - group.dampening
    buffer.copy_(group.momentum * buffer + inflow * d)
    return group.lr * (d + group.momentum * buffer if group.nesterov else buffer)


run = runner("sgd", formula)


def sgd_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    starts: Sequence[Tensor | None] | None = None,
    penalties: Sequence[Tensor | None] | None = None,
    compensations: Sequence[Tensor | None] | None = None,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    sp_decay: float = 0.0,
    decoupled: bool = False,
    direction: str | Direction = "sum",
    granularity: str = "tensor",
    max_grad_norm: float | None = None,
    maximize: bool = False,
    fused: bool | None = None,
) -> Tensor:
    """One SGD step in place; the functional form of ``pytl.SGD``.

    With the task's gradient g, the pull ``r = sp_decay * (w - w0) + weight_decay * w`` and the penalty's gradient h:
    coupled, ``d = c_g * g + c_r * (r + h)`` feeds the momentum; decoupled, g and h do, and ``lr`` times r, projected
    on its own, moves the weight beside it. Then, as in ``torch.optim.SGD``,
    ``b = momentum * b + (1 - dampening) * d`` (``b = d`` where it is new) and ``w -= lr * b``.

    Args:
        params, grads, starts, penalties: as in ``pytl.ops.gram``.
        momentum_buffers: float64 for float64 weights, else float32 or bfloat16, zeros at first; ``[]`` for no momentum.
        steps: 0-dim float32 tensors on the CPU: steps taken so far.
        compensations: for 16-bit weights, what rounding lost (Kahan), dtypes as ``params``; zeros at first.
        max_grad_norm: bound on the norm of what feeds the momentum, over all tensors.

    Returns:
        The Gram numbers of the look that the step took, float64 ``[n, 3]``.

    Raises:
        ValueError, TypeError, RuntimeError: before anything is changed.
    """
    states = [momentum_buffers] if momentum else []
    optional = {"start": starts, "penalty": penalties, "compensation": compensations, "step": steps}
    operands = Operands.lists(params, grads, states=states, **optional)
    for one in operands:
        one.fresh = int(one.step) == 0
    common = (lr, sp_decay, weight_decay, decoupled, find(direction), granularity, -1.0 if maximize else 1.0)
    return functional_step(operands, SGDOptions(*common, momentum, dampening, nesterov), run, fused, max_grad_norm)
