from __future__ import annotations

import torch
from torch import Tensor

from pytl.directions.base import Direction, share


class DTNH(Direction):
    """``d = g + r - (min(0, <g,r>) / <g,g>) * g``: what of r opposes the task's gradient is taken out of it.

    Then ``<d,g> >= <g,g>``: to first order, on this mini-batch and before momentum, the regulariser never hurts the
    task; without a conflict it is the sum. The idea is the paper's (Wan et al., "Towards Making Deep Transfer Learning
    Never Hurt", ICDM 2019, arXiv:1911.07489); that only an obtuse r is changed is our reading of it.
    """

    rule = "dtnh"

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - share(gr.clamp(max=0), gg), torch.ones_like(rr)
