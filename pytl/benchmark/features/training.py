"""Training steps of a small network: plain, with DELTA in the loss, and with DELTA's gradient taken apart."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl.benchmark.features import formulas
from pytl.benchmark.features.network import Network
from pytl.benchmark.timing import Step
from pytl.features import last_convolutions
from pytl.optim import SGD
from pytl.regularizers import DELTA

_STRENGTH = 0.64  # DELTA's default
_LR, _MOMENTUM = 1e-2, 0.9

Penalty = Callable[[Tensor], Tensor]
"""Batch of images -> penalty of the model's last pass."""


class TrainingSet:
    """A network, another as its source, and two batches in turn: a source that has just seen a batch has its features.

    Attributes:
        delta: pytl's regulariser, where a contender has placed one.
    """

    def __init__(self, batch: tuple[int, ...], width: int, seed: int, place: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model, self.source = Network(width).to(place), Network(width).to(place).requires_grad_(False).eval()
            images = [torch.randn(batch).to(place) for _ in range(2)]
            self.batches = [(one, torch.randint(10, batch[:1]).to(place)) for one in images]
        self.delta: DELTA | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the source has seen each batch before."""
        return len(self.batches) == 1

    def results(self, returned: object) -> list[list[Tensor]]:
        return [[*self.model.parameters()]]

    def forget(self) -> None:
        """Lets go of the last step, but not of features that are to lie ready: those of an empty batch take nothing."""
        if self.delta is not None:
            self.delta.terms = {}
            if not self.is_ready:
                self.delta.source(self.batches[0][0][:0])


def plain(t: TrainingSet) -> Step:
    return _stepping(t, None, taken_apart=False)


def in_loss(t: TrainingSet) -> Step:
    return _stepping(t, _delta(t), taken_apart=False)


def apart(t: TrainingSet) -> Step:
    return _stepping(t, _delta(t), taken_apart=True)


def as_written(t: TrainingSet) -> Step:
    return _stepping(t, _by_hooks(t), taken_apart=False)


def ready(build: Callable[[TrainingSet], Step]) -> Callable[[TrainingSet], Step]:
    """With one batch again and again: the source's features lie ready, as in a cache of them."""

    def build_ready(t: TrainingSet) -> Step:
        del t.batches[1:]
        return build(t)

    return build_ready


def _stepping(t: TrainingSet, penalty: Penalty | None, *, taken_apart: bool) -> Step:
    direction = "dtnh" if taken_apart else "sum"
    optimizer = SGD(t.model.named_parameters(), lr=_LR, momentum=_MOMENTUM, direction=direction)
    batches = cycle(t.batches)

    def step() -> None:
        images, labels = next(batches)
        loss = cross_entropy(t.model(images), labels)
        if penalty and taken_apart:
            optimizer.take_penalty(penalty(images))
        elif penalty:
            loss = loss + penalty(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _delta(t: TrainingSet) -> Penalty:
    t.delta = DELTA(t.model, strength=_STRENGTH, source=t.source)
    return t.delta


def _by_hooks(t: TrainingSet) -> Penalty:
    """DELTA with hooks that keep both networks' features, and a formula through autograd."""
    layers = last_convolutions(t.model)
    ours, theirs = _outputs(t.model, layers), _outputs(t.source, layers)

    def penalty(images: Tensor) -> Tensor:
        with torch.no_grad():
            t.source(images)
        return _STRENGTH * torch.stack([_term(ours.pop(layer), theirs.pop(layer)) for layer in layers]).sum()

    return penalty


def _outputs(network: nn.Module, layers: list[str]) -> dict[str, Tensor]:
    """Filled anew in each pass."""
    outputs: dict[str, Tensor] = {}
    for layer in layers:

        def keep(module: nn.Module, arguments: object, output: Tensor, layer: str = layer) -> None:
            outputs[layer] = output

        network.get_submodule(layer).register_forward_hook(keep)
    return outputs


def _term(x: Tensor, source: Tensor) -> Tensor:
    """All channels alike: their weights times the number of channels are 1."""
    return formulas.distance(x, source, x.new_full((x.shape[1],), 1 / (x.shape[2] * x.shape[3])))
