"""A network's features at each depth, and its answers, taken in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import Head, head_names, named_layers, unwrapped
from pytl.batch import Batch, evaluating
from pytl.depth import HEAD, STEM, Block
from pytl.features.capture import Capture
from pytl.features.layers import INPUT, head_input
from pytl.seeding import seeded


@dataclass(frozen=True)
class Features:
    """What a pass over the data gave.

    Attributes:
        layers: layer -> [n, width], float32 or float64, maps and tokens averaged.
        logits: the network's answers, [n, classes].
        labels: int64 [n].
    """

    layers: dict[str, Tensor]
    logits: Tensor
    labels: Tensor


def layers_of(model: nn.Module, blocks: Sequence[Block], head: Head | None) -> dict[str, str]:
    """Block -> the layer whose output is its; of the last one, what the head is called with.

    Raises:
        ValueError: a block that is no module of its own.
    """
    body = [block.name for block in blocks if block.name != HEAD]
    known = {name for name, _ in named_layers(model)}
    found = {name: name for name in body if name in known}
    if STEM in body and STEM not in known and len(body) > 1:
        found[STEM] = f"{body[1]}{INPUT}"
    if body and head_names(unwrapped(model), head):
        found[body[-1]] = head_input(model, head)
    if lacking := [name for name in body if name not in found]:
        raise ValueError(f"blocks must be modules with an output to measure; {', '.join(lacking)} are not")
    return {name: found[name] for name in body}


@torch.no_grad()
def extract(
    model: nn.Module,
    layers: Sequence[str],
    data: Iterable[Any],
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
    *,
    batch_statistics: bool = False,
) -> Features:
    """One pass in evaluation mode; the model's modes, statistics and the random numbers stay.

    Loaders that shuffle by torch's own generator give the same order in each pass.

    Memory: n times the layers' widths, in the features' precision or float32, on ``device``.

    Args:
        model, layers: whose outputs.
        data: batches, as ``pytl.finetune`` takes them.
        device: where the model is.
        advance: called once a batch.
        batch_statistics: normalisations take each batch's statistics: for networks that have no others yet.

    Raises:
        ValueError: no batches; labels that are no integers, or outside of the classes that the network answers with.
    """
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    logits, labels = [], []
    with seeded(0, [device]), evaluating(model), Capture(model, layers) as capture:
        if batch_statistics:
            _use_batch_statistics(model)
        for found in data:
            batch = Batch.of(found, device)
            logits.append(batch.logits(model))
            labels.append(batch.labels)
            for layer, feature in capture.features().items():
                rows[layer].append(pooled(feature.tensor, batch.keywords.get("attention_mask")))
            advance()
    if not labels:
        raise ValueError("data must give at least one batch; got none")
    return Features({layer: torch.cat(of) for layer, of in rows.items()}, torch.cat(logits), torch.cat(labels))


def pooled(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, C] of [B, C], of maps [B, C, ...] or of tokens [B, T, D], whose mean leaves out those that a mask hides."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.dim() != 3:
        return x.flatten(2).mean(2) if x.dim() > 2 else x.reshape(len(x), -1)
    if mask is None or mask.shape != x.shape[:2]:
        return x.mean(1)
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def _use_batch_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.train()
