"""One pairing on one list of shapes: the same weights first, then the times."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from pytl.benchmark.allocations import allocations
from pytl.benchmark.cases import BYTES_PER_PARAMETER, Case, Pairing, Quantity, Target
from pytl.benchmark.contenders import CONTENDERS, Contender
from pytl.benchmark.machine import available_bytes
from pytl.benchmark.parameters import random_set, sets_to_rotate
from pytl.benchmark.records import Comparison, Measurement, NotTimed, Verdict
from pytl.benchmark.rivals import Step
from pytl.benchmark.shapes import elements
from pytl.benchmark.timing import Sample, Spread, copy_rate, spread, time_pairs

_AGREEMENT_STEPS = 3
ALLOWED_DISAGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Norm of the weights' difference over norm of their movement. In bfloat16 rounding is some percent of a movement."""


class Disagreement(Exception):
    """Two contenders that should compute the same weights do not: there is nothing to time."""


class Limits(NamedTuple):
    pairs: int
    seconds: float


class _Corner:
    """A contender with its parameter sets."""

    def __init__(self, contender: Contender, case: Case, sets: int) -> None:
        self.contender = contender
        self.sets = [random_set(case.shapes(), case.dtype, seed) for seed in range(sets)]
        self.steps: list[Step] = [contender.build(one) for one in self.sets]
        self.first_step_seconds = 0.0

    def begin(self) -> None:
        begin = perf_counter()
        self.steps[0]()
        self.first_step_seconds = perf_counter() - begin
        for _ in range(_AGREEMENT_STEPS - 1):
            self.steps[0]()

    def warm_up(self) -> None:
        for _ in range(2):  # on its first step a set gets its moments
            for step in self.steps:
                step()


def compare(case: Case, pairing: Pairing, limits: Limits) -> Comparison | NotTimed:
    """Times a pairing, or says why not."""
    try:
        return _compare(case, pairing, limits)
    except Disagreement as found:
        reason, is_failure = str(found), True
    except (RuntimeError, MemoryError) as error:
        reason, is_failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", False
    ours, rival = CONTENDERS[pairing.ours].words, CONTENDERS[pairing.rival].words
    return NotTimed(case.name, case.words, ours, rival, reason, is_failure)


def _compare(case: Case, pairing: Pairing, limits: Limits) -> Comparison:
    shapes = case.shapes()
    sets = 1 if case.in_cache else sets_to_rotate(shapes, case.dtype)
    _check_memory(sets * elements(shapes) * BYTES_PER_PARAMETER)
    copied = copy_rate()
    ours, rival = (_Corner(CONTENDERS[name], case, sets) for name in (pairing.ours, pairing.rival))
    before = [w.detach().clone() for w in ours.sets[0].weights]
    ours.begin()
    rival.begin()
    disagreement = None
    if pairing.same_weights:
        disagreement = _agreed(ours.sets[0].weights, rival.sets[0].weights, before)
    del before
    ours.warm_up()
    rival.warm_up()
    samples = time_pairs(ours.steps, rival.steps, *limits)
    ratio = spread([one.wall / other.wall for one, other in samples])
    measured = _measure(ours, [one for one, _ in samples], case, copied)
    return Comparison(
        case=case.name,
        words=case.words,
        dtype=str(case.dtype).removeprefix("torch."),
        tensors=len(shapes),
        parameters=elements(shapes),
        sets=sets,
        pairs=len(samples),
        ours=measured,
        rival=_measure(rival, [other for _, other in samples], case, copied),
        copy_gigabytes_per_second=copied,
        ratio=ratio,
        disagreement=disagreement,
        verdict=judge(pairing.target, ratio, measured) if pairing.target else None,
    )


def _check_memory(needed: int) -> None:
    if needed > (available := available_bytes()):
        raise MemoryError(f"needs {needed / 2**30:.1f} GiB of memory; {available / 2**30:.1f} GiB are available")


def _agreed(ours: Sequence[Tensor], rival: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Raises Disagreement."""
    found = disagreement(ours, rival, before)
    allowed = ALLOWED_DISAGREEMENT[ours[0].dtype]
    if not found <= allowed:
        raise Disagreement(
            f"after {_AGREEMENT_STEPS} steps the weights differ by {found:.1e} of their movement; allowed {allowed:.0e}"
        )
    return found


def disagreement(ours: Sequence[Tensor], rival: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Norm of the difference over norm of the movement."""
    return _distance(ours, rival) / _distance(ours, before)


@torch.no_grad()
def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    squares = [(a.float() - b.float()).norm().double().square() for a, b in zip(some, others, strict=True)]
    return torch.stack(squares).sum().sqrt().item()


def _measure(corner: _Corner, samples: Sequence[Sample], case: Case, copied: Spread) -> Measurement:
    milliseconds = spread([1e3 * sample.wall for sample in samples])
    moved = corner.contender.bytes_per_parameter(case.dtype)
    rate = moved * elements(case.shapes()) / milliseconds.p50 / 1e6
    return Measurement(
        name=corner.contender.name,
        words=corner.contender.words,
        milliseconds=milliseconds,
        bytes_per_parameter=moved,
        gigabytes_per_second=rate,
        share_of_copy_rate=rate / copied.p50,
        cores=spread([sample.cpu / sample.wall for sample in samples]).p50,
        first_step_seconds=corner.first_step_seconds,
        allocations=allocations(corner.steps[0]) if corner.contender.is_ours else None,
    )


_VALUES: dict[Quantity, Callable[[Spread, Measurement], float]] = {
    "time ratio": lambda ratio, ours: ratio.p50,
    "speed-up": lambda ratio, ours: 1 / ratio.p50,
    "microseconds": lambda ratio, ours: 1e3 * ours.milliseconds.p50,
    "share of cores": lambda ratio, ours: ours.cores / torch.get_num_threads(),
}


def judge(target: Target, ratio: Spread, ours: Measurement) -> Verdict:
    value = _VALUES[target.quantity](ratio, ours)
    met = target.is_met(value)
    return Verdict(str(target), target.shown(value), met, 0.0 if met else abs(value / target.limit - 1))
