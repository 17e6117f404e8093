"""What a network's modules are called, and what their names say: which is the head."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

Head = str | nn.Module | Sequence["str | nn.Module"]

_HEAD_NAMES = ("classifier", "head", "heads", "fc", "score", "qa_outputs")

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


def inner_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, str, nn.Module]]:
    """(name, the same with the wrappers inside and around it, child without wrappers) of each child, wrapped or not."""
    for name, child in module._modules.items():  # named_children leaves out the second place of a layer
        if child is None:
            continue
        if _is_wrapped(module, name):
            yield from inner_children(child, f"{prefix}{name}.")
        else:
            inner = unwrapped(child)
            within = next(name for name, one in child.named_modules() if one is inner)
            yield name, f"{prefix}{name}.{within}".rstrip("."), inner


def _is_wrapped(parent: nn.Module, name: str) -> bool:
    return name in _WRAPPERS or (name == "module" and isinstance(parent, _PARALLEL))


def head_names(model: nn.Module, head: Head | None) -> set[str]:
    """The names of the head's parameters, without wrappers: those asked for, or those that look new."""
    model = unwrapped(model)
    if head is None:
        return _new_in_checkpoint(model) or _named_classifier(model)
    parts = [head] if isinstance(head, str | nn.Module) else head
    return {name for part in parts for name in _names_of(model, part)}


def head_modules(model: nn.Module, head: Head | None) -> list[nn.Module]:
    """The head's modules: those named or given; None finds the outermost that hold nothing but the head's parameters.

    Raises:
        ValueError: a name or module that the model lacks, or none is found.
    """
    names = head_names(model, head)
    if not names:
        raise ValueError(f"head must name a module of the model; got {head!r}, and none is found")
    if head is None:
        return _outermost(model, {id(p) for name, p in unwrapped(model).named_parameters() if name in names})
    layers = dict(named_layers(model))
    parts = [head] if isinstance(head, str | nn.Module) else head
    return [p if isinstance(p, nn.Module) else layers.get(p) or layers[p.rpartition(".")[0]] for p in parts]


def _outermost(model: nn.Module, parameters: set[int]) -> list[nn.Module]:
    """The largest modules whose parameters are all among these, given by ``id``; never the whole model."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = {model}  # never the model itself, whatever else it lacks
    for _, module in named_layers(model):
        own = {id(p) for p in module.parameters()}
        if module not in inside and own and own <= parameters:
            found.append(module)
            inside.update(module.modules())
    return found


def _names_of(model: nn.Module, part: str | nn.Module) -> list[str]:
    named = dict(model.named_parameters())
    if isinstance(part, nn.Module):
        own = {id(p) for p in part.parameters()}
        names = [name for name, p in named.items() if id(p) in own]
    else:
        names = [name for name in named if name == part or name.startswith(part + ".")]
    if not names and isinstance(part, str):
        tied = [name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(part + ".")]
        if tied:
            raise ValueError(f"head must have parameters of its own; {', '.join(tied)} are tied to another layer's")
    if not names:
        known = {name.rpartition(".")[0] for name in named}
        raise ValueError(f"head must name layers of the model that have parameters; got {part!r}{nearest(part, known)}")
    return names


def differing(body: Mapping[str, Sequence[int]], there: Mapping[str, Sequence[int]]) -> list[str]:
    """The tensors in which a checkpoint differs from a network's body, by name and shape: "layer1.weight [4, 3] ...".

    What the checkpoint has beside, in a module that the body has a part of, as another layer of a row, differs as well;
    what stands elsewhere is a head.
    """
    parts = {name.partition(".")[0] for name in body}
    beside = [name for name in there if name not in body and name.partition(".")[0] in parts]
    lacking = [
        f"{n} {[*s]}, there {[*there[n]] if n in there else 'nothing'}" for n, s in body.items() if there.get(n) != s
    ]
    return [*lacking, *(f"{name}, there alone" for name in beside)]


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the names most like it, or nothing."""
    near = difflib.get_close_matches(str(name), sorted(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _new_in_checkpoint(model: nn.Module) -> set[str]:
    """What transformers' from_pretrained did not find in the checkpoint: it marks what it did."""
    marked = {name: getattr(p, "_is_hf_initialized", False) for name, p in model.named_parameters()}
    new = {name for name, loaded in marked.items() if not loaded} if any(marked.values()) else set()
    return {name for name in new if not _is_of_peft(model, name)}


def _is_of_peft(model: nn.Module, name: str) -> bool:
    """Whether PEFT added it beside a layer, kept as ``base_layer``, or put it aside as ``original_module``."""
    around = name.split(".")
    beside = [(model.get_submodule(".".join(around[:i]))._modules, around[i]) for i in range(1, len(around) - 1)]
    return any(("base_layer" in these and own != "base_layer") or own == "original_module" for these, own in beside)


def _named_classifier(model: nn.Module) -> set[str]:
    get_classifier = getattr(model, "get_classifier", None)  # timm
    candidates = [get_classifier()] if callable(get_classifier) else [getattr(model, n, None) for n in _HEAD_NAMES]
    for module in candidates:
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            return {name for name in _names_of(model, module) if not _is_of_peft(model, name)}
    return set()
