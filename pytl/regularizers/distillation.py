"""Distillation: the source's features as hints, and its soft labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pytl import ops
from pytl.features import Source, stages
from pytl.features.capture import Feature
from pytl.features.layers import OUTPUT
from pytl.ops.features import channel_dim_of
from pytl.regularizers.features import FeatureRegularizer, distance, positions


def feature_distillation(x: Tensor, source: Tensor) -> Tensor:
    """``|F - F0|^2 / (h w)``, the mean over samples: one layer's term. Shapes and errors: as in ``pytl.ops``."""
    return ops.feature_distance(x, source) * (2 / positions(x))


class Distillation(FeatureRegularizer):
    """``value = strength * (sum over layers of |F - F0|^2 / (h w) + soft_labels * T^2 KL(p0 || p))``, by sample.

    With features alone it is what DTNH's authors call knowledge distillation (Wan et al. 2019, arXiv:1911.07489): maps
    of the outer layers are matched, as FitNets match hints (Romero et al. 2015, arXiv:1412.6550). That it is divided by
    h w is our reading; FitNets' sum is ``h w / 2`` times a layer's term. Soft labels: Hinton et al. 2015, 1503.02531.

    Args:
        model: the network that is trained.
        layers: names and patterns; "auto": the end of each stage; (): soft labels alone.
        strength: see above.
        soft_labels: weight of the soft labels, >= 0; they need a source with the same classes.
        temperature: T of the soft labels.
        source: the source network; see ``pytl.regularizers.FeatureRegularizer``.

    Raises:
        ValueError: see ``pytl.regularizers.FeatureRegularizer``; neither layers nor soft labels.
    """

    name = "distillation"

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = "auto",
        *,
        strength: float = 1.0,
        soft_labels: float = 0.0,
        temperature: float = 2.0,
        source: nn.Module | Source | None = None,
    ) -> None:
        if not 0 <= soft_labels < math.inf:
            raise ValueError(f"soft_labels must be finite and >= 0; got {soft_labels}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and > 0; got {temperature}")
        self.soft_labels, self.temperature = soft_labels, temperature
        wanted = stages(model) if layers == "auto" else [layers] if isinstance(layers, str) else [*layers]
        super().__init__(model, wanted + [OUTPUT] * (soft_labels > 0), strength, source, tapped=True)

    def _terms(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        terms = super()._terms(*inputs, **keywords)
        return {layer or "soft labels": term for layer, term in terms.items()}

    def _term(self, layer: str, feature: Feature, source: Tensor) -> Tensor:
        if layer == OUTPUT:
            return self.soft_labels * ops.distillation(feature.tensor, source, self.temperature)
        return distance(
            feature, source, source.new_full((source.shape[channel_dim_of(source)],), 2 / positions(source))
        )
