"""The checks on options: each names the option, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..directions import find
from ..ops.direction_weights import check_granularity

# Messages that torch.optim has are torch's own, so that what matches them goes on matching.
_NOT_NEGATIVE = {
    "lr": "Invalid learning rate: {}",
    "weight_decay": "Invalid weight_decay value: {}",
    "eps": "Invalid epsilon value: {}",
    "momentum": "Invalid momentum value: {}",
    "sp_decay": "Invalid sp_decay value: {}",
}


def check_options(group: Mapping[str, Any]) -> None:
    """Checks the options of a parameter group, those of one optimizer or of another.

    Raises ValueError for a value, RuntimeError for flags that exclude each other.
    """
    for name, message in _NOT_NEGATIVE.items():
        if name in group:
            _check_not_negative(name, group[name], message)
    for i, beta in enumerate(group.get("betas", ())):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta} (betas must be in [0, 1); got {beta})")
    if group.get("nesterov") and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    find(group["direction"])
    check_granularity(group["granularity"])
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def _check_not_negative(name: str, value: Any, message: str) -> None:
    if getattr(value, "numel", lambda: 1)() != 1:
        raise ValueError(f"{name} must be one number; got a tensor of {value.numel()} elements")
    if not float(value) >= 0:
        raise ValueError(f"{message.format(value)} ({name} must be >= 0; got {float(value)})")


def check_max_grad_norm(value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"max_grad_norm must be > 0 or None; got {value}")


def is_anchored(group: Mapping[str, Any]) -> bool:
    """Whether the group is pulled towards a starting point, now or by its schedule later."""
    return group["sp_decay"] != 0 or group.get("initial_sp_decay", 0) != 0


def wants_core(group: Mapping[str, Any]) -> bool | None:
    """True: the core or an error; False: PyTorch; None: the core where it serves the tensor."""
    return False if group["foreach"] or group["differentiable"] else group["fused"]
