"""The parameters of an optimizer's groups, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

Member = tuple[int, str, Tensor]
"""The place of a parameter's group, its name, and the parameter."""


def members(groups: Sequence[Mapping[str, Any]]) -> list[Member]:
    """In order; those without names are numbered.

    Raises:
        ValueError: a group has names for more or fewer parameters than it has.
    """
    found: list[Member] = []
    for k, group in enumerate(groups):
        count = len(group["params"])
        names = group.get("param_names") or [f"parameter {len(found) + i}" for i in range(count)]
        if len(names) != count:
            raise ValueError(
                f"param_names must name each parameter of group {k}; got {len(names)} for {count} (an engine that "
                "flattens groups, as DeepSpeed's ZeRO does, needs parameters without names)"
            )
        found += [(k, name, p) for name, p in zip(names, group["params"], strict=True)]
    return found
