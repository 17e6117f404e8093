"""Samples that have ids, and what the network is called with for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytl.features.digest import sample_digests
from pytl.features.source import Ids


def numbers(ids: Ids | None) -> list[int]:
    """The ids as ints.

    Raises:
        ValueError: there are none, or they are no ints in one dimension.
    """
    if ids is None:
        raise ValueError("ids must name the batch's samples for a cached source; got None: call it with ids=")
    found = torch.as_tensor(ids)
    if found.dtype.is_floating_point or found.dtype == torch.bool or found.dim() != 1 or not len(found):
        raise ValueError(f"ids must be ints, [B] with B >= 1; got {found.dtype} {[*found.shape]}")
    return found.tolist()


@dataclass(frozen=True)
class Samples:
    """What a network is called with, for samples of which one may come twice."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    ids: list[int]

    @property
    def named(self) -> dict[str, Any]:
        """All by name; what has none by its place."""
        return {**{str(place): value for place, value in enumerate(self.inputs)}, **self.keywords}

    @property
    def device(self) -> torch.device:
        """Of the first tensor that has a row for each sample. Raises ValueError where none has."""
        devices = [value.device for value in self.named.values() if self._has_rows(value)]
        if not devices:
            shapes = [[*value.shape] for value in self.named.values() if isinstance(value, Tensor)]
            raise ValueError(f"ids must be as many as the samples; got {len(self.ids)} for inputs of shapes {shapes}")
        return devices[0]

    def digests(self) -> Tensor:
        """int64 [B] on the CPU, see `sample_digests`."""
        return sample_digests(self.named, len(self.ids))

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Where each of these samples comes first: int64, on the CPU."""
        first = {sample: row for row, sample in reversed([*enumerate(self.ids)])}
        return torch.tensor([first[sample] for sample in ids], device="cpu")

    def part(self, ids: list[int]) -> Samples:
        """Of some samples, each once."""
        if ids == self.ids:
            return self
        rows = self.rows(ids)

        def some(value: Any) -> Any:
            return value[rows.to(value.device)] if self._has_rows(value) else value

        keywords = {name: some(value) for name, value in self.keywords.items()}
        return Samples(tuple(some(value) for value in self.inputs), keywords, ids)

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(self.ids)
