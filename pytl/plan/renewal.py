"""Blocks get new weights, drawn as the network's own architecture draws them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import Head, unwrapped
from pytl.depth import Block, placed, row_blocks
from pytl.seeding import seeded

_LOADED = "_is_hf_initialized"  # transformers' mark on what its initialiser must leave alone
_SHOWN = 5  # names in an error

Fresh = Callable[[], nn.Module]


@torch.no_grad()
def renew(
    model: nn.Module,
    blocks: Sequence[Block],
    *,
    head: Head | None = None,
    example: Any = None,
    seed: int = 0,
    fresh: Fresh | None = None,
) -> None:
    """Re-initialises these blocks' parameters and the statistics of their normalisations, in place.

    New weights come from ``fresh()``, where it is given; else from a copy of the network, by transformers'
    ``initialize_weights``, by the ``init_weights`` of timm's networks after each module's own ``reset_parameters``, or
    by those alone. The other network is held beside the model until its weights are copied.

    Args:
        model: any module; wrappers do not count.
        blocks: some of `pytl.depth.depth_blocks`.
        head, example: as those were found with.
        seed: of the new weights; other random numbers are left as they are.
        fresh: makes a network of the same architecture with new weights: for those that draw them in ``__init__``, as
            torchvision's do.

    Raises:
        ValueError: parameters that nothing initialises, that are tied to a block which stays, or that ``fresh()``
            lacks, or has in another shape. Nothing is changed then.
    """
    if not blocks:
        return
    network, chosen = unwrapped(model), {block.name for block in blocks}
    names, place = {name for block in blocks for name in block.parameters}, placed(network, head, example)
    _refuse_tied(network, names, place, chosen)
    modules = {
        name: module
        for name, module in network.named_modules()
        if any(f"{name}.{own}".lstrip(".") in names for own, _ in module.named_parameters("", False))
        or (hasattr(module, "reset_running_stats") and chosen & {place[n] for n in _buffers(name, module)})
    }
    with seeded(seed, (p.device for p in network.parameters())):
        other = unwrapped(fresh()) if fresh is not None else _initialised(network, modules, names)
    found, held = _tensors(other), _tensors(network)
    wanted = [*names, *(buffer for name, module in modules.items() for buffer in _buffers(name, module))]
    if wrong := sorted(name for name in wanted if name not in found or found[name].shape != held[name].shape):
        raise ValueError(f"fresh must make a network that has, in the model's shapes, {_shown(wrong)}")
    for name in wanted:
        held[name].copy_(found[name])


def _buffers(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{own}".lstrip(".") for own, _ in module.named_buffers("", False)]


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_buffers()), **dict(network.named_parameters())}


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _refuse_tied(network: nn.Module, names: set[str], place: Mapping[str, str], chosen: set[str]) -> None:
    first, rows = {id(p): name for name, p in network.named_parameters()}, row_blocks(network)
    for name, p in network.named_parameters(remove_duplicate=False):
        one = first[id(p)]
        apart = place[name] not in chosen if one in names else rows[name] in chosen
        if one != name and apart:
            raise ValueError(f"new blocks must not share parameters with others; {one} is tied to {name}")


def _initialised(network: nn.Module, modules: Mapping[str, nn.Module], names: set[str]) -> nn.Module:
    """A copy whose named parameters are drawn anew."""
    other = copy.deepcopy(network)
    held = dict(other.named_parameters())
    drawn = [name for name in names if held[name].is_floating_point()]
    for name in drawn:
        held[name].fill_(torch.nan)  # until something initialises it
    if hasattr(other, "_init_weights") and hasattr(other, "initialize_weights"):
        _take_for_missing(other, modules, names)
        other.initialize_weights()  # type: ignore[operator]
    else:
        for name in modules:
            if callable(reset := getattr(other.get_submodule(name), "reset_parameters", None)):
                reset()
        if callable(whole := getattr(other, "init_weights", None)):
            whole()
    if lacking := sorted(name for name in drawn if held[name].isnan().any()):
        raise ValueError(
            f"new blocks must know how they are initialised; nothing does {_shown(lacking)}: give fresh=, a function "
            "that makes a new network"
        )
    return other


def _take_for_missing(network: nn.Module, modules: Mapping[str, nn.Module], names: set[str]) -> None:
    """Has transformers take these parameters for missing from a checkpoint, and all else for loaded."""
    chosen = names | {buffer for name in modules for buffer in _buffers(name, network.get_submodule(name))}
    around = {""} | {name[:end] for name in chosen for end, letter in enumerate(name) if letter == "."}
    for name, tensor in _tensors(network).items():
        setattr(tensor, _LOADED, name not in chosen)
    for name, module in network.named_modules():
        setattr(module, _LOADED, name not in around)
