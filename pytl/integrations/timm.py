"""The optimizers in timm's registry."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch.optim import Optimizer

from pytl.extras import require
from pytl.optim import SGD, AdamW

_optim = require("timm.optim", "timm")
if not hasattr(_optim, "OptimInfo"):
    raise ImportError('timm with a registry of optimizers is needed here: pip install --upgrade "timm>=1.0.12"')
_registry = import_module("timm.optim._optim_factory").default_registry

_OPTIONS: dict[type[Optimizer], dict[str, Any]] = {
    AdamW: {"has_eps": True, "has_betas": True},
    SGD: {"has_eps": False, "has_momentum": True, "defaults": {"nesterov": True}},
}


def register() -> None:
    """Makes ``"pytl-adamw"`` and ``"pytl-sgd"`` names of timm's optimizers::

        pytl.integrations.timm.register()
        groups = functools.partial(pytl.param_groups, sp_decay=1e-2)
        opt = timm.optim.create_optimizer_v2(model, "pytl-adamw", lr=1e-3, direction="dtnh", param_group_fn=groups)

    With ``param_group_fn`` the head is left free, and biases and norms are not pulled; timm's own ``weight_decay`` and
    ``layer_decay`` then reach no group: give them to ``pytl.param_groups``. Without it, options such as ``sp_decay``
    hold for all parameters alike, the head among them, as in ``pytl.AdamW(model.parameters(), ...)``.

    A layer's rate is set once. ``pytl.param_groups(model, lr=..., layer_decay=...)`` gives groups an ``lr`` of their
    own, from which timm's and torch's schedulers go. timm's ``layer_decay`` gives them an ``lr_scale`` instead, by
    which timm's schedulers multiply, and which nothing else reads: under torch's, or none, all layers have one rate.

    timm reads a name from its last "_" on, so that ``"pytl_adamw"`` is torch's AdamW; ``"lookahead_pytl-adamw"`` works.
    As timm's own SGD, ``"pytl-sgd"`` has Nesterov's momentum, 0.9, unless told otherwise.
    """
    for kind, options in _OPTIONS.items():
        description = f"{kind.__name__} with L2-SP and a direction rule"
        info = _optim.OptimInfo(f"pytl-{kind.__name__.lower()}", opt_class=kind, description=description, **options)
        _registry.register(info)
