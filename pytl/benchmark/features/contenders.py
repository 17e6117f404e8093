"""Who computes a penalty's value and its gradient: pytl's operations, and PyTorch, eager and compiled."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pytl import ops
from pytl.benchmark.case import Contender
from pytl.benchmark.features import formulas
from pytl.benchmark.features.formulas import TEMPERATURE
from pytl.benchmark.features.inputs import FeatureSet
from pytl.benchmark.features.training import apart, as_written, in_loss, plain, ready
from pytl.benchmark.timing import Step

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(features, the source's, weights of the channels) -> value."""
Build = Callable[[FeatureSet], Step]


@dataclass(frozen=True)
class FeatureContender(Contender):
    passes: int | None = None
    """Reads and writes of tensors of the features' size, forward and backward together."""

    def bytes_per_element(self, dtype: torch.dtype) -> int | None:
        return None if self.passes is None else self.passes * dtype.itemsize


def _graded(formula: Formula) -> Build:
    """Value and gradient. The features are no leaf's: nothing is accumulated into a ``.grad``."""

    def build(f: FeatureSet) -> Step:
        def step() -> tuple[Tensor, ...]:
            value = formula(f.x, f.source, f.weights)
            return value.detach(), *torch.autograd.grad(value, f.x)

        return step

    return build


def _beside_task(both: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Build:
    """The same where the task's gradient comes back through the features as well, and both are added."""

    def build(f: FeatureSet) -> Step:
        task = f.task

        def step() -> tuple[Tensor, ...]:
            onward, value = both(f.x, f.source, f.weights)
            return value.detach(), *torch.autograd.grad([onward, value], f.x, [task, None])

        return step

    return build


def _own_beside_task(formula: Formula) -> Build:
    """Autograd adds both gradients."""
    return _beside_task(lambda x, source, weights: (x.view_as(x), formula(x, source, weights)))


def _compiled(build: Callable[[Formula], Build], formula: Formula) -> Build:
    """For each shape anew, as what is compiled for all shapes is slower; torch's compiler is loaded here."""

    def build_compiled(f: FeatureSet) -> Step:
        return build(torch.compile(formula, dynamic=False))(f)

    return build_compiled


def _fused(x: Tensor) -> bool | None:
    """On a GPU the core or an error, lest its time be another path's."""
    return True if x.is_cuda else None


def _distance(x: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    return ops.feature_distance(x, source, weights, fused=_fused(x))


def _attention(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    return ops.attention_map_distance(x, source, fused=_fused(x))


def _distillation(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    return ops.distillation(x, source, TEMPERATURE, fused=_fused(x))


def _mmd(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    return ops.mmd(x, source)


def _bss(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    return ops.bss(x)


# Passes. Distance: both read in each direction, the gradient written; beside the task's gradient that is read too.
# Attention maps: both read, then x, and the gradient written. Distillation: both read, the gradient written.
# MMD: both read in each direction. BSS: x read in each.
_DISTANCE, _TAP, _ATTENTION, _DISTILLATION, _MMD, _BSS = 5, 6, 4, 3, 5, 3

FEATURES = (
    FeatureContender("pytl-distance", "pytl feature_distance", _graded(_distance), _DISTANCE),
    FeatureContender("eager-distance", "eager formula", _graded(formulas.distance), _DISTANCE),
    FeatureContender("compiled-distance", "torch.compile", _compiled(_graded, formulas.distance), _DISTANCE),
    FeatureContender("pytl-tap", "pytl tapped_feature_distance", _beside_task(ops.tapped_feature_distance), _TAP),
    FeatureContender("eager-tap", "eager + task", _own_beside_task(formulas.distance), _TAP),
    FeatureContender("compiled-tap", "torch.compile + task", _compiled(_own_beside_task, formulas.distance), _TAP),
    FeatureContender("pytl-attention", "pytl attention_map_distance", _graded(_attention), _ATTENTION),
    FeatureContender("eager-attention", "eager formula", _graded(formulas.attention), _ATTENTION),
    FeatureContender("compiled-attention", "torch.compile", _compiled(_graded, formulas.attention), _ATTENTION),
    FeatureContender("pytl-distillation", "pytl distillation", _graded(_distillation), _DISTILLATION),
    FeatureContender("eager-distillation", "eager kl_div", _graded(formulas.distillation), _DISTILLATION),
    FeatureContender(
        "compiled-distillation", "torch.compile", _compiled(_graded, formulas.distillation), _DISTILLATION
    ),
    FeatureContender("pytl-mmd", "pytl mmd", _graded(_mmd), _MMD),
    FeatureContender("eager-mmd", "eager, n x n x d", _graded(formulas.mmd), _MMD),
    FeatureContender("pytl-bss", "pytl bss", _graded(_bss), _BSS),
    FeatureContender("svd", "torch.svd", _graded(formulas.svd), _BSS),
    FeatureContender("svdvals", "torch.linalg.svdvals", _graded(formulas.svdvals), _BSS),
    FeatureContender("plain-step", "plain step", plain),
    FeatureContender("pytl-delta", "pytl DELTA in the loss", in_loss),
    FeatureContender("pytl-delta-ready", "pytl DELTA in the loss, features ready", ready(in_loss)),
    FeatureContender("pytl-delta-apart", "pytl DELTA taken apart (DTNH)", apart),
    FeatureContender("pytl-delta-apart-ready", "pytl DELTA taken apart, features ready", ready(apart)),
    FeatureContender("eager-delta", "DELTA as people write it", as_written),
)
