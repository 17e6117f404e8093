"""A saved state, checked as a whole before anything of it is taken, and taken as it was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pytl.directions import RULES, Direction
from pytl.optim.members import members
from pytl.optim.options import is_anchored
from pytl.optim.sharding import mesh_shape
from pytl.weight_files import some

Saved = tuple[str, Tensor, Mapping[str, Any], Mapping[str, Any]]
"""A parameter's name, itself, its saved state and the options that it will have."""


def check_loadable(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], moments: Set[str], has_source: bool
) -> None:
    """Looks at all of a saved state before anything of it is taken. What torch refuses is left to torch.

    Args:
        optimizer: that is to take it.
        saved: the state dict.
        moments: the names of the optimizer's.
        has_source: whether starting points can be read elsewhere.

    Raises:
        ValueError: it lists every parameter whose state is no state, is of another shape, has its parts on other ranks,
            or was saved without the starting point where none is given: the weights of now would pass for it.
    """
    if not {"state", "param_groups"} <= saved.keys():
        return
    states = list(_saved(optimizer, saved))
    known = {"start", "start_norm", "compensation", *moments}
    checks = (
        (partial(_nonsense, known), "the saved state must map names to tensors that have memory; got"),
        (_misshapen, "the saved state must be of these parameters; of another shape:"),
        (_of_other_ranks, "the saved state must be of these ranks (else: torch.distributed.checkpoint);"),
    )
    for faults_of, text in checks:
        if faults := [fault for name, p, state, _ in states for fault in faults_of(name, p, state)]:
            raise ValueError(f"{text} {some(faults)}")
    lost = [name for name, _, state, group in states if is_anchored(group) and _has_lost_start(state)]
    if lost and not has_source:
        raise ValueError(
            "the saved state must hold the starting point, or start= name its source: the weights of now would pass "
            f"for it; without: {some(lost)}"
        )


def _saved(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Iterator[Saved]:
    groups, indices = optimizer.param_groups, [iter(group["params"]) for group in saved["param_groups"]]
    for k, name, p in members(groups):
        if k < len(indices) and (index := next(indices[k], None)) is not None:
            yield name, p, saved["state"].get(index, {}), groups[k] | saved["param_groups"][k]


def _nonsense(known: Set[str], name: str, _: Tensor, state: Any) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f"{type(state).__name__} for {name}"
        return
    for key, value in state.items():
        if key == "step" and not (isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)):
            yield f"{type(value).__name__} for step of {name}"
        elif key in known and not isinstance(value, Tensor | None):
            yield f"{type(value).__name__} for {key} of {name}"
        elif isinstance(value, Tensor) and value.is_meta:
            yield f"a tensor on meta for {key} of {name}"


def _misshapen(name: str, p: Tensor, state: Mapping[str, Any]) -> Iterator[str]:
    for key, value in state.items():
        per_block = key.endswith("_scales")
        if isinstance(value, Tensor) and value.dim() and value.shape != p.shape and not per_block:
            yield f"{key} of {name}: expected {[*p.shape]}, got {[*value.shape]}"


def _of_other_ranks(name: str, p: Tensor, state: Mapping[str, Any]) -> Iterator[str]:
    for key, value in state.items():
        if isinstance(value, Tensor) and mesh_shape(value) not in ([], mesh_shape(p)):
            yield f"{key} of {name}: on {mesh_shape(value)}, here {mesh_shape(p)}"


def _has_lost_start(state: Mapping[str, Any]) -> bool:
    """Whether steps were taken and the starting point is not there."""
    return "start" not in state and any(key != "step" or bool(value) for key, value in state.items())


def lighten(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Without the tensors but for the numbers of steps: torch would cast them to the weights' dtype and device."""
    states = {
        index: {name: value for name, value in state.items() if name == "step" or not isinstance(value, Tensor)}
        for index, state in saved["state"].items()
    }
    return {**saved, "state": states}


def restore(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], start_device: torch.device | None) -> None:
    """Takes the tensors in the dtypes they were saved in, beside the weights; the starting point where it is kept."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, p in zip(ids, params, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            if isinstance(value, Tensor) and name != "step":
                device = start_device if name == "start" and start_device else p.device
                taken = value.to(device, copy=True)
                away = device.type == "cpu" and p.is_cuda
                optimizer.state[p][name] = taken.pin_memory() if away else taken


def same_direction(saved: str | Direction, current: str | Direction) -> str | Direction:
    """The direction of a saved name: a rule of the library, or the one given to this optimizer if it has that name."""
    if isinstance(saved, Direction) or saved in RULES:
        return saved
    if isinstance(current, Direction) and current.name == saved:
        return current
    raise ValueError(f"the state was saved with direction {saved!r}: give that Direction to this optimizer to load it")
