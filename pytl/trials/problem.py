"""What a search is about: a network, splits of the target's training data, and how each trial trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from pytl.batch import Batch
from pytl.data import batches
from pytl.depth import depth_blocks
from pytl.training.fine_tuning import finetune
from pytl.training.settings import AMP_DTYPES, Settings
from pytl.trials.space import Candidate, Space

_EVAL_BATCH = 256


@dataclass(frozen=True)
class Split:
    """What one run of a trial trains on, and what it is judged by; never the test data.

    Attributes:
        seed: of the run, and of the network that `Problem.make` gives.
        train, validation: data sets of (inputs, label).
    """

    seed: int
    train: Dataset[Any]
    validation: Dataset[Any]


@dataclass(frozen=True)
class Problem:
    """A search; it goes to other processes by pickle.

    Attributes:
        name: what reports call it.
        make: seed -> the source network with a new head; the same for the same seed.
        splits: one run a trial and split; their mean accuracy is what is searched for.
        space: what is searched over.
        lr: the rate that the space's factors multiply.
        epochs, batch_size, optimizer, amp: as in ``pytl.finetune``.
        head: name of the new head's module; None: found.
        device: where to train.
        workers: processes that read data.
        threads: torch's in each process; None: as they are.
    """

    name: str
    make: Callable[[int], nn.Module]
    splits: Sequence[Split]
    space: Space = field(default_factory=Space)
    lr: float = 0.01
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "sgd"
    amp: str | None = None
    head: str | None = None
    device: str = "cpu"
    workers: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        Settings(self.epochs, self.lr, amp=self.amp)
        if not self.splits:
            raise ValueError("splits must hold >= 1 split; got none")

    def blocks(self) -> list[str]:
        """The names of the network's blocks."""
        return [block.name for block in depth_blocks(self.make(self.splits[0].seed), self.head)]

    def digest(self, names: Sequence[str]) -> str:
        """What a storage must share with the search that goes on with it."""
        of = {
            "name": self.name,
            "blocks": list(names),
            "seeds": [split.seed for split in self.splits],
            "sizes": [(_size(split.train), _size(split.validation)) for split in self.splits],
            "space": asdict(self.space),
            **{key: getattr(self, key) for key in ("lr", "epochs", "batch_size", "optimizer", "amp")},
        }
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]

    def accuracy(self, candidate: Candidate, split: Split) -> float:
        """On the split's validation data, once: measuring it after each epoch would cost half as much again."""
        result = finetune(
            self.make(split.seed),
            batches(split.train, self.batch_size, shuffle=True, workers=self.workers),
            method=candidate.method(),
            optimizer=self.optimizer,
            epochs=self.epochs,
            lr=self.lr,
            head=self.head,
            device=self.device,
            amp=self.amp,
            seed=split.seed,
            progress=False,
        )
        loader = batches(split.validation, _EVAL_BATCH, shuffle=False, workers=self.workers)
        return _accuracy(result.model, loader, torch.device(self.device), AMP_DTYPES.get(self.amp or ""))


def _size(data: Dataset[Any]) -> int:
    return len(data)  # type: ignore[arg-type]


@torch.no_grad()
def _accuracy(model: nn.Module, loader: Iterable[Any], device: torch.device, dtype: torch.dtype | None) -> float:
    right = samples = 0
    for found in loader:
        batch = Batch.of(found, device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = batch.logits(model)
        right, samples = right + int((logits.argmax(-1) == batch.labels).sum()), samples + batch.samples
    return right / samples
