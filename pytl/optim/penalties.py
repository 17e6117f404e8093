"""The gradients of feature penalties, kept apart from the task's until the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pytl.optim.ranks import Ranks, average
from pytl.optim.sharding import here, is_sharded, part


class PenaltyGradients:
    """What ``take_penalty`` takes, accumulated over micro-batches.

    Attributes:
        of: of each parameter that a penalty depends on.
    """

    def __init__(self) -> None:
        self.of: dict[Tensor, Tensor] = {}
        self._ranks: Ranks = True
        self._overflows: list[tuple[Tensor, list[RemovableHandle]]] = []

    def take(self, value: Tensor, params: Sequence[Tensor], scaler: torch.amp.GradScaler | None, ranks: Ranks) -> None:
        """Adds a penalty's gradient; raises ValueError where there is none."""
        if value.numel() != 1 or not value.requires_grad:
            found = f"shape {[*value.shape]}, requires_grad={value.requires_grad}"
            raise ValueError(f"value must be a scalar that depends on the parameters; got {found}")
        scaled = value if scaler is None else scaler.scale(value)
        taken = _gradients(scaled, params)
        if not taken:
            unless = ", or FSDP that is not to synchronise gradients" if any(map(is_sharded, params)) else ""
            raise ValueError(f"value must depend on the parameters; got a scalar that depends on none of them{unless}")
        if scaler is not None and scaler.is_enabled():
            self._tell_overflow(taken)
            scale = scaler.scale(torch.ones((), device=value.device))
            taken = {p: h.to(torch.promote_types(h.dtype, scale.dtype)) / scale.to(h.device) for p, h in taken.items()}
        for p, h in taken.items():
            if p not in self.of:
                self.of[p] = torch.zeros_like(here(p))
            self.of[p] += h
        self._ranks = ranks

    def _tell_overflow(self, taken: dict[Tensor, Tensor]) -> None:
        """What is not finite goes into the first of the task's gradients to come: there the scaler looks."""
        norms = torch._foreach_norm([h for h in taken.values() if h.numel()], float("inf"))
        device = norms[0].device
        overflow = 0 * torch.stack([norm.to(device, torch.float32) for norm in norms]).sum()  # 0, or NaN
        handles: list[RemovableHandle] = []
        if sharded := [p for p in taken if is_sharded(p) and here(p).numel()]:  # hooks of their own are not called
            smallest = min(sharded, key=lambda p: here(p).numel())
            smallest.grad = torch.zeros_like(smallest) if smallest.grad is None else smallest.grad
            here(smallest.grad).add_(overflow)
            return

        def tell(task: Tensor) -> Tensor:
            for handle in handles:
                handle.remove()
            return task + overflow.to(task.device, task.dtype)

        handles += [p.register_hook(tell) for p in taken]
        self._overflows.append((overflow, handles))

    def average(self, params: Sequence[Tensor]) -> None:
        """Over the ranks, in the order of the parameters, the same on all. Sharded ones are averaged already."""
        average([self.of[p] for p in params if p in self.of and not is_sharded(p)], self._ranks)

    def found_inf(self, by_scaler: Tensor | None) -> Tensor | None:
        """The scaler's flag, with the overflows that no task's gradient told it."""
        if by_scaler is None:
            return None
        return sum((overflow.isnan().to(by_scaler) for overflow, _ in self._overflows), start=by_scaler)

    def clear(self) -> None:
        for handle in (handle for _, handles in self._overflows for handle in handles):
            handle.remove()
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
