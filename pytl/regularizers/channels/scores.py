"""How much the task's loss rises without a channel: by zeroing each one, or estimated from one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pytl.batch import Batch
from pytl.regularizers.channels.ledger import Ledger
from pytl.regularizers.channels.network import Network, channel_dim

NOTHING = ""
"""Stands for the loss with nothing zeroed where else a layer's name stands; as a name it would be the whole network."""

Losses = Callable[[str, int, int], Tensor]
"""(layer, start, stop) -> the losses of a batch with channel `start`, `start` + 1, ... zeroed: [stop - start]."""


def channel_scores(
    network: Network,
    batches: Iterable[Any],
    losses_of: Callable[[Network, Batch], Losses],
    ledger: Ledger,
    chunk: int,
    step: Callable[[], None],
) -> dict[str, Tensor]:
    """dCE_j = mean over samples of (the loss with channel j zeroed) - (the loss with nothing zeroed).

    Args:
        ledger: its rows are `NOTHING`, [1], and the layers', [C]. What it has done is skipped: batches are read only.
        step: called once for each channel of each batch, and once a batch for `NOTHING`.

    Returns:
        Layer -> float64 [C], on the CPU.
    """
    counts = {name: len(row) for name, row in ledger.sums.rows.items()}
    for index, found in enumerate(batches):
        done = ledger.sums.done - index * sum(counts.values())
        if done < sum(counts.values()):
            batch = Batch.of(found, network.device)
            losses = losses_of(network, batch)
            for name, start, stop in _pieces(counts, chunk, done):
                row = _finite(losses(name, start, stop), name, start)
                ledger.add(name, start, row * batch.samples, batch.samples if name == NOTHING else 0)
                for _ in range(start, stop):
                    step()
    rows = {name: row / ledger.sums.samples for name, row in ledger.sums.rows.items()}
    return {name: row - rows[NOTHING] for name, row in rows.items() if name != NOTHING}


def _pieces(counts: Mapping[str, int], chunk: int, done: int) -> Iterator[tuple[str, int, int]]:
    """(name, start, stop) of at most `chunk` channels each; the first `done` channels of all are left out."""
    for name, count in counts.items():
        for start in range(min(done, count), count, chunk):
            yield name, start, min(start + chunk, count)
        done = max(0, done - count)


def _finite(losses: Tensor, name: str, start: int) -> Tensor:
    """The same in float64, on the CPU."""
    row = losses.detach().cpu().double()
    for place, loss in enumerate(row.tolist()):
        if not math.isfinite(loss):
            zeroed = "nothing" if name == NOTHING else f"channel {start + place} of layer {name!r}"
            raise ValueError(f"loss must be finite; got {loss} with {zeroed} zeroed")
    return row


def exact(network: Network, batch: Batch) -> Losses:
    """One forward a call, of as many replicas of the batch as channels are asked for."""

    @torch.no_grad()
    def losses(name: str, start: int, stop: int) -> Tensor:
        zero = {} if name == NOTHING else {name: partial(_zero_one_each, range(start, stop), batch.samples)}
        return network.losses(batch, zero, stop - start)

    return losses


def _zero_one_each(channels: range, samples: int, output: Tensor) -> Tensor:
    """Zeroes the first of `channels` in the first replica of the batch, the second in the second, and so on."""
    dim = channel_dim(output)
    each = torch.arange(output.shape[dim], device=output.device)
    own = torch.tensor(channels, device=output.device)
    shape = [len(channels), *[1] * output.dim()]
    shape[dim + 1] = len(each)
    chosen = (own[:, None] == each).view(shape)
    # filled, for an infinity times 0 is no zero; in a copy, which the network may then change in place
    return output.unflatten(0, (len(channels), samples)).masked_fill(chosen, 0).flatten(0, 1)


def first_order(network: Network, batch: Batch) -> Losses:
    """The loss - <dCE/dF_j, F_j>: where Taylor's series of first order puts the loss once F_j, [B, H, W], is 0.

    Each layer's output is multiplied by a gate of ones, [C]; the loss's gradient by the gate is <dCE/dF_j, F_j>. So no
    gradient of a feature map is kept, and the parameters' gradients and requires_grad do not come into it.

    Raises:
        ValueError: no gradient of the loss reaches a layer.
    """
    gates: dict[str, Tensor] = {}
    with torch.enable_grad():
        [loss] = network.losses(batch, {name: partial(_gated, gates, name) for name in network.layers})
    slopes = torch.autograd.grad(loss, [*gates.values()], allow_unused=True) if loss.requires_grad else []
    whole = loss.detach().cpu().double()
    rows = {name: whole - slope.cpu().double() for name, slope in zip(gates, slopes, strict=False) if slope is not None}
    cut = [name for name in gates if name not in rows]
    if cut:
        raise ValueError(f'layers must reach the loss by gradients, or method be "exact"; got {", ".join(cut)}')
    rows[NOTHING] = whole[None]
    return lambda name, start, stop: rows[name][start:stop]


def _gated(gates: dict[str, Tensor], name: str, output: Tensor) -> Tensor:
    """The same values, through the layer's gate: in float32 at least, because the gate's gradient is the sum."""
    dim = channel_dim(output)
    dtype = torch.promote_types(output.dtype, torch.float32)
    if name not in gates:  # a module that is called twice has one gate
        gates[name] = torch.ones(output.shape[dim], dtype=dtype, device=output.device, requires_grad=True)
    shape = [1] * output.dim()
    shape[dim] = -1
    return (output * gates[name].view(shape)).to(output.dtype)
