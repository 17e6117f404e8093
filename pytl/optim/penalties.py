"""The gradients of feature penalties, kept apart from the task's until the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytl.optim.ranks import Ranks, average
from pytl.optim.sharding import here, is_sharded, part, sum_over_parts


class PenaltyGradients:
    """What ``take_penalty`` takes, accumulated over micro-batches.

    Attributes:
        of: of each parameter that a penalty depends on.
    """

    def __init__(self) -> None:
        self.of: dict[Tensor, Tensor] = {}
        self._ranks: Ranks = True
        self._overflows: list[Tensor] = []
        self._witnesses: list[torch.optim.Optimizer] = []  # the scaler knows them by their ids until its update

    def take(self, value: Tensor, params: Sequence[Tensor], scaler: torch.amp.GradScaler | None, ranks: Ranks) -> None:
        """Adds a penalty's gradient; raises ValueError where there is none."""
        if value.numel() != 1 or not value.requires_grad:
            found = f"shape {[*value.shape]}, requires_grad={value.requires_grad}"
            raise ValueError(f"value must be a scalar that depends on the parameters; got {found}")
        if not self.of:
            self._witnesses.clear()
        scaled = value if scaler is None else scaler.scale(value)
        taken, sharded = _gradients(scaled, params), any(map(is_sharded, params))
        if not any(is_sharded(p) == sharded for p in taken):
            unless = ", or FSDP that is not to synchronise gradients" if sharded else ""
            raise ValueError(f"value must depend on the parameters; got a scalar that depends on none of them{unless}")
        if scaler is not None and scaler.is_enabled():
            self._tell_overflow(taken, scaler, ranks)
            scale = scaler.scale(torch.ones((), device=value.device))
            taken = {p: h.to(torch.promote_types(h.dtype, scale.dtype)) / scale.to(h.device) for p, h in taken.items()}
        for p, h in taken.items():
            if p not in self.of:
                self.of[p] = torch.zeros_like(here(p))
            self.of[p] += h
        self._ranks = ranks

    def _tell_overflow(self, taken: dict[Tensor, Tensor], scaler: torch.amp.GradScaler, ranks: Ranks) -> None:
        """Tells the scaler, on all ranks, of what is not finite on one: as the gradient of an optimizer of its own."""
        norms = torch._foreach_norm([h for h in taken.values() if h.numel()] or [torch.zeros(1)], float("inf"))
        device = next(iter(taken)).device
        overflow = 0 * torch.stack([norm.to(device, torch.float32) for norm in norms]).sum()  # 0, or NaN
        average([sum_over_parts(overflow, *taken)], ranks)
        witness = nn.Parameter(torch.zeros_like(overflow))
        witness.grad = overflow.clone()
        self._witnesses.append(torch.optim.SGD([witness]))
        scaler.unscale_(self._witnesses[-1])
        self._overflows.append(overflow)

    def average(self, params: Sequence[Tensor]) -> None:
        """Over the ranks, in the order of the parameters, the same on all. Sharded ones are averaged already."""
        average([self.of[p] for p in params if p in self.of and not is_sharded(p)], self._ranks)

    def found_inf(self, by_scaler: Tensor | None) -> Tensor | None:
        """The scaler's flag, with the penalties' overflows."""
        if by_scaler is None:
            return None
        return sum((overflow.isnan().to(by_scaler) for overflow in self._overflows), start=by_scaler)

    def clear(self) -> None:
        self.of.clear()
        self._overflows.clear()


def _gradients(value: Tensor, params: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Of the parameters that the value depends on: of sharded ones the part on this rank."""
    if not any(map(is_sharded, params)):
        gradients = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        return {p: h.detach() for p, h in zip(params, gradients, strict=True) if h is not None}
    task = [p.grad for p in params]  # FSDP gathers weights and reduces gradients in backward() alone
    try:
        for p in params:
            p.grad = None
        value.backward(retain_graph=True)
        return {p: part(p.grad, p) for p in params if p.grad is not None}
    finally:
        for p, g in zip(params, task, strict=True):
            p.grad = g
