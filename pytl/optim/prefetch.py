"""Starting points that are kept elsewhere, brought to the weights' device in time and never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pytl.ops.operands import Operands
from pytl.ops.tensor_list import TensorList

WINDOW = 64 << 20
"""Bytes of w0 that come at a time; a longer tensor comes whole. Two windows are on the device: one is in use while the
next is on its way."""

_ALIGNMENT = 256  # bytes


class Prefetch:
    """Puts memory on the weights' device in the place of starting points that are elsewhere, and fills it in time.

    Args:
        operands: of a step, in order; their ``start`` is replaced.

    Attributes:
        window_of: of each of the operands: the number of its window; -1 where w0 is at home.
    """

    def __init__(self, operands: Sequence[Operands]) -> None:
        self.window_of, offsets = _windows(operands)
        self._pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._used: dict[tuple[torch.device, int], torch.cuda.Event] = {}
        buffers = _buffers(operands, self.window_of, offsets)
        for o, window, offset in zip(operands, self.window_of, offsets, strict=True):
            if o.start is None or window < 0:
                continue
            device = o.weight.device
            there = buffers[device, window % 2][offset : offset + o.start.nbytes].view(o.start.dtype)
            ordered = torch.empty_like(o.weight, device="meta")
            self._pairs.setdefault(window, []).append((o.start, there.as_strided(ordered.shape, ordered.stride())))
            o.start = self._pairs[window][-1][1]
            if device.type == "cuda":
                self._streams.setdefault(device, torch.cuda.Stream(device))

    def bring(self, lists: Sequence[TensorList], windows: Sequence[int]) -> Iterator[TensorList]:
        """The lists in turn, each with its starting points there.

        Args:
            windows: the number of each list's; -1: none.
        """
        order = list(dict.fromkeys(window for window in windows if window >= 0))
        ready: dict[int, torch.cuda.Event | None] = {}
        for tensors, window in zip(lists, windows, strict=True):
            place = order.index(window) if window >= 0 else len(order)
            for coming in order[place : place + 2]:
                if coming not in ready:
                    ready[coming] = self._copy(coming)
            if event := ready.get(window):
                torch.cuda.current_stream(tensors.device).wait_event(event)
            yield tensors
            if event:
                used = torch.cuda.current_stream(tensors.device).record_event()
                self._used[tensors.device, window % 2] = used

    def _copy(self, window: int) -> torch.cuda.Event | None:
        """On a stream of its own, once what last used the memory is done."""
        pairs = self._pairs[window]
        device = pairs[0][1].device
        stream = self._streams.get(device)
        with torch.cuda.stream(stream):
            if stream and (used := self._used.get((device, window % 2))):
                stream.wait_event(used)
            for kept, there in pairs:
                there.copy_(kept, non_blocking=True)
            return stream.record_event() if stream else None


def is_elsewhere(start: Tensor, weight: Tensor) -> bool:
    return start.device != weight.device


def _windows(operands: Sequence[Operands]) -> tuple[list[int], list[int]]:
    """Of each: the number of its window, and where it begins in there."""
    windows, offsets = [], []
    count, filled, device = 0, 0, None
    for o in operands:
        if o.start is None or not is_elsewhere(o.start, o.weight):
            windows.append(-1)
            offsets.append(0)
            continue
        if device != o.weight.device or filled + o.start.nbytes > WINDOW:
            count, filled, device = count + 1, 0, o.weight.device
        windows.append(count - 1)
        offsets.append(filled)
        filled += -(-o.start.nbytes // _ALIGNMENT) * _ALIGNMENT
    return windows, offsets


def _buffers(
    operands: Sequence[Operands], windows: Sequence[int], offsets: Sequence[int]
) -> dict[tuple[torch.device, int], Tensor]:
    """Memory for even and for odd windows, on each device."""
    sizes: dict[tuple[torch.device, int], int] = {}
    for o, window, offset in zip(operands, windows, offsets, strict=True):
        if o.start is not None and window >= 0:
            key = o.weight.device, window % 2
            sizes[key] = max(sizes.get(key, 0), offset + o.start.nbytes)
    return {key: torch.empty(size, dtype=torch.uint8, device=key[0]) for key, size in sizes.items()}
