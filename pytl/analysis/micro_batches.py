"""Samples that go through a network so many at a time, and fewer where memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

import torch

from pytl.batch import Batch
from pytl.seeding import undisturbed

T = TypeVar("T")

_SAID = ("out of memory", "can't allocate memory", "not enough memory")


class MicroBatches:
    """A loader's first samples, kept on a device, to be passed over again and again.

    Args:
        batches: as ``pytl.finetune`` takes them; read once, and no random number is drawn for good.
        device: where they are kept.
        samples: how many are taken; None: all.
        at_a_time: at most so many in one part; None: as many as a batch has.

    Attributes:
        samples: how many there are.
        at_a_time: now; halved, with a warning, where memory runs out.
        halvings: how often that was.

    Raises:
        ValueError: no batch, ``samples`` or ``at_a_time`` < 1.
    """

    def __init__(
        self, batches: Iterable[Any], device: torch.device, samples: int | None = None, at_a_time: int | None = None
    ) -> None:
        for name, count in (("samples", samples), ("batch", at_a_time)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be None or >= 1; got {count}")
        with undisturbed(batches):
            self.batches = [*_first(batches, device, samples)]
        if not all(one.samples for one in self.batches):
            raise ValueError("batches must have >= 1 sample each; got one with none")
        self.samples = sum(one.samples for one in self.batches)
        self.at_a_time = min(at_a_time or self.samples, max(one.samples for one in self.batches))
        self.halvings = 0

    def each(self, compute: Callable[[Batch], T]) -> Iterator[tuple[T, int]]:
        """What `compute` makes of each part, and the part's samples.

        Raises:
            MemoryError: one sample is too many.
        """
        for batch in self.batches:
            done = 0
            while done < batch.samples:
                part = batch.part(slice(done, done + self.at_a_time))
                try:
                    yield compute(part), part.samples
                    done += part.samples
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve(part.samples, str(error))

    def _halve(self, tried: int, error: str) -> None:
        if tried == 1:
            raise MemoryError(f"memory must hold one sample at a time; it does not: {error}") from None
        self.halvings, self.at_a_time = self.halvings + 1, tried // 2
        warnings.warn(
            f"memory ran out with {tried} samples at a time: going on with {self.at_a_time}",
            RuntimeWarning,
            stacklevel=2,
        )
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _first(batches: Iterable[Any], device: torch.device, samples: int | None) -> Iterator[Batch]:
    found = (Batch.of(one, device) for one in batches)
    first = next(found, None)
    if first is None:
        raise ValueError("batches must give at least one batch; got none: a generator gives its own only once")
    left = samples
    for one in chain([first], found):
        yield one if left is None else one.part(slice(0, left))
        if left is not None and (left := left - one.samples) <= 0:
            return


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's, torch's on the CPU, which is a plain RuntimeError, or Python's."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in str(error) for words in _SAID)
