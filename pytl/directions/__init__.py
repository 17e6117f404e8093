"""Direction rules: one file each. They know tensors of Gram numbers and nothing else."""

from __future__ import annotations

from pytl.directions.base import Direction
from pytl.directions.dtnh import DTNH
from pytl.directions.grod import GrOD
from pytl.directions.pcgrad import PCGrad
from pytl.directions.sum import Sum

RULES: dict[str, Direction] = {rule.name: rule for rule in (Sum(), DTNH(), GrOD(), PCGrad())}


def find(direction: str | Direction) -> Direction:
    """The rule of that name, or the rule itself. Raises ValueError for an unknown name."""
    if isinstance(direction, Direction):
        return direction
    if not isinstance(direction, str) or direction not in RULES:
        raise ValueError(f"direction must be one of {', '.join(RULES)} or a pytl.Direction; got {direction!r}")
    return RULES[direction]


__all__ = ["DTNH", "RULES", "Direction", "GrOD", "PCGrad", "Sum", "find"]
