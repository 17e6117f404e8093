"""Which optimizers are timed on which lists of shapes, and the targets that were set for them on a CPU."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import Any

import torch

from pytl.benchmark import shapes
from pytl.benchmark.case import Case
from pytl.benchmark.machine import available_bytes
from pytl.benchmark.pairing import Pairing, Target
from pytl.benchmark.parameters import ParameterSet, random_set, set_bytes, sets_to_rotate
from pytl.benchmark.records import OptimizerComparison
from pytl.benchmark.shapes import Shape, elements


@dataclass(frozen=True)
class OptimizerCase(Case):
    shapes: Callable[[], list[Shape]]
    _: KW_ONLY
    in_cache: bool = False
    """Whether one set is stepped on again and again; else there are as many as leave the caches."""

    @property
    def title(self) -> str:
        """With the number of parameters, where what is available decides it."""
        return self.words + (f", {self.elements / 1e9:.2f}e9 parameters" if self.fills_memory else "")

    @property
    def elements(self) -> int:
        return elements(self.shapes())

    def sets(self, rotated_bytes: int) -> int:
        alone = self.in_cache or self.fills_memory
        return 1 if alone else sets_to_rotate(self.shapes(), self.dtype, rotated_bytes)

    def needed_bytes(self, sets: int) -> int:
        alone = set_bytes(self.shapes(), self.dtype)
        return alone if self.fills_memory else sets * self.elements * BYTES_PER_PARAMETER

    def draw(self, seed: int, place: torch.device) -> ParameterSet:
        return random_set(self.shapes(), self.dtype, seed, place)

    def record(self, **figures: Any) -> OptimizerComparison:
        return OptimizerComparison(tensors=len(self.shapes()), parameters=self.elements, **figures)


def price(ours: str = "pytl-dtnh", rival: str = "torch", target: Target | None = None) -> Pairing:
    """What L2-SP and DTNH cost beside a rival that does neither."""
    return Pairing(ours, rival, target, same_results=False)


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
    OptimizerCase("resnet50", "ResNet-50", _RESNET, shapes.resnet50, quick=True),
    OptimizerCase("vit-l16", "ViT-L/16", (price(), _PLAIN, _EAGER), shapes.vit_large),
    OptimizerCase("llama", "Llama-like stack", (price(), _PLAIN, _EAGER), _llama),
    OptimizerCase("llama-bf16", "Llama-like stack, bf16", _BFLOAT16, _llama, dtype=torch.bfloat16),
    OptimizerCase("tiny", "10,000 tensors of 64", _TINY, shapes.tiny, quick=True),
    OptimizerCase("ones", "host cost", _ONES, shapes.ones, in_cache=True, quick=True),
    OptimizerCase("ones-cold", "host cost, 16 sets in turn", _COLD, shapes.ones, quick=True),
    OptimizerCase("huge", "one tensor of 134 M", _HUGE, shapes.huge),
)

CASES = {case.name: case for case in _ALL}
