"""What was found against what was asked for."""

import torch

from pytl.benchmark.pairing import Target
from pytl.benchmark.records import DeviceMeasurement, Measurement, Verdict
from pytl.benchmark.timing import Spread


def judge(target: Target, ratio: Spread, ours: Measurement, rival: Measurement) -> Verdict:
    value = _value(target, ratio, ours)
    met = target.is_met(value)
    found = target.shown(value) + _beside(target, ours, rival)
    return Verdict(str(target), found, met, 0.0 if met else abs(value / target.limit - 1))


def _value(target: Target, ratio: Spread, ours: Measurement) -> float:
    return {
        "time ratio": lambda: ratio.p50,
        "speed-up": lambda: 1 / ratio.p50,
        "microseconds": lambda: 1e3 * ours.milliseconds.p50,
        "share of cores": lambda: ours.cores / torch.get_num_threads(),
        "host microseconds": lambda: _host_microseconds(ours),
        "floor ratio": lambda: _over_floor(ours, target.bytes_per_element),
        "share of copy rate": lambda: _share(ours),
    }[target.quantity]()


def _host_microseconds(measured: Measurement) -> float:
    assert isinstance(measured, DeviceMeasurement), "a target for the host's part is for steps on a GPU"
    return measured.host_microseconds.p50


def _share(ours: Measurement) -> float:
    assert ours.share_of_copy_rate is not None, "a target for bytes is for contenders whose bytes are known"
    return ours.share_of_copy_rate


def _over_floor(ours: Measurement, bytes_per_element: int) -> float:
    """Time over that of moving so many bytes at the copy rate."""
    return (ours.bytes_per_element or 0) / _share(ours) / bytes_per_element


def _beside(target: Target, ours: Measurement, rival: Measurement) -> str:
    """The figure that a found one is easily mistaken for: the floor of one read, or what the hosts' parts say."""
    if target.quantity == "floor ratio":
        once = ours.bytes_per_element or 0
        return "" if once == target.bytes_per_element else f" ({_over_floor(ours, once):.2f} of the {once} B floor)"
    if target.quantity == "speed-up" and isinstance(ours, DeviceMeasurement):
        return f" (on the host {_host_microseconds(rival) / _host_microseconds(ours):.1f}x)"
    return ""
