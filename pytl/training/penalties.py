"""The regularisers of a method, made for a model and its data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import head_names, unwrapped
from pytl.batch import Batch
from pytl.digest import digest
from pytl.features import Source, last_convolutions
from pytl.regularizers import (
    BSS,
    DELTA,
    L1SP,
    TRED,
    AttentionTransfer,
    ChannelWeights,
    Distillation,
    FeatureSplit,
    GroupLassoSP,
    L2SPFisher,
    Penalties,
    Penalty,
    Regularizer,
    channel_weights,
    disentangle,
    fisher_diagonal,
)
from pytl.training.methods import Method

_HEAD_EPOCHS, _HEAD_LR = 5, 0.01
_SCORED_BATCHES = 8  # of an exact score, which takes a forward pass a channel for each


@dataclass(frozen=True)
class Setting:
    """What a regulariser may need beside its strength."""

    model: nn.Module
    loader: Iterable[Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    head: str | None
    folder: Path | None
    progress: bool

    @cached_property
    def source(self) -> Source:
        return Source.copied(self.model)

    def keep_start(self) -> None:
        """Takes the source, and what it is recognised by, as the model is now."""
        _ = self.source, self.start_digest

    def close(self) -> None:
        if "source" in self.__dict__:
            self.source.close()

    @cached_property
    def start_digest(self) -> str:
        """Of the transferred weights, before the first step: what the regularisers hold to."""
        new, weights = head_names(self.model, self.head), unwrapped(self.model).state_dict()
        return digest((name, tensor) for name, tensor in weights.items() if name not in new)[:16]


@contextmanager
def of(method: Method, setting: Setting) -> Iterator[Penalty | None]:
    """A method's regularisers together, closed in the end; None without any. They share the source's passes."""
    with ExitStack() as open_ones:
        open_ones.callback(setting.close)
        made = [open_ones.enter_context(REGULARIZERS[name](setting, s)) for name, s in method.penalties.items()]
        yield made[0] if len(made) == 1 else Penalties(*made) if made else None


def _delta(method: str, setting: Setting, strength: float) -> Regularizer:
    weights = _channel_weights(method, setting)
    return DELTA(setting.model, weights=weights, strength=strength, source=setting.source)


def _channel_weights(method: str, setting: Setting) -> ChannelWeights:
    """As DELTA's authors: of a copy of the network whose head alone was trained. Kept in the run's folder."""
    kept = setting.folder and setting.folder / f"channel-weights-{method}-{setting.start_digest}.safetensors"
    if kept and kept.exists():
        return ChannelWeights.load(kept)
    network = copy.deepcopy(unwrapped(setting.model))
    train_head(network, setting)
    found = channel_weights(
        network,
        last_convolutions(network),
        setting.loader,
        loss=setting.loss,
        method=method,
        batches=_SCORED_BATCHES,
        resume=kept and kept.with_suffix(".partial"),
        progress=setting.progress,
    )
    if kept:
        found.save(kept)
    return found


def train_head(network: nn.Module, setting: Setting) -> None:
    """Trains the head and nothing else, with the rest in evaluation mode, so that no statistics drift.

    Raises:
        ValueError: no head is found.
    """
    names = head_names(network, setting.head)
    if not names:
        raise ValueError("head must be named for delta, which trains it alone first; none is found in this model")
    network.eval()
    head = [p for name, p in network.named_parameters() if name in names]
    for p in network.parameters():
        p.requires_grad_(False)
    for p in head:
        p.requires_grad_(True)
    optimizer = torch.optim.SGD(head, lr=_HEAD_LR, momentum=0.9)
    for _ in range(_HEAD_EPOCHS):
        for batch in setting.loader:
            one = Batch.of(batch, setting.device)
            setting.loss(one.logits(network), one.labels).backward()
            optimizer.step()
            optimizer.zero_grad()


def _tred(criterion: str, setting: Setting, strength: float) -> Regularizer:
    """Stage one is kept in the run's folder."""
    kept = setting.folder and setting.folder / f"split-{criterion}-{setting.start_digest}.safetensors"
    if kept and kept.exists():
        split = FeatureSplit.load(kept)
    else:
        seed, progress = torch.initial_seed(), setting.progress
        split = disentangle(setting.source, setting.loader, recipe=criterion, seed=seed, progress=progress)
        if kept:
            split.save(kept)
    return TRED(setting.model, split, strength=strength, source=setting.source)


def _with_source(kind: Callable[..., Regularizer], setting: Setting, strength: float) -> Regularizer:
    return kind(setting.model, strength=strength, source=setting.source)


def _on_weights(kind: Callable[..., Regularizer], setting: Setting, strength: float) -> Regularizer:
    return kind(setting.model, strength, head=setting.head)


def _fisher(setting: Setting, strength: float) -> Regularizer:
    fisher = fisher_diagonal(setting.model, setting.loader, progress=setting.progress)
    return L2SPFisher(setting.model, fisher, strength, head=setting.head)


REGULARIZERS: dict[str, Callable[[Setting, float], Regularizer]] = {
    "delta": partial(_delta, "exact"),
    "delta-first-order": partial(_delta, "first-order"),
    "at": partial(_with_source, AttentionTransfer),
    "distillation": partial(_with_source, Distillation),
    "tred": partial(_tred, "both"),
    "tred-max-mmd": partial(_tred, "max-mmd"),
    "tred-min-mi": partial(_tred, "min-mi"),
    "bss": lambda setting, strength: BSS(setting.model, strength=strength),
    "l1sp": partial(_on_weights, L1SP),
    "grouplassosp": partial(_on_weights, GroupLassoSP),
    "l2spfisher": _fisher,
}
