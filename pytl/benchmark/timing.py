"""Timing in turns: both steps A B A B, so that what disturbs one disturbs the other."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import quantiles
from time import perf_counter, process_time
from typing import Any

import torch

Step = Callable[[], Any]

LEAST_ROUNDS = 5  # however long a step takes
COPIES = 9
_COPIED = 64 << 20  # elements: 256 MiB in float32, beyond every cache


@dataclass(frozen=True)
class Spread:
    p20: float
    p50: float
    p80: float

    def scaled(self, factor: float) -> "Spread":
        return Spread(factor * self.p20, factor * self.p50, factor * self.p80)


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(*3 * [values[0]])
    tenths = quantiles(values, n=10, method="inclusive")
    return Spread(tenths[1], tenths[4], tenths[7])


@dataclass(frozen=True)
class Sample:
    wall: float
    """Seconds; of a step on a GPU those of the device."""
    cpu: float
    """Seconds of all threads, those included in which a thread waits busily."""
    host: float | None = None
    """Seconds until the host has handed the step to the device; None where it takes the step itself."""


Timed = Callable[[Sequence[Iterator[Step]]], list[Sample]]
"""Takes the next step of each contender and times it."""


def time_rounds(contenders: Sequence[Sequence[Step]], timed: Timed, rounds: int, seconds: float) -> list[list[Sample]]:
    """Steps on each contender's parameter sets in turn; ends after ``rounds``, or after ``seconds`` and five rounds."""
    turns = [cycle(steps) for steps in contenders]
    taken: list[list[Sample]] = []
    with _without_garbage_collection():
        begin = perf_counter()
        while len(taken) < rounds and (len(taken) < LEAST_ROUNDS or perf_counter() - begin < seconds):
            taken.append(timed(turns))
    return taken


def timed_on_cpu(turns: Sequence[Iterator[Step]]) -> list[Sample]:
    return [clocked(next(steps)) for steps in turns]


def clocked(step: Step) -> Sample:
    """By the host's clocks."""
    cpu, wall = process_time(), perf_counter()
    step()
    wall = perf_counter() - wall
    return Sample(wall, process_time() - cpu)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def copy_rate() -> Spread:
    """Of ``Tensor.copy_`` on 256 MiB with torch's threads, in 1e9 bytes a second, bytes read and written.

    It is no bound: a copy's stores read the line first unless they bypass the caches, which this count leaves out; an
    optimizer writes lines that it has read anyway.
    """
    source = torch.randn(1 << 20).repeat(_COPIED >> 20)
    target = torch.empty_like(source).fill_(1)
    moved = 2 * source.nbytes
    return spread([moved / clocked(lambda: target.copy_(source)).wall / 1e9 for _ in range(COPIES)])
