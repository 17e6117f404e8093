"""Periods and their rate: tables made by hand, torch's warm restarts, and what holds for every cut."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytl.periods import Periods

CUTS = {  # steps, periods, steps of an epoch -> boundaries
    (12, 1, None): [0, 12],
    (12, 2, None): [0, 6, 12],
    (12, 3, None): [0, 4, 8, 12],
    (12, 12, None): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    (10, 3, None): [0, 3, 7, 10],
    (10, 4, None): [0, 2, 5, 8, 10],
    (7, 4, None): [0, 2, 4, 5, 7],
    (12, 3, 1): [0, 4, 8, 12],
    (40, 3, 4): [0, 12, 28, 40],
    (12, 2, 4): [0, 8, 12],
    (12, 3, 4): [0, 4, 8, 12],
    (1, 1, 1): [0, 1],
}
RATES = {  # after how many of 40 steps, in periods of 12, 16 and 12 -> the factor
    0: 1.0,
    3: 0.85355339,
    6: 0.5,
    9: 0.14644661,
    12: 1.0,
    16: 0.85355339,
    20: 0.5,
    24: 0.14644661,
    28: 1.0,
    31: 0.85355339,
    34: 0.5,
    37: 0.14644661,
    39: 0.01703709,
    40: 0.0,
    41: 0.0,
    1000: 0.0,
}


@pytest.mark.parametrize("cut", CUTS)
def test_boundaries_are_those_of_the_table(cut: tuple[int, int, int | None]) -> None:
    periods = Periods(*cut)
    assert periods.boundaries == CUTS[cut]
    assert periods.resets == CUTS[cut][1:-1]


@pytest.mark.parametrize("step", RATES)
def test_the_rate_falls_from_one_to_zero_in_each_period_and_stays_there(step: int) -> None:
    assert Periods(40, 3, 4).cosine(step) == pytest.approx(RATES[step], abs=1e-8)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Periods, int]:
    """Any cut, and its unit."""
    unit, units = draw(st.one_of(st.none(), st.integers(1, 9))), draw(st.integers(1, 200))
    return Periods(units * (unit or 1), draw(st.integers(1, units)), unit), unit or 1


@given(cuts())
def test_periods_fill_the_run_and_differ_by_one_unit_at_most(cut: tuple[Periods, int]) -> None:
    periods, unit = cut
    bounds = periods.boundaries
    lengths = {end - begin for begin, end in pairwise(bounds)}
    assert (bounds[0], bounds[-1], len(bounds)) == (0, periods.total_steps, periods.count + 1)
    assert min(lengths) > 0
    assert max(lengths) - min(lengths) <= unit
    assert all(bound % unit == 0 for bound in bounds)


@given(cuts())
def test_rates_lie_in_range_fall_within_a_period_and_begin_anew(cut: tuple[Periods, int]) -> None:
    periods, _ = cut
    rates = [periods.cosine(step) for step in range(periods.total_steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    for step in range(periods.total_steps):
        if step in periods.boundaries:
            assert rates[step] == 1
        else:
            assert rates[step] < rates[step - 1]


@given(st.integers(1, 20), st.integers(1, 5))
def test_equal_periods_are_torchs_warm_restarts(length: int, count: int) -> None:
    opt = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, length)
    periods = Periods(length * count, count)
    for step in range(length * count):
        assert periods.cosine(step) == pytest.approx(opt.param_groups[0]["lr"], abs=1e-12)
        opt.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ((6, 0), "periods must be in [1, total_steps = 6]; got 0"),
        ((6, -1), "periods must be in [1, total_steps = 6]; got -1"),
        ((6, 7), "periods must be in [1, total_steps = 6]; got 7"),
        ((0, 1), "periods must be in [1, total_steps = 0]; got 1"),
        ((12, 4, 4), "periods must be in [1, epochs = 3]; got 4"),
        ((10, 2, 4), "total_steps must be whole epochs of 4 steps; got 10"),
        ((12, 2, 0), "total_steps must be whole epochs of 0 steps; got 12"),
        ((12, 2, -4), "total_steps must be whole epochs of -4 steps; got 12"),
    ],
)
def test_bad_cuts_are_named(cut: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Periods(*cut)
