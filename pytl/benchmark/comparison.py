"""One pairing of a case: the same results first, then the times."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pytl.benchmark.attempt import Disagreement, attempt
from pytl.benchmark.case import Case
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.corner import AGREEMENT_STEPS, Corner, Setting
from pytl.benchmark.deadline import Deadline
from pytl.benchmark.devices import Cpu, Device
from pytl.benchmark.pairing import Pairing
from pytl.benchmark.records import Comparison, Measurement, NotTimed
from pytl.benchmark.timing import Sample, spread, time_rounds
from pytl.benchmark.verdicts import judge

ALLOWED_DISAGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Norm of the results' difference over norm of their change. In bfloat16 rounding is some percent of a step's."""


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
    within = limits._replace(seconds=min(limits.seconds, max(0, deadline.left)))
    found = attempt(lambda: _compare(case, pairing, within, device or Cpu()), deadline)
    if isinstance(found, Comparison):
        return found
    ours, rival = CONTENDERS[pairing.ours].words, CONTENDERS[pairing.rival].words
    return NotTimed(case.name, case.words, ours, rival, *found)


def _compare(case: Case, pairing: Pairing, limits: Limits, device: Device) -> Comparison:
    sets = case.sets(device.rotated_bytes())
    _check_memory(case.needed_bytes(sets), device.available_bytes())
    setting = Setting(case, device, sets, device.copy_rate())
    times = (_one_after_the_other if case.fills_memory else _in_pairs)(setting, pairing, limits)
    ratio = spread(times.ratios)
    return case.record(
        case=case.name,
        words=case.title,
        dtype=str(case.dtype).removeprefix("torch."),
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
    found = _begun(ours, rival, same_results=pairing.same_results)
    ours.warm_up()
    rival.warm_up()
    samples = time_rounds([ours.steps, rival.steps], setting.device.timed, *limits)
    ours_taken, rivals_taken = ([pair[i] for pair in samples] for i in range(2))
    ratios = _ratios(ours_taken, rivals_taken)
    return _Times(ours.measured(ours_taken), rival.measured(rivals_taken), ratios, found)


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


def _begun(ours: Corner, rival: Corner, *, same_results: bool) -> float | None:
    """The first steps; how far their results differ. Raises Disagreement."""
    set_of_ours, set_of_rivals = ours.sets[0], rival.sets[0]
    before = [[t.detach().clone() for t in part] for part in set_of_ours.results(None)] if same_results else []
    returned = ours.begin(), rival.begin()
    if not same_results:
        return None
    parts = zip(set_of_ours.results(returned[0]), set_of_rivals.results(returned[1]), before, strict=True)
    return _agreed([disagreement(*part) for part in parts], ALLOWED_DISAGREEMENT[ours.setting.case.dtype])


def _agreed(differences: Sequence[float], allowed: float) -> float:
    """The greatest. Raises Disagreement."""
    found = torch.tensor(differences).max().item()  # NaN where one is
    if not found <= allowed:
        raise Disagreement(
            f"after {AGREEMENT_STEPS} steps the results differ by {found:.1e} of their change; allowed {allowed:.0e}"
        )
    return found


def disagreement(ours: Sequence[Tensor], rival: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Norm of the difference over norm of the movement."""
    return _distance(ours, rival) / _distance(ours, before)


@torch.no_grad()
def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    squares = [(a.float() - b.float()).norm().double().square() for a, b in zip(some, others, strict=True)]
    return torch.stack(squares).sum().sqrt().item()
