from __future__ import annotations

from torch import Tensor

from pytl.directions.base import Direction, share


class PCGrad(Direction):
    """Where ``<g,r> < 0``, g is projected off r and r off g; d is the sum of both projections.

    Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782. Symmetric: unlike DTNH it
    also changes the task's gradient for the regulariser's sake. Here for comparison.
    """

    rule = "pcgrad"

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        conflict = gr.clamp(max=0)
        return 1 - share(conflict, gg), 1 - share(conflict, rr)
