"""BatchNorm's statistics, taken once from given samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pytl.analysis.micro_batches import MicroBatches
from pytl.batch import Batch


@torch.no_grad()
def fix_statistics(
    network: nn.Module, buffers: Mapping[str, Tensor], data: MicroBatches, forward: Callable[[Batch], object]
) -> None:
    """Fills the buffers with the mean over parts of their statistics; the network's own stay.

    Args:
        network: in evaluation mode.
        buffers: by name; ``forward`` computes with them in the place of the network's.
        data: the samples. A part of one sample, which has no variance, is passed over where others are larger.
        forward: passes a part through the network.
    """
    norms = [m for m in network.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    before = [(norm.momentum, norm.training) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.training = None, True  # None: the mean over all parts
        halvings = -1
        while halvings < data.halvings:  # parts of one size alone are averaged
            halvings = data.halvings
            for name, buffer in buffers.items():
                if name.endswith("num_batches_tracked"):
                    buffer.zero_()
            for _ in data.each(lambda one: forward(one) if one.samples > 1 or data.at_a_time == 1 else None):
                pass
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training
