"""How far a loss's gradient reaches: its norm in each block, from the input to the head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pytl.analysis.objective import Loss, Objective
from pytl.architecture import Head
from pytl.depth import depth_blocks
from pytl.pictures import COLOURS, INK, drawing


@dataclass(frozen=True)
class GradientNorms:
    """|dL/dw| of each depth block.

    Attributes:
        norms: block -> Euclidean norm over its trained parameters, from the input on; the head last.
        loss: the mean loss L.
        samples: how many it is the mean over.
    """

    norms: dict[str, float]
    loss: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: the norms by depth."""
        plot_gradient_norms({f"loss {self.loss:.3g}": self}, path)


def gradient_norms(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    head: Head | None = None,
) -> GradientNorms:
    """The norm of the mean loss's gradient in each block, by depth.

    RIFLE (Li et al. 2020, arXiv:2007.03349) claims that a new head sends gradients back to deep layers: look before and
    after it, ``if rifle.due: ...``. Cost: a forward and a backward pass a batch, and one gradient of the weights. The
    model works in evaluation mode, without its noise; its gradients, statistics, modes and the random numbers stay.

    Args:
        model: any module; blocks are numbered modules ("layer1.0"), as ``pytl.depth.depth_blocks`` has them.
        batches: as ``pytl.finetune`` takes them; a list with one batch will do.
        loss: (logits, labels) -> mean over the batch.
        head: as in ``pytl.param_groups``; None: found.

    Raises:
        ValueError: no batch, or no parameter that is trained.
    """
    objective = Objective(model, batches, loss)
    value, gradient = objective.gradient()
    norms = [float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradient]
    norm_of, by_block = dict(zip(objective.names, norms, strict=True)), {}
    for block in depth_blocks(model, head):
        if trained := [norm_of[name] for name in block.parameters if name in norm_of]:
            by_block[block.name] = math.hypot(*trained)
    return GradientNorms(by_block, value, objective.protocol.samples)


def plot_gradient_norms(found: Mapping[str, GradientNorms], path: str | Path) -> None:
    """Draws a PNG: gradient norms by depth, a line for each of several, as before and after a re-initialisation."""
    with drawing(path) as figure:
        axes = figure.subplots()
        for index, (label, one) in enumerate(found.items()):
            by_depth(axes, one.norms, label=label, color=COLOURS[index % len(COLOURS)])
        axes.legend()


def by_depth(axes: Any, norms: Mapping[str, float], **look: Any) -> None:
    """A line of norms on a logarithmic scale, the input on the left."""
    axes.plot([*norms], [norm if norm > 0 else math.nan for norm in norms.values()], marker="o", linewidth=2, **look)
    axes.set(yscale="log", ylabel="gradient norm", xlabel="block, from the input on")
    axes.tick_params(axis="x", labelrotation=90 if max(map(len, norms)) * len(norms) > 60 else 0, labelcolor=INK)
