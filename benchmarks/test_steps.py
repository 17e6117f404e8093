"""The steps of ``pytl bench`` one by one, under pytest-benchmark: for a profile, or to compare two commits.

    pytest benchmarks/test_steps.py --benchmark-autosave
    pytest benchmarks/test_steps.py -k "tiny and not autograd" --benchmark-compare

Ratios between contenders are what ``pytl bench`` is for: it takes both steps in turn.
"""

from itertools import cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pytl.benchmark.cases import CASES, Case
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.parameters import random_set, sets_to_rotate

SMALL = [case for case in CASES.values() if case.quick]
STEPS = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in SMALL
    for name in dict.fromkeys(name for pairing in case.pairings for name in (pairing.rival, pairing.ours))
    if name != "compiled"
]


@pytest.mark.parametrize(("case", "name"), STEPS)
def test_step(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    sets = 1 if case.in_cache else sets_to_rotate(case.shapes(), case.dtype)
    steps = [CONTENDERS[name].build(random_set(case.shapes(), case.dtype, seed)) for seed in range(sets)]
    turns = cycle(steps)

    def step() -> None:
        next(turns)()

    benchmark.group = case.words
    benchmark.pedantic(step, rounds=30, warmup_rounds=2 * len(steps))
