"""What a comparison runs on: a target's training and test images, and the source the network learnt before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, TensorDataset


@dataclass(frozen=True)
class Task:
    """One target to fine-tune on.

    Attributes:
        name: as written on the command line, ``digits:mirrored``.
        title: the same in plain words.
        num_classes: of the target.
        train: what fine-tuning sees.
        test: what accuracy is measured on; never trained on, the same for every seed.
        source: what the network is pre-trained on; None where the user brings a pre-trained one.
        source_name: tasks that share it share their pre-trained networks.
        skipped: files that could not be read as images.
    """

    name: str
    title: str
    num_classes: int
    train: Dataset[Any]
    test: Dataset[Any]
    source: Dataset[Any] | None = None
    source_name: str = ""
    skipped: tuple[Path, ...] = ()


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits indices so that each class gives `share` of its samples, rounded, but at least one where it has one.

    Returns:
        (chosen, rest): int64 indices into `labels`, both in ascending order.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: max(1, round(share * len(members)))]]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def batches(data: Dataset[Any], batch_size: int, *, shuffle: bool, workers: int = 0) -> DataLoader[Any]:
    """A loader over `data`; tensors in memory are indexed a batch at a time, 20x cheaper than collating samples."""
    if not isinstance(data, TensorDataset):
        return DataLoader(data, batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=False)
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(data, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=False))
