"""How smooth the loss is along its gradient: how much it, and its gradient, vary over steps of many sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pytl import pictures
from pytl.analysis.objective import Loss, Objective, Protocol
from pytl.analysis.weight_space import dot, moved, norm
from pytl.progress import bar

STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Smoothness:
    """The loss and its gradient g at ``w - s g``, for several s.

    Attributes:
        loss, gradient_norm: L and ``|g|`` at w.
        steps: s, ascending.
        losses: L at each; not finite where it is not.
        gradient_changes: ``|g' - g|`` at each; nan where the loss is not finite.
        cosines: of g' and g.
        protocol: on what.
    """

    loss: float
    gradient_norm: float
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    gradient_changes: tuple[float, ...]
    cosines: tuple[float, ...]
    protocol: Protocol

    @property
    def loss_range(self) -> tuple[float, float]:
        """The least and the greatest loss over the steps that are finite, w included."""
        finite = [value for value in (self.loss, *self.losses) if math.isfinite(value)]
        return min(finite), max(finite)

    @property
    def gradient_range(self) -> tuple[float, float]:
        """The least and the greatest ``|g' - g|``."""
        finite = [value for value in self.gradient_changes if math.isfinite(value)]
        return (min(finite), max(finite)) if finite else (math.nan, math.nan)

    @property
    def beta(self) -> float:
        """``max |g' - g| / |w' - w|``: a lower bound of the gradient's Lipschitz constant. 0 where g = 0."""
        ratios = [
            change / (step * self.gradient_norm)
            for step, change in zip(self.steps, self.gradient_changes, strict=True)
            if math.isfinite(change) and self.gradient_norm
        ]
        return max(ratios, default=0.0 if not self.gradient_norm else math.nan)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "loss_range": self.loss_range,
            "gradient_range": self.gradient_range,
            "beta": self.beta,
        }

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: the loss, and the change of the gradient, by the size of the step."""
        with pictures.drawing(path, 5.2) as figure:
            above, below = figure.subplots(2, 1, sharex=True)
            above.plot((0.0, *self.steps), (self.loss, *self.losses), "o-", color=pictures.COLOURS[1], linewidth=2)
            above.set(ylabel="loss", title=f"Along the gradient, {self.protocol.samples} samples")
            below.plot((0.0, *self.steps), (0.0, *self.gradient_changes), "o-", color=pictures.COLOURS[2], linewidth=2)
            below.set(ylabel="|g' - g|", xlabel="step s of w - s g")


def smoothness(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    steps: Sequence[float] = STEPS,
    samples: int | None = 512,
    mode: str = "eval",
    batch: int | None = None,
    progress: bool = True,
) -> Smoothness:
    """The loss's and the gradient's variation along the gradient, as Liu et al. 2019 (arXiv:1909.12031) measure it.

    The probes are those of Santurkar et al. 2018 (arXiv:1805.11604), with the gradient of all samples together. Cost: a
    gradient of the samples for each step, and one more. The model stays as it is.

    Args:
        model, batches, loss, samples, mode, batch: as `pytl.analysis.Objective` has them.
        steps: learning rates s > 0; the same for networks that are to be compared.
        progress: a bar on a terminal.

    Raises:
        ValueError: no steps, or one that is not > 0 and finite; a loss that is not finite at w.
    """
    sizes = sorted(map(float, steps))
    if not sizes or not all(0 < s < math.inf for s in sizes):
        raise ValueError(f"steps must be > 0 and finite, at least one; got {[*steps]}")
    objective = Objective(model, batches, loss, samples=samples, mode=mode, batch=batch)
    value, gradient = objective.gradient()
    length = norm(gradient)
    found: list[tuple[float, float, float]] = []
    with bar(
        f"smoothness: {len(sizes)} gradients of {objective.protocol.samples} samples", len(sizes), shown=progress
    ) as advance:
        for s in sizes:
            found.append(_probe(objective, gradient, length, s))
            advance()
    losses, changes, cosines = zip(*found, strict=True)
    return Smoothness(value, length, tuple(sizes), losses, changes, cosines, objective.protocol)


def _probe(
    objective: Objective, gradient: Sequence[torch.Tensor], length: float, step: float
) -> tuple[float, float, float]:
    """The loss after the step, the gradient's change, and its cosine with the first."""
    there = moved(objective.start, (-step, gradient))
    value = objective.value(there)
    if not math.isfinite(value):
        return value, math.nan, math.nan
    after = objective.gradient(there)[1]
    change = norm(torch._foreach_sub(after, [*gradient]))
    lengths = length * norm(after)
    return value, change, dot(after, gradient) / lengths if lengths else math.nan
