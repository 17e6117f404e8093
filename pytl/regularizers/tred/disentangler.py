"""The light network that splits features in two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytl.ops.features import channel_dim_of


class Disentangler(nn.Module):
    """``F_p + F_n ~ F_o``: of features F_o the part that matters for a target, and the rest.

    With ``z = (F_o - centre) / scale``, by position::

        z_p = W2 relu(W1 z) - mean        F_p = centre + scale z_p
        z_n = z - V2 relu(V1 z) - mean    F_n = scale z_n

    Two bottlenecks of 1x1 convolutions, a multilayer perceptron where features are tokens or pooled. That the rest is
    what one of them leaves, and that no part has a mean of its own, is our reading: a constant says nothing, and left
    to itself it is how a split looks wide (Max-MMD) without being one.

    Args:
        channels: C of the features.
        width: of the bottlenecks.
    """

    centre: Tensor
    scale: Tensor
    relevant_mean: Tensor
    rest_mean: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(channels, width), nn.ReLU())
        self.relevant = nn.Linear(width, channels, bias=False)
        self.taken = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels, bias=False))
        for name in ("centre", "relevant_mean", "rest_mean"):
            self.register_buffer(name, torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))

    @property
    def channels(self) -> int:
        return len(self.centre)

    def rows(self, features: Tensor) -> Tensor:
        """z, [B, positions, C], of features [B, C, ...], [B, T, C] or [B, C].

        Raises:
            ValueError: they have another number of channels.
        """
        dim = channel_dim_of(features)
        if features.shape[dim] != self.channels:
            raise ValueError(f"features must have {self.channels} channels; got shape {[*features.shape]}")
        z = (features.movedim(dim, -1).to(self.centre.dtype) - self.centre) / self.scale
        return z.reshape(len(z), -1, self.channels)

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_p and z_n."""
        return self.relevant(self.code(z)) - self.relevant_mean, z - self.taken(z) - self.rest_mean

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """F_p and F_n, in the features' shape and dtype. Errors: as for `rows`."""
        dim = channel_dim_of(features)
        shape = features.movedim(dim, -1).shape
        relevant, rest = self.parts(self.rows(features))
        both = (self.centre + self.scale * relevant, self.scale * rest)
        first, second = (part.view(shape).movedim(-1, dim).to(features.dtype) for part in both)
        return first, second
