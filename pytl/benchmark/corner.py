"""A contender with its sets of data: its first steps, its warm-up, and what its samples say."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pytl.benchmark.case import Case, Contender
from pytl.benchmark.devices import Device
from pytl.benchmark.records import DeviceMeasurement, Measurement
from pytl.benchmark.timing import Sample, Spread, Step, spread

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
        self.sets = [case.draw(seed, place) for seed in range(setting.sets)]
        self.steps: list[Step] = [contender.build(one) for one in self.sets]
        self.first_step_seconds = 0.0

    def begin(self) -> Any:
        """Takes the first steps; what the last one returns."""
        begin = perf_counter()
        returned = self.steps[0]()
        self.setting.device.synchronize()
        self.first_step_seconds = perf_counter() - begin
        for _ in range(AGREEMENT_STEPS - 1):
            returned = self.steps[0]()
        return returned

    def warm_up(self) -> None:
        for _ in range(2):  # on its first step a set gets its moments
            for step in self.steps:
                step()

    def measured(self, samples: Sequence[Sample]) -> Measurement:
        contender, milliseconds = self.contender, spread([1e3 * sample.wall for sample in samples])
        known: dict[str, Any] = {
            "name": contender.name,
            "words": contender.words,
            "milliseconds": milliseconds,
            **self._rates(milliseconds.p50),
            "cores": spread([sample.cpu / max(sample.wall, sample.host or 0) for sample in samples]).p50,
            "first_step_seconds": self.first_step_seconds,
            "allocations": self.setting.device.allocations(self.steps[0]) if contender.is_ours else None,
        }
        hosts = [1e6 * sample.host for sample in samples if sample.host is not None]
        return DeviceMeasurement(**known, host_microseconds=spread(hosts)) if hosts else Measurement(**known)

    def _rates(self, milliseconds: float) -> dict[str, float | None]:
        moved = self.contender.bytes_per_element(self.setting.case.dtype)
        rate = None if moved is None else moved * self.setting.case.elements / milliseconds / 1e6
        share = None if rate is None else rate / self.setting.copied.p50
        return {"bytes_per_element": moved, "gigabytes_per_second": rate, "share_of_copy_rate": share}
