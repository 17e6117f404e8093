"""The loss around a network's weights, or on the way to another's, on a line or in a plane."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl import pictures
from pytl.analysis.grid import Grid
from pytl.analysis.objective import Loss, Objective, Protocol
from pytl.analysis.weight_space import random_direction
from pytl.architecture import unwrapped
from pytl.progress import bar

_LEVELS = 15


@dataclass(frozen=True)
class Landscape:
    """``L(w + a d1)``, or ``L(w + a d1 + b d2)``.

    Attributes:
        first, second: a and b; b is (0.0,) on a line.
        losses: ``losses[i][j]`` at ``(first[i], second[j])``; not finite where it is not.
        directions: what d1 and d2 are, in words.
        protocol: on what.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    directions: tuple[str, ...]
    protocol: Protocol

    @property
    def nonfinite(self) -> int:
        """At how many points the loss is not finite."""
        return sum(not math.isfinite(value) for row in self.losses for value in row)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"nonfinite": self.nonfinite}

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: a curve, or contours of equal loss."""
        if len(self.second) == 1:
            with pictures.drawing(path, 3.6) as figure:
                axes = figure.subplots()
                axes.plot(self.first, [row[0] for row in self.losses], "o-", color=pictures.COLOURS[1], linewidth=2)
                axes.set(xlabel=self.directions[0], ylabel="loss", title=f"Loss, {self.protocol.samples} samples")
            return
        with pictures.drawing(path, 4.6) as figure:
            axes, levels = figure.subplots(), loss_levels([self])
            scale = figure.colorbar(contours(axes, self, levels), ax=axes, label="loss")
            label_levels(scale, levels)


def loss_levels(found: Iterable[Landscape]) -> list[float]:
    """Levels for all of these, which grow by one factor from the least loss to the greatest."""
    finite = [v for one in found for row in one.losses for v in row if math.isfinite(v) and v > 0] or [1.0]
    factor = max(max(finite) / min(finite), 1.001) ** (1 / (_LEVELS - 1))
    return [min(finite) * factor**k for k in range(_LEVELS)]


def label_levels(scale: Any, levels: Sequence[float]) -> None:
    """A scale of colours gets five of the levels for ticks."""
    shown = levels[:: _LEVELS // 5]
    scale.set_ticks(shown, labels=[f"{level:.2g}" for level in shown])
    scale.ax.minorticks_off()


def contours(axes: Any, found: Landscape, levels: Sequence[float]) -> Any:
    """Areas of like loss."""
    norm = pictures.logarithmic(levels[0], levels[-1])
    columns = [[row[j] if row[j] > 0 else math.nan for row in found.losses] for j in range(len(found.second))]
    filled = axes.contourf(found.first, found.second, columns, levels=levels, norm=norm, cmap="Blues", extend="both")
    axes.plot(0, 0, "+", color=pictures.COLOURS[2], markersize=10, markeredgewidth=2)
    axes.set(xlabel=found.directions[0], ylabel=found.directions[1], title=f"Loss, {found.protocol.samples} samples")
    axes.grid(visible=False)
    return filled


def loss_landscape(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    to: nn.Module | Mapping[str, Tensor] | None = None,
    dimensions: int = 2,
    points: int = 21,
    reach: float = 1.0,
    normalisation: str = "filter",
    samples: int | None = 512,
    mode: str = "eval",
    batch: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Landscape:
    """The loss on a grid around the weights, along filter-normalised random directions (Li et al. 2018, 1712.09913).

    ``L(w + a d)`` at a = 0 is the loss itself; rescaling a network's filters without changing what it computes changes
    nothing of the landscape. Cost: one forward pass of the samples a point, 441 for 21 x 21; memory: four times the
    weights. The model stays as it is.

    Args:
        model, batches, loss, samples, mode, batch: as `pytl.analysis.Objective` has them.
        to: another checkpoint of the network, a module or a state dict: d1 leads there, with frozen parameters and
            BatchNorm's statistics, a = 1 is there, and a runs from -0.5 to 1.5.
        dimensions: 1 or 2.
        points: on each axis, odd, so that 0 is one of them; between checkpoints 5, 9, 13, ..., so that 1 is another.
        reach: along random directions a and b run from -reach to reach.
        normalisation: of random directions: ``"filter"``, ``"layer"`` or ``"none"``.
        seed: of the directions.
        cache: a file that keeps what is computed, row by row: a stopped call goes on there. One of other weights,
            samples or options is refused.
        progress: a bar on a terminal.

    Raises:
        ValueError: an argument out of range; a loss at w that is not finite; a cache of something else, or broken.
    """
    _check(dimensions, points, reach, to is not None)
    objective = Objective(model, batches, loss, samples=samples, mode=mode, batch=batch, frozen=to is not None)
    along = [
        (f"{normalisation}-normalised direction {k + 1}", _drawn(objective, seed + k, normalisation))
        for k in range(dimensions)
    ]
    first = axis = tuple(reach * (2 * k / (points - 1) - 1) for k in range(points))
    if to is not None:
        along[0] = "from these weights (0) to the other checkpoint (1)", _towards(objective, to)
        first = tuple((k - points // 4) / (points // 2) for k in range(points))
    second = axis if dimensions == 2 else (0.0,)
    grid = Grid(objective, along, first, second, None if cache is None else Path(cache))
    cost = f"landscape: {len(first) * len(second)} forward passes of {objective.protocol.samples} samples"
    with bar(cost, len(first) * len(second), len(grid.losses), progress) as advance:
        grid.complete(advance)
    losses = tuple(tuple(grid.losses[i, j] for j in range(len(second))) for i in range(len(first)))
    return Landscape(first, second, losses, tuple(name for name, _ in along), objective.protocol)


def _check(dimensions: int, points: int, reach: float, between: bool) -> None:
    if dimensions not in (1, 2):
        raise ValueError(f"dimensions must be 1 or 2; got {dimensions}")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and >= 3, so that one of them is 0; got {points}")
    if between and points % 4 != 1:
        raise ValueError(f"points must be 5, 9, 13, ... between checkpoints, so that 0 and 1 are of them; got {points}")
    if not 0 < reach < math.inf:
        raise ValueError(f"reach must be > 0 and finite; got {reach}")


def _drawn(objective: Objective, seed: int, normalisation: str) -> list[Tensor]:
    """A random direction of the trained weights."""
    drawn = random_direction(objective.start, seed, normalisation)
    trained = [name in objective.trained for name in objective.names]
    return [d if own else torch.zeros_like(d) for d, own in zip(drawn, trained, strict=True)]


def _towards(objective: Objective, to: nn.Module | Mapping[str, Tensor]) -> list[Tensor]:
    """From the objective's weights to those of a checkpoint.

    Raises:
        ValueError: a parameter that the checkpoint lacks, or has in another shape: the first few are named.
    """
    there = unwrapped(to).state_dict(keep_vars=True) if isinstance(to, nn.Module) else to
    named = dict(zip(objective.names, objective.start, strict=True))
    if other := [n for n, w in named.items() if n not in there or there[n].shape != w.shape]:
        shapes = [f"{n} {[*named[n].shape]}, there {[*there[n].shape] if n in there else 'nothing'}" for n in other[:3]]
        raise ValueError(f"to must be a checkpoint of the same architecture; {len(other)} differ: {'; '.join(shapes)}")
    return [there[n].detach().to(w.device, w.dtype) - w for n, w in named.items()]
