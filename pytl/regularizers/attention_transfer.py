"""Attention transfer: where a layer's activations have their energy stays as in the source."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pytl.features import Source, stages
from pytl.features.capture import Feature
from pytl.ops import attention_map_distance
from pytl.ops.features import channel_dim_of
from pytl.regularizers.features import FeatureRegularizer


def attention_transfer(a: Tensor, source: Tensor) -> Tensor:
    """One layer's term: ``pytl.ops.attention_map_distance(a, source)``."""
    return attention_map_distance(a, source)


class AttentionTransfer(FeatureRegularizer):
    """``value = strength * sum over layers of mean((at(A) - at(A0))^2)`` (Zagoruyko & Komodakis 2017, 1612.03928).

    ``at(A)`` is ``mean over channels of A^2``, flattened and divided by its L2 norm. The mean is over samples and
    positions, as in the released code; so is the default strength, 1e3.

    Args:
        model: the network that is trained.
        layers: names and patterns; "auto": the end of each stage. Channels may differ from the source's.
        strength: see above.
        source: the source network; see ``pytl.regularizers.FeatureRegularizer``.

    Raises:
        ValueError: see ``pytl.regularizers.FeatureRegularizer``; a layer without positions.
    """

    name = "at"

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = "auto",
        *,
        strength: float = 1e3,
        source: nn.Module | Source | None = None,
    ) -> None:
        super().__init__(model, stages(model) if layers == "auto" else layers, strength, source)

    def _comparable(self, x: Tensor, source: Tensor) -> bool:
        return _without_channels(x) == _without_channels(source)

    def _term(self, layer: str, feature: Feature, source: Tensor) -> Tensor:
        if source.dim() not in (3, 4):
            raise ValueError(f"layer {layer!r} must be maps [B, C, H, W] or tokens [B, T, D]; got {[*source.shape]}")
        return attention_transfer(feature.tensor, source)


def _without_channels(x: Tensor) -> list[int]:
    return [size for dim, size in enumerate(x.shape) if x.dim() < 2 or dim != channel_dim_of(x)]
