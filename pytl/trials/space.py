"""What is searched over: plans in a few numbers, a learning rate, a direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytl.directions import find
from pytl.plan import Rules, TransferPlan
from pytl.training.methods import Method

Value = float | int | str

_MOST_NEW = 7


@dataclass(frozen=True)
class Candidate:
    """One point of the space.

    Attributes:
        rules: of the plan, with its rate.
        direction: how the task's gradient and the pulls are joined.
    """

    rules: Rules
    direction: str = "sum"

    def method(self, name: str = "searched") -> Method:
        return Method(name, plan=self.rules, direction=self.direction)

    def plan(self, names: Sequence[str]) -> TransferPlan:
        """For a network of these blocks."""
        return TransferPlan(tuple(self.rules.block_plans(names)), direction=self.direction)


@dataclass(frozen=True)
class Space:
    """Each dimension's choices; after METHODS of arXiv:2107.08585, where the paper searches, and wider.

    Attributes:
        new_blocks: the head among them; choices beyond the network's blocks are left out.
        low: share of the transferred blocks, from the input on, that are low: pulled to the start, and slower.
        lr: factors of the run's rate.
        lr_ratio: of the high and new blocks' rate to the low ones'.
        sp_decay: pull to the start, of low blocks.
        weight_decay: pull to zero, of the others.
        direction: rules of `pytl.directions`.

    Raises:
        ValueError: a dimension without choices, or a choice that no plan can have.
    """

    new_blocks: Sequence[int] = tuple(range(1, _MOST_NEW + 1))
    low: Sequence[float] = (0.0, 0.5, 1.0)
    lr: Sequence[float] = (0.5, 1.0, 2.0)
    lr_ratio: Sequence[float] = (1.0, 2.0, 5.0, 10.0)
    sp_decay: Sequence[float] = (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1)
    weight_decay: Sequence[float] = (0.0, 1e-4, 5e-4, 1e-2, 0.03, 0.1)
    direction: Sequence[str] = ("sum", "dtnh", "grod")

    def __post_init__(self) -> None:
        for name, choices in self.dimensions.items():
            if not choices:
                raise ValueError(f"{name} must have >= 1 choice; got none")
        for share in self.low:
            if not 0 <= share <= 1:
                raise ValueError(f"low must be shares in [0, 1]; got {share}")
        for rate in self.lr:
            if not rate > 0:
                raise ValueError(f"lr must be factors > 0; got {rate}")
        for direction in self.direction:
            find(direction)
        for decays in (self.sp_decay, self.weight_decay):
            if min(decays) < 0:
                raise ValueError(f"sp_decay and weight_decay must be >= 0; got {min(decays)}")
        for new, ratio in ((n, r) for n in self.new_blocks for r in self.lr_ratio):
            Rules(new, lr=1.0, lr_ratio=ratio)

    @property
    def dimensions(self) -> dict[str, tuple[Value, ...]]:
        return {name: tuple(getattr(self, name)) for name in self.__dataclass_fields__}

    def within(self, blocks: int) -> Space:
        """For a network of so many blocks, the head among them."""
        fitting = tuple(new for new in self.new_blocks if new <= blocks)
        return Space(**{**self.dimensions, "new_blocks": fitting})  # type: ignore[arg-type]

    def candidate(self, values: Mapping[str, Value], body: int, lr: float) -> Candidate:
        """The point with these values, in a network of ``body`` blocks beside its head.

        Values that mean the same are one candidate: no block is low where there is no pull and no other rate for it.
        """
        new, rate = int(values["new_blocks"]), lr * float(values["lr"])
        low = round(float(values["low"]) * (body - new + 1))
        rules = Rules(
            new_blocks=new,
            boundary=low,
            lr=rate,
            lr_ratio=float(values["lr_ratio"]) if low else 1.0,
            sp_decay=float(values["sp_decay"]) if low else 0.0,
            weight_decay=float(values["weight_decay"]),
        )
        pulled = rules.sp_decay or rules.weight_decay
        return Candidate(rules, str(values["direction"]) if pulled else "sum")

    def nearest(self, rules: Rules, body: int, lr: float, direction: str = "sum") -> dict[str, Value]:
        """The values whose candidate is most like these rules: where a search begins from advice."""
        kept = body - (int(rules.new_blocks) - 1 if rules.new_blocks != "all" else body)
        boundary = kept if rules.boundary is None else min(rules.boundary, kept)
        wanted: dict[str, float] = {
            "new_blocks": body - kept + 1,
            "low": boundary / kept if kept else 0.0,
            "lr": 1.0 if rules.lr is None else rules.lr / lr,
            "lr_ratio": rules.lr_ratio,
            "sp_decay": rules.sp_decay,
            "weight_decay": rules.weight_decay,
        }
        found: dict[str, Value] = {
            name: min(self.dimensions[name], key=lambda choice: abs(float(choice) - value))
            for name, value in wanted.items()
        }
        known = direction if direction in self.direction else self.direction[0]
        return {**found, "direction": known}
