"""What is to happen to one depth block."""

from __future__ import annotations

import reprlib
import sys
from dataclasses import dataclass

FOR_GOOD = "end"
"""Frozen until the run's end: never trained."""


@dataclass(frozen=True)
class BlockPlan:
    """One block's line in a plan; checked when made.

    Attributes:
        block: its name, as `pytl.depth.depth_blocks` has it.
        transferred: it keeps the source's weights; else it is re-initialised.
        lr: learning rate at the start; None: the optimizer's.
        sp_decay: strength of the pull to the starting point (L2-SP).
        weight_decay: strength of the pull to zero (L2).
        frozen_until: the step that trains it first; 0: the first one of all; ``"end"``: none.

    Raises:
        ValueError: a number is out of range, or rules contradict each other: new weights that are pulled to a start or
            frozen for good, or a rate or a pull of what is never trained.
    """

    block: str
    transferred: bool = True
    lr: float | None = None
    sp_decay: float = 0.0
    weight_decay: float = 0.0
    frozen_until: int | str = 0

    def __post_init__(self) -> None:
        if not isinstance(self.block, str) or not self.block:
            raise ValueError(f"block must be a name; got {shown(self.block)}")
        if not isinstance(self.transferred, bool):
            raise ValueError(f"{self.block}: transferred must be true or false; got {shown(self.transferred)}")
        for name in ("lr", "sp_decay", "weight_decay"):
            value = getattr(self, name)
            if not (is_strength(value) or (name == "lr" and value is None)):
                raise ValueError(f"{self.block}: {name} must be a finite number >= 0; got {shown(value)}")
        step = self.frozen_until
        if not is_step(step):
            raise ValueError(f"{self.block}: frozen_until must be a step >= 0 or {FOR_GOOD!r}; got {shown(step)}")
        self._refuse_contradictions()

    @property
    def frozen_for_good(self) -> bool:
        return self.frozen_until == FOR_GOOD

    def _refuse_contradictions(self) -> None:
        if not self.transferred and self.sp_decay:
            raise ValueError(
                f"{self.block}: a new block has no starting point to be pulled to; got sp_decay={self.sp_decay}"
            )
        if not self.frozen_for_good:
            return
        if not self.transferred:
            raise ValueError(f"{self.block}: a new block must be trained; got frozen_until={FOR_GOOD!r}")
        for name in ("lr", "sp_decay", "weight_decay"):
            if getattr(self, name):
                raise ValueError(
                    f"{self.block}: a block that is never trained has no {name}; got {getattr(self, name)} with "
                    f"frozen_until={FOR_GOOD!r}"
                )


def is_strength(value: object) -> bool:
    """A finite number >= 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def is_count(value: object) -> bool:
    """A whole number >= 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_step(value: object) -> bool:
    """A step, or "end"."""
    return is_count(value) or (isinstance(value, str) and value == FOR_GOOD)


def shown(value: object) -> str:
    """A value in an error, shortened: files may hold anything."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxlong, short.maxother = 2, 100, 400, 100
    return short.repr(value)
