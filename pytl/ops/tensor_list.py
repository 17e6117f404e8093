"""What one launch works on: the operands of each parameter, checked once, and the plan the core has made of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytl.directions import Direction
from pytl.ops import core, moments
from pytl.ops.plan import plan_of

GRAM_COLUMNS = 5
"""<g,g>, <g,r>, <r,r>, and for a decoupled penalty's gradient h: <g,h>, <h,h>."""


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


def in_order(tensor: Tensor, weight: Tensor) -> bool:
    """Whether both keep the elements of their common shape in the same order, without gaps."""
    if tensor.numel() <= 1:
        return True
    return all(a == b for a, b, size in zip(tensor.stride(), weight.stride(), weight.shape, strict=True) if size != 1)


def place(operands: Sequence[Operands], fused: bool | None) -> bool:
    """Whether the core runs these operands. Raises RuntimeError where ``fused=True`` asks for what it cannot."""
    on_core = fused is not False and not core.missing and all(map(core_takes, operands))
    if fused and not on_core:
        reasons = {core.why_not(o.weight.device, o.weight.dtype) for o in operands} - {""}
        why = "; ".join(sorted(reasons)) or "a tensor has gaps, or its operands lie in another order"
        raise RuntimeError(f"fused=True needs tensors that the compiled core serves: {why}")
    return on_core
