"""What all noise shares: a probability, and hooks that are placed once and removed on close."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Noise:
    """Noise in a model's modules, each in training mode only; random numbers are torch's global ones.

    The model keeps its parameters, their names and its state_dict. A copy of it, deep or pickled, has no noise: `close`
    could not reach it. A compiled model must not have run yet.

    Attributes:
        name: the method's.
        p: the probability to drop; it may be changed between steps.
        closed: nothing of it is left in the model.

    Raises:
        ValueError: p is out of range.
    """

    name: str = ""

    def __init__(self, p: float) -> None:
        self.p, self.closed = checked(p), False
        self._hooks: list[Hook] = []
        self._handles: list[RemovableHandle] = []

    def close(self) -> None:
        """Removes the hooks; closing twice is no error."""
        self.closed = True
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _hook(self, act: Callable[..., Any], share: float = 1.0) -> Hook:
        hook = Hook(self, act, share)
        self._hooks.append(hook)
        return hook


class Hook:
    """Calls ``act(share * p, module, ...)`` where the module trains and p > 0; without its noise it does nothing."""

    def __init__(self, noise: Noise | None, act: Callable[..., Any], share: float) -> None:
        self.noise, self.act, self.share = noise, act, share

    def __call__(self, module: nn.Module, *values: Any) -> Any:
        if self.noise is None or not module.training or self.noise.p == 0:
            return None
        return self.act(self.share * self.noise.p, module, *values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(None, self.act, self.share)

    def __getstate__(self) -> dict[str, Any]:
        return {"noise": None, "act": self.act, "share": self.share}


def checked(p: float) -> float:
    """p, a probability to drop.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be in [0, 1); got {p}")
    return p
