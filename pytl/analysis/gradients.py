"""How far a loss's gradient reaches: its norm in each block, from the input to the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl.architecture import Head, unwrapped
from pytl.batch import Batch, evaluating
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
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
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
    network = unwrapped(model)
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("model must have a parameter with requires_grad=True; got none")
    device = next(iter(named.values())).device
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in named.values()]
    total, samples = 0.0, 0
    with evaluating(network), torch.enable_grad():
        for batch in batches:
            one = Batch.of(batch, device)
            value = loss(one.logits(network), one.labels)
            for own, g in zip(sums, torch.autograd.grad(value, [*named.values()], allow_unused=True), strict=True):
                if g is not None:
                    own.add_(g, alpha=one.samples)
            total, samples = total + float(value.detach()) * one.samples, samples + one.samples
    if not samples:
        raise ValueError("batches must give at least one batch; got none")
    squares = [float(own.norm()) ** 2 for own in sums]
    norms: dict[str, float] = {}
    square_of = dict(zip(named, squares, strict=True))
    for block in depth_blocks(network, head):
        if trained := [square_of[name] for name in block.parameters if name in square_of]:
            norms[block.name] = sum(trained)
    return GradientNorms({block: math.sqrt(s) / samples for block, s in norms.items()}, total / samples, samples)


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
