"""A penalty's named terms: their values, and how each stands to the task's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from pytl import ops
from pytl.regularizers import Penalty
from pytl.training.records import Record

Gradients = dict[str, list[Tensor | None]]


def gradients_of(values: Mapping[str, Tensor], params: Sequence[Tensor], scale: Tensor | float) -> Gradients:
    """Each regulariser's gradient for itself, times ``scale``: one more pass backwards for each of them."""
    return {
        name: [*torch.autograd.grad(value * scale, params, retain_graph=True, allow_unused=True)]
        for name, value in values.items()
        if value.requires_grad
    }


def record_of(penalty: Penalty, optimizer: Optimizer, params: Sequence[Tensor], gradients: Gradients) -> Record:
    """One read of the device: each term's value, and each regulariser's conflict rate and mean cosine.

    The task's gradients are the parameters' own. The pull to the starting point, where there is one, is "l2sp".
    """
    record: Record = {f"term/{name}": float(value) for name, value in _named_values(penalty).items()}
    pull = _pulls(optimizer, params)
    if gradients and any(r is not None for r in pull):
        gradients = gradients | {"l2sp": pull}
    for name, apart in gradients.items():
        record |= _conflict(name, params, apart)
    return record


def _named_values(penalty: Penalty) -> dict[str, Tensor]:
    """``"delta layer4"``, of a single regulariser too."""
    single = "+" not in penalty.name
    return {f"{penalty.name} {term}" if single else term: value for term, value in penalty.terms.items()}


def _pulls(optimizer: Optimizer, params: Sequence[Tensor]) -> list[Tensor | None]:
    found: dict[Tensor, Tensor] = {}
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("sp_decay") else ():
            start = optimizer.state.get(p, {}).get("start")
            if start is not None:
                found[p] = p.detach() - start.to(p.device, p.dtype)
    return [found.get(p) for p in params]


def _conflict(name: str, params: Sequence[Tensor], apart: Sequence[Tensor | None]) -> Record:
    both = [(p, p.grad, h) for p, h in zip(params, apart, strict=True) if h is not None and p.grad is not None]
    empty: Record = {f"conflict/{name}": None, f"cosine/{name}": None}
    if not both:
        return empty
    weights, task, penalties = zip(*both, strict=True)
    gram = ops.gram(weights, task, penalties=[h.to(p.dtype) for p, h in zip(weights, penalties, strict=True)])
    gg, gh, hh = gram.cpu().unbind(1)
    felt = (hh > 0) & gg.isfinite() & hh.isfinite()
    cosines = (gh / (gg.sqrt() * hh.sqrt()))[felt & (gg > 0)]
    if not felt.any() or not len(cosines):
        return empty
    rate, cosine = float((gh[felt] < 0).double().mean()), float(cosines.mean())
    return {f"conflict/{name}": rate, f"cosine/{name}": cosine if math.isfinite(cosine) else None}
