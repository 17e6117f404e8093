"""Batch spectral shrinkage: the smallest singular values of a batch's features are taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pytl import ops
from pytl.features.capture import Capture
from pytl.features.layers import head_input
from pytl.ops.features import channel_dim_of
from pytl.regularizers.base import Regularizer
from pytl.regularizers.features import refuse_frozen, refuse_untrained


def batch_spectral_shrinkage(features: Tensor, k: int = 1) -> Tensor:
    """``pytl.ops.bss`` of features of any layer, divided by the number of samples; maps and tokens are averaged first.

    Args:
        features: [B, D], [B, C, H, W] or [B, T, D]; B >= 2.
        k: how many singular values.
    """
    if features.dim() > 2:
        channels = channel_dim_of(features)
        features = features.mean([d for d in range(1, features.dim()) if d != channels])
    return ops.bss(features, k) / len(features)


class BSS(Regularizer):
    """``value = strength / B * sum of the k smallest squared singular values of the batch's features``.

    Chen et al. 2019 (NeurIPS), "Catastrophic Forgetting Meets Negative Transfer". The released code's eta multiplies
    the sum: ``strength = eta * batch size``, so its 1e-3 at batches of 64 is 0.064, the default. There is no source
    network. Unlike the other penalties, a batch's is not the mean of its parts': singular values belong to the whole.

    Args:
        model: the network that is trained.
        layers: names and patterns; "auto": what the head is called with.
        k: how many singular values, >= 1.
        strength: see above.

    Raises:
        ValueError: an unknown layer, no head, nothing to train, k < 1; at the call, a batch of one.
    """

    name = "bss"

    def __init__(
        self, model: nn.Module, layers: str | Sequence[str] = "auto", *, k: int = 1, strength: float = 0.064
    ) -> None:
        super().__init__(strength)
        refuse_frozen(model)
        if k < 1:
            raise ValueError(f"k must be >= 1; got {k}")
        self.k = k
        self._capture = Capture(model, head_input(model) if layers == "auto" else layers)
        self.layers = self._capture.layers

    def _terms(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        features = self._capture.features()
        refuse_untrained(self.name, features)
        return {layer: batch_spectral_shrinkage(feature.tensor, self.k) for layer, feature in features.items()}

    def close(self) -> None:
        self._capture.close()
        super().close()
