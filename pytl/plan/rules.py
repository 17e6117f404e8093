"""A plan in a few numbers, the same for networks of any depth: what is searched over and advised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytl.depth import HEAD
from pytl.plan.block_plan import FOR_GOOD, BlockPlan, is_count, is_step, is_strength, shown

ALL = "all"


@dataclass(frozen=True)
class Rules:
    """Where a network is cut, and what holds on each side (arXiv:2107.08585); checked when made.

    From the input on: frozen blocks, low blocks (pulled to the start, slower), high ones (pulled to zero), new ones.

    Attributes:
        new_blocks: how many are new, the head among them; >= 1, and at most all; ``"all"``: nothing is transferred.
        boundary: how many of the lowest blocks are low; None: all that are transferred.
        lr: rate of the high and the new blocks; None: the optimizer's.
        lr_ratio: their rate over that of the low ones, > 0.
        layer_decay: factor between the rates of neighbouring blocks, from the head down, in (0, 1].
        sp_decay: the low blocks' pull to the start.
        weight_decay: the others' pull to zero.
        head_weight_decay: the head's; None: ``weight_decay``.
        frozen_blocks: how many of the lowest are frozen.
        frozen_until: until which step; ``"end"``: for good.

    Raises:
        ValueError: a number is out of range; rates without ``lr``; more frozen blocks than transferred ones.
    """

    new_blocks: int | str = 1
    boundary: int | None = None
    lr: float | None = None
    lr_ratio: float = 1.0
    layer_decay: float = 1.0
    sp_decay: float = 0.0
    weight_decay: float = 0.0
    head_weight_decay: float | None = None
    frozen_blocks: int = 0
    frozen_until: int | str = FOR_GOOD

    def __post_init__(self) -> None:
        if self.new_blocks != ALL and not (is_count(self.new_blocks) and self.new_blocks != 0):
            raise ValueError(f"new_blocks must be >= 1, for the head is one, or {ALL!r}; got {shown(self.new_blocks)}")
        if not (self.boundary is None or is_count(self.boundary)):
            raise ValueError(f"boundary must be a whole number >= 0 or None; got {shown(self.boundary)}")
        if not is_count(self.frozen_blocks):
            raise ValueError(f"frozen_blocks must be a whole number >= 0; got {shown(self.frozen_blocks)}")
        if not is_step(self.frozen_until):
            raise ValueError(f"frozen_until must be a step >= 0 or {FOR_GOOD!r}; got {shown(self.frozen_until)}")
        for name in ("lr", "sp_decay", "weight_decay", "head_weight_decay"):
            value = getattr(self, name)
            if not (is_strength(value) or (value is None and name in ("lr", "head_weight_decay"))):
                raise ValueError(f"{name} must be a finite number >= 0; got {shown(value)}")
        if not (is_strength(self.lr_ratio) and self.lr_ratio > 0):
            raise ValueError(f"lr_ratio must be > 0; got {shown(self.lr_ratio)}")
        if not (is_strength(self.layer_decay) and 0 < self.layer_decay <= 1):
            raise ValueError(f"layer_decay must be in (0, 1]; got {shown(self.layer_decay)}")
        if self.lr is None and (self.lr_ratio != 1 or self.layer_decay != 1):
            raise ValueError(
                f"lr must be given for rates that differ; got None with lr_ratio={self.lr_ratio}, "
                f"layer_decay={self.layer_decay}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def block_plans(self, names: Sequence[str]) -> list[BlockPlan]:
        """A line for each block, from the input on.

        Raises:
            ValueError: there are fewer blocks than new or frozen ones.
        """
        total = len(names)
        body = sum(name != HEAD for name in names)
        kept = 0 if self.new_blocks == ALL else body - (int(self.new_blocks) - 1)
        if kept < 0:
            raise ValueError(f"new_blocks must be <= {body + 1}, the network's blocks; got {self.new_blocks}")
        if self.frozen_blocks > kept:
            raise ValueError(
                f"frozen_blocks must be <= {kept}, the transferred ones; got {self.frozen_blocks} with "
                f"new_blocks={self.new_blocks}"
            )
        return [self._block_plan(name, depth, kept, total) for depth, name in enumerate(names)]

    def _block_plan(self, name: str, depth: int, kept: int, total: int) -> BlockPlan:
        if depth < self.frozen_blocks and self.frozen_until == FOR_GOOD:
            return BlockPlan(name, frozen_until=FOR_GOOD)
        transferred = depth < kept
        low = transferred and (self.boundary is None or depth < self.boundary)
        decay = self.head_weight_decay if name == HEAD and self.head_weight_decay is not None else self.weight_decay
        rate = None if self.lr is None else self.lr / (self.lr_ratio if low else 1.0)
        return BlockPlan(
            block=name,
            transferred=transferred,
            lr=None if rate is None else rate * self.layer_decay ** (total - 1 - depth),
            sp_decay=self.sp_decay if low else 0.0,
            weight_decay=0.0 if low else decay,
            frozen_until=self.frozen_until if depth < self.frozen_blocks else 0,
        )
