"""What the weight-space regularisers share: which weights are anchored, where to, and how they are compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pytl.architecture import Head, head_names, unwrapped
from pytl.regularizers.base import Regularizer

_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")


class WeightRegularizer(Regularizer):
    """A penalty on how far the transferred weights have moved: ``strength * formula(w, w0)``, one term, "weights".

    It looks at the weights alone: what it is called with is ignored, and the order of ``reg(x)`` and ``model(x)`` is
    free. It holds a copy of w0, as large as the weights, and places nothing in the model.

    Args:
        model: any module, also inside DDP, DataParallel or torch.compile: names are those of the network within.
        strength: what the formula is multiplied by; finite and >= 0.
        start: w0. None: the weights as they are now. Or a mapping from parameter names to floating point tensors of any
            device, copied in their own dtype; what it holds for other tensors of the model is left alone.
        head: the new layers, which have no start: by name, by module, or several, as for ``pytl.param_groups``; None
            finds them, ``()``: none.
        decay_norm_and_bias: anchor parameters of one dimension or none as well. By default they are not, as in the
            released code of L2-SP, which anchors the weights of convolutions and fully connected layers only.

    Attributes:
        weights: what is anchored, by name: the parameters that required a gradient at the start, without the head.
        operands: what the formula takes beside them, in their order, on their devices; first w0.

    Raises:
        ValueError: nothing to anchor; a start whose names or shapes disagree with the model's; a head that is not in
            the model.
        TypeError: a start that is no mapping to tensors.
    """

    formula: ClassVar[Callable[..., Tensor]]
    """The functional form: lists of weights and operands in, 0-dim out."""

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        *,
        start: Mapping[str, Tensor] | None = None,
        head: Head | None = None,
        decay_norm_and_bias: bool = False,
    ) -> None:
        super().__init__(strength)
        self.weights = _transferred(unwrapped(model), head, decay_norm_and_bias)
        starts = self.weights if start is None else start
        self.operands = [matching(self.weights, starts, "start", unwrapped(model))]

    def _terms(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        for operand in self.operands:  # no copy, but after the model has moved
            operand.update({name: operand[name].to(weight.device) for name, weight in self.weights.items()})
        operands = [[*operand.values()] for operand in self.operands]
        return {"weights": type(self).formula([*self.weights.values()], *operands)}


def own_name(name: str) -> str:
    """A parameter's name in an unwrapped model, without the marks of compiled layers."""
    return name.replace("_orig_mod.", "")


def matching(
    weights: Mapping[str, Tensor], source: Mapping[str, Tensor], called: str, model: nn.Module
) -> dict[str, Tensor]:
    """Copies of the tensors of `source` that bear the names of `weights`, in their order and on their devices.

    Names may carry the prefixes of DDP or torch.compile, and may belong to other tensors of `model`.

    Raises:
        ValueError: lists the names that are missing, that belong to no module of the model, or whose shape differs.
        TypeError: `source` is no mapping to tensors. Both begin with what the argument is `called`.
    """
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers())
    known = {own_name(name) for name, _ in tensors}
    modules = {_module(name) for name in known}
    found = _entries(source, called, known)
    faults = {
        "missing": [name for name in weights if name not in found],
        "extra": [name for name in found if _module(name) not in modules],
        "of another shape": [
            f"{name}: expected {[*weight.shape]}, got {[*found[name].shape]}"
            for name, weight in weights.items()
            if name in found and found[name].shape != weight.shape
        ],
        "not floating point": [n for n in weights if n in found and not found[n].is_floating_point()],
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{called} must hold a tensor for each transferred weight; {listed}")
    return {name: found[name].detach().to(weight.device, copy=True) for name, weight in weights.items()}


def changes(weights: Sequence[Tensor], starts: Sequence[Tensor]) -> list[Tensor]:
    """``w - w0`` of each pair, in ``wide`` dtype: bfloat16 would round the difference again."""
    check_pairs(weights, starts, "starts")
    return [w.to(wide(w)) - w0.to(wide(w)) for w, w0 in zip(weights, starts, strict=True)]


def wide(tensor: Tensor) -> torch.dtype:
    """What sums over a tensor are taken in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of 0-dim terms, on the first one's device, in the widest one's dtype; 0 where there are none."""
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())


def check_pairs(weights: Sequence[Tensor], operands: Sequence[Tensor], called: str) -> None:
    """Raises ValueError where the operands' number or shapes are not the weights', TypeError where one is not real."""
    if len(weights) != len(operands):
        raise ValueError(f"{called} must hold a tensor for each of the {len(weights)} weights; got {len(operands)}")
    for i, (weight, operand) in enumerate(zip(weights, operands, strict=True)):
        if weight.shape != operand.shape:
            raise ValueError(f"{called}[{i}] must have its weight's shape {[*weight.shape]}; got {[*operand.shape]}")
        if not (weight.is_floating_point() and operand.is_floating_point()):
            raise TypeError(f"weights and {called} must be floating point; got {weight.dtype}, {operand.dtype} at {i}")


def _transferred(model: nn.Module, head: Head | None, decay_norm_and_bias: bool) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    new = head_names(model, head)
    old = {own_name(name): p for name, p in trained.items() if name not in new}
    weights: dict[str, Tensor] = {name: p for name, p in old.items() if decay_norm_and_bias or p.dim() > 1}
    if not weights:
        raise ValueError(
            f"model must have a transferred parameter with requires_grad=True; of its {len(named)} parameters "
            f"{len(named) - len(trained)} are frozen, {len(trained) - len(old)} are the head's, and {len(old)} are "
            "norms or biases, which decay_norm_and_bias=True anchors"
        )
    return weights


def _entries(source: Mapping[str, Tensor], called: str, known: set[str]) -> dict[str, Tensor]:
    """A mapping's tensors, under the names that an unwrapped model gives them."""
    if not isinstance(source, Mapping):
        raise TypeError(f"{called} must be a mapping from names to tensors; got {type(source).__name__}")
    for name, tensor in source.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{called} must map names to tensors; got {type(tensor).__name__} for {name}")
    return {name if name in known else _WRAPPED.sub("", name): tensor for name, tensor in source.items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
