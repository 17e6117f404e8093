"""Which features are compared, by whom, and the targets that were set for it."""

import torch

from pytl.benchmark.case import Case
from pytl.benchmark.features.case import FeatureCase, TrainingCase
from pytl.benchmark.pairing import Pairing, Target


def _against(operation: str, target: Target | None = None) -> tuple[Pairing, ...]:
    """The target stands against the eager form."""
    ours, eager, compiled = (f"{who}-{operation}" for who in ("pytl", "eager", "compiled"))
    return (Pairing(ours, eager, target), Pairing(ours, compiled, quick=False))


def _price(ours: str) -> Pairing:
    return Pairing(ours, "plain-step", same_results=False)


def _maps(distance: Target, tap: Target, attention: Target | None = None) -> tuple[Pairing, ...]:
    return (*_against("distance", distance), *_against("tap", tap), *_against("attention", attention))


_WITH_DELTA = ("pytl-delta", "pytl-delta-ready", "pytl-delta-apart", "pytl-delta-apart-ready")
_STEPS = (*map(_price, _WITH_DELTA), Pairing("pytl-delta", "eager-delta"))
_MMD_TEMPORARIES = 4 * 4 * 128  # of [2n, 2n, d]: the differences, their squares, and the gradients of both


def _cases(
    on_maps: tuple[Pairing, ...], on_logits: tuple[Pairing, ...], mmd: Target | None, bss: Target | None
) -> list[FeatureCase]:
    maps, on_rows = (30, 512, 28, 28), (Pairing("pytl-bss", "svd", bss), Pairing("pytl-bss", "svdvals"))
    on_samples = (Pairing("pytl-mmd", "eager-mmd", mmd),)
    return [
        FeatureCase("maps", "30x512x28x28", on_maps, maps, quick=True),
        FeatureCase("maps-last", "30x512x28x28 channels_last", on_maps, maps, order=torch.channels_last),
        FeatureCase("small-maps", "64x2048x7x7", on_maps, (64, 2048, 7, 7)),
        FeatureCase("tokens", "tokens 32x197x768", on_maps, (32, 197, 768)),
        FeatureCase("logits", "logits 256x1000", on_logits, (256, 1000), quick=True),
        FeatureCase("vocabulary", "logits 64x32000", on_logits, (64, 32000)),
        FeatureCase("samples", "two samples 128x2048", on_samples, (128, 2048), temporaries=_MMD_TEMPORARIES),
        FeatureCase("batch-64", "batch 64x2048", on_rows, (64, 2048), quick=True),
        FeatureCase("batch-128", "batch 128x2048", on_rows, (128, 2048)),
    ]


def _by_name(*cases: Case) -> dict[str, Case]:
    return {case.name: case for case in cases}


_FASTER = Target("speed-up", 2.5)
CASES = _by_name(
    *_cases(
        _maps(_FASTER, _FASTER),
        _against("distillation", Target("speed-up", 4)),
        Target("speed-up", 50),
        Target("speed-up", 1.8),
    ),
    TrainingCase("network", "residual network, batch 24x3x32x32", _STEPS, (24, 3, 32, 32), 32),
)


def _near(passes: int) -> Target:
    """What a GPU is asked for: the time of so many reads and writes of float32 at the copy rate."""
    return Target("floor ratio", 1.25, 4 * passes)


_ON_CUDA = _maps(_near(5), _near(6), _near(4))
CUDA_CASES = _by_name(
    FeatureCase("large-maps", "256x256x56x56", _ON_CUDA, (256, 256, 56, 56)),
    *_cases(_ON_CUDA, _against("distillation", _near(3)), None, None),
    TrainingCase("network", "residual network, batch 128x3x64x64", _STEPS, (128, 3, 64, 64), 64),
)
