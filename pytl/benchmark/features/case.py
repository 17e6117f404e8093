"""Features of one shape, or a small network: what is drawn, and how much of it."""

from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any

import torch

from pytl.benchmark.case import Case
from pytl.benchmark.devices import Device
from pytl.benchmark.features.inputs import FeatureSet
from pytl.benchmark.features.memory import memory_of_steps
from pytl.benchmark.features.network import activations
from pytl.benchmark.features.training import TrainingSet
from pytl.benchmark.parameters import sets_of
from pytl.benchmark.records import FeatureComparison, Memory


@dataclass(frozen=True)
class FeatureCase(Case):
    shape: tuple[int, ...]
    _: KW_ONLY
    order: torch.memory_format = torch.contiguous_format
    temporaries: int = 8
    """Tensors of the features' size that the task's gradients, both contenders' results and a rival take at most."""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def sets(self, rotated_bytes: int) -> int:
        return sets_of(2 * self.elements * self.dtype.itemsize, rotated_bytes)

    def needed_bytes(self, sets: int) -> int:
        return (2 * 2 * sets + self.temporaries) * self.elements * self.dtype.itemsize

    def draw(self, seed: int, place: torch.device) -> FeatureSet:
        return FeatureSet(self.shape, self.order, self.dtype, seed, place)

    def record(self, **figures: Any) -> FeatureComparison:
        return FeatureComparison(shape=self.shape, elements=self.elements, **figures)


@dataclass(frozen=True)
class TrainingCase(Case):
    """Steps of a small network on batches of this shape."""

    batch: tuple[int, ...]
    width: int
    """Channels of the first stage."""

    @property
    def elements(self) -> int:
        return activations(self.batch, self.width)

    def sets(self, rotated_bytes: int) -> int:
        return 1

    def needed_bytes(self, sets: int) -> int:
        """Activations, their gradients and as much again, of both contenders' networks and sources."""
        return 2 * 4 * self.elements * self.dtype.itemsize

    def draw(self, seed: int, place: torch.device) -> TrainingSet:
        return TrainingSet(self.batch, self.width, seed, place)

    def record(self, **figures: Any) -> FeatureComparison:
        return FeatureComparison(shape=self.batch, elements=self.elements, **figures)

    def memory(self, device: Device) -> Memory:
        return memory_of_steps(self.name, self.words, lambda: self.draw(0, device.place), device)
