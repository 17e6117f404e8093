"""The compiled core, where it is built. No other file names the compiled module."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pytl.directions import Direction

module: Any = None
try:
    module = import_module("pytl._core")
    missing = ""
except ImportError as error:
    missing = f"the compiled core is not built ({error})"

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why the core does not serve this device and dtype; empty where it does."""
    if missing:
        return missing
    if device.type not in ("cpu", "cuda"):
        return f"the core has no kernels for {device.type}"
    if dtype not in DTYPES:
        return f"the core has no kernels for {dtype}"
    return _why_not_cuda(device.index or 0) if device.type == "cuda" else ""


@cache
def _why_not_cuda(index: int) -> str:
    if torch.version.hip is not None:
        return "the core has no kernels for HIP"
    if not hasattr(module, "cuda"):
        return "the core was built without CUDA: no nvcc was found then, or PYTL_CUDA=0 was set"
    return str(module.cuda.why_not(index))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, each once, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    ):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def dtype_code(dtype: torch.dtype) -> Any:
    return getattr(module.DType, str(dtype).removeprefix("torch."))


def rule_code(direction: Direction) -> Any:
    """The core's code for a rule. A user's own has none: the core is then given its weights and reads no rule."""
    return getattr(module.Rule, direction.rule or "sum")
