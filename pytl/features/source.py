"""The source network: what the features of the fine-tuned one are compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pytl.architecture import unwrapped
from pytl.features.capture import Capture, remove_hooks, version_of
from pytl.features.layers import layer_names

Ids = Tensor | Sequence[int]
Named = tuple[int | str, Any]
Self = TypeVar("Self", bound="Source")


class Source:
    """A frozen network, in evaluation mode, and its layers' outputs. Regularisers that share one share its passes.

    Who makes a source closes it: regularisers close the copies that they make themselves.

    Args:
        network: the source network. It is frozen and put in evaluation mode; give a network of its own, not the model
            that is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False).eval()
        remove_hooks(network, left_over=True)  # a copied model's are without use here
        self.layers: list[str] = []
        self._capture: Capture | None = None
        self._called_with: tuple[list[Named], list[int | None]] | None = None
        self._features: dict[str, Tensor] = {}

    @classmethod
    def copied(cls, model: nn.Module) -> Source:
        """A source that is a copy of the model as it is now.

        Raises:
            ValueError: the model cannot be copied, as after ``fully_shard``; give the source then.
        """
        inner = unwrapped(model)
        if any(type(p).__name__ == "DTensor" or hasattr(p, "_local_tensor") for p in inner.parameters()):
            raise ValueError("model is sharded and cannot be copied: give source=, a copy made before fully_shard")
        return cls(copy.deepcopy(inner))

    def watch(self, layers: str | Sequence[str]) -> None:
        """Adds layers to those whose outputs are kept. Raises ValueError for a layer that the network lacks."""
        capture = Capture(self.network, [*self.layers, *layer_names(self.network, layers)])
        if self._capture is not None:
            self._capture.close()
        self._capture, self.layers, self._called_with = capture, capture.layers, None

    def __call__(self, *inputs: Any, ids: Ids | None = None, **keywords: Any) -> dict[str, Tensor]:
        """The watched layers' outputs for a batch, without gradients; a second call with the same batch costs nothing.

        Args:
            inputs, keywords: what the network is called with.
            ids: of the samples; for sources that keep features.

        Raises:
            RuntimeError: no layers are watched.
        """
        call: list[Named] = [*enumerate(inputs), *keywords.items()]
        versions = [version_of(value) if isinstance(value, Tensor) else None for _, value in call]
        versions.append(int(torch.is_inference_mode_enabled()))  # whose tensors no graph may save
        if not self._is_last(call, versions):
            self._called_with, self._features = None, {}  # before the new ones are made: never two batches' features
            self._features = self._compute(inputs, keywords, ids)
            self._called_with = call, versions
        return self._features

    def _is_last(self, call: list[Named], versions: list[int | None]) -> bool:
        """Whether these are the tensors of the last call, unchanged, and its plain values."""
        if self._called_with is None:
            return False
        before, then = self._called_with
        return versions == then and all(
            a[0] == b[0] and _is_same(a[1], b[1]) for a, b in zip(call, before, strict=True)
        )

    @torch.no_grad()
    def _compute(self, inputs: tuple[Any, ...], keywords: dict[str, Any], ids: Ids | None) -> dict[str, Tensor]:
        if self._capture is None:
            raise RuntimeError("the source must watch layers before it is called: source.watch(layers)")
        self.network(*inputs, **keywords)
        return {layer: feature.tensor for layer, feature in self._capture.features().items()}

    def close(self) -> None:
        """Removes the hooks from the network."""
        if self._capture is not None:
            self._capture.close()
        self._called_with, self._features = None, {}

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return type(one) is type(other) and bool(one == other)
