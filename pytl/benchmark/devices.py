"""Where the steps run, and all that this decides: timing, memory, allocations and what is recorded of the machine."""

from typing import Protocol

import torch

from pytl.benchmark.allocations import Allocations, allocations, peak_bytes
from pytl.benchmark.cuda import Cuda
from pytl.benchmark.machine import Machine, available_bytes, this_machine
from pytl.benchmark.parameters import CPU, cpu_rotated_bytes
from pytl.benchmark.timing import Spread, Step, Timed, copy_rate, timed_on_cpu
from pytl.ops import core


class Device(Protocol):
    @property
    def place(self) -> torch.device: ...

    @property
    def timed(self) -> Timed: ...

    def available_bytes(self) -> int: ...

    def rotated_bytes(self) -> int:
        """Sets of data of this size together leave the caches."""

    def synchronize(self) -> None: ...

    def copy_rate(self) -> Spread: ...

    def allocations(self, step: Step) -> Allocations: ...

    def peak_bytes(self, step: Step) -> int:
        """The most that a step holds at once, beyond what was there before it."""

    def machine(self) -> Machine: ...


class Cpu:
    place = CPU
    timed = staticmethod(timed_on_cpu)
    available_bytes = staticmethod(available_bytes)
    rotated_bytes = staticmethod(cpu_rotated_bytes)
    copy_rate = staticmethod(copy_rate)
    allocations = staticmethod(allocations)
    peak_bytes = staticmethod(peak_bytes)
    machine = staticmethod(this_machine)

    def synchronize(self) -> None:
        pass


def find_device(name: str) -> Device:
    """Raises ValueError where nothing can be timed there."""
    if name == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise ValueError(f"--device cuda must have a GPU that torch sees; torch {torch.__version__} sees none")
    place = torch.device("cuda", 0)
    if reason := core.why_not(place, torch.float32):
        raise ValueError(f"--device cuda must be served by pytl's core; it is not: {reason}")
    return Cuda(place)
