"""A parameter's state: tensors of the weight's order and of their own dtype, wherever they were loaded from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..directions import RULES, Direction
from ..ops.core import is_dense
from ..ops.tensor_list import in_order


def step_tensor(step: Any, taken: bool) -> Tensor:
    """How many steps have been taken, as torch keeps it: 0-dim float32 on the CPU. Where the state does not say (that of
    torch.optim.SGD), 1 if there are moments already."""
    if step is None:
        return torch.tensor(float(taken))
    if isinstance(step, Tensor) and step.dtype == torch.float32 and step.device.type == "cpu":
        return step
    return torch.tensor(float(step))


def in_weights_order(tensor: Tensor | None, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, or zeros, in this dtype and with its elements in the weight's order; copied only where needed."""
    if tensor is None:
        return torch.zeros_like(weight, dtype=dtype)
    if tensor.shape != weight.shape:
        raise ValueError(f"loaded state must have the weight's shape {[*weight.shape]}; got {[*tensor.shape]}")
    if tensor.dtype == dtype and tensor.device == weight.device and (in_order(tensor, weight) or not is_dense(weight)):
        return tensor
    return torch.empty_like(weight, dtype=dtype).copy_(tensor)


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
    """Raises ValueError where two dense parameters share memory: one step would count twice."""
    spans = sorted(
        ((p.data_ptr(), p.data_ptr() + p.nbytes, p.device) for p in params if p.data_ptr() and is_dense(p)),
        key=lambda span: (str(span[2]), span[0]),
    )
    for (_, end, device), (begin, _, other) in zip(spans, spans[1:], strict=False):
        if device == other and begin < end:
            raise ValueError("parameters must not overlap in memory; got two that share elements (tie them: one tensor)")
