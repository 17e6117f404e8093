"""Which optimizers are timed on a GPU, and the targets that were set for them."""

from functools import cache

import torch

from pytl.benchmark import shapes
from pytl.benchmark.cases import BYTES_PER_PARAMETER, OptimizerCase, price
from pytl.benchmark.cuda import free_bytes
from pytl.benchmark.pairing import Pairing, Target
from pytl.benchmark.shapes import Shape

_KEPT = 3 * 2 + 2 + 2 * 4  # bytes a parameter in bf16: w, g, w0 and pytl's own w0, moments in float32
_SHARE_OF_MEMORY = 0.95


@cache  # what is free changes during a run
def _llama() -> list[Shape]:
    """Sized so that both contenders' tensors, moments and temporaries take half of the device's free memory."""
    return shapes.llama_within(free_bytes() / 2 / BYTES_PER_PARAMETER)


@cache
def _llama_8b() -> list[Shape]:
    """All 32 layers, or as many as the device has memory for with one contender."""
    return shapes.llama_8b_within(_SHARE_OF_MEMORY * free_bytes() / _KEPT)


# Bytes a parameter where g, w and w0 are read twice: pytl reads them once from memory where the L2 cache keeps them.
_FLOOR, _FLOOR_BFLOAT16 = Target("floor ratio", 1.0, 44), Target("floor ratio", 1.08, 30)
_COPY = Target("share of copy rate", 0.93)

_PLAIN = Pairing("pytl", "torch", Target("time ratio", 1.0))
_EAGER = Pairing("pytl-dtnh", "eager")
_TWENTY = Target("speed-up", 20)
_KERNELS = (price("pytl-gram", target=_COPY), price("pytl-update", target=_COPY))

_RESNET = (
    price(target=_FLOOR),
    _PLAIN,
    Pairing("pytl-dtnh", "eager", Target("speed-up", 10)),
    Pairing("pytl-dtnh", "foreach", Target("speed-up", 10)),
    Pairing("pytl-dtnh-graph", "pytl-dtnh", Target("time ratio", 1.03)),
    price("pytl-dtnh-clip"),
    Pairing("pytl-dtnh-clip", "autograd"),
    Pairing("pytl-sgd", "torch-sgd"),
    price("pytl-sgd-dtnh", "torch-sgd"),
    Pairing("pytl-dtnh", "compiled", quick=False),
)
_LLAMA_8B = (price(target=_FLOOR_BFLOAT16), price(rival="eager", target=Target("speed-up", 1.8)), *_KERNELS)
_TINY = (Pairing("pytl", "torch", _TWENTY), price(target=_TWENTY))
_ONES = (price(target=Target("host microseconds", 60)), _PLAIN, _EAGER)
_BFLOAT16 = (price(), Pairing("pytl", "torch"), price("pytl-dtnh-kahan"))  # torch's moments are bf16: 14 B against 22

_ALL = (
    OptimizerCase("resnet50", "ResNet-50", _RESNET, shapes.resnet50, quick=True),
    OptimizerCase("vit-l16", "ViT-L/16", (price(target=_FLOOR), _PLAIN, *_KERNELS, _EAGER), shapes.vit_large),
    OptimizerCase("ones", "host cost", _ONES, shapes.ones, in_cache=True, quick=True),
    OptimizerCase("llama-8b", "8B-like", _LLAMA_8B, _llama_8b, dtype=torch.bfloat16, fills_memory=True),
    OptimizerCase("tiny", "10,000 tensors of 64", _TINY, shapes.tiny, quick=True),
    OptimizerCase("llama", "Llama-like stack", (price(), _PLAIN, *_KERNELS, _EAGER), _llama),
    OptimizerCase("huge", "one tensor of 134 M", (price(), _PLAIN), shapes.huge),
    OptimizerCase("llama-bf16", "Llama-like stack, bf16", _BFLOAT16, _llama, dtype=torch.bfloat16),
)

CASES = {case.name: case for case in _ALL}
