"""Engines that put pieces of flat memory in the place of parameters: of those no tensor can be looked at as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

from torch import Tensor

from pytl.directions import find

Given = Sequence[ref[Tensor]]
"""The parameters that a group was made with."""


def given(params: Sequence[Tensor]) -> Given:
    return [ref(p) for p in params]


def check_engine(groups: Sequence[Mapping[str, Any]], made_with: Sequence[Given], max_grad_norm: float | None) -> None:
    """Raises RuntimeError where a direction or a bound needs whole tensors and an engine has flattened them.

    The sum is taken element by element, and goes on. FSDP2 shards parameters apart, and is served.

    Args:
        groups: of the optimizer.
        made_with: of each group.
        max_grad_norm: the optimizer's.
    """
    for number, (group, known) in enumerate(zip(groups, made_with, strict=True)):
        engine = _engine(group["params"], known)
        if engine and (max_grad_norm is not None or find(group["direction"]).rule != "sum"):
            wanted = "max_grad_norm" if max_grad_norm is not None else f"direction={find(group['direction']).name!r}"
            raise RuntimeError(
                f"{wanted} needs each parameter for itself, which {engine} does not leave in group {number}: use "
                'torch.distributed.fsdp.fully_shard (FSDP2), or direction="sum" with the engine\'s own clipping'
            )


def _engine(params: Sequence[Tensor], known: Given) -> str:
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        return "FSDP1 (FullyShardedDataParallel)"
    replaced = len(known) > 1 and len(params) == 1 and params[0].dim() == 1 and not any(p() is params[0] for p in known)
    return "an engine that flattens groups, such as DeepSpeed's ZeRO," if replaced else ""
