"""What all optimizers' steps share. The PyTorch text below is held against csrc/formulas/terms.h and decision.h."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytl.ops import moments
from pytl.ops.direction_weights import clip_factor, direction_weights, squared_norm
from pytl.ops.operands import GroupOptions, Operands, compute_dtype
from pytl.ops.plan import NO_SCALING, Scaling, on_host
from pytl.ops.tensor_list import TensorList, place

MOMENTS, BESIDE = slice(1, 3), slice(3, 5)
"""Columns of a ``WeightsRow``."""

Formula = Callable[[Tensor, Operands, int, GroupOptions], Tensor]
"""d, the operands, the number of this step, the options -> what is subtracted from the weight; updates the states."""

Run = Callable[..., None]
"""Takes an optimizer's step: on a list, with its groups' options, the directions' weights (None: the groups decide),
the bound on the norm where the core decides, and the gradients' scaling."""


def pull(w: Tensor, w0: Tensor | None, sp_decay: float, weight_decay: float) -> Tensor:
    """The gradient of L2-SP: ``r = sp_decay * (w - w0) + weight_decay * w`` (arXiv:1802.01483)."""
    r = weight_decay * w
    return r if w0 is None or sp_decay == 0 else r + sp_decay * (w - w0)


class Terms:
    """One parameter's weight w, task gradient g, pull r and penalty gradient h, widened; r and h None where absent."""

    def __init__(self, o: Operands, group: GroupOptions) -> None:
        dtype = compute_dtype(o.weight.dtype)
        self.w = o.weight.to(dtype) if o.compensation is None else o.weight.to(dtype) + o.compensation.to(dtype)
        assert o.gradient is not None, "operands are given a gradient before each step"
        self.g = group.gradient_factor * o.gradient.to(dtype)
        self.h = None if o.penalty is None else o.penalty.to(dtype)
        self.r = None
        sp_decay, weight_decay = float(group.sp_decay), float(group.weight_decay)
        if (o.start is not None and sp_decay) or weight_decay:
            w0 = None if o.start is None else o.start.to(dtype)
            self.r = pull(self.w, w0, sp_decay, weight_decay)
        if not group.decoupled:
            self.r, self.h = _sum(self.r, self.h), None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def pull_gram(gram: Tensor) -> Tensor:
    """Of Gram numbers ``[n, 5]`` those of g and the pull, ``[n, 3]``."""
    return gram[:, :3]


def penalty_gram(gram: Tensor) -> Tensor:
    """Of Gram numbers ``[n, 5]`` those of g and a decoupled penalty, ``[n, 3]``."""
    return torch.cat([gram[:, :1], gram[:, 3:]], dim=1)


def dot(a: Tensor | None, b: Tensor | None) -> Tensor | float:
    return 0.0 if a is None or b is None else (a.double() * b.double()).sum()


def join(c_g: float, g: Tensor, c_r: float, r: Tensor | None) -> Tensor | None:
    """``c_g * g + c_r * r``, where an infinite g that no part is taken of leaves no trace. None: 0."""
    return _sum(c_g * g if c_g else None, None if r is None else c_r * r)


class WeightsRow(NamedTuple):
    """What the directions make of one parameter's regularisers.

    The moments are fed ``scale * (g + (moments_g * g + moments_r * their regulariser))``, and
    ``lr * (beside_g * g + beside_r * r)`` moves the weight beside them. g stands apart, so that nothing overflows where
    g and the regulariser are huge and opposed.
    """

    scale: float
    moments_g: float
    moments_r: float
    beside_g: float
    beside_r: float

    def held_by(self, dtype: torch.dtype) -> WeightsRow:
        """A weight beyond the dtype's range counts for nothing: of g no part is taken, r is taken whole."""
        largest, otherwise = torch.finfo(dtype).max, (1.0, 0.0, 1.0, 0.0, 1.0)
        return WeightsRow(*(x if abs(x) <= largest else y for x, y in zip(self, otherwise, strict=True)))


def reference_gram(tensors: TensorList, groups: Sequence[Any]) -> None:
    """Fills ``tensors.rows`` with the Gram numbers of each parameter."""
    for row, o in zip(tensors.rows, tensors.operands, strict=True):
        t = Terms(o, groups[o.group])
        pairs = ((t.g, t.g), (t.g, t.r), (t.r, t.r), (t.g, t.h), (t.h, t.h))
        for column, (a, b) in enumerate(pairs):
            row[column] = dot(a, b)


def reference_step(tensors: TensorList, groups: Sequence[Any], weights: Tensor | None, formula: Formula) -> None:
    """Takes the step. Without ``weights`` ``[n, 5]`` each group's direction gives them, tensor by tensor."""
    if weights is None:
        with torch.no_grad():
            reference_gram(tensors, groups)
            weights = step_weights(tensors.rows, tensors.group_of, groups)
    for o, row in zip(tensors.operands, weights.tolist(), strict=True):
        group, t = groups[o.group], Terms(o, groups[o.group])
        w = WeightsRow(*row).held_by(t.w.dtype)
        joined = join(w.moments_g, t.g, w.moments_r, t.h if group.decoupled else t.r)
        beside = join(w.beside_g, t.g, w.beside_r, t.r) if group.decoupled else None
        fed, number = w.scale * (t.g if joined is None else t.g + joined), int(o.step) + 1
        step = formula(fed, loaded := _with_moments(o), number, group)
        _store(o, t.w - (step if beside is None else step + group.lr * beside))
        for k, state in enumerate(loaded.states):
            moments.store(state, o.states[k], _scales(o, k), k > 0, number, k)
        o.step += 1
        o.fresh = False
        o.release()


def _with_moments(o: Operands) -> Operands:
    """With its states as numbers: as they are, or copies of those that are kept in fewer bits."""
    return replace(o, states=tuple(moments.load(state, _scales(o, k), k > 0) for k, state in enumerate(o.states)))


def _scales(o: Operands, k: int) -> Tensor | None:
    return o.scales[k] if o.scales else None


def _store(o: Operands, w: Tensor) -> None:
    """Rounds to the weight's dtype; what that loses stays in the compensation (Kahan)."""
    o.weight.copy_(w)
    if o.compensation is not None:
        o.compensation.copy_(w - o.weight.to(w.dtype))


def step_weights(gram: Tensor, group_of: Tensor, groups: Sequence[GroupOptions]) -> Tensor:
    """The ``WeightsRow`` of each parameter, float64 ``[n, 5]``, from Gram numbers ``[n, 5]`` and each row's group.

    Coupled, one direction feeds the moments. Decoupled, the penalty feeds them and the pull moves the weight beside
    them; each is joined with g on its own, and g itself is not taken twice.
    """
    weights = torch.ones_like(gram)
    for one in {(id(g.direction), g.granularity): g for g in groups}.values():
        ours = _in_groups(group_of, [g.direction is one.direction and g.granularity == one.granularity for g in groups])
        own = torch.where(ours, gram, 0.0)  # numbers of the others must not be in a sum
        for numbers, into in ((penalty_gram(own), MOMENTS), (pull_gram(own), BESIDE)):
            made = direction_weights(numbers, one.direction, one.granularity)
            weights[:, into] = torch.where(ours, made, weights[:, into])
    coupled = _in_groups(group_of, [not g.decoupled for g in groups])
    weights[:, MOMENTS] = torch.where(coupled, weights[:, BESIDE], weights[:, MOMENTS])
    weights[:, 1::2] -= 1
    weights[:, BESIDE] = torch.where(coupled, 0.0, weights[:, BESIDE])
    return weights


def clip(weights: Tensor, gram: Tensor, group_of: Tensor, groups: Sequence[GroupOptions], max_grad_norm: float) -> None:
    """Scales what feeds the moments so that its norm over all tensors is at most ``max_grad_norm``."""
    decoupled = _in_groups(group_of, [g.decoupled for g in groups])
    fed = torch.where(decoupled, penalty_gram(gram), pull_gram(gram))
    squared_norms = squared_norm(fed, torch.stack([weights[:, 1] + 1, weights[:, 2]], dim=1))
    weights[:, 0] = torch.where(squared_norms.isfinite(), clip_factor(squared_norms, max_grad_norm), 1.0)


def _in_groups(group_of: Tensor, flags: Sequence[bool]) -> Tensor:
    """Which rows are of the flagged groups: bool ``[n, 1]``; made on the device, so that nothing waits for it."""
    flagged = torch.zeros_like(group_of, dtype=torch.bool)
    for k, flag in enumerate(flags):
        if flag:
            flagged |= group_of == k
    return flagged[:, None]


def runner(name: str, formula: Formula) -> Run:
    """The ``run`` of an optimizer, given its name in the core and its formula in PyTorch."""

    def run(
        tensors: TensorList,
        groups: Sequence[Any],
        weights: Tensor | None,
        max_norm: float = math.inf,
        scaling: Scaling = NO_SCALING,
    ) -> None:
        if tensors.on_core:
            tensors.plan.step(name, groups, weights, tensors.rows, max_norm, scaling)
        else:
            reference_step(tensors, on_host(groups, scaling), weights, formula)

    return run


def functional_step(
    operands: Sequence[Operands], options: GroupOptions, run: Run, fused: bool | None, max_grad_norm: float | None
) -> Tensor:
    """One step of one group; returns its Gram numbers, float64 ``[n, 3]``."""
    tensors = TensorList(operands, on_core=place(operands, fused))
    look_and_step([tensors], [options], run, max_grad_norm)
    return tensors.rows[:, :3].contiguous()


def look_and_step(
    lists: Sequence[TensorList],
    groups: Sequence[GroupOptions],
    run: Run,
    max_grad_norm: float | None = None,
    scaling: Scaling = NO_SCALING,
    total: Callable[[], None] | None = None,
    each: Callable[[], Iterable[TensorList]] | None = None,
) -> None:
    """One step of all lists; the ``rows`` of each receive its Gram numbers.

    Where the core knows the rules and runs everything, that is one call, and so is a list where each tensor decides for
    itself; else all tensors are looked at before any is changed. ``total`` brings rows of parts into rows of whole
    parameters; where the sum is all that is asked for, nothing is decided, and it comes last. ``each`` gives the lists
    in turn, each when its operands are there.
    """
    each = each or lists.__iter__
    by_rule = all(g.direction.rule for g in groups)
    if total is not None and (max_grad_norm is not None or any(g.direction.rule != "sum" for g in groups)):
        by_rule = False
    in_one_call = len(lists) == 1 and lists[0].on_core
    if by_rule and (in_one_call or (max_grad_norm is None and _decide_alone(groups))):
        for tensors in each():
            run(tensors, groups, None, math.inf if max_grad_norm is None else max_grad_norm, scaling)
        if total:
            total()
        return
    for tensors in each():
        look(tensors, groups, scaling)
    if total:
        total()
    rows, group_of = gathered([t.rows for t in lists]), gathered([t.group_of for t in lists])
    weights = step_weights(rows, group_of, groups)
    if max_grad_norm is not None:
        clip(weights, rows, group_of, groups, max_grad_norm)
    for tensors, own in zip(each(), weights.split([len(tensors) for tensors in lists]), strict=True):
        run(tensors, groups, own.to(tensors.device, non_blocking=True), scaling=scaling)


def _decide_alone(groups: Sequence[GroupOptions]) -> bool:
    return all(g.granularity == "tensor" or g.direction.rule == "sum" for g in groups)


def gathered(parts: Sequence[Tensor]) -> Tensor:
    """All rows, on the device of the first."""
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device, non_blocking=True) for part in parts])


def look(tensors: TensorList, groups: Sequence[GroupOptions], scaling: Scaling = NO_SCALING) -> None:
    """Fills ``tensors.rows``."""
    if tensors.on_core:
        tensors.plan.gram(groups, tensors.rows, scaling)
    else:
        reference_gram(tensors, on_host(groups, scaling))
