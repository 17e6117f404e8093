"""Which layers: by name, by pattern, or the last of each stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from pytl.architecture import Head, head_names, named_layers, nearest, unwrapped

INPUT = ":input"
"""Behind a layer's name: not what it returns, but what it is called with."""
OUTPUT = ""
"""The name of the whole network: its logits."""

_NUMBERED = re.compile(r"^(.*?)\d+$")  # layer1, denseblock2, 0
_SHORTCUTS = re.compile(r"(^|\.)(downsample|shortcut)(\.|$)")
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MOST_STAGES, _FEW = 6, 4  # a transformer's blocks are no stages: the last of each quarter stand for them


def layer_names(model: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """The layers that names and patterns stand for, in the model's order.

    Args:
        model: any module; wrappers (DDP, torch.compile, checkpointing) do not count in names.
        layers: names as ``model.named_modules()`` has them, or patterns such as ``"layer?"`` and ``"encoder.layer.*"``;
            with ``":input"`` behind, what the layer is called with.

    Raises:
        ValueError: a name or pattern that no layer has, with the nearest names; none at all.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise ValueError("layers must name >= 1 layer; got none")
    known = [name for name, _ in named_layers(model)]
    found = {name + suffix for pattern in wanted for name, suffix in _matching(pattern, known)}
    return [name + suffix for name in known for suffix in ("", INPUT) if name + suffix in found]


def _matching(pattern: str, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    stem, suffix = (pattern.removesuffix(INPUT), INPUT) if pattern.endswith(INPUT) else (pattern, "")
    found = [name for name in known if name == stem or (name and fnmatchcase(name, stem))]
    if not found:
        raise ValueError(f"layers must name layers of the model; got {pattern!r}{nearest(stem, filter(None, known))}")
    yield from ((name, suffix) for name in found)


def stages(model: nn.Module) -> list[str]:
    """The names of the modules whose output ends a stage: what ``layers="auto"`` means.

    The outermost row of numbered modules (``layer1`` to ``layer4``, ``encoder.stages.0``...) is the stages; of a row of
    more than six, as transformers' blocks are, the last of each quarter. Without such a row: the last convolution
    before each reduction of size, or the linear layers, without the head.

    Raises:
        ValueError: there are none; name layers then.
    """
    model = unwrapped(model)
    head = {name.rpartition(".")[0] for name in head_names(model, None)}
    row = _row_of_blocks(model) or [name for name in _stage_ends(model) if name not in head]
    if not row:
        raise ValueError('layers="auto" finds no stages in this model: name its layers')
    if len(row) <= _MOST_STAGES:
        return row
    return [row[round((quarter + 1) * len(row) / _FEW) - 1] for quarter in range(_FEW)]


def last_convolutions(model: nn.Module) -> list[str]:
    """The last convolution of each stage, before its normalisation; of stages without one, the stage."""
    layers = dict(named_layers(model))
    found = []
    for stage in stages(model):
        inside = named_layers(layers[stage], stage)
        convolutions = [n for n, m in inside if isinstance(m, _CONVOLUTIONS) and not _SHORTCUTS.search(n)]
        found.append(convolutions[-1] if convolutions else stage)
    return found


def head_input(model: nn.Module, head: Head | None = None) -> str:
    """What the head is called with: the pooled features.

    Raises:
        ValueError: no head is found, or ``head``, its name or module, is not there.
    """
    parameters = sorted(head_names(model, head))
    if not parameters:
        raise ValueError('no head is found in this model: name it, as in layers="classifier:input"')
    modules = [name.rpartition(".")[0].split(".") for name in parameters]
    shared = 0
    while all(len(m) > shared and m[shared] == modules[0][shared] for m in modules):
        shared += 1
    return ".".join(modules[0][:shared]) + INPUT


def _row_of_blocks(model: nn.Module) -> list[str]:
    """The outermost children of one module that differ by a number and have layers with weights inside."""
    level = [("", model)]
    while level:
        for prefix, parent in level:
            rows: dict[str, list[str]] = {}
            for name, child in parent.named_children():
                if (match := _NUMBERED.match(name)) and _is_block(child):
                    rows.setdefault(match[1], []).append(f"{prefix}{name}")
            longest = max(rows.values(), key=len, default=[])
            if len(longest) > 1:
                return longest
        level = [
            (f"{prefix}{name}.", unwrapped(child))
            for prefix, parent in level
            for name, child in parent.named_children()
        ]
    return []


def _is_block(module: nn.Module) -> bool:
    return any(any(True for _ in child.parameters()) for child in unwrapped(module).children())


def _stage_ends(model: nn.Module) -> list[str]:
    convolutions: list[str] = []
    stage_begins = True
    for name, module in named_layers(model):
        if isinstance(module, _CONVOLUTIONS):
            if stage_begins or max(module.stride) > 1:
                convolutions.append(name)
            else:
                convolutions[-1] = name
            stage_begins = False
        elif isinstance(module, _POOLS):
            stage_begins = True
    if convolutions:
        return convolutions
    linear = [name for name, module in named_layers(model) if isinstance(module, nn.Linear)]
    return linear if head_names(model, None) else linear[:-1]  # the last one gives the logits
