"""What the operations on features share: where a tensor's channels lie, and how the compiled core is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytl.ops import core
from pytl.ops.plan import current_stream


def channel_dim_of(x: Tensor) -> int:
    """The dimension of the channels: 1 of maps [B, C, ...] and pooled features [B, C], the last of tokens [B, T, D].

    Raises:
        ValueError: there is none.
    """
    if x.dim() < 2:
        raise ValueError(f"x must be [B, C, ...], [B, T, D] or [B, C]; got shape {[*x.shape]}")
    return x.dim() - 1 if x.dim() == 3 else 1


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """What values are computed and returned in: float64 where a tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check_pair(x: Tensor, source: Tensor) -> None:
    """Raises ValueError or TypeError for features that cannot be compared."""
    if x.shape != source.shape:
        raise ValueError(f"source must have the shape of x, {[*x.shape]}; got {[*source.shape]}")
    for name, tensor in (("x", x), ("source", source)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a floating point dtype; got {tensor.dtype}")
    if x.device != source.device:
        raise ValueError(f"source must be on the device of x, {x.device}; got {source.device}")


def wants_core(x: Tensor, fused: bool | None) -> bool:
    """Whether the registered operation is called, or plain PyTorch.

    Raises:
        RuntimeError: the core is demanded (True) and does not serve the tensor.
    """
    if fused and (reason := core.why_not(x.device, x.dtype)):
        raise RuntimeError(f"fused=True needs the compiled core: {reason}")
    return fused is not False


def serves(x: Tensor) -> bool:
    """Whether the core computes it; for an empty tensor there is nothing to compute."""
    return x.numel() > 0 and not core.why_not(x.device, x.dtype)


def alike(*tensors: Tensor) -> list[Tensor]:
    """In one dtype, dense, and in one order of the elements: that of the first, if it is dense."""
    first = tensors[0]
    if any(t.dtype != first.dtype for t in tensors):
        first = first.to(compute_dtype(*tensors))
    if not core.is_dense(first):
        first = first.contiguous()
    return [first, *(_in_order(t, first) for t in tensors[1:])]


def _in_order(tensor: Tensor, of: Tensor) -> Tensor:
    if tensor.dtype == of.dtype and tensor.stride() == of.stride():
        return tensor
    return torch.empty_like(of).copy_(tensor)


def call(name: str, operands: Any, device: torch.device, *tensors: Tensor | None) -> None:
    """Calls the core's function: what it reads, then the addresses of the tensors it reads or fills."""
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    if not is_cuda(device):
        getattr(core.module, name)(operands, *addresses)
        return
    scratch_bytes = getattr(core.module.cuda, f"{name}_scratch")(operands)
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=device)
    call_on = getattr(core.module.cuda, name)
    call_on(operands, *addresses, scratch.data_ptr(), device.index or 0, current_stream(device))


def is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
