"""A contender with its parameter sets: its first steps, its warm-up, and what its samples say."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pytl.benchmark.cases import Case
from pytl.benchmark.contenders import Contender
from pytl.benchmark.devices import Device
from pytl.benchmark.parameters import random_set
from pytl.benchmark.records import DeviceMeasurement, Measurement
from pytl.benchmark.rivals import Step
from pytl.benchmark.shapes import elements
from pytl.benchmark.timing import Sample, Spread, spread

AGREEMENT_STEPS = 3


@dataclass(frozen=True)
class Setting:
    """What both contenders have in common."""

    case: Case
    device: Device
    sets: int
    copied: Spread
    """The copy rate, in 1e9 bytes a second."""


class Corner:
    def __init__(self, contender: Contender, setting: Setting) -> None:
        case, place = setting.case, setting.device.place
        self.contender, self.setting = contender, setting
        self.sets = [random_set(case.shapes(), case.dtype, seed, place) for seed in range(setting.sets)]
        self.steps: list[Step] = [contender.build(one) for one in self.sets]
        self.first_step_seconds = 0.0

    def begin(self) -> None:
        begin = perf_counter()
        self.steps[0]()
        self.setting.device.synchronize()
        self.first_step_seconds = perf_counter() - begin
        for _ in range(AGREEMENT_STEPS - 1):
            self.steps[0]()

    def warm_up(self) -> None:
        for _ in range(2):  # on its first step a set gets its moments
            for step in self.steps:
                step()

    def measured(self, samples: Sequence[Sample]) -> Measurement:
        case, contender = self.setting.case, self.contender
        milliseconds = spread([1e3 * sample.wall for sample in samples])
        moved = contender.bytes_per_parameter(case.dtype)
        rate = moved * elements(case.shapes()) / milliseconds.p50 / 1e6
        known: dict[str, Any] = {
            "name": contender.name,
            "words": contender.words,
            "milliseconds": milliseconds,
            "bytes_per_parameter": moved,
            "gigabytes_per_second": rate,
            "share_of_copy_rate": rate / self.setting.copied.p50,
            "cores": spread([sample.cpu / max(sample.wall, sample.host or 0) for sample in samples]).p50,
            "first_step_seconds": self.first_step_seconds,
            "allocations": self.setting.device.allocations(self.steps[0]) if contender.is_ours else None,
        }
        hosts = [1e6 * sample.host for sample in samples if sample.host is not None]
        return DeviceMeasurement(**known, host_microseconds=spread(hosts)) if hosts else Measurement(**known)
