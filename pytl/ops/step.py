"""What the steps of all optimizers share. The PyTorch text below is held against csrc/cpu/loops.cpp and step.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .direction_weights import clip_factor, direction_weights, squared_norm
from .tensor_list import GRAM_COLUMNS, GroupOptions, Operands, TensorList, compute_dtype

Formula = Callable[[Tensor, Operands, int, GroupOptions], Tensor]
"""d, the operands, the number of this step, the options -> what is subtracted from the weight; updates the states."""

Run = Callable[[TensorList, Sequence[Any], Tensor | None, Tensor], None]
"""A list, its groups' options, the weights or None, the rows: takes the optimizer's step."""


def pull(w: Tensor, w0: Tensor | None, sp_decay: float, weight_decay: float) -> Tensor:
    """The gradient of L2-SP: ``r = sp_decay * (w - w0) + weight_decay * w`` (arXiv:1802.01483)."""
    r = weight_decay * w
    return r if w0 is None or sp_decay == 0 else r + sp_decay * (w - w0)


class Terms:
    """One parameter's weight w, task gradient g, pull r and penalty gradient h, widened; r and h None where absent."""

    def __init__(self, o: Operands, group: GroupOptions) -> None:
        dtype = compute_dtype(o.weight.dtype)
        self.w = o.weight.to(dtype) if o.compensation is None else o.weight.to(dtype) + o.compensation.to(dtype)
        self.g = group.gradient_factor * o.gradient.to(dtype)
        self.h = None if o.penalty is None else o.penalty.to(dtype)
        self.r = None
        if (o.start is not None and group.sp_decay) or group.weight_decay:
            w0 = None if o.start is None else o.start.to(dtype)
            self.r = pull(self.w, w0, group.sp_decay, group.weight_decay)
        if not group.decoupled:
            self.r, self.h = _sum(self.r, self.h), None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def dot(a: Tensor | None, b: Tensor | None) -> Tensor | float:
    return 0.0 if a is None or b is None else (a.double() * b.double()).sum()


def reference_gram(tensors: TensorList, groups: Sequence[GroupOptions], rows: Tensor) -> None:
    """Fills ``rows`` ``[n, 5]`` with the Gram numbers of each parameter."""
    for row, o in zip(rows, tensors.operands, strict=True):
        t = Terms(o, groups[o.group])
        pairs = ((t.g, t.g), (t.g, t.r), (t.r, t.r), (t.g, t.h), (t.h, t.h))
        for column, (a, b) in enumerate(pairs):
            row[column] = dot(a, b)


def reference_step(
    tensors: TensorList, groups: Sequence[GroupOptions], weights: Tensor | None, rows: Tensor, formula: Formula
) -> None:
    """Takes the step. Without ``weights`` ``[n, 4]`` each group's direction gives them, tensor by tensor."""
    if weights is None:
        with torch.no_grad():
            reference_gram(tensors, groups, rows)
            weights = step_weights(rows, [groups[o.group] for o in tensors.operands])
    for o, (moments_g, moments_r, beside_g, beside_r) in zip(tensors.operands, weights.tolist(), strict=True):
        group = groups[o.group]
        t = Terms(o, group)
        d, beside = moments_g * t.g, None
        if group.decoupled:
            d = d if t.h is None else d + moments_r * t.h
            beside = None if t.r is None else group.lr * (beside_g * t.g + beside_r * t.r)
        elif t.r is not None:
            d = d + moments_r * t.r
        step = formula(d, o, int(o.step) + 1, group)
        _store(o, t.w - (step if beside is None else step + beside))
        o.step += 1


def _store(o: Operands, w: Tensor) -> None:
    """Rounds to the weight's dtype; what that loses stays in the compensation (Kahan)."""
    o.weight.copy_(w)
    if o.compensation is not None:
        o.compensation.copy_(w - o.weight.to(w.dtype))


def step_weights(gram: Tensor, groups: Sequence[GroupOptions]) -> Tensor:
    """Rows ``[n, 4]`` of what to take of g and of the regulariser, from Gram numbers ``[n, 5]`` and each row's group.

    Coupled, one direction feeds the moments. Decoupled, the penalty feeds them and the pull moves the weight beside
    them; each is joined with g on its own, and g itself is not taken twice.
    """
    pull_weights, penalty_weights = gram.new_empty(len(gram), 2), gram.new_empty(len(gram), 2)
    for rule in {(g.direction, g.granularity): None for g in groups}:
        of_rule = torch.tensor([(g.direction, g.granularity) == rule for g in groups], device=gram.device)
        pull_weights[of_rule] = direction_weights(gram[of_rule, :3], *rule)
        penalty_weights[of_rule] = direction_weights(gram[of_rule][:, [0, 3, 4]], *rule)
    decoupled = torch.tensor([[g.decoupled] for g in groups], device=gram.device)
    beside = torch.where(decoupled, pull_weights - pull_weights.new_tensor([1.0, 0.0]), 0.0)
    return torch.cat([torch.where(decoupled, penalty_weights, pull_weights), beside], dim=1)


def clip(weights: Tensor, gram: Tensor, groups: Sequence[GroupOptions], max_grad_norm: float) -> None:
    """Scales what feeds the moments so that its norm over all tensors is at most ``max_grad_norm``."""
    decoupled = torch.tensor([[g.decoupled] for g in groups], device=gram.device)
    fed = torch.where(decoupled, gram[:, [0, 3, 4]], gram[:, :3])
    squared_norms = squared_norm(fed, weights[:, :2])
    weights[:, :2] *= torch.where(squared_norms.isfinite(), clip_factor(squared_norms, max_grad_norm), 1.0)[:, None]


def look_and_step(
    lists: Sequence[TensorList],
    groups: Sequence[GroupOptions],
    run: Run,
    rows: Tensor,
    max_grad_norm: float | None = None,
) -> None:
    """One step of all lists; ``rows`` ``[n, 5]`` receives the Gram numbers, list after list.

    Where each tensor decides for itself by a rule of the core, a list is one call; else all tensors are looked at
    before any is changed.
    """
    parts = _split(rows, lists)
    if max_grad_norm is None and all(g.granularity == "tensor" and g.direction.rule for g in groups):
        for tensors, part in zip(lists, parts, strict=True):
            run(tensors, groups, None, part)
        return
    for tensors, part in zip(lists, parts, strict=True):
        look(tensors, groups, part)
    group_of_row = [groups[o.group] for tensors in lists for o in tensors.operands]
    weights = step_weights(rows, group_of_row)
    if max_grad_norm is not None:
        clip(weights, rows, group_of_row, max_grad_norm)
    for tensors, part, own in zip(lists, parts, _split(weights, lists), strict=True):
        run(tensors, groups, own, part)


def _split(rows: Tensor, lists: Sequence[TensorList]) -> Sequence[Tensor]:
    return (rows,) if len(lists) == 1 else rows.split([len(tensors) for tensors in lists])


def look(tensors: TensorList, groups: Sequence[GroupOptions], rows: Tensor) -> None:
    if tensors.on_core:
        tensors.plan.gram(groups, rows.data_ptr())
    else:
        reference_gram(tensors, groups, rows)


def new_rows(lists: Sequence[TensorList]) -> Tensor:
    """Where a step's Gram numbers go: float64 ``[n, 5]``."""
    device = lists[0].operands[0].weight.device if lists else None
    return torch.zeros(sum(map(len, lists)), GRAM_COLUMNS, dtype=torch.float64, device=device)
