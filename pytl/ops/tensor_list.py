"""What one launch works on: the parameters of one device, and the plan the core has made of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytl.ops import core, moments
from pytl.ops.operands import Operands, check, in_order
from pytl.ops.plan import plan_of

GRAM_COLUMNS = 5
"""<g,g>, <g,r>, <r,r>, and for a decoupled penalty's gradient h: <g,h>, <h,h>."""


class Addresses(NamedTuple):
    """What the core reads of an ``Operands``."""

    weight: int
    gradient: int
    start: int
    penalty: int
    compensation: int
    states: list[int]
    scales: list[int]
    step: int
    length: int
    group: int
    fresh: bool
    dtype: Any
    start_dtype: Any
    moments: Any


class TensorList:
    """The parameters of one launch, in order, checked; all on one device. ``on_core``: the compiled core runs it, else
    PyTorch does. ``rows`` are their Gram numbers, float64 ``[n, 5]``.

    The core's plan holds addresses, so it holds as long as nothing moves: ``take`` says whether it still does.
    Raises what ``check`` raises.
    """

    def __init__(
        self, operands: Sequence[Operands], names: Sequence[str] | None = None, *, on_core: bool = True
    ) -> None:
        self.operands = list(operands)
        self.on_core = on_core
        self._shapes = [o.weight.shape for o in self.operands]
        self._forms = [] if on_core else [_form(o.weight) for o in self.operands]
        self.device = self.operands[0].weight.device if operands else torch.device("cpu")
        self.group_of = torch.tensor([o.group for o in self.operands], dtype=torch.int64, device=self.device)
        self.rows = torch.zeros(len(self.operands), GRAM_COLUMNS, dtype=torch.float64, device=self.device)
        for i, one in enumerate(self.operands):
            name = names[i] if names else f"weights[{i}]"
            check(one, name)
            if one.weight.device != self.device:
                raise RuntimeError(f"{name} must be on {self.device}, as the others are; got {one.weight.device}")
        if on_core:
            self._plan_for_core()

    def _plan_for_core(self) -> None:
        gradients = [o.gradient for o in self.operands if o.gradient is not None]
        self._weights = [o.weight for o in self.operands]
        self._copies = {i: torch.empty_like(w) for i, w in enumerate(self._weights) if not in_order(gradients[i], w)}
        if self._copies:
            warnings.warn(
                f"{len(self._copies)} gradients keep their elements in another order than their weights: "
                "each is copied once a step",
                stacklevel=2,
            )
        many = [i for i, w in enumerate(self._weights) if w.numel() > 1 and i not in self._copies]
        self._contiguous = [i for i in many if gradients[i].is_contiguous()]
        self._strided = [(i, gradients[i].stride()) for i in many if not gradients[i].is_contiguous()]
        self._dtypes = [w.dtype for w in self._weights]
        self._weight_addresses = list(map(Tensor.data_ptr, self._weights))
        self._no_penalties = [0] * len(self.operands)
        self._renewed = self._addresses_of(gradients), self._penalty_addresses([o.penalty for o in self.operands])
        self.plan = plan_of([self._addresses(i) for i in range(len(self.operands))], self.device)
        for operands in self.operands:
            operands.release()

    def __len__(self) -> int:
        return len(self.operands)

    def take(self, gradients: Sequence[Tensor], penalties: Sequence[Tensor | None] | None = None) -> bool:
        """Takes a step's gradients; False where a weight has moved or a gradient has another layout: plan anew."""
        if not self.on_core:
            return self._hand_over(gradients, penalties)
        try:
            if not self._holds(gradients):
                return False
            addresses = self._addresses_of(gradients), self._penalty_addresses(penalties)
        except (AttributeError, TypeError, RuntimeError):  # one is None or sparse now
            return False
        if addresses != self._renewed:
            if [g.dtype for g in gradients] != self._dtypes:
                return False
            if not self.plan.renew(*addresses):
                return False
            self._renewed = addresses
        return True

    def _holds(self, gradients: Sequence[Tensor]) -> bool:
        return (
            list(map(Tensor.data_ptr, self._weights)) == self._weight_addresses
            and [gradient.shape for gradient in gradients] == self._shapes
            and all([gradients[i].is_contiguous() for i in self._contiguous])
            and all([gradients[i].stride() == stride for i, stride in self._strided])
        )

    def _hand_over(self, gradients: Sequence[Tensor], penalties: Sequence[Tensor | None] | None) -> bool:
        if [_form(o.weight) for o in self.operands] != self._forms:
            return False
        for i, (o, gradient) in enumerate(zip(self.operands, gradients, strict=True)):
            if gradient is None or gradient.dtype != o.weight.dtype or gradient.layout != torch.strided:
                return False
            if gradient.shape != self._shapes[i] or (gradient.numel() and not gradient.data_ptr()):
                return False
            o.gradient, o.penalty = gradient, penalties[i] if penalties else None
        return True

    def _penalty_addresses(self, penalties: Sequence[Tensor | None] | None) -> list[int]:
        return [_address(h) for h in penalties] if penalties else self._no_penalties

    def _addresses_of(self, gradients: Sequence[Tensor]) -> list[int]:
        addresses = list(map(Tensor.data_ptr, gradients))
        for i, copy in self._copies.items():
            addresses[i] = copy.copy_(gradients[i]).data_ptr()
        return addresses

    def _addresses(self, index: int) -> Addresses:
        o = self.operands[index]
        return Addresses(
            weight=o.weight.data_ptr(),
            gradient=self._renewed[0][index],
            start=_address(o.start),
            penalty=self._renewed[1][index],
            compensation=_address(o.compensation),
            states=[_address(state) for state in o.states],
            scales=[_address(scale) for scale in o.scales],
            step=_address(o.step),
            length=o.weight.numel(),
            group=o.group,
            fresh=o.fresh,
            dtype=core.dtype_code(o.weight.dtype),
            start_dtype=core.dtype_code((o.weight if o.start is None else o.start).dtype),
            moments=moments.code(o.states[0].dtype if o.states else torch.float32),
        )


def _form(weight: Tensor) -> tuple[Any, ...]:
    """What operands are planned for."""
    return weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def core_takes(operands: Operands) -> bool:
    """Whether the core can run this parameter: a device and dtypes it knows, and operands in one dense order."""
    weight = operands.weight
    others = [tensor for name, tensor in operands.named() if name != "gradient"]
    stored = [t for t in (operands.start, operands.penalty, operands.compensation) if t is not None]
    if any(core.why_not(t.device, t.dtype) for t in (weight, *stored)):
        return False
    return core.is_dense(weight) and all(in_order(t, weight) for t in others)


def place(operands: Sequence[Operands], fused: bool | None) -> bool:
    """Whether the core runs these operands. Raises RuntimeError where ``fused=True`` asks for what it cannot."""
    on_core = fused is not False and not core.missing and all(map(core_takes, operands))
    if fused and not on_core:
        reasons = {core.why_not(o.weight.device, o.weight.dtype) for o in operands} - {""}
        why = "; ".join(sorted(reasons)) or "a tensor has gaps, or its operands lie in another order"
        raise RuntimeError(f"fused=True needs tensors that the compiled core serves: {why}")
    return on_core
