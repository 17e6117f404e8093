"""What may fail, and must not end the run: out of time, out of memory, a fault, a disagreement."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from pytl.benchmark.deadline import Deadline, OutOfTime

Found = TypeVar("Found")


class Disagreement(Exception):
    """Two contenders that should compute the same do not: there is nothing to time."""


class Failed(NamedTuple):
    reason: str
    is_failure: bool
    """Whether code is wrong; else memory, a compiler or time is missing."""


def attempt(act: Callable[[], Found], deadline: Deadline) -> Found | Failed:
    try:
        with deadline.enforced():
            return act()
    except Disagreement as found:
        return Failed(str(found), is_failure=True)
    except OutOfTime:
        return Failed("out of time", is_failure=False)
    except Exception as error:
        if deadline.left <= 0:  # a compiler wraps what interrupts it
            return Failed("out of time", is_failure=False)
        return Failed(f"{type(error).__name__}: {[*str(error).strip().splitlines(), ''][0]}", _is_fault(error))


def _is_fault(error: Exception) -> bool:
    """A GPU's faults are RuntimeErrors too."""
    return isinstance(error, torch.AcceleratorError) or not isinstance(error, RuntimeError | MemoryError)
