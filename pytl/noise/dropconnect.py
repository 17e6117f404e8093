"""DropConnect: the head's weights are dropped, not its inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from pytl.architecture import Head, head_modules
from pytl.noise.base import Noise


class DropConnect(Noise):
    """``W * M / (1 - p)``, M ~ Bernoulli(1 - p) for each weight of the head; biases stay (Wan et al. 2013, ICML).

    Our reading: one mask a forward pass, where the paper has one a sample; and kept weights are scaled in training, so
    that evaluation is the network's own, where the paper draws a Gaussian.

    While a module runs, a masked copy lies over its ``weight``; gradients flow to the parameter, which stays in its
    place. The copy and the mask cost as much memory each, until the backward pass. What a KeyboardInterrupt leaves
    goes with the next pass, or `close`.

    Args:
        model: any module, wrapped or not, but for nn.DataParallel, whose replicas hold no parameters (KeyError).
        p: the probability to drop.
        head: its name, module, or several; None: it is found.

    Raises:
        ValueError: p is out of range, no head is found, or its ``weight`` is parametrized or none has >= 2 dimensions.
    """

    name = "dropconnect"

    def __init__(self, model: nn.Module, p: float = 0.5, *, head: Head | None = None) -> None:
        super().__init__(p)
        self._modules = _with_matrices(head_modules(model, head))
        for module in self._modules:
            self._handles += [
                module.register_forward_pre_hook(_take_away),  # what an interrupted pass has left
                module.register_forward_pre_hook(self._hook(_lay_over)),
                module.register_forward_hook(_take_away, always_call=True),
            ]

    def close(self) -> None:
        super().close()
        for module in self._modules:
            _take_away(module)


def _with_matrices(heads: list[nn.Module]) -> list[nn.Module]:
    modules = dict.fromkeys(module for head in heads for module in head.modules())
    if any(is_parametrized(module, "weight") for module in modules):
        raise ValueError("head must have plain weights for DropConnect; got a parametrized one")
    weights = {module: module._parameters.get("weight") for module in modules}
    if found := [module for module, weight in weights.items() if weight is not None and weight.dim() > 1]:
        return found
    raise ValueError("head must have a weight of >= 2 dimensions for DropConnect; got none")


def _lay_over(p: float, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    weight = module._parameters["weight"]
    assert isinstance(weight, Tensor)
    module.__dict__["weight"] = F.dropout(weight, p)  # found before the parameter, which stays registered


def _take_away(module: nn.Module, *_: Any) -> None:
    if "weight" in module._parameters:
        module.__dict__.pop("weight", None)
