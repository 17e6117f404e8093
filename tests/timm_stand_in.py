"""A stand-in for timm's registry of optimizers, which needs torchvision to be installed.

Nothing is timm's own text: it has the names, fields, defaults and the order of decisions that
``timm.optim._optim_factory`` of 1.0.12 to 1.0.29 has, as far as a registered class meets them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn


@dataclass(frozen=True)
class OptimInfo:
    name: str
    opt_class: Any
    description: str = ""
    has_eps: bool = True
    has_momentum: bool = False
    has_betas: bool = False
    num_betas: int = 2
    second_order: bool = False
    defaults: dict[str, Any] | None = None


class OptimizerRegistry:
    def __init__(self) -> None:
        self._optimizers = {"adamw": OptimInfo("adamw", torch.optim.AdamW, has_betas=True)}

    def register(self, info: OptimInfo) -> None:
        self._optimizers[info.name.lower()] = info

    def get_optimizer_info(self, name: str) -> OptimInfo:
        return self._optimizers[name.lower()]

    def create_optimizer(
        self,
        model: nn.Module,
        opt: str = "sgd",
        lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        param_group_fn: Callable[[nn.Module], Any] | None = None,
        **options: Any,
    ) -> torch.optim.Optimizer:
        params: Any = model.parameters()
        if param_group_fn:
            params = param_group_fn(model)
        elif weight_decay:
            params = by_dimension(model, weight_decay)
            weight_decay = 0.0
        info = self.get_optimizer_info(opt.lower().split("_")[-1])
        options = {**(info.defaults or {}), "weight_decay": weight_decay, **options}
        if lr is not None:
            options["lr"] = lr
        if info.has_momentum:
            options.setdefault("momentum", momentum)
        for name, known in (("eps", info.has_eps), ("betas", info.has_betas)):
            if not known:
                options.pop(name, None)
        return info.opt_class(params, **options)


def by_dimension(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": weight_decay},
    ]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, as the modules that ``import timm.optim`` finds; where timm is installed, it is that."""
    ours = "pytl.integrations.timm"
    monkeypatch.setitem(sys.modules, ours, ModuleType(ours))
    del sys.modules[ours]  # what the test imports there goes when the test ends
    if find_spec("timm"):
        return
    timm, optim, factory = (ModuleType(name) for name in ("timm", "timm.optim", "timm.optim._optim_factory"))
    registry = OptimizerRegistry()
    vars(factory).update(default_registry=registry)
    vars(timm).update(optim=optim)
    vars(optim).update(OptimInfo=OptimInfo, create_optimizer_v2=registry.create_optimizer)
    vars(optim).update(get_optimizer_info=registry.get_optimizer_info)
    for module in (timm, optim, factory):
        monkeypatch.setitem(sys.modules, module.__name__, module)
