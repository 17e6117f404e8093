"""One pairing on one list of shapes: the same weights first, then the times."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pytl.benchmark.cases import BYTES_PER_PARAMETER, Case, Pairing
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.corner import AGREEMENT_STEPS, Corner, Setting
from pytl.benchmark.deadline import Deadline, OutOfTime
from pytl.benchmark.devices import Cpu, Device
from pytl.benchmark.parameters import set_bytes, sets_to_rotate
from pytl.benchmark.records import Comparison, Measurement, NotTimed
from pytl.benchmark.shapes import elements
from pytl.benchmark.timing import Sample, spread, time_rounds
from pytl.benchmark.verdicts import judge

ALLOWED_DISAGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Norm of the weights' difference over norm of their movement. In bfloat16 rounding is some percent of a movement."""


class Disagreement(Exception):
    """Two contenders that should compute the same weights do not: there is nothing to time."""


class Limits(NamedTuple):
    pairs: int
    seconds: float


class _Times(NamedTuple):
    ours: Measurement
    rival: Measurement
    ratios: list[float]
    disagreement: float | None


def compare(
    case: Case, pairing: Pairing, limits: Limits, device: Device | None = None, deadline: Deadline | None = None
) -> Comparison | NotTimed:
    """Times a pairing, by default on the CPU and without a deadline, or says why not."""
    deadline = deadline or Deadline()
    try:
        with deadline.enforced():
            within = limits._replace(seconds=min(limits.seconds, deadline.left))
            return _compare(case, pairing, within, device or Cpu())
    except Disagreement as found:
        reason, is_failure = str(found), True
    except OutOfTime:
        reason, is_failure = "out of time", False
    except Exception as error:
        reason = f"{type(error).__name__}: {[*str(error).strip().splitlines(), ''][0]}"
        is_failure = _is_fault(error)
        if deadline.left <= 0:  # a compiler wraps what interrupts it
            reason, is_failure = "out of time", False
    ours, rival = CONTENDERS[pairing.ours].words, CONTENDERS[pairing.rival].words
    return NotTimed(case.name, case.words, ours, rival, reason, is_failure)


def _is_fault(error: Exception) -> bool:
    """Whether code is wrong; else memory or a compiler is missing. A GPU's faults are RuntimeErrors too."""
    return isinstance(error, torch.AcceleratorError) or not isinstance(error, RuntimeError | MemoryError)


def _compare(case: Case, pairing: Pairing, limits: Limits, device: Device) -> Comparison:
    shapes = case.shapes()
    one_set = case.in_cache or case.fills_memory
    sets = 1 if one_set else sets_to_rotate(shapes, case.dtype, device.rotated_bytes())
    needed = set_bytes(shapes, case.dtype) if case.fills_memory else sets * elements(shapes) * BYTES_PER_PARAMETER
    _check_memory(needed, device.available_bytes())
    setting = Setting(case, device, sets, device.copy_rate())
    times = (_one_after_the_other if case.fills_memory else _in_pairs)(setting, pairing, limits)
    ratio = spread(times.ratios)
    return Comparison(
        case=case.name,
        words=case.title,
        dtype=str(case.dtype).removeprefix("torch."),
        tensors=len(shapes),
        parameters=elements(shapes),
        sets=sets,
        pairs=len(times.ratios),
        ours=times.ours,
        rival=times.rival,
        copy_gigabytes_per_second=setting.copied,
        ratio=ratio,
        disagreement=times.disagreement,
        verdict=judge(pairing.target, ratio, times.ours, times.rival) if pairing.target else None,
    )


def _check_memory(needed: int, available: int) -> None:
    if needed > available:
        raise MemoryError(f"needs {needed / 2**30:.1f} GiB of memory; {available / 2**30:.1f} GiB are available")


def _in_pairs(setting: Setting, pairing: Pairing, limits: Limits) -> _Times:
    ours, rival = (Corner(CONTENDERS[name], setting) for name in (pairing.ours, pairing.rival))
    before = [w.detach().clone() for w in ours.sets[0].weights]
    ours.begin()
    rival.begin()
    disagreement = None
    if pairing.same_weights:
        disagreement = _agreed(ours.sets[0].weights, rival.sets[0].weights, before)
    del before
    ours.warm_up()
    rival.warm_up()
    samples = time_rounds([ours.steps, rival.steps], setting.device.timed, *limits)
    ours_taken, rivals_taken = ([pair[i] for pair in samples] for i in range(2))
    ratios = _ratios(ours_taken, rivals_taken)
    return _Times(ours.measured(ours_taken), rival.measured(rivals_taken), ratios, disagreement)


def _one_after_the_other(setting: Setting, pairing: Pairing, limits: Limits) -> _Times:
    (ours_taken, ours), (rivals_taken, rival) = (
        _alone(name, setting, limits) for name in (pairing.ours, pairing.rival)
    )
    return _Times(ours, rival, _ratios(ours_taken, rivals_taken), None)


def _alone(name: str, setting: Setting, limits: Limits) -> tuple[list[Sample], Measurement]:
    setting.device.available_bytes()  # gives back what the one before has left
    corner = Corner(CONTENDERS[name], setting)
    corner.begin()
    corner.warm_up()
    samples = [sample for (sample,) in time_rounds([corner.steps], setting.device.timed, *limits)]
    return samples, corner.measured(samples)


def _ratios(ours: Sequence[Sample], rival: Sequence[Sample]) -> list[float]:
    return [one.wall / other.wall for one, other in zip(ours, rival, strict=False)]  # alone, both may differ in number


def _agreed(ours: Sequence[Tensor], rival: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Raises Disagreement."""
    found = disagreement(ours, rival, before)
    allowed = ALLOWED_DISAGREEMENT[ours[0].dtype]
    if not found <= allowed:
        raise Disagreement(
            f"after {AGREEMENT_STEPS} steps the weights differ by {found:.1e} of their movement; allowed {allowed:.0e}"
        )
    return found


def disagreement(ours: Sequence[Tensor], rival: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Norm of the difference over norm of the movement."""
    return _distance(ours, rival) / _distance(ours, before)


@torch.no_grad()
def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    squares = [(a.float() - b.float()).norm().double().square() for a, b in zip(some, others, strict=True)]
    return torch.stack(squares).sum().sqrt().item()
