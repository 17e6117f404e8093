from __future__ import annotations

import torch
from torch import Tensor

from pytl.directions.base import Direction


class Sum(Direction):
    """``d = g + r``: the gradient of the sum of both losses, which is plain training."""

    rule = "sum"

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gg), torch.ones_like(rr)
