"""Where a gradient points in each weight matrix: its energy on the matrix's singular directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl import pictures
from pytl.analysis.objective import Loss, Objective, Protocol
from pytl.architecture import Head, unwrapped
from pytl.depth import HEAD, depth_blocks
from pytl.progress import bar

_TENTH = 0.1


@dataclass(frozen=True)
class GradientEnergy:
    """Shares of ``|G|^2`` on singular directions, of each matrix that has a gradient.

    Attributes:
        energies: matrix -> the share on each direction, the largest singular value's first. Of a matrix with more rows
            than columns the last one is what lies outside of its range. They sum to 1.
        rows: matrix -> how many directions there are, those outside of the range counted.
        norms: matrix -> ``|G|``.
        singular_values: matrix -> of the weights, descending.
        loss: at these weights.
        protocol: on what.
    """

    energies: dict[str, tuple[float, ...]]
    rows: dict[str, int]
    norms: dict[str, float]
    singular_values: dict[str, tuple[float, ...]]
    loss: float
    protocol: Protocol

    @property
    def principal(self) -> dict[str, float]:
        """Matrix -> the first direction's share, times the rows: 1 of a gradient without preference."""
        return {name: shares[0] * self.rows[name] for name, shares in self.energies.items()}

    @property
    def top_tenth(self) -> dict[str, float]:
        """The same of the first tenth of the singular values' directions, at least one: their mean share."""
        found = {}
        for name, shares in self.energies.items():
            count = max(1, round(_TENTH * len(self.singular_values[name])))
            found[name] = sum(shares[:count]) / count * self.rows[name]
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"principal": self.principal, "top_tenth": self.top_tenth}

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: each matrix's energies, added up from the first direction on."""
        plot_gradient_energy({f"loss {self.loss:.3g}": self}, path)


def plot_gradient_energy(found: Mapping[str, GradientEnergy], path: str | Path) -> None:
    """Draws a PNG, a panel a matrix: energy added up over directions, a line for each of several networks."""
    names = list(dict.fromkeys(name for one in found.values() for name in one.energies))
    rows = -(-len(names) // 2)
    with pictures.drawing(path, 0.9 + 1.9 * rows) as figure:
        panels = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flatten()
        for axes, name in zip(panels, names, strict=False):
            for index, (label, one) in enumerate(found.items()):
                if name in one.energies:
                    colour = pictures.COLOURS[index % len(pictures.COLOURS)]
                    axes.plot(*_added_up(one, name), color=colour, linewidth=2, label=label)
            axes.plot((0, 100), (0, 100), color=pictures.INK, linewidth=1, linestyle=(0, (3, 2)))
            axes.set_title(name, fontsize=10)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        panels[0].legend(fontsize=9)
        figure.supxlabel("singular directions, the largest value's first, %", fontsize=11)
        figure.supylabel("share of the gradient's energy, %", fontsize=11)


def _colour(index: int) -> str:
    return pictures.COLOURS[index % len(pictures.COLOURS)]


def _added_up(found: GradientEnergy, name: str) -> tuple[Tensor, Tensor]:
    """How many of the directions, and the energy on them, both in %."""
    shares = torch.tensor((0.0, *found.energies[name]), dtype=torch.float64)
    counts = torch.tensor([*range(len(found.singular_values[name]) + 1), found.rows[name]])[: len(shares)]
    return 100 * counts / found.rows[name], 100 * shares.cumsum(0)


def gradient_energy(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    of: Mapping[str, Tensor] | None = None,
    head: Head | None = None,
    samples: int | None = 512,
    mode: str = "eval",
    batch: int | None = None,
    progress: bool = True,
) -> GradientEnergy:
    """How the mean loss's gradient G lies to the singular directions of each weight matrix W.

    ``W = U S V'``, convolutions as ``[out, in * kernel]``; the shares are ``|u_i' G|^2 / |G|^2``. The directions are
    those of the output, along which W lengthens a gradient that is sent back by its singular value. Liu et al. 2019
    (arXiv:1909.12031) see the gradient's principal component suppressed at pre-trained weights, against random ones;
    this measure of it is our reading. Cost: a gradient of the samples, and an SVD of each matrix.

    Args:
        model, batches, loss, samples, mode, batch: as `pytl.analysis.Objective` has them.
        of: weights whose singular directions are taken, by name, as a start's or random ones; None: the model's own.
        head: as in ``pytl.param_groups``; left out.
        progress: a bar on a terminal.

    Raises:
        ValueError: no matrix outside of the head has a gradient; ``of`` lacks one, or has another shape.
    """
    objective = Objective(model, batches, loss, samples=samples, mode=mode, batch=batch)
    value, gradient = objective.gradient()
    heads = {name for block in depth_blocks(unwrapped(model), head) if block.name == HEAD for name in block.parameters}
    found = {
        name: (w, g)
        for name, w, g in zip(objective.names, objective.start, gradient, strict=True)
        if name not in heads and min(w.flatten(1).shape if w.dim() > 1 else (0,)) > 1 and bool(g.any())
    }
    if not found:
        raise ValueError("model must have a weight matrix with a gradient outside of its head; got none")
    if of is not None:
        _check_weights(of, {name: w for name, (w, _) in found.items()})
    energies, singular_values = {}, {}
    with bar(f"gradient energy: {len(found)} SVDs", len(found), shown=progress) as advance:
        for name, (w, g) in found.items():
            weight = w if of is None else of[name].detach().to(w.device)
            energies[name], singular_values[name] = _energy(weight.flatten(1).double(), g.flatten(1).double())
            advance()
    rows = {name: len(w) for name, (w, _) in found.items()}
    norms = {name: float(torch.linalg.vector_norm(g, dtype=torch.float64)) for name, (_, g) in found.items()}
    return GradientEnergy(energies, rows, norms, singular_values, value, objective.protocol)


def _energy(weight: Tensor, gradient: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares and singular values."""
    u, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    along = u.T @ gradient
    squares = along.square().sum(1)
    if weight.shape[0] > weight.shape[1]:
        squares = torch.cat([squares, (gradient - u @ along).square().sum()[None]])
    return tuple((squares / squares.sum()).tolist()), tuple(singular.tolist())


def _check_weights(of: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, w in wanted.items():
        if name not in of or of[name].shape != w.shape:
            there = [*of[name].shape] if name in of else "nothing"
            raise ValueError(f"of must hold {name} of shape {[*w.shape]}; got {there}")
