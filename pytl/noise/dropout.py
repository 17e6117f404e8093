"""Dropout on what the head is called with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pytl.architecture import Head, head_modules
from pytl.noise.base import Noise


class Dropout(Noise):
    """``x * m / (1 - p)``, m ~ Bernoulli(1 - p) for each number of the pooled features x.

    (Srivastava et al. 2014, JMLR 15.) They are the first tensor that the head is called with, of any shape. That the
    kept ones are scaled in training, where the paper scales weights in evaluation, is PyTorch's form: the same
    expectation.

    Args:
        model: any module, wrapped or not.
        p: the probability to drop.
        head: its name, module, or several, of which each one's input is dropped; None: it is found.

    Raises:
        ValueError: p is out of range, or no head is found.
        TypeError: from the model, whose head is called without a tensor.
    """

    name = "dropout"

    def __init__(self, model: nn.Module, p: float = 0.5, *, head: Head | None = None) -> None:
        super().__init__(p)
        for module in head_modules(model, head):
            hook = self._hook(_drop_first_tensor)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def _drop_first_tensor(
    p: float, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for i, value in enumerate(arguments):
        if isinstance(value, Tensor):
            return (*arguments[:i], F.dropout(value, p), *arguments[i + 1 :]), keywords
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            return arguments, {**keywords, name: F.dropout(value, p)}
    raise TypeError(f"head must be called with a tensor for dropout; {type(module).__name__} was called without one")
