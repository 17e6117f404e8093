"""The core's plan of a list of tensors, on the CPU and on CUDA devices, behind one face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pytl.ops import core


class Scaling(NamedTuple):
    """What a ``GradScaler`` says of a step's gradients; 1-element tensors."""

    loss_scale: Tensor | None = None
    """The gradients are multiplied by it."""
    found_inf: Tensor | None = None
    """Not 0: one of them is not finite, and nothing is to be changed."""

    def on_host(self) -> tuple[float, bool]:
        """The loss scale and whether there is an overflow; waits for the device."""
        scale = 1.0 if self.loss_scale is None else float(self.loss_scale)
        return scale, self.found_inf is not None and bool(self.found_inf)


NO_SCALING = Scaling()


class Plan(Protocol):
    """Addresses that the core has checked once. ``groups`` are ``GroupOptions``, ``rows`` float64 ``[n, 5]``."""

    def renew(self, gradients: Sequence[int], penalties: Sequence[int]) -> bool:
        """Takes a step's addresses; False where the list is to be planned anew."""

    def gram(self, groups: Sequence[Any], rows: Tensor, scaling: Scaling) -> None:
        """Fills ``rows`` with Gram numbers."""

    def step(
        self, name: str, groups: Sequence[Any], weights: Tensor | None, rows: Tensor, max_norm: float, scaling: Scaling
    ) -> None:
        """Takes the step of the optimizer of that name, with the directions' weights or by the groups' rules."""


def on_host(groups: Sequence[Any], scaling: Scaling) -> Sequence[Any]:
    """The groups' options as numbers, unscaling included; waits for the device where one of them is a tensor there."""
    scale, _ = scaling.on_host()
    if scale == 1 and not any(group.tensors() for group in groups):
        return groups
    return [
        replace(
            group,
            gradient_factor=group.gradient_factor / scale,
            **{name: float(option) for name, option in group.tensors().items()},
        )
        for group in groups
    ]


class CpuPlan:
    def __init__(self, addresses: Sequence[Any]) -> None:
        self._plan = core.module.Plan(addresses)

    def renew(self, gradients: Sequence[int], penalties: Sequence[int]) -> bool:
        self._plan.renew(gradients, penalties)
        return True

    def gram(self, groups: Sequence[Any], rows: Tensor, scaling: Scaling) -> None:
        self._plan.gram(on_host(groups, scaling), rows.data_ptr())

    def step(
        self, name: str, groups: Sequence[Any], weights: Tensor | None, rows: Tensor, max_norm: float, scaling: Scaling
    ) -> None:
        given = 0 if weights is None else weights.data_ptr()
        getattr(self._plan, name)(on_host(groups, scaling), given, rows.data_ptr(), max_norm)


class Call(NamedTuple):
    """What the core must know of one call beside its plan: addresses, or 0."""

    stream: int
    found_inf: int
    loss_scale: int
    addresses: int
    """Memory for the gradients' addresses, where the call is captured: the graph reads them there."""


class CudaPlan:
    """On the current stream of one device; nothing waits, and nothing is read back. Memory is torch's, so that running
    out of it is torch's error, before anything is changed.

    A call may be captured in a CUDA graph. The plan must then live as long as the graph.
    """

    def __init__(self, addresses: Sequence[Any], device: torch.device) -> None:
        self.device = device
        self._plan = core.module.cuda.Plan(addresses, device.index or 0)
        self._tables = torch.frombuffer(bytearray(self._plan.tables()), dtype=torch.uint8).to(device)
        self._scratch = torch.zeros(self._plan.scratch_bytes(), dtype=torch.uint8, device=device)
        self._plan.place(self._tables.data_ptr(), self._scratch.data_ptr())
        self.captured: list[Tensor] = []

    def renew(self, gradients: Sequence[int], penalties: Sequence[int]) -> bool:
        return bool(self._plan.renew(gradients, penalties))

    def gram(self, groups: Sequence[Any], rows: Tensor, scaling: Scaling) -> None:
        self._plan.gram(self._here(groups), rows.data_ptr(), self._call(scaling))

    def step(
        self, name: str, groups: Sequence[Any], weights: Tensor | None, rows: Tensor, max_norm: float, scaling: Scaling
    ) -> None:
        given = 0 if weights is None else weights.data_ptr()
        self._plan.step(self._here(groups), given, max_norm, rows.data_ptr(), self._call(scaling))

    def write_options(self, groups: Sequence[Any]) -> None:
        """Brings options to the device for the steps that were captured."""
        self._plan.write_options(self._here(groups), Call(current_stream(self.device), 0, 0, 0))

    def _call(self, scaling: Scaling) -> Call:
        found_inf, loss_scale = (
            None if t is None else self._float32(t) for t in (scaling.found_inf, scaling.loss_scale)
        )
        addresses = None
        if is_capturing():
            addresses = torch.empty(self._plan.address_count(), dtype=torch.int64, device=self.device)
            self.captured += [t for t in (addresses, found_inf, loss_scale) if t is not None]
        self._last = found_inf, loss_scale
        return Call(current_stream(self.device), *map(_address, (found_inf, loss_scale, addresses)))

    def _here(self, groups: Sequence[Any]) -> Sequence[Any]:
        """The options, with tensors among them that lie on this device in a dtype that the core reads."""
        if not any(group.tensors() for group in groups):
            return groups
        self._options = [
            replace(group, **{name: self._readable(option) for name, option in group.tensors().items()})
            for group in groups
        ]
        return self._options

    def _readable(self, option: Tensor) -> Tensor:
        return option.to(self.device) if option.dtype == torch.float64 else self._float32(option)

    def _float32(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, torch.float32, non_blocking=True)


def current_stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def plan_of(addresses: Sequence[Any], device: torch.device) -> Plan:
    """The plan for parameters of one device."""
    return CudaPlan(addresses, device) if device.type == "cuda" else CpuPlan(addresses)
