"""TRED, stage two: features stay near the part of the source's that the target needs."""

from __future__ import annotations

from torch import Tensor, nn

from pytl.features import Source
from pytl.features.capture import Feature
from pytl.ops import feature_distance
from pytl.ops.features import channel_dim_of
from pytl.regularizers.features import FeatureRegularizer, distance, positions
from pytl.regularizers.tred.split import FeatureSplit


def tred(x: Tensor, relevant: Tensor) -> Tensor:
    """``1/2 |F - F_p|^2 / (h w)``, the mean over samples: one layer's term. Shapes and errors: as in ``pytl.ops``."""
    return feature_distance(x, relevant, _weights(relevant))


def _weights(relevant: Tensor) -> Tensor:
    return relevant.new_full((relevant.shape[channel_dim_of(relevant)],), 1 / positions(relevant))


class TRED(FeatureRegularizer):
    """``value = strength * sum over layers of tred(F, F_p)`` (arXiv:2010.08532; Machine Learning 113, 2024).

    F_p is what `pytl.disentangle` took of the source's features F_o for the target. It is not F_o: at the start the
    value is not 0, and features are moved. That distances are divided by h w is our reading, and so is the strength.

    Args:
        model: the network that is trained.
        split: of stage one; its layers are those that are held.
        strength: see above.
        source: the network that was split; see ``pytl.regularizers.FeatureRegularizer``.

    Raises:
        ValueError: see ``pytl.regularizers.FeatureRegularizer``; layers with other channels than the split's.
    """

    name = "tred"

    def __init__(
        self,
        model: nn.Module,
        split: FeatureSplit,
        *,
        strength: float = 0.01,
        source: nn.Module | Source | None = None,
    ) -> None:
        super().__init__(model, split.layers, strength, source, tapped=True)
        self.split = split
        self.facts = {
            f"{name} of {layer}": value
            for layer, guards in split.guards.items()
            for name, value in (
                ("|F_p|/|F_o|", guards.relevant_share),
                ("|F_n|/|F_o|", guards.rest_share),
                ("error", guards.reconstruction_error),
                ("probe F_o", guards.source_probe),
                ("probe F_p", guards.relevant_probe),
                ("probe F_n", guards.rest_probe),
            )
        }

    def _check(self, layer: str, x: Tensor, source: Tensor) -> None:
        super()._check(layer, x, source)
        channels = self.split.disentanglers[layer].channels
        if source.shape[channel_dim_of(source)] != channels:
            raise ValueError(f"layer {layer!r} must have the split's {channels} channels; got shape {[*source.shape]}")

    def _term(self, layer: str, feature: Feature, source: Tensor) -> Tensor:
        relevant = self.split.relevant(layer, source)
        return distance(feature, relevant, _weights(relevant))
