"""A network asked about a batch, once or several times over, while outputs of its layers are changed on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytl.batch import Batch

Loss = Callable[[Tensor, Tensor], Tensor]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A network, the layers that matter here, and the task's loss: the mean over a batch."""

    model: nn.Module
    layers: Mapping[str, nn.Module]
    loss: Loss
    device: torch.device

    def losses(self, batch: Batch, changes: Mapping[str, Change], replicas: int = 1) -> Tensor:
        """The loss of each replica of the batch, [replicas], with `changes` made to layers' outputs."""
        hooks = []
        try:
            for name, change in changes.items():
                hooks.append(self.layers[name].register_forward_hook(_hook(name, change)))
            logits = batch.repeated(replicas).logits(self.model)
        finally:
            for hook in hooks:
                hook.remove()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a 16-bit loss would hide small rises
        losses = torch.stack([self.loss(rows, batch.labels) for rows in logits.unflatten(0, (replicas, -1))])
        if losses.dim() != 1:
            raise ValueError(f"loss must return the batch's mean, 0-dim; got shape {[*losses.shape[1:]]}")
        return losses

    @torch.no_grad()
    def channels(self, batch: Batch) -> dict[str, int]:
        """Each layer's number of channels, for one forward.

        Raises:
            ValueError: a layer is not called, or its output has no channels or not one row a sample.
        """
        found: dict[str, int] = {}

        def look(name: str) -> Change:
            return lambda output: found.update({name: _channels(name, output, batch.samples)}) or output

        self.losses(batch, {name: look(name) for name in self.layers})
        silent = [name for name in self.layers if name not in found]
        if silent:
            raise ValueError(f"layers must be called in a forward; got {', '.join(silent)}, which the model leaves out")
        return {name: found[name] for name in self.layers}


def channel_dim(output: Tensor) -> int:
    """The last of tokens, [B, T, D]; 1 of [B, D], [B, C, H, W] and [B, C, T, H, W]."""
    return 2 if output.dim() == 3 else 1


def _channels(name: str, output: Tensor, samples: int) -> int:
    if output.dim() not in (2, 3, 4, 5) or len(output) != samples:
        expected = "[B, D], [B, T, D], [B, C, H, W] or [B, C, T, H, W]"
        raise ValueError(f"layers must return {expected}, here B = {samples}; {name!r} returned {[*output.shape]}")
    return output.shape[channel_dim(output)]


def _hook(name: str, change: Change) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, inputs, output: _with_first(output, name, change)


def _with_first(output: Any, name: str, change: Change) -> Any:
    """What a layer returned, with its first tensor changed; the layer's own object is left alone."""
    if isinstance(output, Tensor):
        return change(output)
    if hasattr(output, "last_hidden_state"):
        output = copy.copy(output)
        output.last_hidden_state = change(output.last_hidden_state)
        return output
    values = [*output] if isinstance(output, tuple | list) else []
    tensors = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
    if not tensors:
        expected = "a tensor, a tuple with one, or an object with last_hidden_state"
        raise TypeError(f"layers must return {expected}; {name!r} returned a {type(output).__name__}")
    values[tensors[0]] = change(values[tensors[0]])
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
