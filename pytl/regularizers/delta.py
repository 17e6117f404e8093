"""DELTA: features stay near the source's, channel by channel as the channel matters for the target task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pytl.features import Source, last_convolutions
from pytl.features.capture import Feature
from pytl.ops import feature_distance
from pytl.ops.features import channel_dim_of
from pytl.regularizers.channels import ChannelWeights
from pytl.regularizers.features import FeatureRegularizer, distance, positions


def delta(x: Tensor, source: Tensor, weights: Tensor | None = None) -> Tensor:
    """``1/2 sum over channels of C a_j |F_j - F0_j|^2 / (h w)``, the mean over samples: one layer's term of DELTA.

    Li et al. 2019, arXiv:1901.09229; as in the released code, whose value is a sum over the batch.

    Args:
        x: features F of the network, [B, C, h, w] in any memory format, [B, T, C] (h w = T) or [B, C].
        source: those of the source network, F0. No gradient flows into it.
        weights: a, [C], >= 0, with sum 1; None: 1 / C each.

    Returns:
        0-dim, float64 for float64 features, else float32; differentiable, also twice.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree.
    """
    return feature_distance(x, source, _factors(x, weights))


def _factors(x: Tensor, weights: Tensor | None) -> Tensor:
    channels = x.shape[channel_dim_of(x)]
    if weights is None:
        weights = torch.full((channels,), 1 / max(1, channels), dtype=torch.float64, device=x.device)
    return weights.to(x.device) * (channels / positions(x))


class DELTA(FeatureRegularizer):
    """``value = strength * sum over layers of delta(F, F0, a)`` (Li et al. 2019, arXiv:1901.09229).

    The paper's alpha multiplies a sum over the batch: ``strength = alpha * batch size``, so its 0.01 at batches of 64
    is 0.64, the default. In its recipe transferred weights have no decay beside it, the head 0.01.

    Args:
        model: the network that is trained.
        layers: names and patterns; "auto": the last convolution of each stage, before normalisation, as in the
            released code; a transformer's blocks at each quarter (our reading).
        weights: a of each layer: ``pytl.channel_weights(...)``, or a mapping; None: all channels alike.
        strength: see above.
        source: the source network; see ``pytl.regularizers.FeatureRegularizer``.

    Raises:
        ValueError: see ``pytl.regularizers.FeatureRegularizer``; weights that lack a layer.
    """

    name = "delta"

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = "auto",
        *,
        weights: ChannelWeights | Mapping[str, Tensor] | None = None,
        strength: float = 0.64,
        source: nn.Module | Source | None = None,
    ) -> None:
        given = weights.weights if isinstance(weights, ChannelWeights) else weights
        if layers == "auto":
            layers = last_convolutions(model) if given is None else list(given)
        super().__init__(model, layers, strength, source, tapped=True)
        self.weights = None if given is None else dict(given)
        lacking = [layer for layer in self.layers if given is not None and layer not in given]
        if lacking:
            self.close()
            raise ValueError(f"weights must hold those of each layer; {', '.join(lacking)} are missing")

    def _term(self, layer: str, feature: Feature, source: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights[layer]
        channels = source.shape[channel_dim_of(source)]
        if weights is not None and weights.shape != (channels,):
            raise ValueError(f"weights of layer {layer!r} must be of shape [{channels}]; got {[*weights.shape]}")
        return distance(feature, source, _factors(source, weights))
