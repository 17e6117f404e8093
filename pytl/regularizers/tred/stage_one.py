"""One layer's disentangler: trained, stopped early, judged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pytl.features import linear_probe
from pytl.ops.features import channel_dim_of
from pytl.regularizers.tred.disentangler import Disentangler
from pytl.regularizers.tred.guards import Guards
from pytl.regularizers.tred.objective import Objective, Recipe

_EVERY = 10  # steps between two looks at the held-out samples
_RAMP = 1 / 3  # of the steps: until then F_p has found the classes, which the criterion would keep it from


@dataclass(frozen=True)
class Samples:
    """A layer's features, [N, ...], classes counted from 0, and which samples are trained on and held out."""

    features: Tensor
    classes: Tensor
    kept: Tensor
    held_out: Tensor


@torch.enable_grad()
def split(samples: Samples, recipe: Recipe, advance: Callable[[], None]) -> tuple[Disentangler, Guards]:
    """Trains on the kept samples and stops by the held-out ones; `advance` is called once a step."""
    net, classes = _prepared(samples, recipe), int(samples.classes.max()) + 1
    objective = Objective(net, classes, recipe).to(samples.features.device)
    optimizer = torch.optim.Adam(objective.parameters(), recipe.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    watch = _Watch(objective, samples, recipe)
    for step, rows in zip(range(recipe.steps), _batches(samples.kept, recipe.batch_size), strict=False):
        share = min(1.0, step / (_RAMP * recipe.steps))
        terms = objective.terms(net.rows(samples.features[rows]), samples.classes[rows])
        optimizer.zero_grad()
        objective.loss(terms, share).backward()
        optimizer.step()
        scheduler.step()
        advance()
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.steps:
            watch.look(step + 1, settled=share == 1.0)
            if watch.stale:
                break
    net.load_state_dict(watch.best)
    net.requires_grad_(False).eval()
    _take_means(net, samples, recipe.batch_size)
    return net, _judged(net, samples, recipe.batch_size, watch)


def _prepared(samples: Samples, recipe: Recipe) -> Disentangler:
    """A disentangler that knows the features' centre and scale: after them, their mean square is 1."""
    features = samples.features[samples.kept]
    dim = channel_dim_of(features)
    channels, classes = features.shape[dim], int(samples.classes.max()) + 1
    net = Disentangler(channels, recipe.width or max(classes, min(64, channels // 4)))
    rows = features.movedim(dim, -1).flatten(0, -2).float()
    net.centre.copy_(rows.mean(0))
    net.scale.copy_((rows - net.centre.to(rows.device)).square().mean().sqrt())
    return net.to(features.device)


def _batches(kept: Tensor, size: int) -> Iterator[Tensor]:
    """Shuffled anew each time they are used up; a short rest of them goes unused, for its statistics would be poor."""
    size = min(size, len(kept))
    while True:
        order = kept[torch.randperm(len(kept)).to(kept.device)]
        yield from order[: len(kept) // size * size].split(size)


class _Watch:
    """The held-out samples' loss, and the disentangler where it was lowest."""

    def __init__(self, objective: Objective, samples: Samples, recipe: Recipe) -> None:
        self._objective, self._patience = objective, recipe.patience
        rows = samples.held_out[: recipe.batch_size]
        self._z, self._classes = objective.disentangler.rows(samples.features[rows]), samples.classes[rows]
        self.best, self.step = copy.deepcopy(objective.disentangler.state_dict()), 0
        self._least, self._since = math.inf, 0
        self.curves: dict[str, list[float]] = {}

    @property
    def stale(self) -> bool:
        return self._since >= self._patience

    @torch.no_grad()
    def look(self, step: int, settled: bool) -> None:
        """Early stopping begins when the loss is `settled`: before, a part of it is not there yet."""
        self._objective.eval()
        terms = self._objective.terms(self._z, self._classes)
        loss = float(self._objective.loss(terms))
        self._objective.train()
        seen = {"step": float(step), **{name: float(term) for name, term in terms.items()}, "loss": loss}
        for name, value in seen.items():
            self.curves.setdefault(name, []).append(value)
        if not settled:
            return
        if loss < self._least:
            self.best, self.step = copy.deepcopy(self._objective.disentangler.state_dict()), step
            self._least, self._since = loss, 0
        else:
            self._since += 1


@torch.no_grad()
def _take_means(net: Disentangler, samples: Samples, size: int) -> None:
    """Lets no part have a mean of its own, over the samples it was trained on."""
    net.relevant_mean.zero_()
    net.rest_mean.zero_()
    sums, count = torch.zeros(2, net.channels, dtype=torch.float64, device=net.centre.device), 0
    for rows in samples.kept.split(size):
        parts = torch.stack(net.parts(net.rows(samples.features[rows])))
        sums += parts.double().sum((1, 2))
        count += parts[0, ..., 0].numel()
    for mean, total in zip((net.relevant_mean, net.rest_mean), sums, strict=True):
        mean.copy_(total / count)


@torch.no_grad()
def _judged(net: Disentangler, samples: Samples, size: int, watch: _Watch) -> Guards:
    kept, _ = _measured(net, samples, samples.kept, size)
    held, (whole, relevant, rest, error) = _measured(net, samples, samples.held_out, size)
    known, asked = samples.classes[samples.kept], samples.classes[samples.held_out]
    probes = [linear_probe(a, known, b, asked) for a, b in zip(kept, held, strict=True)]
    return Guards(
        relevant_share=(relevant / whole) ** 0.5,
        rest_share=(rest / whole) ** 0.5,
        reconstruction_error=error / whole,
        source_probe=probes[0],
        relevant_probe=probes[1],
        rest_probe=probes[2],
        chance=float(asked.bincount().max() / len(asked)),
        samples=len(samples.kept),
        held_out=len(samples.held_out),
        steps=watch.step,
        curves=watch.curves,
    )


def _measured(net: Disentangler, samples: Samples, chosen: Tensor, size: int) -> tuple[list[Tensor], list[float]]:
    """The pooled whole and parts, [n, C] each, and the energies of whole, parts and error."""
    pooled, energies = [], torch.zeros(4, dtype=torch.float64)
    for rows in chosen.split(size):
        z = net.rows(samples.features[rows])
        p, n = net.parts(z)
        pooled.append(torch.stack([z, p, n]).mean(2))
        energies += torch.stack([x.double().square().sum() for x in (z, p, n, z - p - n)]).cpu()
    return [*torch.cat(pooled, 1)], energies.tolist()
