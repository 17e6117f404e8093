"""A penalty's named terms: their values, and how each stands to the task's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from pytl import ops
from pytl.metrics import Record, finite
from pytl.regularizers import Penalty

Gradients = dict[str, list[Tensor | None]]


def gradients_of(values: Mapping[str, Tensor], params: Sequence[Tensor], scaler: torch.amp.GradScaler) -> Gradients:
    """Each regulariser's gradient for itself, scaled: one more pass backwards for each of them."""
    return {
        name: [*torch.autograd.grad(scaler.scale(value), params, retain_graph=True, allow_unused=True)]
        for name, value in values.items()
        if value.requires_grad
    }


def record_of(penalty: Penalty, optimizer: Optimizer, params: Sequence[Tensor], gradients: Gradients) -> Record:
    """Each term's value, each regulariser's facts, and its conflict rate and mean cosine with the task's gradient.

    The task's gradients are the parameters' own. The pull to the starting point, where there is one, is "l2sp".
    """
    values = {f"term/{part.name} {term}": value for part in penalty.parts for term, value in part.terms.items()}
    record: Record = {name: finite(float(value)) for name, value in values.items()}
    record |= {f"fact/{part.name} {name}": fact for part in penalty.parts for name, fact in part.facts.items()}
    pull = _pulls(optimizer, params)
    if gradients and any(r is not None for r in pull):
        gradients = gradients | {"l2sp": pull}
    for name, apart in gradients.items():
        record |= _conflict(name, params, apart)
    return record


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
    rate = float((gh[felt] < 0).double().mean())
    return {f"conflict/{name}": rate, f"cosine/{name}": finite(float(cosines.mean()))}
