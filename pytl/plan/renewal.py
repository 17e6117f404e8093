"""Blocks get new weights, drawn as the network's own architecture draws them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pytl.architecture import unwrapped
from pytl.depth import Block
from pytl.seeding import seeded

_LOADED = "_is_hf_initialized"  # transformers' mark on what its initialiser must leave alone
_SHOWN = 5  # names in an error

Fresh = Callable[[], nn.Module]


@torch.no_grad()
def renew(model: nn.Module, blocks: Sequence[Block], *, seed: int = 0, fresh: Fresh | None = None) -> None:
    """Re-initialises these blocks' parameters and the statistics of their normalisations, in place.

    New weights come from ``fresh()``, where it is given; else from transformers' ``initialize_weights``; from the
    ``init_weights`` of timm's networks, after each module's own ``reset_parameters``; or from those alone.

    Args:
        model: any module; wrappers do not count.
        blocks: some of `pytl.depth.depth_blocks`.
        seed: of the new weights; other random numbers are left as they are.
        fresh: makes a network of the same architecture with new weights: for those that draw them in ``__init__``, as
            torchvision's do. It is held beside the model until the weights are copied.

    Raises:
        ValueError: parameters that nothing initialises, that are tied to others outside of the blocks, or that
            ``fresh()`` lacks, or has in another shape. Nothing is changed then.
    """
    network = unwrapped(model)
    names = [name for block in blocks for name in block.parameters]
    _refuse_tied(network, blocks, names)
    modules = _modules(network, blocks, names)
    with seeded(seed, (p.device for p in network.parameters())):
        if fresh is not None:
            _copy(unwrapped(fresh()), network, modules, names)
        elif hasattr(network, "_init_weights") and hasattr(network, "initialize_weights"):
            with _taken_for_missing(network, modules, names):
                network.initialize_weights()  # type: ignore[operator]
        elif callable(getattr(network, "init_weights", None)):
            other = copy.deepcopy(network)
            for name in modules:
                _reset(other.get_submodule(name))
            other.init_weights()  # type: ignore[operator]
            _copy(other, network, modules, names)
        else:
            _refuse_unknown(modules)
            for module in modules.values():
                _reset(module)


def _modules(network: nn.Module, blocks: Sequence[Block], names: Sequence[str]) -> dict[str, nn.Module]:
    """Those that own the parameters, and the normalisations without weights between them."""
    owners = {name.rpartition(".")[0] for name in names}
    insides = tuple(f"{block.name}." for block in blocks)
    return {
        name: module
        for name, module in network.named_modules()
        if name in owners or (name.startswith(insides) and hasattr(module, "reset_running_stats"))
    }


def _reset(module: nn.Module) -> None:
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def _refuse_unknown(modules: Mapping[str, nn.Module]) -> None:
    lacking = [f"{name or 'the model'} ({type(m).__name__})" for name, m in modules.items() if not _resets(m)]
    if lacking:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise ValueError(
            f"new blocks must know how they are initialised; {', '.join(lacking[:_SHOWN])}{more} have no "
            "reset_parameters: give fresh=, a function that makes a new network"
        )


def _resets(module: nn.Module) -> bool:
    return callable(getattr(module, "reset_parameters", None))


def _refuse_tied(network: nn.Module, blocks: Sequence[Block], names: Sequence[str]) -> None:
    chosen, insides = set(names), tuple(f"{block.name}." for block in blocks)
    first = {id(p): name for name, p in network.named_parameters()}
    for name, p in network.named_parameters(remove_duplicate=False):
        one = first[id(p)]
        if one != name and (one in chosen) != (name in chosen or name.startswith(insides)):
            raise ValueError(f"new blocks must not share parameters with others; {one} is tied to {name}")


def _copy(source: nn.Module, network: nn.Module, modules: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    found, held = _tensors(source), _tensors(network)
    owned = [f"{name}.{buffer}".lstrip(".") for name, m in modules.items() for buffer, _ in m.named_buffers("", False)]
    wanted = [*names, *owned]
    if wrong := [name for name in wanted if name not in found or found[name].shape != held[name].shape]:
        raise ValueError(f"fresh must make a network that has, in the model's shapes, {', '.join(wrong[:_SHOWN])}")
    for name in wanted:
        held[name].copy_(found[name])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_buffers()), **dict(network.named_parameters())}


@contextmanager
def _taken_for_missing(network: nn.Module, modules: Mapping[str, nn.Module], names: Sequence[str]) -> Iterator[None]:
    """Within it transformers takes these parameters for missing from a checkpoint, and all else for loaded."""
    chosen = set(names) | {f"{name}.{b}" for name, m in modules.items() for b, _ in m.named_buffers("", False)}
    around = {""} | {name[:end] for name in chosen for end, letter in enumerate(name) if letter == "."}
    marks: list[tuple[nn.Module | Tensor, bool]] = [(t, name not in chosen) for name, t in _tensors(network).items()]
    marks += [(module, name not in around) for name, module in network.named_modules()]
    before = [(holder, getattr(holder, _LOADED, None)) for holder, _ in marks]
    try:
        for holder, loaded in marks:
            setattr(holder, _LOADED, loaded)
        yield
    finally:
        for holder, mark in before:
            delattr(holder, _LOADED) if mark is None else setattr(holder, _LOADED, mark)
