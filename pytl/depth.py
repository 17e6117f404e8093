"""How deep each parameter of a network lies: its blocks, from the input to the head."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import Head, head_names, inner_children, unwrapped
from pytl.batch import call, evaluating
from pytl.seeding import seeded

HEAD, STEM = "head", "stem"

_NUMBERED = re.compile(r"^(.*?)\d+$")  # "0", "layer1", "denseblock1"
_MOST_STAGES = 5  # of a longer row, as transformers' layers are, each is a block; of a shorter one, what is inside


@dataclass(frozen=True)
class Block:
    """Parameters of one depth.

    Attributes:
        name: the module's, ``"layer1.0"``; or ``"stem"``, what lies before the first of them, and ``"head"``.
        parameters: names, without wrappers where those are the model's outermost.
    """

    name: str
    parameters: tuple[str, ...]


def depth_blocks(model: nn.Module, head: Head | None = None, example: Any = None) -> list[Block]:
    """The network's blocks, from the input to the head.

    Blocks are the children of a module that has two or more numbered ones with layers inside ("encoder.layer.3",
    "layer1"); where such a row is of five or fewer, its members are stages, and the rows inside them are the blocks
    ("layer1.0", "stages.0.layers.1"), much as timm groups them. What lies before the first is the stem, what lies
    behind one belongs to it (a last norm). Without rows each child of the model is a block.

    Args:
        model: any module; wrappers do not count.
        head: as in ``pytl.param_groups``; its parameters are the last block, ``"head"``.
        example: a batch of inputs, a tuple of arguments or a mapping of keywords: the network is run on it once, in
            evaluation mode, and blocks are in the order in which they ran. None: in the order of registration.

    Returns:
        Every parameter in one block; tied ones under the first of their names.
    """
    model = unwrapped(model)
    own = [name for name, _ in model.named_parameters()]
    found: dict[str, list[str]] = {}
    for name, block in placed(model, head, example).items():
        found.setdefault(block, []).append(name)
    kept = {block: tuple(name for name in members if name in own) for block, members in found.items()}
    return [
        Block(block, members) for block, members in sorted(kept.items(), key=lambda item: item[0] == HEAD) if members
    ]


def placed(model: nn.Module, head: Head | None = None, example: Any = None) -> dict[str, str]:
    """The block of each parameter, by each of its names, and of each buffer; arguments as in `depth_blocks`."""
    model = unwrapped(model)
    new, keys = head_names(model, head), row_blocks(model)
    rows = list(dict.fromkeys(key for key in keys.values() if key))
    inner = {stage: key for stage in rows for key in reversed(rows) if key.startswith(f"{stage}.")}
    head_modules = tuple(f"{name}." for name, m in named_modules(model) if _has_parameters(m) and _within(m, name, new))
    found: dict[str, str] = {}
    block = STEM
    for name in _names(model, example):
        if name in new or name.startswith(head_modules):  # its buffers as well
            found[name] = HEAD
        else:
            found[name] = block = _joined(keys[name], block, inner)
    return found


def _within(module: nn.Module, name: str, parameters: set[str]) -> bool:
    return all(f"{name}.{own}".lstrip(".") in parameters for own, _ in module.named_parameters())


def _names(model: nn.Module, example: Any) -> list[str]:
    """Parameters and buffers, tied ones by each name, as registered; or as run: tied ones with the first that runs."""
    modules = list(named_modules(model))
    holders = [(f"{name}.{own}".lstrip("."), name, t) for name, m in modules for own, t in _tensors(m)]
    if example is None:
        return [full for full, _, _ in holders]
    rank = _execution_rank(model, example)
    first: dict[int, float] = {}
    for _, module, tensor in holders:
        first[id(tensor)] = min(rank[module], first.get(id(tensor), math.inf))
    return [full for full, _, _ in sorted(holders, key=lambda one: first[id(one[2])])]  # stable within a module


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, those that stand in two places by both names."""
    return model.named_modules(remove_duplicate=False)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters("", False), *module.named_buffers("", False)]


def _joined(key: str | None, before: str, inner: Mapping[str, str]) -> str:
    """The block of a parameter: what lies in no row joins the block before; in a stage with blocks, one of them."""
    if key is None or before.startswith(f"{key}."):
        return before
    return inner.get(key, key)


def depths(blocks: Sequence[Block]) -> dict[str, int]:
    """Each parameter's block by number, 0 at the input."""
    return {name: depth for depth, block in enumerate(blocks) for name in block.parameters}


def row_blocks(model: nn.Module) -> Mapping[str, str | None]:
    """The block of each parameter and buffer, by each of its names; None where it lies outside of all rows."""
    keys = dict(_walk(model))
    if any(keys.values()):
        return keys
    return {name: name.split(".")[0] if "." in name else None for name in keys}


def _walk(
    module: nn.Module, path: str = "", title: str = "", reach: float = math.inf, block: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """(parameter, block): `path` is the module's name, `title` the same without wrappers.

    `reach` is how many levels down rows are looked for: anywhere until there is one, one level inside a stage, and not
    at all inside a block.
    """
    row = _row(module) if reach >= 0 else []
    inner = (1 if math.isinf(reach) and 1 < _alike(module) <= _MOST_STAGES else -1) if row else reach - 1
    lone = not row and not math.isinf(reach) and len(_numbered(module)) == 1  # a stage of one block is that block
    for name, _ in _tensors(module):
        yield f"{path}{name}", block
    for name, full, child in inner_children(module):
        own, further = (f"{title}{name}", inner) if name in row else (block, -1 if lone else reach - 1)
        yield from _walk(child, f"{path}{full}.", f"{title}{name}.", further, own)


def _row(module: nn.Module) -> list[str]:
    """The children that are blocks, where two or more of them are numbered: those with layers inside, or a number."""
    numbered = _numbered(module)
    return (
        [name for name in _weighted(module) if name in numbered or _composite(module, name)]
        if len(numbered) > 1
        else []
    )


def _numbered(module: nn.Module) -> set[str]:
    """The children that have a number and layers inside, or are a layer with a number for a name."""
    return {
        name
        for name, child in _weighted(module).items()
        if (match := _NUMBERED.match(name))
        and (_composite(module, name) or (not match[1] and any(p.dim() > 1 for p in child.parameters())))
    }


def _alike(module: nn.Module) -> int:
    """How many of its numbered children differ by the number alone: "layer1" to "layer4"."""
    return max(Counter(name.rstrip("0123456789") for name in _numbered(module)).values(), default=0)


def _weighted(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, _, child in inner_children(module) if _has_parameters(child)}


def _composite(module: nn.Module, name: str) -> bool:
    return any(_has_parameters(inner) for inner in _weighted(module)[name].children())


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _execution_rank(model: nn.Module, example: Any) -> dict[str, float]:
    """When each module was first called, by its name; one that never was, with the one around it, or at the end."""
    rank: dict[str, float] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in named_modules(model):
        names.setdefault(module, []).append(name)

    def note(module: nn.Module, arguments: Any) -> None:
        for name in names[module]:
            rank.setdefault(name, len(rank))

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        with seeded(0, (p.device for p in model.parameters())), evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for name, _ in named_modules(model):
        around = name.rpartition(".")[0]
        rank.setdefault(name, rank.get(around, math.inf) if around else math.inf)
    return rank
