"""What a step in steady state takes from torch's allocator."""

import os
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

from pytl.benchmark.rivals import Step


@dataclass(frozen=True)
class Allocations:
    """As torch's profiler records them; memory that C++ takes elsewhere is not seen."""

    count: int
    bytes: int


def allocations(step: Step) -> Allocations:
    """Profiles one step; take it when the optimizer's state exists."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints two lines each time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results = profiled.profiler.kineto_results if profiled.profiler else None
    events = results.events() if results else []
    taken = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    return Allocations(len(taken), sum(taken))
