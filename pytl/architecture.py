"""What a network's modules are called, and what their names say: which is the head, and how deep each layer lies."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

Head = str | nn.Module | Sequence["str | nn.Module"]

_HEAD_NAMES = ("classifier", "head", "heads", "fc", "score", "qa_outputs")
_BLOCK = re.compile(r"^((?:.*?[._])?\d+)(?=[._]|$)")  # "encoder.layer.3", "layer1.0", "encoder_layer_3", "0"

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # torch.compile, checkpointing, FSDP
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile's, DDP's and checkpointing's wrappers."""
    while True:
        inner = [child for name, child in model.named_children() if _is_wrapped(model, name)]
        if not inner:
            return model
        model = inner[0]


def named_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules by the names they have without wrappers; of a wrapped one the wrapper. The model itself is ``""``."""
    yield prefix, model
    for name, child in model.named_children():
        if _is_wrapped(model, name):
            layers = named_layers(child, prefix)
            next(layers)
            yield from layers
        else:
            yield from named_layers(child, f"{prefix}.{name}" if prefix else name)


def _is_wrapped(parent: nn.Module, name: str) -> bool:
    return name in _WRAPPERS or (name == "module" and isinstance(parent, _PARALLEL))


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
    """The names of the head's parameters, without wrappers: those asked for, or those that look new."""
    model = unwrapped(model)
    if head is None:
        return _new_in_checkpoint(model) or _named_classifier(model)
    parts = [head] if isinstance(head, str | nn.Module) else head
    return {name for part in parts for name in _names_of(model, part)}


def head_modules(model: nn.Module | None, head: Head | None) -> list[nn.Module]:
    """The head's modules: those given, or those named or found in the model, as `head_names` does.

    Raises:
        ValueError: a name that the model lacks, or without a model; none is found.
    """
    parts: Sequence[str | nn.Module] = [head] if isinstance(head, str | nn.Module) else head or []
    given = [part for part in parts if isinstance(part, nn.Module)]
    if model is None and (head is None or len(given) < len(parts)):
        raise ValueError(f"head must be a module, or several, where no model is given; got {head!r}")
    if model is None or (parts and len(given) == len(parts)):
        return given
    owners = dict.fromkeys(name.rpartition(".")[0] for name in sorted(head_names(model, head)))
    if not owners:
        raise ValueError("head must be named or given: none is found in this model")
    layers = dict(named_layers(model))
    return [layers[owner] for owner in owners]


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
