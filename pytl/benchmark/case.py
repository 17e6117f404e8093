"""What all benchmarks share: data that is drawn, contenders that step on it, and how both are found to agree."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pytl.benchmark.devices import Device
from pytl.benchmark.pairing import Pairing
from pytl.benchmark.records import Comparison, Memory
from pytl.benchmark.timing import Step


class Drawn(Protocol):
    """One set of what a contender steps on."""

    def results(self, returned: Any) -> Sequence[Sequence[Tensor]]:
        """What the steps have changed, the last of which returned this (before the first: None), in parts: each is
        compared on its own scale."""


@dataclass(frozen=True)
class Contender(ABC):
    name: str
    words: str
    build: Callable[[Any], Step]
    """Of a set that a case draws."""

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("pytl")

    @abstractmethod
    def bytes_per_element(self, dtype: torch.dtype) -> int | None:
        """What must be moved, each operand once a pass; None where bytes say nothing."""


@dataclass(frozen=True)
class Case(ABC):
    name: str
    words: str
    pairings: tuple[Pairing, ...]
    _: KW_ONLY
    dtype: torch.dtype = torch.float32
    quick: bool = False
    """Whether it is part of a quick run."""
    fills_memory: bool = False
    """Whether the contenders, with one set each, have the device one after the other, and so are not compared."""

    @property
    def title(self) -> str:
        return self.words

    @property
    @abstractmethod
    def elements(self) -> int:
        """Of one set; bytes are counted for each."""

    @abstractmethod
    def sets(self, rotated_bytes: int) -> int:
        """How many each contender steps on in turn, so that no cache keeps them."""

    @abstractmethod
    def needed_bytes(self, sets: int) -> int:
        """What both contenders take with so many sets each."""

    @abstractmethod
    def draw(self, seed: int, place: torch.device) -> Drawn:
        """The same numbers for the same seed."""

    @abstractmethod
    def record(self, **figures: Any) -> Comparison:
        """The figures, with the case's size."""

    def memory(self, device: Device) -> Memory | None:
        """The most that steps hold at once, where that is asked for."""
        return None
