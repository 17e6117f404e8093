"""Schedules of the pull's strength: ``sp_decay`` of each group, step by step or epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, end: 1.0,
    "linear": lambda progress, end: 1.0 + (end - 1.0) * progress,
    "cosine": lambda progress, end: end + (1.0 - end) * (1.0 + math.cos(math.pi * progress)) / 2,
    "geometric": lambda progress, end: end**progress,
}


class StrengthSchedule:
    """Multiplies each group's ``sp_decay`` by a factor that goes from 1 to ``end`` in ``total`` calls of ``step()``.

    With the progress p = min(calls / total, 1): constant 1; linear ``1 + (end - 1) p``; cosine
    ``end + (1 - end) (1 + cos(pi p)) / 2``; geometric ``end ** p``. GrOD's released strength, ``0.1 * 0.99 ** epoch``,
    is ``sp_decay=0.1`` with ``StrengthSchedule(opt, "geometric", total=epochs, end=0.99 ** epochs)``.

    Args:
        optimizer: any whose groups have ``sp_decay``; the strengths of now are the full ones, kept in the groups as
            ``initial_sp_decay``.
        shape: "constant", "linear", "cosine" or "geometric".
        total: calls of ``step()`` until ``end``; >= 1.
        end: the last factor; >= 0, and > 0 for "geometric".

    Raises:
        ValueError: one of these is out of range, or no group has ``sp_decay``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shape: str = "constant", *, total: int = 1, end: float = 0.0):
        if shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {shape!r}")
        if total < 1:
            raise ValueError(f"total must be >= 1; got {total}")
        if not end >= 0 or (shape == "geometric" and end == 0):
            raise ValueError(f"end must be >= 0, and > 0 for geometric; got {end}")
        if not any("sp_decay" in group for group in optimizer.param_groups):
            raise ValueError("optimizer must have sp_decay in its groups; got none")
        self.optimizer, self.shape, self.total, self.end, self.calls = optimizer, shape, total, end, 0
        for group in self._groups():
            group.setdefault("initial_sp_decay", float(group["sp_decay"]))

    def _groups(self) -> list[dict[str, Any]]:
        return [group for group in self.optimizer.param_groups if "sp_decay" in group]

    @property
    def factor(self) -> float:
        return SHAPES[self.shape](min(self.calls / self.total, 1.0), self.end)

    def step(self) -> None:
        """Once a step or once an epoch, as ``total`` counts them; after the optimizer's."""
        self.calls += 1
        for group in self._groups():
            strength = group.setdefault("initial_sp_decay", float(group["sp_decay"])) * self.factor
            if isinstance(group["sp_decay"], Tensor):
                group["sp_decay"].fill_(strength)  # where captured steps read it
            else:
                group["sp_decay"] = strength

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "shape": self.shape, "total": self.total, "end": self.end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved schedule. Raises ValueError where it is another one."""
        saved, own = ({name: s[name] for name in ("shape", "total", "end")} for s in (state, self.state_dict()))
        if saved != own:
            raise ValueError(f"the saved schedule must be this one, {own}; got {saved}")
        self.calls = state["calls"]
