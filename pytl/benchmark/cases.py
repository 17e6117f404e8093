"""What is timed against what, on which shapes, and the targets that were set for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from pytl.benchmark import shapes
from pytl.benchmark.machine import available_bytes
from pytl.benchmark.shapes import Shape, elements

Quantity = Literal[
    "time ratio",
    "speed-up",
    "microseconds",
    "share of cores",
    "host microseconds",
    "floor ratio",
    "share of copy rate",
]
_AT_MOST = ("time ratio", "microseconds", "host microseconds", "floor ratio")
_FORMATS = {
    "time ratio": "{:.2f}",
    "speed-up": "{:.1f}x faster",
    "microseconds": "{:.0f} us",
    "share of cores": "{:.0%}",
    "host microseconds": "{:.0f} us",
    "floor ratio": "{:.2f}",
    "share of copy rate": "{:.0%}",
}
_OF = {
    "share of cores": " of the cores",
    "host microseconds": " of the host",
    "floor ratio": " of the {bytes} B floor",
    "share of copy rate": " of the copy rate",
}


@dataclass(frozen=True)
class Target:
    quantity: Quantity
    """Of pytl's time over the rival's, the inverse, pytl's step, pytl's CPU time over wall time and threads, the host's
    part of pytl's step, pytl's time over that of moving so many bytes at the copy rate, or bytes over that rate."""
    limit: float
    bytes_per_parameter: int = 0
    """Of the floor."""

    def __str__(self) -> str:
        of_what = _OF.get(self.quantity, "").format(bytes=self.bytes_per_parameter)
        return f"{'<=' if self.at_most else '>='} {self.shown(self.limit)}{of_what}"

    @property
    def at_most(self) -> bool:
        return self.quantity in _AT_MOST

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def shown(self, value: float) -> str:
        return _FORMATS[self.quantity].format(value)


@dataclass(frozen=True)
class Pairing:
    """Names of ``contenders.CONTENDERS``."""

    ours: str
    rival: str
    target: Target | None = None
    same_weights: bool = True
    """Whether both compute the same; else the rival does less, and the ratio is the price of the difference."""
    quick: bool = True
    """Whether it is part of a quick run; compiling alone takes minutes."""


@dataclass(frozen=True)
class Case:
    name: str
    words: str
    shapes: Callable[[], list[Shape]]
    pairings: tuple[Pairing, ...]
    dtype: torch.dtype = torch.float32
    in_cache: bool = False
    """Whether one set is stepped on again and again; else there are as many as leave the caches."""
    quick: bool = False
    """Whether it is part of a quick run."""
    fills_memory: bool = False
    """Whether the contenders, with one set each, have the device one after the other, and so are not compared."""

    @property
    def title(self) -> str:
        """With the number of parameters, where what is available decides it."""
        size = f", {elements(self.shapes()) / 1e9:.2f}e9 parameters" if self.fills_memory else ""
        return self.words + size


def price(ours: str = "pytl-dtnh", rival: str = "torch", target: Target | None = None) -> Pairing:
    """What L2-SP and DTNH cost beside a rival that does neither."""
    return Pairing(ours, rival, target, same_weights=False)


@cache  # what is available changes during a run
def _llama() -> list[Shape]:
    """Sized so that both contenders' tensors, moments and temporaries take half of the available memory."""
    return shapes.llama_within(available_bytes() / 2 / BYTES_PER_PARAMETER)


BYTES_PER_PARAMETER = 2 * (3 * 4 + 8) + 3 * 4  # two contenders' sets in float32, and what an eager rival allocates

_PLAIN, _EAGER, _AUTOGRAD = (
    Pairing("pytl", "torch"),
    Pairing("pytl-dtnh", "eager"),
    Pairing("pytl-dtnh-clip", "autograd"),
)
_SLOW_EAGER, _SLOW_AUTOGRAD = replace(_EAGER, quick=False), replace(_AUTOGRAD, quick=False)
_SGD = (Pairing("pytl-sgd", "torch-sgd"), price("pytl-sgd-dtnh", "torch-sgd"))
_HALF, _HOST = Target("time ratio", 0.5), Target("microseconds", 80)

_RESNET = (
    price(target=Target("time ratio", 1.45)),
    Pairing("pytl", "torch", Target("time ratio", 1.05)),
    price("pytl-dtnh-clip"),
    _EAGER,
    Pairing("pytl-dtnh", "foreach", Target("speed-up", 8)),
    Pairing("pytl-dtnh", "compiled", Target("speed-up", 1.5), quick=False),
    _AUTOGRAD,
    Pairing("pytl-dtnh", "pytl-reference", quick=False),
    *_SGD,
)
_TINY = (price(target=_HALF), Pairing("pytl", "torch", _HALF), price("pytl-dtnh-clip"), _SLOW_EAGER, _SLOW_AUTOGRAD)
_ONES = (price(target=_HOST), Pairing("pytl", "torch", _HOST), price("pytl-dtnh-clip"), _EAGER, _AUTOGRAD, *_SGD)
_COLD = (price(target=_HOST), Pairing("pytl", "torch", _HOST))
_HUGE = (price(target=Target("share of cores", 0.9)), _PLAIN, Pairing("pytl-dtnh", "pytl-dtnh-one-thread"))
_BFLOAT16 = (price(), _PLAIN, price("pytl-dtnh-kahan"))

_ALL = (
    Case("resnet50", "ResNet-50", shapes.resnet50, _RESNET, quick=True),
    Case("vit-l16", "ViT-L/16", shapes.vit_large, (price(), _PLAIN, _EAGER)),
    Case("llama", "Llama-like stack", _llama, (price(), _PLAIN, _EAGER)),
    Case("llama-bf16", "Llama-like stack, bf16", _llama, _BFLOAT16, dtype=torch.bfloat16),
    Case("tiny", "10,000 tensors of 64", shapes.tiny, _TINY, quick=True),
    Case("ones", "host cost", shapes.ones, _ONES, in_cache=True, quick=True),
    Case("ones-cold", "host cost, 16 sets in turn", shapes.ones, _COLD, quick=True),
    Case("huge", "one tensor of 134 M", shapes.huge, _HUGE),
)

CASES = {case.name: case for case in _ALL}
