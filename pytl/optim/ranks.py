"""Averages over the ranks of a process group, as DDP averages gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, distributed

_BUCKET = 25 << 20  # bytes, as DDP's: one collective each, and that much memory for a moment

Ranks = bool | distributed.ProcessGroup
"""Whose gradients are averaged: True: the default group's; False: nobody's."""


def average(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Puts the mean over the ranks in place of each tensor; on all ranks with tensors of the same shapes."""
    if ranks is False or not (distributed.is_available() and distributed.is_initialized()):
        return
    group = None if ranks is True else ranks
    count = distributed.get_world_size(group)
    for bucket in _buckets(tensors) if count > 1 else ():
        flat = torch.cat([t.flatten() for t in bucket])
        flat /= count  # before the sum, which 16 bits might not hold
        distributed.all_reduce(flat, group=group)
        for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Of one dtype and device each, in order."""
    for _, alike in groupby(tensors, key=lambda t: (t.dtype, t.device)):
        bucket: list[Tensor] = []
        for tensor in alike:
            if bucket and sum(t.nbytes for t in bucket) + tensor.nbytes > _BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket
