"""What training takes of memory, for each way to keep moments and starting points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pytl.ops import moments
from pytl.optim.groups import param_groups
from pytl.optim.options import MOMENTS, is_anchored
from pytl.optim.prefetch import WINDOW
from pytl.optim.sharding import here, is_sharded
from pytl.optim.start import smallest_lossless
from pytl.optim.state import dtype_of_moments

_STARTS = ("here", "cpu", "disk")


@dataclass(frozen=True)
class Memory:
    """Bytes on the weights' device, on one rank; what activations take comes on top.

    Attributes:
        kept_in: what moments are kept in: the optimizer's ``moments``.
        start_at: where w0 is: "here", with the weights; "cpu" or "disk": the optimizer's ``start_device``.
        weights, gradients, moments, compensation, start: of all parameters. ``start``: of w0 elsewhere the windows in
            which it comes to a GPU.
        elsewhere: of w0 in the host's memory, for weights on a GPU.
        parameters: how many there are, on all ranks.
    """

    kept_in: str
    start_at: str
    weights: int
    gradients: int
    moments: int
    compensation: int
    start: int
    elsewhere: int
    parameters: int

    @property
    def state(self) -> int:
        """What the optimizer adds."""
        return self.moments + self.compensation + self.start

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state

    @property
    def per_parameter(self) -> float:
        return self.total / max(self.parameters, 1)


class MemoryTable(list[Memory]):
    """A row for each choice; ``print`` shows bytes a parameter and the sum."""

    def row(self, moments: str = "float32", start: str = "here") -> Memory:
        """The row of a choice; KeyError where there is none."""
        found = {(row.kept_in, row.start_at): row for row in self}
        return found[moments, start]

    def __str__(self) -> str:
        parts = ("weights", "gradients", "moments", "compensation", "start")
        head = f"{'moments':9}{'start':6}" + "".join(f"{part:>13}" for part in parts) + f"{'a parameter':>13}{'GB':>10}"
        lines = [f"bytes a parameter, {self[0].parameters:,} parameters", head]
        for row in self:
            each = "".join(f"{getattr(row, part) / max(row.parameters, 1):13.2f}" for part in parts)
            lines.append(f"{row.kept_in:9}{row.start_at:6}{each}{row.per_parameter:13.2f}{row.total / 1e9:10.3f}")
        return "\n".join(lines)


def memory(
    model: nn.Module | Sequence[Mapping[str, Any]],
    *,
    moments_each: int = 2,
    compensated: bool | None = None,
    start_dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    ranks: int = 1,
) -> MemoryTable:
    """What a network takes in training, in bytes, for each way to keep moments and starting points.

    Args:
        model: a network, whose transferred matrices are taken to be pulled; or the groups of ``pytl.param_groups``.
            Parameters may be on "meta": that bfloat16 holds a w0 can then not be seen, and is not counted on.
        moments_each: how many moments a parameter has: 2 for AdamW, 3 with ``amsgrad``, 1 for SGD with momentum.
        compensated, start_dtype: as the optimizers have them.
        device: where the weights will be; None: where they are.
        ranks: over which FSDP shards each parameter's first dimension; the bytes are the first rank's.

    Raises:
        ValueError: ``moments_each`` < 0 or ``ranks`` < 1.
    """
    for name, value, least in (("moments_each", moments_each, 0), ("ranks", ranks, 1)):
        if value < least:
            raise ValueError(f"{name} must be >= {least}; got {value}")
    groups = param_groups(model, sp_decay=1.0, verbose=False) if isinstance(model, nn.Module) else model
    held = [
        _Held(
            weight=p,
            elements=_elements_here(p, ranks),
            start=_dtype_of_start(p, start_dtype) if is_anchored(group) else None,
            on_gpu=torch.device(device or p.device).type == "cuda",
        )
        for group in groups
        for p in (member[1] if isinstance(member, tuple) else member for member in group["params"])
    ]
    formats = MOMENTS if moments_each else ("float32",)
    return MemoryTable(
        Memory(
            kept_in=kept_in,
            start_at=start_at,
            weights=sum(one.weight_bytes for one in held),
            gradients=sum(one.weight_bytes for one in held),
            moments=moments_each * sum(one.bytes_of_moment(kept_in) for one in held),
            compensation=sum(one.weight_bytes for one in held if one.weight.itemsize == 2 and compensated is not False),
            start=sum(one.start_bytes for one in held if one.keeps_start(start_at)) + _windows(held, start_at),
            elsewhere=sum(one.start_bytes for one in held if one.on_gpu) if start_at == "cpu" else 0,
            parameters=sum(one.weight.numel() for one in held),
        )
        for kept_in, start_at in product(formats, _STARTS)
    )


@dataclass(frozen=True)
class _Held:
    """One parameter: its elements on this rank, and the dtype of its w0 if it has one."""

    weight: Tensor
    elements: int
    start: torch.dtype | None
    on_gpu: bool

    @property
    def weight_bytes(self) -> int:
        return self.elements * self.weight.itemsize

    @property
    def start_bytes(self) -> int:
        return self.elements * self.start.itemsize if self.start else 0

    def bytes_of_moment(self, kept_in: str) -> int:
        dtype = dtype_of_moments(self.weight, kept_in)
        return self.elements * dtype.itemsize + (4 * moments.blocks(self.elements) if dtype == torch.uint8 else 0)

    def keeps_start(self, start_at: str) -> bool:
        """Whether w0 stays on the weight's device."""
        return start_at == "here" or (start_at == "cpu" and not self.on_gpu)


def _elements_here(p: Tensor, ranks: int) -> int:
    if is_sharded(p):
        return here(p).numel()
    return p.numel() if ranks == 1 or not p.dim() else -(-p.shape[0] // ranks) * prod(p.shape[1:])


def _dtype_of_start(p: Tensor, asked: torch.dtype | str) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    return p.dtype if p.is_meta else smallest_lossless(here(p.detach()), p)


def _windows(held: Sequence[_Held], start_at: str) -> int:
    """Two windows at most, each of one long w0 or of several."""
    coming = sorted((one.start_bytes for one in held if one.on_gpu), reverse=True)
    if start_at == "here" or not coming:
        return 0
    return min(sum(coming), max(coming[0], WINDOW) + max(coming[1] if len(coming) > 1 else 0, WINDOW))
