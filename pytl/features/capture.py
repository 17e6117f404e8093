"""What named layers return, taken by hooks that are placed once and removed on close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import named_layers
from pytl.features.layers import INPUT, layer_names
from pytl.features.tap import Tap


@dataclass
class Feature:
    """What a layer returned.

    Attributes:
        tensor: in the graph of the forward pass.
        tap: where a penalty's gradient may join the task's; None where there is none.
        onward: what the network went on with.
        version: how often that had been changed in place; None where nobody can have changed it.
        with_graph: gradients were enabled.
    """

    tensor: Tensor
    tap: Tap | None
    onward: Tensor
    version: int | None
    with_graph: bool


class Capture:
    """The outputs of layers in a model's last forward pass.

    Layers that are followed by an in-place operation are copied before it: all are in a layer's first pass, and from
    then on those that were overwritten. What checkpointing computes again in the backward pass is not taken twice.

    Args:
        model: any module, wrapped in DDP, FSDP2 or torch.compile or not. A compiled model must not have run yet.
        layers: names and patterns, as ``pytl.features.layer_names`` has them. A layer's output may be a tensor, a tuple
            whose first tensor counts, or a Hugging Face output (logits, last_hidden_state, or its first tensor).
        tapped: offer a tap where a layer's output is a tensor.

    Raises:
        ValueError: an unknown layer, or hooks that a closed regulariser or a copied model has left in the model.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str], *, tapped: bool = False) -> None:
        self.layers = layer_names(model, layers)
        self._tapped = tapped
        self._features: dict[str, Feature] = {}
        self._overwritten: dict[tuple[str, bool], bool] = {}
        refuse_left_over_hooks(model)
        modules = dict(named_layers(model))
        self._hooks = [_Hook(self, name) for name in self.layers]
        self._handles = [hook.place(modules[hook.layer.removesuffix(INPUT)]) for hook in self._hooks]

    def features(self) -> dict[str, Feature]:
        """By layer, those of the last forward pass; they are handed out once, so that nothing keeps their memory.

        Raises:
            RuntimeError: a layer has not run since, ran without gradients, or was overwritten unexpectedly.
        """
        taken, self._features = self._features, {}
        for layer in self.layers:
            self._check(layer, taken.get(layer))
        return {layer: taken[layer] for layer in self.layers}

    def close(self) -> None:
        """Removes the hooks; closing twice is no error."""
        for hook, handle in zip(self._hooks, self._handles, strict=True):
            hook.capture = None
            handle.remove()
        self._features = {}

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, layer: str, feature: Feature | None) -> None:
        if feature is None:
            raise RuntimeError(
                f"layer {layer!r} has not run since its features were last taken: call the model first; hooks in a "
                "compiled model must be placed before its first call"
            )
        overwritten = feature.version is not None and version_of(feature.onward) != feature.version
        if overwritten and feature.onward is feature.tensor:
            self._overwritten[layer, feature.with_graph] = True
            raise RuntimeError(f"layer {layer!r} was overwritten in place by what follows, which it was not before")
        self._overwritten.setdefault((layer, feature.with_graph), overwritten)
        if torch.is_grad_enabled() and not feature.with_graph:
            raise RuntimeError(
                f"layer {layer!r} ran without gradients: call the regulariser under no_grad as well, or use "
                "checkpointing with use_reentrant=False"
            )

    def take(self, layer: str, output: Any) -> Any:
        """Keeps a layer's output; returns what is to stand for it, or None."""
        tensor, with_graph = first_tensor(output, layer), torch.is_grad_enabled()
        if torch.compiler.is_compiling() or tensor.is_inference():  # the compiler takes away a copy that is not needed
            kept = tensor.clone()
            self._features[layer] = Feature(kept, None, kept, None, with_graph)
            return None
        if torch._C._functorch.peek_interpreter_stack() is not None:  # within torch.func: nobody's training step
            return None
        again = torch._C._current_graph_task_id() != -1  # checkpointing computes the layer again, in a backward pass
        copied = self._overwritten.get((layer, with_graph), True)
        if self._tapped and tensor is output and with_graph and tensor.requires_grad:
            tap = Tap()
            onward = tap.onward(tensor, copied)
            feature = Feature(tensor, tap, onward, version_of(onward), with_graph)
        else:
            kept = tensor.clone() if copied and not again else tensor
            feature = Feature(kept, None, tensor, version_of(tensor), with_graph)
        if not again:
            self._features[layer] = feature
        return feature.tap and feature.onward


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place, where that is counted."""
    return 0 if tensor.is_inference() else tensor._version


class _Hook:
    """In a copy of the model it is left without its capture, and does nothing."""

    def __init__(self, capture: Capture | None, layer: str) -> None:
        self.capture, self.layer = capture, layer

    def place(self, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        if self.layer.endswith(INPUT):
            return module.register_forward_pre_hook(self.before)
        return module.register_forward_hook(self.after)

    def before(self, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        if self.capture is None:
            return None
        if not arguments:
            raise TypeError(f"layer {self.layer!r} must be called with a positional argument; got keywords alone")
        onward = self.capture.take(self.layer, arguments[0] if len(arguments) == 1 else arguments)
        return None if onward is None else (onward,)

    def after(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return None if self.capture is None else self.capture.take(self.layer, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None, self.layer)

    def __getstate__(self) -> dict[str, Any]:
        return {"capture": None, "layer": self.layer}


def first_tensor(output: Any, layer: str) -> Tensor:
    """The tensor that a layer's output stands for.

    Raises:
        TypeError: it holds none.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(output, name, None), Tensor):
            return found
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"layer {layer!r} must return a tensor, or a tuple or mapping of some; got {type(output).__name__}")


def _hooks_in(module: nn.Module) -> list[tuple[dict[int, Any], int, _Hook]]:
    places = (module._forward_hooks, module._forward_pre_hooks)
    bound = [(place, key, getattr(hook, "__self__", None)) for place in places for key, hook in place.items()]
    return [(place, key, hook) for place, key, hook in bound if isinstance(hook, _Hook)]


def refuse_left_over_hooks(model: nn.Module) -> None:
    """Raises ValueError where hooks are left of a closed regulariser, or of the model that this is a copy of."""
    left = [name for name, module in named_layers(model) for _, _, hook in _hooks_in(module) if hook.capture is None]
    if left:
        raise ValueError(
            f"model must have no hooks of a closed regulariser, or of the model it was copied from; layers "
            f"{', '.join(left)} have: pytl.features.remove_hooks(model) removes them"
        )


def remove_hooks(model: nn.Module, *, left_over: bool = False) -> None:
    """Removes all hooks that pytl has placed in the model, or those alone that are left of closed regularisers."""
    for module in model.modules():
        for place, key, hook in _hooks_in(module):
            if hook.capture is None or not left_over:
                del place[key]
