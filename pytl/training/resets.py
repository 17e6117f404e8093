"""RIFLE's step in a run, and what is told of each re-initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from pytl.analysis import gradient_norms
from pytl.metrics import Record
from pytl.rifle import RIFLE

WHEN = ("before", "after")


def step(
    rifle: RIFLE, model: nn.Module, batches: Iterable[Any], loss: Callable[[Tensor, Tensor], Tensor], epochs: float
) -> Record:
    """Steps RIFLE. Where the head is re-initialised, tells when and how far the batch's gradient reached around it.

    Returns:
        ``"reset/1"``: the epochs done at the first one, ``"gradient/1 before/BLOCK"`` and ``"... after/..."``; or
        nothing.
    """
    if not rifle.due:
        rifle.step()
        return {}
    norms = [gradient_norms(model, batches, loss, head=rifle.head).norms]
    rifle.step()
    norms.append(gradient_norms(model, batches, loss, head=rifle.head).norms)
    period = rifle.periods.resets.index(rifle.steps) + 1
    record: Record = {f"reset/{period}": epochs}
    for when, found in zip(WHEN, norms, strict=True):
        record |= {f"gradient/{period} {when}/{block}": norm for block, norm in found.items()}
    return record
