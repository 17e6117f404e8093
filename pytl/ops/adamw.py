from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytl.directions import Direction, find
from pytl.ops.operands import GroupOptions, Operands
from pytl.ops.step import functional_step, runner


@dataclass
class AdamWOptions(GroupOptions):
    beta1: float | Tensor = 0.9
    beta2: float | Tensor = 0.999
    eps: float = 1e-8
    amsgrad: bool = False


def formula(d: Tensor, o: Operands, step: int, group: GroupOptions) -> Tensor:
    """What csrc/formulas/adamw.h says, on whole tensors."""
    assert isinstance(group, AdamWOptions)
    mean, square = o.states[:2]
    mean.copy_(group.beta1 * mean + (1 - group.beta1) * d)
    square.copy_(group.beta2 * square + (1 - group.beta2) * d * d)
    if group.amsgrad:
        square = o.states[2].copy_(torch.maximum(o.states[2], square))
    corrected_lr = group.lr / (1 - group.beta1**step)
    denominator = square.sqrt() / math.sqrt(1 - group.beta2**step) + group.eps
    return torch.where(mean == 0, 0.0, corrected_lr * mean / denominator)


run = runner("adamw", formula)


def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    *,
    starts: Sequence[Tensor | None] | None = None,
    penalties: Sequence[Tensor | None] | None = None,
    compensations: Sequence[Tensor | None] | None = None,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    sp_decay: float = 0.0,
    decoupled: bool = True,
    direction: str | Direction = "sum",
    granularity: str = "tensor",
    max_grad_norm: float | None = None,
    maximize: bool = False,
    fused: bool | None = None,
) -> Tensor:
    """One AdamW step in place; the functional form of ``pytl.AdamW``. AMSGrad where ``max_exp_avg_sqs`` is given.

    With the task's gradient g, the pull ``r = sp_decay * (w - w0) + weight_decay * w`` and the penalty's gradient h:
    decoupled, ``d = g + h`` feeds the moments and ``lr`` times r moves the weight beside them, h and r each projected
    by the direction on its own; coupled, ``d = c_g * g + c_r * (r + h)`` feeds them. Then, as in ``torch.optim.AdamW``,
    ``w -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)``; 0/0 counts as 0.

    Args:
        params, grads, starts, penalties: as in ``pytl.ops.gram``.
        exp_avgs, exp_avg_sqs, max_exp_avg_sqs: float64 for float64 weights, else float32 or bfloat16.
        steps, compensations, max_grad_norm: as in ``pytl.ops.sgd_step``.

    Returns:
        The Gram numbers of the look that the step took, float64 ``[n, 3]``.

    Raises:
        ValueError, TypeError, RuntimeError: before anything is changed.
    """
    amsgrad = max_exp_avg_sqs is not None
    states = [exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if max_exp_avg_sqs is not None else [])]
    optional = {"start": starts, "penalty": penalties, "compensation": compensations, "step": steps}
    operands = Operands.lists(params, grads, states=states, **optional)
    common = (lr, sp_decay, weight_decay, decoupled, find(direction), granularity, -1.0 if maximize else 1.0)
    return functional_step(operands, AdamWOptions(*common, beta1, beta2, eps, amsgrad), run, fused, max_grad_norm)
