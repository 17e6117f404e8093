"""What a network's modules are called, and what their names say: which is the head, and how deep each layer lies."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn

Head = str | nn.Module | Sequence["str | nn.Module"]

_HEAD_NAMES = ("classifier", "head", "heads", "fc", "score", "qa_outputs")
_BLOCK = re.compile(r"^((?:.*?[._])?\d+)(?=[._]|$)")  # "encoder.layer.3", "layer1.0", "encoder_layer_3", "0"


def depth_order(names: Sequence[str]) -> dict[str, int]:
    """The depth block of each parameter, 0 at the input, in the order of registration.

    A numbered module ("encoder.layer.3", "layer1.0") is a block; what stands before the first is block 0 (the stem),
    what stands after one belongs to it. Without numbers each child of the model is a block.
    """
    keys = [match[1] if (match := _BLOCK.match(name)) else None for name in names]
    if not any(keys):
        keys = [name.split(".")[0] for name in names]
    depths: dict[str, int] = {}
    order: dict[str, int] = {}
    block = ""  # the stem
    for name, key in zip(names, keys, strict=True):
        block = key or block
        depths[name] = order.setdefault(block, len(order))
    return depths


def head_names(model: nn.Module, head: Head | None) -> set[str]:
    """The names of the head's parameters: those asked for, or those that look new."""
    if head is None:
        return _new_in_checkpoint(model) or _named_classifier(model)
    parts = [head] if isinstance(head, str | nn.Module) else head
    return {name for part in parts for name in _names_of(model, part)}


def _names_of(model: nn.Module, part: str | nn.Module) -> list[str]:
    named = dict(model.named_parameters())
    if isinstance(part, nn.Module):
        own = {id(p) for p in part.parameters()}
        names = [name for name, p in named.items() if id(p) in own]
    else:
        names = [name for name in named if name == part or name.startswith(part + ".")]
    if not names:
        known = {name.rpartition(".")[0] for name in named}
        raise ValueError(f"head must name layers of the model that have parameters; got {part!r}{nearest(part, known)}")
    return names


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the names most like it, or nothing."""
    near = difflib.get_close_matches(str(name), sorted(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _new_in_checkpoint(model: nn.Module) -> set[str]:
    """What transformers' from_pretrained did not find in the checkpoint: it marks what it did."""
    marked = {name: getattr(p, "_is_hf_initialized", False) for name, p in model.named_parameters()}
    return {name for name, loaded in marked.items() if not loaded} if any(marked.values()) else set()


def _named_classifier(model: nn.Module) -> set[str]:
    get_classifier = getattr(model, "get_classifier", None)  # timm
    candidates = [get_classifier()] if callable(get_classifier) else [getattr(model, n, None) for n in _HEAD_NAMES]
    for module in candidates:
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            return set(_names_of(model, module))
    return set()
