"""A parameter's state: tensors of the weight's order and of their own dtype, wherever they were loaded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from pytl.directions import RULES, Direction
from pytl.ops import moments
from pytl.ops.core import is_dense
from pytl.ops.tensor_list import compute_dtype, in_order
from pytl.optim.sharding import here, is_sharded, part, whole

MOMENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": torch.uint8}
"""What moments may be kept in."""

SMALL = 4096
"""Elements below which moments are not kept in 8 bits: they take no memory to speak of."""


def step_tensor(step: Any, device: torch.device, taken: bool) -> Tensor:
    """How many steps have been taken: 0-dim float32 on the weight's device, as torch's fused optimizers keep it.

    Where the state does not say (that of torch.optim.SGD): 1 if there are moments already.
    """
    if isinstance(step, Tensor) and step.dtype == torch.float32 and step.device == device:
        return step
    return torch.tensor(float(taken if step is None else step), device=device)


def in_weights_order(tensor: Tensor | None, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, or zeros, in this dtype and with its elements in the weight's order; copied only where needed."""
    if tensor is None:
        return torch.zeros_like(weight, dtype=dtype)
    if tensor.shape != weight.shape:
        raise ValueError(f"loaded state must have the weight's shape {[*weight.shape]}; got {[*tensor.shape]}")
    ours, w = part(tensor, weight), here(weight)
    if ours.dtype == dtype and ours.device == w.device and (in_order(ours, w) or not is_dense(w)):
        return whole(ours, weight)
    return whole(torch.empty_like(w, dtype=dtype).copy_(ours), weight)


def moment_state(state: Mapping[str, Any], name: str, weight: Tensor, kept_in: str, squares: bool) -> dict[str, Tensor]:
    """A moment as it is to be kept: what the state holds, rounded or widened where it is kept otherwise; else zeros.

    Args:
        kept_in: of ``MOMENTS``. float64 weights have float64, and small ones float32 in place of 8 bits.
    """
    dtype = _dtype_of_moments(weight, kept_in)
    held, scales = state.get(name), state.get(f"{name}_scales")
    if dtype == torch.uint8 and is_sharded(weight):
        raise TypeError('moments="8bit" needs whole parameters; got a sharded one: take moments="bfloat16"')
    if held is not None and held.dtype == torch.uint8:
        if dtype == torch.uint8 and in_weights_order(held, weight, dtype) is held:
            return {name: held, f"{name}_scales": state[f"{name}_scales"].to(weight.device)}
        held = moments.load(held, scales, squares)
    if dtype != torch.uint8:
        return {name: in_weights_order(held, weight, dtype)}
    codes = torch.zeros_like(weight, dtype=dtype)
    scales = torch.zeros(moments.blocks(weight.numel()), device=weight.device)
    if held is not None:
        moments.store(in_weights_order(held, weight, torch.float32), codes, scales, squares, 0, 0)
    return {name: codes, f"{name}_scales": scales}


def _dtype_of_moments(weight: Tensor, kept_in: str) -> torch.dtype:
    whole = compute_dtype(weight.dtype)
    if whole == torch.float64 or (kept_in == "8bit" and weight.numel() < SMALL):
        return whole
    return MOMENTS[kept_in]


def restore_dtypes(optimizer: torch.optim.Optimizer, loaded: dict[str, Any]) -> None:
    """torch casts all that it loads to the weights' dtype; this takes the tensors as they were saved."""
    ids = chain.from_iterable(group["params"] for group in loaded["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for saved_id, p in zip(ids, params, strict=True):
        for name, value in loaded["state"].get(saved_id, {}).items():
            if isinstance(value, Tensor) and name != "step":
                optimizer.state[p][name] = value.to(p.device, copy=True)


def same_direction(saved: str | Direction, current: str | Direction) -> str | Direction:
    """The direction of a saved name: a rule of the library, or the one given to this optimizer if it has that name."""
    if isinstance(saved, Direction) or saved in RULES:
        return saved
    if isinstance(current, Direction) and current.name == saved:
        return current
    raise ValueError(f"the state was saved with direction {saved!r}: give that Direction to this optimizer to load it")


def check_overlap(params: Sequence[Tensor]) -> None:
    """Raises ValueError where two parameters share an element: one step would count twice."""
    spans = sorted(((str(p.device), p.data_ptr(), *_extent(p)), i) for i, p in enumerate(params) if p.data_ptr())
    for ((device, _, _, end), a), ((other, begin, _, _), b) in pairwise(spans):
        if device == other and begin < end and _share_elements(params[a], params[b]):
            raise ValueError(
                "parameters must not overlap in memory; got two that share elements (tie them: one tensor)"
            )


def _extent(p: Tensor) -> tuple[int, int]:
    """The memory from the first element to the last, in bytes: its size and its end."""
    elements = (
        1 + sum(stride * (size - 1) for stride, size in zip(p.stride(), p.shape, strict=True)) if p.numel() else 0
    )
    return elements * p.itemsize, p.data_ptr() + elements * p.itemsize


def _share_elements(a: Tensor, b: Tensor) -> bool:
    if is_dense(a) and is_dense(b):
        return True
    first = min(a.data_ptr(), b.data_ptr())
    last = max(_extent(a)[1], _extent(b)[1])
    taken = torch.zeros((last - first) // a.itemsize, dtype=torch.bool)
    for p in (a, b):
        view = taken.as_strided(p.shape, p.stride(), (p.data_ptr() - first) // a.itemsize)
        if view.any():
            return True
        view.fill_(True)
    return False
