"""TransferPlan: a line for each depth block, and what follows for a network and its optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pytl import directions
from pytl.architecture import Head, nearest, unwrapped
from pytl.depth import HEAD, Block, depth_blocks
from pytl.optim.groups import merged
from pytl.plan import text
from pytl.plan.block_plan import FOR_GOOD, BlockPlan, shown
from pytl.plan.renewal import Fresh, renew
from pytl.plan.rules import Rules

_LINES = 12  # of differences shown; two architectures differ in hundreds


class PlanError(ValueError):
    """A plan belongs to another architecture; the message lists each difference."""


@dataclass(frozen=True)
class TransferPlan:
    """How much of a source network is transferred, block by block: non-binary transfer (arXiv:2107.08585).

    ::

        plan = pytl.TransferPlan.from_rules(model, new_blocks=3, boundary=4, sp_decay=0.02, weight_decay=5e-4)
        print(plan)
        opt = pytl.SGD(plan.apply(model), lr=0.03, momentum=0.9, nesterov=True)

    Attributes:
        blocks: from the input on; the head's is called "head".
        decay_norm_and_bias: pull biases and norms (one dimension or none) as well; as in ``pytl.param_groups``.
        direction: how pytl's optimizers join the task's gradient and the pulls, ``"dtnh"``...; None: as they are told.

    Raises:
        ValueError: no blocks, two of one name, or an unknown direction.
    """

    blocks: tuple[BlockPlan, ...]
    decay_norm_and_bias: bool = False
    direction: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not isinstance(self.decay_norm_and_bias, bool):
            raise ValueError(f"decay_norm_and_bias must be true or false; got {shown(self.decay_norm_and_bias)}")
        names = [block.block for block in self.blocks]
        if not names:
            raise ValueError("blocks must hold a line for each block; got none")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"blocks must name each block once; {', '.join(twice)} stand twice")
        if self.direction is not None:
            directions.find(self.direction)

    @classmethod
    def from_rules(
        cls,
        model: nn.Module,
        rules: Rules | None = None,
        *,
        head: Head | None = None,
        example: Any = None,
        decay_norm_and_bias: bool = False,
        direction: str | None = None,
        **options: Any,
    ) -> TransferPlan:
        """A plan for this network.

        Args:
            model, head, example: whose blocks, as `pytl.depth.depth_blocks` finds them.
            rules: in numbers; or give them as options: ``new_blocks=3, sp_decay=0.02``. See `Rules`.
            decay_norm_and_bias, direction: of the plan.

        Raises:
            ValueError: as `Rules` has it; fewer blocks than rules speak of.
            TypeError: an unknown option, or rules and options both.
        """
        if rules is not None and options:
            raise TypeError(f"rules or options, not both; got rules and {', '.join(options)}")
        names = [block.name for block in depth_blocks(model, head, example)]
        return cls(tuple((rules or Rules(**options)).block_plans(names)), decay_norm_and_bias, direction)

    @classmethod
    def load(cls, path: str | Path) -> TransferPlan:
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is broken, holds something else, or rules that contradict each other.
        """
        return text.parsed(path, cls.from_dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransferPlan:
        """A plan from what `to_dict` returned.

        Raises:
            ValueError: unknown or missing keys, or values as `BlockPlan` refuses them.
        """
        _refuse_unknown(values, tuple(cls.__dataclass_fields__), "plan")
        lines = values.get("blocks")
        if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"blocks must be a list of blocks, each with its keys; got {type(lines).__name__}")
        if not isinstance(direction := values.get("direction"), str | None):
            raise ValueError(f"direction must be a name; got {shown(direction)}")
        for line in lines:
            _refuse_unknown(
                line, tuple(BlockPlan.__dataclass_fields__), f"block {shown(line.get('block', ''))[1:-1]}".rstrip()
            )
            if "block" not in line:
                raise ValueError(f"each of blocks must have a name under 'block'; got {shown(line)}")
        blocks = tuple(BlockPlan(**{key: _number(value, key) for key, value in line.items()}) for line in lines)
        return cls(blocks, values.get("decay_norm_and_bias", False), direction)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return {
            "decay_norm_and_bias": self.decay_norm_and_bias,
            "direction": self.direction,
            "blocks": [asdict(block) for block in self.blocks],
        }

    def save(self, path: str | Path) -> None:
        """Writes ``.json``, or YAML under any other name; a file that was there is replaced in one rename.

        Raises:
            OSError: the disk is full or not writable.
        """
        text.write(path, self.to_dict())

    @property
    def transferred(self) -> int:
        """How many blocks keep the source's weights."""
        return sum(block.transferred for block in self.blocks)

    def apply(
        self,
        model: nn.Module,
        *,
        head: Head | None = None,
        example: Any = None,
        seed: int = 0,
        fresh: Fresh | None = None,
        renew_head: bool = False,
        verbose: bool = True,
    ) -> list[dict[str, Any]]:
        """Re-initialises the new blocks in place, freezes what is never trained, and makes the optimizer's groups.

        Parameters that are frozen now are left out, but for blocks that the plan freezes. Where a block is frozen until
        a step, `pytl.Unfreezing` freezes and thaws it.

        Args:
            model, head, example: as in `from_rules`.
            seed, fresh: of the new weights, as in `pytl.plan.renew`.
            renew_head: the head is taken for new already; True: it is re-initialised as well.
            verbose: print the plan.

        Returns:
            Groups with "params" as (name, parameter) pairs, "lr" and "direction" where the plan has them, "sp_decay",
            "weight_decay", "role" and "frozen_until"; for ``pytl.SGD``, ``pytl.AdamW`` or any torch optimizer.

        Raises:
            PlanError: the model has other blocks than the plan. Nothing is changed then.
            ValueError: as `pytl.plan.renew`; a block is to be trained, and all of it is frozen.
        """
        blocks = depth_blocks(model, head, example)
        self._refuse_other_architecture(blocks)
        named = dict(unwrapped(model).named_parameters())
        plans = {plan.block: plan for plan in self.blocks}
        for block in blocks:
            if not plans[block.name].frozen_for_good and not any(named[n].requires_grad for n in block.parameters):
                raise ValueError(f"{block.name} is to be trained; all its parameters have requires_grad=False")
        new = [b for b in blocks if not plans[b.name].transferred and (b.name != HEAD or renew_head)]
        renew(model, new, head=head, example=example, seed=seed, fresh=fresh)
        for block in blocks:
            for name in block.parameters if plans[block.name].frozen_for_good else ():
                named[name].requires_grad_(False)
        if verbose:
            print(self)
        return merged(self._members(blocks, plans, named))

    def _members(
        self, blocks: Iterable[Block], plans: dict[str, BlockPlan], named: dict[str, nn.Parameter]
    ) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """(name, parameter, options)."""
        for block in blocks:
            plan = plans[block.name]
            rate: dict[str, Any] = {} if plan.lr is None else {"lr": plan.lr}
            joined = {} if self.direction is None else {"direction": self.direction}
            for name in block.parameters:
                if not named[name].requires_grad and not plan.frozen_for_good:
                    continue
                pulled = self.decay_norm_and_bias or named[name].dim() > 1
                yield (
                    name,
                    named[name],
                    {
                        **rate,
                        **joined,
                        "sp_decay": plan.sp_decay if pulled else 0.0,
                        "weight_decay": plan.weight_decay if pulled else 0.0,
                        "role": "transferred"
                        if plan.transferred
                        else "new"
                        if block.name == HEAD
                        else "not transferred",
                        "frozen_until": plan.frozen_until,
                    },
                )

    def _refuse_other_architecture(self, blocks: Sequence[Block]) -> None:
        here, planned = [block.name for block in blocks], [plan.block for plan in self.blocks]
        if here == planned:
            return
        lines = [f"the plan has {name}, the model has not{nearest(name, here)}" for name in planned if name not in here]
        lines += [f"the model has {name}, the plan has not" for name in here if name not in planned]
        if not lines:
            lines = [f"the order is {', '.join(planned)} in the plan, and {', '.join(here)} in the model"]
        more = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
        raise PlanError("\n  ".join(["the plan is of another architecture:", *lines[:_LINES], *more]))

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.block) for block in self.blocks))
        lines = [f"{'block':{width}}  weights      {'lr':>8}  {'to the start':>12}  {'to zero':>8}  frozen"]
        lines += [f"{block.block:{width}}  {_line(block)}".rstrip() for block in self.blocks]
        return "\n".join([*lines, f"direction: {self.direction}"] if self.direction else lines)


def _line(block: BlockPlan) -> str:
    def number(value: float | None) -> str:
        return f"{value:.3g}" if value else "-"

    rate = "-" if block.frozen_for_good else "given" if block.lr is None else f"{block.lr:.3g}"
    frozen = (
        "for good" if block.frozen_until == FOR_GOOD else f"until {block.frozen_until}" if block.frozen_until else ""
    )
    pulls = f"{number(block.sp_decay):>12}  {number(block.weight_decay):>8}"
    return f"{'transferred' if block.transferred else 'new':11}  {rate:>8}  {pulls}  {frozen}"


def _refuse_unknown(values: dict[str, Any], known: Sequence[str], what: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(f"{what} must have keys among {', '.join(known)}; got {shown(key)}{nearest(key, known)}")


def _number(value: Any, key: str) -> Any:
    """YAML takes 1e-4 for text, where 1.0e-4 is a number."""
    if key not in ("lr", "sp_decay", "weight_decay") or not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
