"""pytl.StrengthSchedule: the strengths by hand, and as state of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pytl

BY_HAND = {
    "constant": [1, 1, 1, 1, 1, 1],
    "linear": [1, 0.775, 0.55, 0.325, 0.1, 0.1],
    "cosine": [1, 0.868198, 0.55, 0.231802, 0.1, 0.1],
    "geometric": [1, 0.562341, 0.316228, 0.177828, 0.1, 0.1],
}


def optimizer(sp_decay: float = 0.4) -> Any:
    p, head = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    return pytl.SGD([{"params": [p]}, {"params": [head], "sp_decay": 0.0}], sp_decay=sp_decay)


@pytest.mark.parametrize("shape", BY_HAND)
def test_strengths_follow_the_table(shape: str) -> None:
    opt = optimizer()
    schedule = pytl.StrengthSchedule(opt, shape, total=4, end=0.1)
    seen = []
    for _ in BY_HAND[shape]:
        seen.append(opt.param_groups[0]["sp_decay"] / 0.4)
        assert opt.param_groups[1]["sp_decay"] == 0
        schedule.step()
    assert seen == pytest.approx(BY_HAND[shape], abs=1e-6)


def test_grods_released_strengths() -> None:
    opt = optimizer(0.1)
    schedule = pytl.StrengthSchedule(opt, "geometric", total=40, end=0.99**40)
    for epoch in range(40):
        assert opt.param_groups[0]["sp_decay"] == pytest.approx(0.1 * 0.99**epoch)
        schedule.step()


def test_schedule_survives_resume() -> None:
    opt = optimizer()
    schedule = pytl.StrengthSchedule(opt, "cosine", total=5)
    schedule.step()
    schedule.step()
    again = optimizer()
    resumed = pytl.StrengthSchedule(again, "cosine", total=5)
    again.load_state_dict(opt.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(4):
        schedule.step()
        resumed.step()
        assert again.param_groups[0]["sp_decay"] == opt.param_groups[0]["sp_decay"]


def test_start_is_taken_at_the_first_step_even_where_the_strength_is_zero_by_then() -> None:
    opt = optimizer()
    pytl.StrengthSchedule(opt, "linear", total=1, end=0.0).step()
    p = opt.param_groups[0]["params"][0]
    p.grad = torch.ones(3)
    opt.step()
    assert torch.equal(opt.state[p]["start"].float(), torch.ones(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "square"}, "shape must be one of constant, linear, cosine, geometric; got 'square'"),
        ({"total": 0}, "total must be >= 1; got 0"),
        ({"end": -1.0}, "end must be >= 0"),
        ({"shape": "geometric", "end": 0.0}, "end must be .* > 0 for geometric"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pytl.StrengthSchedule(optimizer(), **options)


def test_another_schedule_is_not_loaded() -> None:
    saved = pytl.StrengthSchedule(optimizer(), "linear", total=3).state_dict()
    with pytest.raises(ValueError, match=r"the saved schedule must be this one.*'total': 4.*got.*'total': 3"):
        pytl.StrengthSchedule(optimizer(), "linear", total=4).load_state_dict(saved)


def test_an_optimizer_without_strengths_is_refused() -> None:
    with pytest.raises(ValueError, match="sp_decay"):
        pytl.StrengthSchedule(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
