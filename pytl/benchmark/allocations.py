"""What a step in steady state takes from torch's allocator, by torch's profiler."""

import os
from dataclasses import dataclass
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile

from pytl.benchmark.timing import Step


@dataclass(frozen=True)
class Allocations:
    """Memory that C++ takes elsewhere is not seen."""

    count: int
    bytes: int


def allocations(step: Step) -> Allocations:
    """Profiles one step; take it when the optimizer's state exists."""
    taken = [change for change in _changes(step) if change > 0]
    return Allocations(len(taken), sum(taken))


def peak_bytes(step: Step) -> int:
    """The most that one step holds at once, beyond what was there before it."""
    return max(accumulate(_changes(step)), default=0)


def net_bytes(step: Step) -> int:
    """What is left of a step's allocations after it."""
    return sum(_changes(step))


def _changes(step: Step) -> list[int]:
    """Bytes of each allocation, negative of each release, in their order."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints two lines each time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results = profiled.profiler.kineto_results if profiled.profiler else None
    events = [event for event in (results.events() if results else []) if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
