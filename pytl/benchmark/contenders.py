"""Who takes the step: pytl's optimizers, torch's, and DTNH as it is written in PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pytl.benchmark import rivals
from pytl.benchmark.case import Contender
from pytl.benchmark.features.contenders import FEATURES
from pytl.benchmark.kernels import Captured, gram_alone, update_alone
from pytl.benchmark.parameters import ParameterSet
from pytl.benchmark.rivals import LR, MAX_GRAD_NORM, SP_DECAY
from pytl.benchmark.timing import Step
from pytl.optim import SGD, AdamW

_WEIGHT_DECAY = 1e-2
_MOMENTUM = 0.9


@dataclass(frozen=True)
class OptimizerContender(Contender):
    reads_start: bool = True
    updates: bool = True
    """Whether w is written; else it is read alone."""
    moments: int = 2
    float32_moments: bool = True
    """Beside 16-bit weights; else the moments have the weights' dtype."""
    compensated: bool = False

    def bytes_per_element(self, dtype: torch.dtype) -> int:
        """Of a parameter: w and moments read and written, g read, w0 read by L2-SP."""
        size = dtype.itemsize
        moment_size = max(4, size) if self.float32_moments else size
        compensation = 2 * size if self.compensated and size == 2 else 0
        return (
            (1 + self.updates) * size + size + self.reads_start * size + 2 * self.moments * moment_size + compensation
        )


def _adamw(**options: Any) -> Callable[[ParameterSet], Step]:
    return lambda p: AdamW(p.named, lr=LR, **{"compensated": False, "fused": _fused(p), **options}).step


def _fused(p: ParameterSet) -> bool | None:
    """On a GPU the core or an error, lest its time be another path's."""
    return True if p.device.type == "cuda" else None


def _dtnh(**options: Any) -> Callable[[ParameterSet], Step]:
    common: dict[str, Any] = {"weight_decay": 0, "sp_decay": SP_DECAY, "direction": "dtnh", **options}
    return lambda p: _adamw(start=p.start, **common)(p)


def _on_one_thread(p: ParameterSet) -> Step:
    step = _dtnh()(p)

    def on_one_thread() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        step()
        torch.set_num_threads(threads)

    return on_one_thread


def _torch_adamw(p: ParameterSet) -> Step:
    return torch.optim.AdamW(p.weights, lr=LR, weight_decay=_WEIGHT_DECAY, fused=True).step


def _sgd(p: ParameterSet) -> Step:
    return SGD(p.named, lr=LR, momentum=_MOMENTUM, compensated=False, fused=_fused(p)).step


def _sgd_dtnh(p: ParameterSet) -> Step:
    common: dict[str, Any] = {"sp_decay": SP_DECAY, "direction": "dtnh", "start": p.start, "fused": _fused(p)}
    return SGD(p.named, lr=LR, momentum=_MOMENTUM, compensated=False, **common).step


def _torch_sgd(p: ParameterSet) -> Step:
    return torch.optim.SGD(p.weights, lr=LR, momentum=_MOMENTUM, fused=True).step


OPTIMIZERS = (
    OptimizerContender("torch", "torch AdamW, fused", _torch_adamw, reads_start=False, float32_moments=False),
    OptimizerContender("pytl", "pytl AdamW", _adamw(weight_decay=_WEIGHT_DECAY), reads_start=False),
    OptimizerContender("pytl-dtnh", "pytl AdamW + L2-SP + DTNH", _dtnh()),
    OptimizerContender("pytl-dtnh-clip", "pytl AdamW + L2-SP + DTNH + clipping", _dtnh(max_grad_norm=MAX_GRAD_NORM)),
    OptimizerContender(
        "pytl-dtnh-kahan", "pytl AdamW + L2-SP + DTNH + Kahan", _dtnh(compensated=True), compensated=True
    ),
    OptimizerContender("pytl-dtnh-one-thread", "the same on one thread", _on_one_thread),
    OptimizerContender("pytl-dtnh-graph", "pytl's DTNH step in a CUDA graph", lambda p: Captured(_dtnh()(p))),
    OptimizerContender("pytl-gram", "pytl's Gram numbers alone", gram_alone, updates=False, moments=0),
    OptimizerContender("pytl-update", "pytl's AdamW update alone", update_alone),
    OptimizerContender("pytl-reference", "pytl's reference (foreach=True)", _dtnh(foreach=True, fused=None)),
    OptimizerContender("eager", "DTNH in PyTorch, best eager form", rivals.best_eager),
    OptimizerContender("foreach", "DTNH in PyTorch, all foreach", rivals.all_foreach),
    OptimizerContender("compiled", "DTNH in PyTorch, torch.compile", rivals.compiled),
    OptimizerContender("autograd", "DTNH as people write it, clipping", rivals.autograd),
    OptimizerContender(
        "torch-sgd", "torch SGD, fused", _torch_sgd, reads_start=False, moments=1, float32_moments=False
    ),
    OptimizerContender("pytl-sgd", "pytl SGD", _sgd, reads_start=False, moments=1),
    OptimizerContender("pytl-sgd-dtnh", "pytl SGD + L2-SP + DTNH", _sgd_dtnh, moments=1),
)

CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in (*OPTIMIZERS, *FEATURES)}
