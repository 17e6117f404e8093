"""The checks on options: each names the option, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pytl.directions import find
from pytl.ops.direction_weights import check_granularity

MOMENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": torch.uint8}
"""What moments may be kept in."""

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
    if "betas" in group:
        _check_adam(group)
    if group.get("nesterov") and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    find(group["direction"])
    check_granularity(group["granularity"])
    if group["moments"] not in MOMENTS:
        raise ValueError(f"moments must be one of {', '.join(MOMENTS)}; got {group['moments']!r}")
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def _check_not_negative(name: str, value: Any, message: str) -> None:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element; got {value.numel()} elements")
    if not float(value) >= 0:
        raise ValueError(f"{message.format(value)} ({name} must be >= 0; got {float(value)})")


def _check_adam(group: Mapping[str, Any]) -> None:
    betas = group["betas"]
    if isinstance(group["lr"], Tensor) and group["foreach"] and not group["capturable"]:
        raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers; got {len(betas)}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and group["foreach"] and not group["capturable"]:
            raise ValueError(f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True")
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{i}] must be 1-element; got {beta.numel()} elements")
        if not 0.0 <= float(beta) < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {i}: {beta} (betas must be in [0, 1); got {float(beta)})"
            )


def check_max_grad_norm(value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"max_grad_norm must be > 0 or None; got {value}")


def number_or_tensor(option: Any) -> float | Tensor:
    """A number, or the tensor on an accelerator that a step is to read there."""
    return option if isinstance(option, Tensor) and option.device.type != "cpu" else float(option)


def is_anchored(group: Mapping[str, Any]) -> bool:
    """Whether the group is pulled towards a starting point, now or by its schedule later."""
    return any(is_tensor_or_not_0(strength) for strength in (group["sp_decay"], group.get("initial_sp_decay", 0)))


def is_tensor_or_not_0(option: Any) -> bool:
    """False where the host sees that it is 0; a tensor is not read."""
    return isinstance(option, Tensor) or option != 0


def wants_core(group: Mapping[str, Any]) -> bool | None:
    """True: the core or an error; False: PyTorch; None: the core where it serves the tensor."""
    return False if group["foreach"] or group["differentiable"] else group["fused"]
