"""How deep each parameter of a network lies: its blocks, from the input to the head."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytl.architecture import Head, head_names, inner_children, unwrapped
from pytl.batch import call, evaluating

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
    ("layer1.0", "stages.0.layers.1"), as timm groups them. What lies before the first is the stem, what lies behind one
    belongs to it (a last norm). Without rows each child of the model is a block.

    Args:
        model: any module; wrappers do not count.
        head: as in ``pytl.param_groups``; its parameters are the last block, ``"head"``.
        example: a batch of inputs, a tuple of arguments or a mapping of keywords: the network is run on it once, in
            evaluation mode, and blocks are in the order in which they ran. None: in the order of registration.

    Returns:
        Every parameter in one block; tied ones under the first of their names.
    """
    model = unwrapped(model)
    new = head_names(model, head)
    keys = _block_names(model)
    rows = list(dict.fromkeys(key for key in keys.values() if key))
    inner = {stage: key for stage in rows for key in reversed(rows) if key.startswith(f"{stage}.")}
    names = [name for name, _ in model.named_parameters()]
    if example is not None:
        rank = _execution_rank(model, example)
        names.sort(key=lambda name: rank[name.rpartition(".")[0]])  # stable: as registered within a module
    found: dict[str, list[str]] = {}
    block = STEM
    for name in names:
        if name not in new:
            block = _joined(keys[name], block, inner)
            found.setdefault(block, []).append(name)
    blocks = [Block(block, tuple(members)) for block, members in found.items()]
    head_members = tuple(name for name in names if name in new)
    return [*blocks, Block(HEAD, head_members)] if head_members else blocks


def _joined(key: str | None, before: str, inner: Mapping[str, str]) -> str:
    """The block of a parameter: what lies in no row joins the block before; in a stage with blocks, one of them."""
    if key is None or before.startswith(f"{key}."):
        return before
    return inner.get(key, key)


def depths(blocks: Sequence[Block]) -> dict[str, int]:
    """Each parameter's block by number, 0 at the input."""
    return {name: depth for depth, block in enumerate(blocks) for name in block.parameters}


def _block_names(model: nn.Module) -> Mapping[str, str | None]:
    """Each parameter's block; None where it lies outside of all rows."""
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
    inner = (1 if math.isinf(reach) and len(row) <= _MOST_STAGES else -1) if row else reach - 1
    for name, _ in module.named_parameters(recurse=False):
        yield f"{path}{name}", block
    for name, full, child in inner_children(module):
        own, further = (f"{title}{name}", inner) if name in row else (block, reach - 1)
        yield from _walk(child, f"{path}{full}.", f"{title}{name}.", further, own)


def _row(module: nn.Module) -> list[str]:
    """The children that are blocks, where two or more of them are numbered: those with layers inside, or a number."""
    children = [(name, child) for name, _, child in inner_children(module) if any(True for _ in child.parameters())]
    composite = {name for name, child in children if any(True for _ in child.children())}
    matrices = {name for name, child in children if any(p.dim() > 1 for p in child.parameters())}
    numbered = {
        name
        for name in composite | matrices
        if (match := _NUMBERED.match(name)) and (name in composite or not match[1])
    }
    return [name for name, _ in children if name in composite | numbered] if len(numbered) > 1 else []


def _execution_rank(model: nn.Module, example: Any) -> dict[str, float]:
    """When each module was first called, by its name; one that never was, with the one around it, or at the end."""
    rank: dict[str, float] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, arguments: Any) -> None:
        rank.setdefault(names[module], len(rank))

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        with evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for name in names.values():
        around = name.rpartition(".")[0]
        rank.setdefault(name, rank[around] if around else math.inf)
    return rank
