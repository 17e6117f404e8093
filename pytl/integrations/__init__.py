"""Other libraries' trainers: ``pytl.integrations.hf``, ``.lightning`` and ``.timm``."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["hf", "lightning", "timm"]


def __getattr__(name: str) -> ModuleType:
    """The trainers' modules, imported at their first use: each needs a package that is optional and slow to import."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
