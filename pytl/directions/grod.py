from __future__ import annotations

import torch
from torch import Tensor

from pytl.directions.base import Direction, share


class GrOD(Direction):
    """``d = g + r - (<g,r> / <g,g>) * g``: only what of r is orthogonal to the task's gradient stays.

    Then ``<d,g> = <g,g>``: to first order the regulariser neither hurts nor helps the task. From the projection in the
    released PyTorch code of GrOD (TKDD 2022). That code leaves the head and weight decay out of r; here r holds
    everything that is not the task's loss.
    """

    rule = "grod"

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - share(gr, gg), torch.ones_like(rr)
