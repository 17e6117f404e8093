"""How a module gets new weights: by its own initialisation, or drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Initialiser = str | Callable[[nn.Module], None]


def initialiser(init: Initialiser, head: list[nn.Module]) -> Callable[[nn.Module], None]:
    """The function that ``init`` stands for: a function itself, or one of INITIALISERS that suits the head's modules.

    Raises:
        ValueError: an unknown name, or modules that have no ``reset_parameters`` and need it.
    """
    if callable(init):
        return init
    if init not in INITIALISERS:
        raise ValueError(f"init must be one of {', '.join(INITIALISERS)} or a function; got {init!r}")
    asked = [m for part in head for m in _layers(part) if init == "reset_parameters" or not _matrices(m)]
    if lacking := {type(module).__name__ for module in asked if not hasattr(module, "reset_parameters")}:
        raise ValueError(
            f"head's modules must know reset_parameters, or init be a function; {', '.join(lacking)} do not"
        )
    return INITIALISERS[init]


def _layers(head: nn.Module) -> list[nn.Module]:
    """The modules that have parameters, or running statistics, of their own."""
    return [m for m in head.modules() if hasattr(m, "reset_running_stats") or [*m.parameters(recurse=False)]]


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.dim() > 1]


def _reset_parameters(head: nn.Module) -> None:
    for module in _layers(head):
        module.reset_parameters()  # type: ignore[operator]


def _drawn(draw: Callable[[Tensor], Any]) -> Callable[[nn.Module], None]:
    """Draws matrices and zeroes their biases; what has none, a normalisation, is reset."""

    def initialise(head: nn.Module) -> None:
        for module in _layers(head):
            if not _matrices(module):
                module.reset_parameters()  # type: ignore[operator]
                continue
            for p in module.parameters(recurse=False):
                draw(p) if p.dim() > 1 else p.zero_()

    return initialise


INITIALISERS: dict[str, Callable[[nn.Module], None]] = {
    "reset_parameters": _reset_parameters,
    "normal": _drawn(lambda p: nn.init.normal_(p, std=0.01)),
    "kaiming": _drawn(nn.init.kaiming_normal_),
}
