"""Random parameters to step on: never zeros, and enough sets of them that no cache holds what is timed."""

from dataclasses import dataclass
from functools import cache
from math import ceil
from random import Random

import torch
from torch import Tensor

from pytl.benchmark.machine import last_level_cache_bytes
from pytl.benchmark.shapes import Shape, elements

_NOISE = 1 << 22  # elements drawn; longer tensors take random pieces of them, as drawing 0.3e9 takes many seconds
_ROTATED_BYTES = 64 << 20
_MOST_SETS = 16  # 161 tensors of one element would need thousands
CPU = torch.device("cpu")
_WEIGHT_SCALE, _DISTANCE_SCALE, _GRADIENT_SCALE = 2e-2, 1e-3, 1e-3


@dataclass
class ParameterSet:
    """A network as an optimizer sees it: weights with their gradients, and the starting point w0."""

    weights: list[Tensor]
    starts: list[Tensor]

    def results(self, returned: object) -> list[list[Tensor]]:
        return [self.weights]

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @property
    def gradients(self) -> list[Tensor]:
        return [w.grad for w in self.weights if w.grad is not None]

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        return [(str(i), w) for i, w in enumerate(self.weights)]

    @property
    def start(self) -> dict[str, Tensor]:
        return {str(i): w0 for i, w0 in enumerate(self.starts)}


@cache
def _noise(device: torch.device) -> Tensor:
    """Standard normal, twice over, so that a piece may begin anywhere in the first half."""
    once = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0))
    return torch.cat([once, once]).to(device)


class Draw:
    """Standard normal numbers, scaled; the same for the same seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._random = Random(seed)
        self._device = device

    def __call__(self, shape: Shape, scale: float, dtype: torch.dtype) -> Tensor:
        drawn = torch.empty(shape, dtype=dtype, device=self._device)
        noise = _noise(self._device)
        for part in drawn.view(-1).split(_NOISE):
            offset = self._random.randrange(_NOISE)
            torch.mul(noise[offset : offset + len(part)], scale, out=part)
        return drawn


def random_set(shapes: list[Shape], dtype: torch.dtype, seed: int, device: torch.device = CPU) -> ParameterSet:
    """The same numbers for the same seed."""
    draw = Draw(seed, device)
    drawn = ParameterSet([], [])
    for shape in shapes:
        weight = torch.nn.Parameter(draw(shape, _WEIGHT_SCALE, dtype))
        weight.grad = draw(shape, _GRADIENT_SCALE, dtype)
        drawn.weights.append(weight)
        drawn.starts.append(weight.detach() + draw(shape, _DISTANCE_SCALE, dtype))
    return drawn


def set_bytes(shapes: list[Shape], dtype: torch.dtype) -> int:
    """What one set keeps: w, g and w0, and two moments in float32."""
    return elements(shapes) * (3 * dtype.itemsize + 2 * 4)


def cpu_rotated_bytes() -> int:
    """Beyond 64 MiB and twice the last-level cache."""
    return max(_ROTATED_BYTES, 2 * last_level_cache_bytes())


def sets_to_rotate(shapes: list[Shape], dtype: torch.dtype, rotated_bytes: int | None = None) -> int:
    """Of parameters; by default beyond the processor's caches."""
    return sets_of(set_bytes(shapes, dtype), cpu_rotated_bytes() if rotated_bytes is None else rotated_bytes)


def sets_of(bytes_each: int, rotated_bytes: int) -> int:
    """So many that those of both contenders together have these bytes; at most 16 each."""
    return min(_MOST_SETS, ceil(rotated_bytes / 2 / bytes_each))
