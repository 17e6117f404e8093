"""What regularisers of features share: the layers, the source network, and the checks on both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import unwrapped
from pytl.features.capture import Capture, Feature
from pytl.features.source import Ids, Source
from pytl.ops import feature_distance
from pytl.ops.feature_distance import gradient_of
from pytl.ops.features import channel_dim_of
from pytl.regularizers.base import Regularizer


class FeatureRegularizer(Regularizer):
    """Compares layers' outputs with those of a source network, layer by layer.

    A subclass is a formula: ``_term(layer, feature, source)``.

    Args:
        model: the network that is trained.
        layers: names and patterns, as ``pytl.features.layer_names`` has them.
        strength: what the sum over layers is multiplied by.
        source: the source network: None: a frozen copy of the model as it is now; a module, which is frozen; or a
            ``pytl.features.Source``, which several regularisers may share and which may keep its features.
        tapped: add the gradient to the task's in one pass, where the term is a feature distance.

    Raises:
        ValueError: an unknown layer, nothing to train, a source that is the model, hooks of a closed regulariser.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        strength: float,
        source: nn.Module | Source | None,
        *,
        tapped: bool = False,
    ) -> None:
        super().__init__(strength)
        refuse_frozen(model)
        network = source.network if isinstance(source, Source) else source
        if network is not None and unwrapped(network) is unwrapped(model):
            raise ValueError("source must be another network than the model that is trained; None makes a copy")
        self._capture = Capture(model, layers, tapped=tapped)
        self.layers = self._capture.layers
        self._owns_source = not isinstance(source, Source)
        try:
            if not isinstance(source, Source):
                source = Source.copied(model) if source is None else Source(source)
            source.watch(self.layers)
        except BaseException:
            self._capture.close()
            raise
        self.source = source
        self._checked = False

    @abstractmethod
    def _term(self, layer: str, feature: Feature, source: Tensor) -> Tensor:
        """One layer's term."""

    def _comparable(self, x: Tensor, source: Tensor) -> bool:
        return x.shape == source.shape

    def _prepare(self, *inputs: Any, ids: Ids | None = None, **keywords: Any) -> None:
        self.source(*inputs, ids=ids, **keywords)

    def _terms(self, *inputs: Any, ids: Ids | None = None, **keywords: Any) -> dict[str, Tensor]:
        features = self._capture.features()
        sources = self.source(*inputs, ids=ids, **keywords)
        for layer, feature in features.items():
            self._check(layer, feature.tensor, sources[layer])
        if not self._checked:
            refuse_untrained(self.name, features)
        self._checked = True
        return {layer: self._term(layer, feature, sources[layer]) for layer, feature in features.items()}

    def _check(self, layer: str, x: Tensor, source: Tensor) -> None:
        if not self._comparable(x, source):
            raise ValueError(
                f"layer {layer!r} must have features of one shape in the model and in its source; got {[*x.shape]} and "
                f"{[*source.shape]}"
            )
        if not self._checked:  # the first time only: to look is to wait for the device
            for which, tensor in (("model", x), ("source", source)):
                if not tensor.isfinite().all():
                    raise ValueError(f"layer {layer!r} must have finite features; those of the {which} are not")

    def close(self) -> None:
        self._capture.close()
        if self._owns_source:
            self.source.close()
        super().close()


def refuse_frozen(model: nn.Module) -> None:
    """Raises ValueError for a model without anything to train."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have a parameter with requires_grad=True; got a frozen network")


def refuse_untrained(name: str, features: Mapping[str, Feature]) -> None:
    """Raises ValueError where gradients are enabled and none of the layers has one."""
    if torch.is_grad_enabled() and not any(feature.tensor.requires_grad for feature in features.values()):
        raise ValueError(
            f"{name} must have a layer above a parameter that is trained; {', '.join(features)} lie below all of them"
        )


def positions(x: Tensor) -> int:
    """How many positions a channel has: h * w of maps, T of tokens, 1 of pooled features."""
    return max(1, x.numel() // max(1, x.shape[0] * x.shape[channel_dim_of(x)]))


def distance(feature: Feature, source: Tensor, weights: Tensor) -> Tensor:
    """``pytl.ops.feature_distance`` of a layer; through the tap, where there is one."""
    if feature.tap is None or not torch.is_grad_enabled():
        return feature_distance(feature.tensor, source, weights)
    dim = channel_dim_of(source)

    def gradient(x: Tensor, outer: Tensor, task: Tensor | None) -> Tensor:
        return gradient_of(x, source, weights, outer, task, dim)

    with torch.no_grad():
        value = feature_distance(feature.tensor, source, weights)
    return feature.tap.value(feature.onward, value, gradient)
