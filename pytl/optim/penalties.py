"""The gradients of feature penalties, kept apart from the task's until the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pytl.optim.ranks import Ranks, average


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
        gradients = torch.autograd.grad(scaled, params, retain_graph=True, allow_unused=True)
        taken = {p: h.detach() for p, h in zip(params, gradients, strict=True) if h is not None}
        if not taken:
            raise ValueError("value must depend on the parameters; got a scalar that depends on none of them")
        if scaler is not None and scaler.is_enabled():
            self._tell_overflow(taken)
            scale = scaler.scale(torch.ones((), device=value.device))
            taken = {p: h.to(torch.promote_types(h.dtype, scale.dtype)) / scale.to(h.device) for p, h in taken.items()}
        for p, h in taken.items():
            if p not in self.of:
                self.of[p] = torch.zeros_like(p)
            self.of[p] += h
        self._ranks = ranks

    def _tell_overflow(self, taken: dict[Tensor, Tensor]) -> None:
        """What is not finite goes into the first of the task's gradients to come: there the scaler looks."""
        norms = torch._foreach_norm([h for h in taken.values() if h.numel()], float("inf"))
        here = norms[0].device
        overflow = 0 * torch.stack([norm.to(here, torch.float32) for norm in norms]).sum()  # 0, or NaN
        handles: list[RemovableHandle] = []

        def tell(task: Tensor) -> Tensor:
            for handle in handles:
                handle.remove()
            return task + overflow.to(task.device, task.dtype)

        handles += [p.register_hook(tell) for p in taken]
        self._overflows.append((overflow, handles))

    def average(self, params: Sequence[Tensor]) -> None:
        """Over the ranks, in the order of the parameters, which is the same on all."""
        average([self.of[p] for p in params if p in self.of], self._ranks)

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
