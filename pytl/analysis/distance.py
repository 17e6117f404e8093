"""How far weights are from where they started: by tensor, by block and in all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import Head, nearest, unwrapped
from pytl.depth import HEAD, depth_blocks
from pytl.pictures import COLOURS, drawing, name_places


@dataclass(frozen=True)
class Distance:
    """``|w - w0|`` and ``|w0|``, Euclidean norms.

    Attributes:
        tensors, blocks: name -> ``|w - w0|``; blocks from the input on, the head last.
        start: block -> ``|w0|``.
        new: blocks with parameters that the start lacks, or has in another shape, as a head for other classes; those
            parameters count nowhere.
    """

    tensors: dict[str, float]
    blocks: dict[str, float]
    start: dict[str, float]
    new: tuple[str, ...]

    @property
    def relative(self) -> dict[str, float]:
        """Block -> ``|w - w0| / |w0|``; nan where w0 = 0."""
        return {name: d / self.start[name] if self.start[name] else math.nan for name, d in self.blocks.items()}

    @property
    def total(self) -> float:
        """Over all blocks but the head."""
        return math.hypot(*(d for name, d in self.blocks.items() if name != HEAD))

    @property
    def total_relative(self) -> float:
        """The same over ``|w0|``; nan where that is 0."""
        norm = math.hypot(*(d for name, d in self.start.items() if name != HEAD))
        return self.total / norm if norm else math.nan

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"relative": self.relative, "total": self.total, "total_relative": self.total_relative}

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: absolute and relative distances by block."""
        with drawing(path, 5.2) as figure:
            above, below = figure.subplots(2, 1, sharex=True)
            for axes, values, label in (
                (above, self.blocks, "|w - w0|"),
                (below, self.relative, "|w - w0| / |w0|"),
            ):
                axes.bar(range(len(values)), [*values.values()], color=COLOURS[1])
                axes.set_ylabel(label)
            above.set_title("Distance from the start")
            name_places(below, [*self.blocks])


@torch.no_grad()
def distance(
    model: nn.Module | Mapping[str, Tensor], start: nn.Module | Mapping[str, Tensor], *, head: Head | None = None
) -> Distance:
    """How far a model's parameters are from their start. Cost: one read of both; memory: one tensor.

    Args:
        model: a module, or a state dict, whose tensors are then blocks of their own; wrappers do not count.
        start: the same at the start: a module or a state dict.
        head: as in ``pytl.param_groups``.

    Raises:
        ValueError: the two share no parameter of one shape.
    """
    now, before = _named(model), _named(start)
    blocks = _blocks(model, head, now)
    squares: dict[str, tuple[float, float]] = {}
    new = []
    for name, w in now.items():
        w0 = before.get(name)
        if w0 is None or w0.shape != w.shape:
            new.append(blocks[name])
            continue
        w0 = w0.to(w.device)
        dtype = torch.promote_types(torch.promote_types(w.dtype, w0.dtype), torch.float32)
        moved = torch.linalg.vector_norm(w.to(dtype) - w0.to(dtype), dtype=torch.float64)
        squares[name] = float(moved) ** 2, float(torch.linalg.vector_norm(w0.to(dtype), dtype=torch.float64)) ** 2
    if not squares:
        lacking = next(iter(now), "")
        raise ValueError(
            f"start must have the model's parameters; got none of one shape, {lacking}{nearest(lacking, before)}"
        )
    sums = {block: [0.0, 0.0] for block in dict.fromkeys(blocks[name] for name in squares)}
    for name, pair in squares.items():
        for place, square in enumerate(pair):
            sums[blocks[name]][place] += square
    return Distance(
        tensors={name: math.sqrt(moved) for name, (moved, _) in squares.items()},
        blocks={block: math.sqrt(moved) for block, (moved, _) in sums.items()},
        start={block: math.sqrt(norm) for block, (_, norm) in sums.items()},
        new=tuple(dict.fromkeys(new)),
    )


def _named(of: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(of, nn.Module):
        return dict(unwrapped(of).named_parameters())
    return {name: tensor for name, tensor in of.items() if tensor.is_floating_point()}


def _blocks(model: nn.Module | Mapping[str, Tensor], head: Head | None, named: Mapping[str, Tensor]) -> dict[str, str]:
    """The block of each parameter; of a state dict its own name."""
    if not isinstance(model, nn.Module):
        return {name: name for name in named}
    return {name: block.name for block in depth_blocks(model, head) for name in block.parameters}
