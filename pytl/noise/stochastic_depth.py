"""Stochastic depth: residual branches are dropped, the more often the deeper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pytl.architecture import named_layers, unwrapped
from pytl.features.layers import INPUT, layer_names
from pytl.noise.base import Noise

# timm's and transformers' names, torchvision's, DigitsNet's
_NAMES = re.compile(r"(?:^|\.)(?:drop_path\d*|stochastic_depth|branch)$")
_CLASSES = ("DropPath", "StochasticDepth")
_BRANCH_IN = {  # a residual block's child that returns its branch: torchvision's and timm's ResNets, then transformers'
    **{"BasicBlock": "bn2", "Bottleneck": "bn3"},
    **dict.fromkeys(("ResNetBasicLayer", "ResNetBottleNeckLayer", "RegNetXLayer", "RegNetYLayer"), "layer"),
}


class StochasticDepth(Noise):
    """``x + f_l(x) * m / (1 - p_l)``, m ~ Bernoulli(1 - p_l) for each sample, ``p_l = p l / L`` for branch l of L.

    (Huang et al. 2016, arXiv:1603.09382.) Samples are the first dimension of what a branch returns. The paper drops a
    branch for the whole batch and scales in evaluation: torchvision and timm do as here, and the expectation is the
    same. What the model drops by itself (``drop_path_rate``) comes on top: turn that off.

    Args:
        model: any module, wrapped or not.
        p: the probability to drop the last branch, p_L; the published one is 0.5.
        branches: names or patterns of the modules that return residual branches, in the model's order. "auto": what is
            called or classed so (drop_path, also where it is nn.Identity; stochastic_depth; branch), and in ResNets'
            blocks without it the last normalisation, or all that is not the shortcut.

    Attributes:
        rates: p_l of each branch, by its name.

    Raises:
        ValueError: p is out of range, a name that the model lacks or an input; or no branches are found.
        TypeError: from the model, where a branch returns no tensor.
    """

    name = "stochasticdepth"

    def __init__(self, model: nn.Module, p: float = 0.5, *, branches: str | Sequence[str] = "auto") -> None:
        super().__init__(p)
        names = layer_names(model, _branches(model) if branches == "auto" else branches)
        if any(name.endswith(INPUT) for name in names):
            raise ValueError(f"branches must name what returns a residual branch, no inputs; got {', '.join(names)}")
        layers = dict(named_layers(model))
        modules = {layers[name]: name for name in reversed(names)}  # one that stands in two places is hooked once
        self._branches = {name: module for module, name in reversed(modules.items())}
        for depth, module in enumerate(self._branches.values(), 1):
            hook = self._hook(_drop_samples, depth / len(self._branches))
            self._handles.append(module.register_forward_hook(hook))

    @property
    def rates(self) -> dict[str, float]:
        return {name: hook.share * self.p for name, hook in zip(self._branches, self._hooks, strict=True)}


def _branches(model: nn.Module) -> list[str]:
    found = []
    for name, module in named_layers(model):
        child = _BRANCH_IN.get(type(unwrapped(module)).__name__, "")
        if _is_branch(name, module):
            found.append(name)
        elif hasattr(unwrapped(module), child) and not any(_is_branch(*inside) for inside in named_layers(module)):
            found.append(f"{name}.{child}".lstrip("."))
    if not found:
        raise ValueError("stochastic depth needs residual branches, and finds none in this model: name them, branches=")
    return found


def _is_branch(name: str, module: nn.Module) -> bool:
    return bool(_NAMES.search(name)) or type(unwrapped(module)).__name__.endswith(_CLASSES)


def _drop_samples(p: float, module: nn.Module, arguments: object, output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output * F.dropout(output.new_ones([len(output)] + [1] * (output.dim() - 1)), p)
    found = type(output).__name__
    raise TypeError(f"a residual branch must return a tensor; {type(module).__name__} returned a {found}")
