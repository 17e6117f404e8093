"""The operands of each parameter, and the checks on them; what a group's options are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytl.directions import Direction
from pytl.ops import core, moments

ON_DEVICE = ("lr", "sp_decay", "weight_decay", "beta1", "beta2")
"""Options that may be tensors on the device; a step on CUDA reads them there."""


@dataclass
class GroupOptions:
    """What every optimizer knows of a parameter group; read anew at each step."""

    lr: float | Tensor
    sp_decay: float | Tensor
    weight_decay: float | Tensor
    decoupled: bool
    direction: Direction
    granularity: str
    gradient_factor: float
    """1 / loss scale, negative to maximise."""

    @property
    def rule(self) -> Any:
        return core.rule_code(self.direction)

    def tensors(self) -> dict[str, Tensor]:
        """Those of ``ON_DEVICE`` that are tensors."""
        options = vars(self)
        return {name: options[name] for name in ON_DEVICE if isinstance(options.get(name), Tensor)}


@dataclass
class Operands:
    """One parameter's tensors; all of the weight's shape but ``step`` (0-dim float32, on the weight's device)."""

    weight: Tensor
    gradient: Tensor | None
    """The task's; None once it is used, because it is the user's to free. So is ``penalty``."""
    start: Tensor | None = None
    penalty: Tensor | None = None
    compensation: Tensor | None = None
    states: tuple[Tensor, ...] = ()
    scales: tuple[Tensor, ...] = ()
    """Of the states, where those are codes of 8 bits."""
    step: Any = None
    """How many steps have been taken, a tensor; looking needs none."""
    group: int = 0
    fresh: bool = False
    """The momentum is new: it takes the first direction whole."""

    @classmethod
    def lists(
        cls,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        states: Sequence[Sequence[Tensor]] = (),
        **optional: Sequence[Any] | None,
    ) -> list[Operands]:
        """One ``Operands`` a parameter, checked, from the lists that functional forms take; ``optional`` by name."""
        given = {name: tensors for name, tensors in optional.items() if tensors is not None}
        for name, tensors in {"gradient": grads, **given, **{f"states[{k}]": s for k, s in enumerate(states)}}.items():
            if len(tensors) != len(params):
                raise ValueError(
                    f"{name}: expected one tensor for each of the {len(params)} params; got {len(tensors)}"
                )
        operands = [
            cls(
                weight,
                grads[i],
                states=tuple(state[i] for state in states),
                **{name: tensors[i] for name, tensors in given.items()},
            )
            for i, weight in enumerate(params)
        ]
        for i, one in enumerate(operands):
            check(one, f"params[{i}]")
        return operands

    def release(self) -> None:
        """Lets go of the step's gradients."""
        self.gradient = self.penalty = None

    def named(self) -> Iterable[tuple[str, Tensor]]:
        """Those that must agree with the weight, by name."""
        for name in ("gradient", "start", "penalty", "compensation"):
            if (tensor := getattr(self, name)) is not None:
                yield name, tensor
        yield from ((f"states[{k}]", state) for k, state in enumerate(self.states))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that arithmetic runs in and that moments are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_weight(weight: Tensor, name: str) -> None:
    """Raises TypeError for what cannot be stepped on, ValueError for a tensor that overlaps itself."""
    if weight.is_complex():
        raise TypeError(f"{name} must be real; got {weight.dtype} (optimize torch.view_as_real of it instead)")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {weight.dtype}")
    if weight.layout != torch.strided:
        raise TypeError(f"{name} must be dense; got layout {weight.layout}")
    if _overlaps_itself(weight):
        raise ValueError(
            f"{name} must own each of its elements; got an expanded or overlapping view, strides {weight.stride()}"
        )


def _overlaps_itself(tensor: Tensor) -> bool:
    reach = 0  # of the dimensions so far, in elements
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def check_memory(tensor: Tensor, what: str) -> None:
    """Raises ValueError for a tensor whose memory was given back while it was in use."""
    if tensor.numel() and not tensor.is_meta and not tensor.data_ptr():
        raise ValueError(f"{what} must have memory; got a tensor whose storage was freed")


def check_gradient(gradient: Tensor, name: str) -> None:
    """Raises RuntimeError for the gradients that no path takes."""
    found = "sparse" if gradient.layout != torch.strided else "complex" if gradient.is_complex() else None
    if found:
        raise RuntimeError(
            f"the gradient of {name} must be dense and real; got {found}: pytl does not support {found} gradients"
        )


def check(operands: Operands, name: str) -> None:
    """Raises before anything is changed, naming the operand, what was expected and what was found."""
    weight, step = operands.weight, operands.step
    check_weight(weight, name)
    if operands.gradient is None:
        raise TypeError(f"the gradient of {name} must be a tensor; got None")
    check_gradient(operands.gradient, name)
    check_memory(weight, name)
    for operand, tensor in operands.named():
        check_memory(tensor, f"{operand} of {name}")
        if tensor.shape != weight.shape:
            raise ValueError(f"{operand} of {name} must have shape {[*weight.shape]}; got {[*tensor.shape]}")
        if tensor.device != weight.device:
            raise RuntimeError(f"{operand} of {name} must be on {weight.device}; got {tensor.device}")
        if operand == "start":
            check_weight(tensor, f"start of {name}")
        elif not operand.startswith("states") and tensor.dtype != weight.dtype:
            raise TypeError(f"{operand} of {name} must be {weight.dtype}; got {tensor.dtype}")
    _check_states(operands, name)
    if step is None:
        return
    if not isinstance(step, Tensor) or step.dim() or step.dtype != torch.float32 or step.device != weight.device:
        raise TypeError(f"step of {name} must be a 0-dim float32 tensor on {weight.device}; got {step!r}")
    check_memory(step, f"step of {name}")


def _check_states(operands: Operands, name: str) -> None:
    whole = compute_dtype(operands.weight.dtype)
    narrow = () if whole == torch.float64 else (torch.bfloat16, torch.uint8)
    for k, state in enumerate(operands.states):
        if state.dtype not in (whole, *narrow) or state.dtype != operands.states[0].dtype:
            raise TypeError(f"states[{k}] of {name} must be {whole}; got {state.dtype}")
        if state.dtype != torch.uint8:
            continue
        scales, count = operands.scales[k] if k < len(operands.scales) else None, moments.blocks(state.numel())
        if scales is None or scales.shape != (count,) or scales.dtype != torch.float32 or scales.device != state.device:
            raise ValueError(f"scales[{k}] of {name} must be float32 of shape [{count}] on {state.device}")


def in_order(tensor: Tensor, weight: Tensor) -> bool:
    """Whether both keep the elements of their common shape in the same order, without gaps."""
    if tensor.numel() <= 1:
        return True
    return all(a == b for a, b, size in zip(tensor.stride(), weight.stride(), weight.shape, strict=True) if size != 1)
