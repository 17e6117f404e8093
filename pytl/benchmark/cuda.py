"""Timing on a GPU: the device by events, the host's part of a step by the host's clocks."""

import gc
from collections.abc import Iterator, Sequence

import torch

from pytl.benchmark.allocations import Allocations
from pytl.benchmark.gpu import GpuMachine, this_gpu
from pytl.benchmark.timing import COPIES, Sample, Spread, Step, clocked, spread

_COPIED = 1 << 28  # elements: 1 GiB in float32
_CACHES_LEFT = 4  # as many times the L2 cache lies between two steps on one set
_CYCLES_PER_SECOND = 2e9  # no GPU's clock is much faster; where it is slower, a head start is longer
_LONGEST_HEAD_START = 0.2  # seconds


def free_bytes(place: torch.device | int = 0) -> int:
    """Of the device, once torch has given back what it keeps of freed memory."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(place)[0]


class Cuda:
    """One GPU, on its current stream."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(self, turns: Sequence[Iterator[Step]]) -> list[Sample]:
        """Two steps of each contender: one for the host's clock, then one for the device's."""
        handed = [self._handed_over(next(steps)) for steps in turns]
        device = [self.device_seconds(next(steps), host.wall) for steps, host in zip(turns, handed, strict=True)]
        return [Sample(seconds, host.cpu, host.wall) for seconds, host in zip(device, handed, strict=True)]

    def _handed_over(self, step: Step) -> Sample:
        """On an idle device, so that no full queue holds the host."""
        self.synchronize()
        return clocked(step)

    def device_seconds(self, step: Step, host_seconds: float) -> float:
        """Of a step that the host hands over while the device is busy, as it is in training with a backward pass."""
        head_start = min(2 * host_seconds + 1e-4, _LONGEST_HEAD_START)
        self.synchronize()
        torch.cuda._sleep(int(_CYCLES_PER_SECOND * head_start))
        self._begin.record()
        step()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.place)

    def available_bytes(self) -> int:
        return free_bytes(self.place)

    def rotated_bytes(self) -> int:
        return _CACHES_LEFT * int(torch.cuda.get_device_properties(self.place).L2_cache_size)

    def copy_rate(self) -> Spread:
        """Of ``Tensor.copy_`` on 1 GiB, in 1e9 bytes a second, bytes read and written."""
        source = torch.randn(1 << 20, device=self.place).repeat(_COPIED >> 20)
        target = torch.empty_like(source)
        seconds = [self.device_seconds(lambda: target.copy_(source), 0) for _ in range(COPIES + 2)][2:]
        return spread([2 * source.nbytes / one / 1e9 for one in seconds])

    def allocations(self, step: Step) -> Allocations:
        """By the counters of torch's allocator."""
        before = torch.cuda.memory_stats(self.place)
        step()
        after = torch.cuda.memory_stats(self.place)
        taken = (after[key] - before[key] for key in ("allocation.all.allocated", "allocated_bytes.all.allocated"))
        return Allocations(*taken)

    def peak_bytes(self, step: Step) -> int:
        """By the same counters, which count blocks of 512 bytes."""
        before = int(torch.cuda.memory_allocated(self.place))
        torch.cuda.reset_peak_memory_stats(self.place)
        step()
        return int(torch.cuda.max_memory_allocated(self.place)) - before

    def machine(self) -> GpuMachine:
        return this_gpu(self.place, self.copy_rate())
