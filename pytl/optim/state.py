"""A parameter's state: tensors of the weight's order and of their own dtype, wherever they were loaded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pytl.ops import moments
from pytl.ops.core import is_dense
from pytl.ops.operands import check_memory, compute_dtype, in_order
from pytl.optim.options import MOMENTS, is_anchored, is_tensor_or_not_0
from pytl.optim.sharding import here, is_sharded, part, whole
from pytl.optim.start import StartingPoint, check_norms, norm

SMALL = 4096
"""Elements below which moments are not kept in 8 bits: they take no memory to speak of."""


class StateMaker:
    """Makes a parameter's state: what it holds already, in the form that a step needs, and what it lacks.

    Args:
        start: gives the parameters' starting points.
        compensated: Kahan summation; None: for 16-bit weights.
    """

    def __init__(self, start: StartingPoint, compensated: bool | None) -> None:
        self._start, self._compensated = start, compensated
        self._recognised: set[Tensor] = set()
        self._whole: set[Tensor] = set()  # those whose w0 was taken in a step that moved nothing
        self._read_again: dict[str, tuple[Tensor, Tensor]] = {}  # by name: the norm of now, and the saved one

    def made(
        self, name: str, p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], moments: Sequence[str]
    ) -> dict[str, Tensor]:
        """A new state; nothing is changed.

        Args:
            name: the parameter's, in errors and in the source of starting points.
            state: that of now.
            group: the options.
            moments: their names, in the order of the optimizer's formula.
        """
        taken = any(state.get(moment) is not None for moment in moments)
        made = {"step": step_tensor(state.get("step"), p.device, taken)}
        for place, moment in enumerate(moments):
            made |= moment_state(name, p, state, moment, group["moments"], squares=place > 0)
        if is_anchored(group):
            made |= self._start_of(name, p, state, moves=is_tensor_or_not_0(group["lr"]))
        if p.dtype.itemsize == 2 and self._compensated is not False:
            made["compensation"] = in_weights_order(state.get("compensation"), p, p.dtype, f"compensation of {name}")
        return made

    def _start_of(self, name: str, p: Tensor, state: Mapping[str, Any], moves: bool) -> dict[str, Tensor]:
        """w0, and the norm that it is recognised by where a resumed run reads it again.

        In a step that moves nothing it is taken whole: torch.distributed.checkpoint makes a state by such a step, and
        loads another w0 into its memory.
        """
        kept = not self._start.on_disk and "start" in state
        start = state["start"] if kept else self._start.of(name, p, shrink=moves)
        if not kept and not moves:
            self._whole.add(p)
        elif kept and moves and p in self._whole:
            start = self._start.shrunk(start, p)
            self._whole.remove(p)
        if self._start.saved:
            return {"start": start}
        if "start_norm" in state and (kept or p in self._recognised):
            return {"start": start, "start_norm": state["start_norm"]}
        now = norm(start, p)
        if "start_norm" in state:
            self._read_again[name] = now, state["start_norm"]
        return {"start": start, "start_norm": now}

    def compare_norms(self) -> None:
        """Raises ValueError that lists the parameters whose w0 was read again, and is another."""
        read_again, self._read_again = self._read_again, {}
        check_norms(read_again, self._start.source)

    def keep(self, p: Tensor, made: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Brings a state that was made into the optimizer's; w0 on disk stays there."""
        state.update(made)
        if self._start.on_disk:
            state.pop("start", None)
        self._recognised.add(p)

    def forget(self) -> None:
        """Starting points that are read again must be recognised anew."""
        self._recognised.clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recognised": set(), "_whole": set()}


def step_tensor(step: Any, device: torch.device, taken: bool) -> Tensor:
    """How many steps have been taken: 0-dim float32 on the weight's device, as torch's fused optimizers keep it.

    Where the state does not say (that of torch.optim.SGD): 1 if there are moments already.
    """
    if isinstance(step, Tensor) and step.dtype == torch.float32 and step.device == device:
        return step
    return torch.tensor(float(taken if step is None else step), device=device)


def in_weights_order(tensor: Tensor | None, weight: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """The tensor, or zeros, in this dtype and with its elements in the weight's order; copied only where needed.

    Raises ValueError, about ``what``, where it has another shape or no memory.
    """
    if tensor is None:
        return torch.zeros_like(weight, dtype=dtype)
    if tensor.shape != weight.shape:
        raise ValueError(f"{what} must have the weight's shape {[*weight.shape]}; got {[*tensor.shape]}")
    if tensor.is_meta and not weight.is_meta:
        raise ValueError(f"{what} must have memory; got a tensor on meta")
    check_memory(here(tensor), what)
    ours, w = part(tensor, weight), here(weight)
    if ours.dtype == dtype and ours.device == w.device and (in_order(ours, w) or not is_dense(w)):
        return whole(ours, weight)
    return whole(torch.empty_like(w, dtype=dtype).copy_(ours), weight)


def moment_state(
    of: str, weight: Tensor, state: Mapping[str, Any], name: str, kept_in: str, squares: bool
) -> dict[str, Tensor]:
    """A moment as it is to be kept: what the state holds, rounded or widened where it is kept otherwise; else zeros.

    Args:
        of: the parameter's name, in errors.
        kept_in: of ``MOMENTS``. float64 weights have float64, and small ones float32 in place of 8 bits.
    """
    dtype = dtype_of_moments(weight, kept_in)
    held, scales, what = state.get(name), state.get(f"{name}_scales"), f"{name} of {of}"
    if dtype == torch.uint8 and is_sharded(weight):
        raise TypeError('moments="8bit" needs whole parameters; got a sharded one: take moments="bfloat16"')
    if held is not None and held.dtype == torch.uint8:
        if dtype == torch.uint8 and in_weights_order(held, weight, dtype, what) is held:
            return {name: held, f"{name}_scales": state[f"{name}_scales"].to(weight.device)}
        held = moments.load(held, scales, squares)
    if dtype != torch.uint8:
        return {name: in_weights_order(held, weight, dtype, what)}
    codes = torch.zeros_like(weight, dtype=dtype)
    scales = torch.zeros(moments.blocks(weight.numel()), device=weight.device)
    if held is not None:
        moments.store(in_weights_order(held, weight, torch.float32, what), codes, scales, squares, 0, 0)
    return {name: codes, f"{name}_scales": scales}


def dtype_of_moments(weight: Tensor, kept_in: str) -> torch.dtype:
    whole = compute_dtype(weight.dtype)
    if whole == torch.float64 or (kept_in == "8bit" and weight.numel() < SMALL):
        return whole
    return MOMENTS[kept_in]


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
