"""Random features to compare: one set of them is what a layer hands to a penalty at one step."""

from functools import cached_property

import torch
from torch import Tensor

from pytl.benchmark.parameters import Draw
from pytl.ops.features import channel_dim_of


class FeatureSet:
    """Features of the network, which ask for a gradient, those of its source, and weights of the channels."""

    def __init__(
        self, shape: tuple[int, ...], order: torch.memory_format, dtype: torch.dtype, seed: int, place: torch.device
    ) -> None:
        self._draw, self._order, self._dtype = Draw(seed, place), order, dtype
        self.x = self._drawn(shape)
        self.source = self.x + self._drawn(shape)
        self.x.requires_grad_()
        self.weights = self._draw((shape[channel_dim_of(self.x)],), 1.0, torch.float32).abs()

    def _drawn(self, shape: tuple[int, ...]) -> Tensor:
        return self._draw(shape, 1.0, self._dtype).contiguous(memory_format=self._order)

    def results(self, returned: tuple[Tensor, Tensor] | None) -> list[list[Tensor]]:
        """Value and gradient, which begin at 0."""
        return [[tensor] for tensor in returned or torch.zeros(2, device=self.x.device)]

    @cached_property
    def task(self) -> Tensor:
        """The task's gradient, which comes back through x; made where it is asked for."""
        return self._drawn(tuple(self.x.shape))
