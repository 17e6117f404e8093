"""RIFLE's resets, rates and steps against tables made by hand, its resume, and what it leaves alone."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

import pytl
from pytl.training.fine_tuning import finetune
from pytl.training.methods import parse

pytestmark = pytest.mark.usefixtures("one_thread")

# Twelve steps, the head's rate 0.8 and the rest's 0.1; worked out with a pocket calculator.

RESETS = {1: [], 2: [6], 3: [4, 8]}  # periods -> after which steps the head is new

HEAD = {  # periods -> the head's rate in each step
    2: [0.8, 0.7464102, 0.6, 0.4, 0.2, 0.0535898, 0.8, 0.7464102, 0.6, 0.4, 0.2, 0.0535898],
    3: [0.8, 0.6828427, 0.4, 0.1171573, 0.8, 0.6828427, 0.4, 0.1171573, 0.8, 0.6828427, 0.4, 0.1171573],
}

SCHEDULES: dict[str, tuple[Callable[[Optimizer], Any], list[float], list[float]]] = {
    "steps": (  # -> the rest's rate in each step, and the head's where the schedule has it
        lambda opt: lr_scheduler.StepLR(opt, 5, 0.1),
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001],
        [0.8, 0.8, 0.8, 0.8, 0.8, 0.08, 0.08, 0.08, 0.08, 0.08, 0.008, 0.008],
    ),
    "cosine": (
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, 12),
        [0.1, 0.0982963, 0.0933013, 0.0853553, 0.075, 0.062941, 0.05, 0.037059, 0.025, 0.0146447, 0.0066987, 0.0017037],
        [0.8, 0.7863703, 0.7464102, 0.6828427, 0.6, 0.5035276, 0.4, 0.2964724, 0.2, 0.1171573, 0.0535898, 0.0136297],
    ),
    "warm-up": (
        lambda opt: lr_scheduler.LinearLR(opt, 0.25, total_iters=6),
        [0.025, 0.0375, 0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
    ),
}

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "pytl.SGD": lambda groups: pytl.SGD(groups, lr=0.1, momentum=0.9),
    "pytl.AdamW": lambda groups: pytl.AdamW(groups, lr=0.01),
    "torch.AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
}


def network(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    model.add_module("head", nn.Linear(6, 2))
    return model.to(dtype)


def optimizer(model: Any, kind: str = "pytl.SGD", **head: Any) -> Any:
    return OPTIMIZERS[kind]([{"params": [*model[0].parameters()]}, {"params": [*model.head.parameters()], **head}])


def step(model: nn.Module, opt: Optimizer, seed: int) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    model(x.to(next(model.parameters()).dtype)).square().mean().backward()
    opt.step()
    opt.zero_grad()


def trained(rifle: pytl.RIFLE, model: nn.Module, steps: int) -> list[int]:
    """The steps after which the head was replaced."""
    resets = []
    for at in range(steps):
        step(model, rifle.optimizer, at)
        if rifle.step():
            resets.append(at + 1)
    return resets


def rates(opt: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def states(opt: Optimizer, module: nn.Module) -> list[dict[str, Any]]:
    return [opt.state[p] for p in module.parameters() if p in opt.state]


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


# Tables


@pytest.mark.parametrize("sgd", [torch.optim.SGD, pytl.SGD])
@pytest.mark.parametrize("periods", RESETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resets_rates_and_steps_are_those_of_the_table(schedule: str, periods: int, sgd: type[Optimizer]) -> None:
    """Every gradient is 1, so a weight moves by its rate; a new head is 5."""
    make, rest_rates, head_rates = SCHEDULES[schedule]
    rest, head = (nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2))
    opt = sgd([{"params": [rest.weight]}, {"params": [head.weight], "lr": 0.8}], lr=0.1)
    scheduler = make(opt)
    rifle = pytl.RIFLE(head, opt, 12, periods, init=lambda module: module.weight.fill_(5.0))
    resets = []
    for at, wanted in enumerate(zip(rest_rates, HEAD.get(periods, head_rates), strict=True)):
        assert rates(opt) == pytest.approx(wanted, abs=1e-7)
        before = rest.weight.item(), head.weight.item()
        (rest.weight + head.weight).sum().backward()
        opt.step()
        opt.zero_grad()
        moved = before[0] - rest.weight.item(), before[1] - head.weight.item()
        assert moved == pytest.approx(wanted, abs=1e-7)
        scheduler.step()
        after = head.weight.item()
        new = rifle.step()
        assert head.weight.item() == (5.0 if new else after)
        resets += [at + 1] * new
    assert resets == RESETS[periods]


def test_whole_epochs_that_do_not_divide_evenly() -> None:
    """Ten epochs of four steps in three periods: of 12, 16 and 12 steps."""
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model, lr=0.8), 40, 3, steps_per_epoch=4)
    wanted = {0: 0.8, 3: 0.6828427, 6: 0.4, 11: 0.0136297, 12: 0.8, 16: 0.6828427, 20: 0.4, 24: 0.1171573, 28: 0.8}
    resets = []
    for at in range(40):
        assert rates(opt)[1] == pytest.approx(wanted.get(at, rates(opt)[1]), abs=1e-7)
        resets += [at + 1] * rifle.step()
    assert resets == [12, 28]


def test_one_call_an_epoch() -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model, lr=0.8), 10, 3)
    found = []
    for epoch in range(10):
        found.append(rates(opt)[1])
        for at in range(4):
            step(model, opt, at)
            assert rates(opt)[1] == found[-1]
        assert rifle.due == (epoch + 1 in (3, 7))
        assert rifle.step() == (epoch + 1 in (3, 7))
    third, fourth = [0.8, 0.6, 0.2], [0.8, 0.6828427, 0.4, 0.1171573]
    assert found == pytest.approx([*third, *fourth, *third], abs=1e-7)


def test_due_says_what_the_next_step_does_and_nothing_happens_after_the_last_boundary() -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model), 12, 3)
    dues = []
    for at in range(40):
        dues += [at + 1] * rifle.due
        before, due = model.head.weight.detach().clone(), rifle.due
        assert rifle.step() == due
        assert torch.equal(model.head.weight, before) == (not due)
        if at + 1 >= 12:
            assert rates(opt)[1] == 0
    assert dues == [4, 8]
    assert rifle.steps == 40


# The head's rate


@pytest.mark.parametrize("given", [None, 0.3])
def test_the_full_rate_is_given_or_the_groups_initial_one(given: float | None) -> None:
    """OneCycleLR's initial_lr is its maximum by 25, so that its user gives the rate."""
    model = network()
    opt = optimizer(model)
    lr_scheduler.OneCycleLR(opt, max_lr=[0.1, 0.5], total_steps=12)
    rifle = pytl.RIFLE(model.head, opt, 12, 2, lr=given)
    full = given or 0.02
    assert rates(opt)[1] == pytest.approx(full)
    for _ in range(3):
        rifle.step()
    assert rates(opt)[1] == pytest.approx(full / 2)


def test_a_rate_that_others_wrote_is_set_right() -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model, lr=0.8), 12, 3)
    rifle.step()
    for group in opt.param_groups:
        group["lr"] = 7.0
    rifle.set_rates()
    assert rates(opt) == pytest.approx([7.0, 0.6828427])


@pytest.mark.parametrize("options", [{"periods": 1}, {"cyclic_lr": False}])
def test_a_rate_that_is_not_cyclic_is_left_alone(options: dict[str, Any]) -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model), **{"total_steps": 12, "periods": 3, "lr": 0.3, **options})
    assert rates(opt) == [0.1, 0.1]
    opt.param_groups[1]["lr"] = 7.0
    rifle.step()
    rifle.set_rates()
    assert rates(opt) == [0.1, 7.0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sgd", [torch.optim.SGD, pytl.SGD])
def test_a_tensor_rate_is_filled_and_never_the_rests(sgd: type[Optimizer], shared: bool) -> None:
    """Torch gives all groups the same tensor."""
    model = network()
    head = {} if shared else {"lr": torch.tensor(0.8)}
    opt = sgd([{"params": model[0].parameters()}, {"params": model.head.parameters(), **head}], lr=torch.tensor(0.8))
    rifle = pytl.RIFLE(model.head, opt, 12, 3)
    own = opt.param_groups[1]["lr"]
    assert trained(rifle, model, 3) == []
    assert rates(opt) == pytest.approx([0.8, 0.1171573])
    assert opt.param_groups[1]["lr"] is own


# What a reset does, and what not


def test_one_period_changes_no_bit() -> None:
    found = []
    for with_rifle in (False, True):
        model = network()
        opt = optimizer(model, lr=0.5)
        rifle = pytl.RIFLE(model.head, opt, 6, 1, reset_state=True) if with_rifle else None
        for at in range(6):
            step(model, opt, at)
            assert not (rifle and rifle.step())
        found.append(model)
    assert_same_bits(*found)


@pytest.mark.parametrize("method", ["rifle", "l2sp+dtnh+rifle"])
def test_one_period_through_finetune_changes_no_bit(method: str) -> None:
    data = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(2)]
    options: dict[str, Any] = {"head": "head", "epochs": 3, "lr": 0.1, "seed": 3, "progress": False}
    plain, one, three = (
        finetune(network(), data, method=replace(parse(method), periods=periods), **options).model
        for periods in (None, 1, 3)
    )
    assert_same_bits(plain, one)
    assert not torch.equal(plain.head.weight, three.head.weight)


def test_method_composes_with_regularisers_and_directions() -> None:
    x, y = torch.randn(8, 4), torch.randint(0, 2, (8,))
    options: dict[str, Any] = {"head": "head", "epochs": 6, "lr": 0.1, "seed": 3, "progress": False}
    heads = []
    for method in ("distillation+dtnh", "distillation+dtnh+rifle"):
        result = finetune(network(), [(x, y)] * 2, method=method, **options)
        heads.append(result.model.head.weight)
        assert "conflict/distillation" in result.history[-1]
    assert not torch.equal(*heads)


def test_a_new_head_hangs_on_the_seed_and_the_period_and_on_no_other_random_number() -> None:
    def heads(seed: int, outside: int) -> list[Tensor]:
        model = network()
        rifle = pytl.RIFLE(model.head, optimizer(model), 6, 3, seed=seed)
        torch.manual_seed(outside)
        random, found = torch.get_rng_state(), []
        for _ in range(6):
            if rifle.step():
                found.append(model.head.weight.detach().clone())
        assert torch.equal(torch.get_rng_state(), random)
        return found

    first, second = heads(0, 1)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, (first, second), heads(0, 2)))
    assert not any(map(torch.equal, (first, second), heads(5, 1)))


def test_gpus_without_a_part_of_the_head_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(seed: int) -> None:
        raise AssertionError(f"seeded with {seed}")

    model = network()
    rifle = pytl.RIFLE(model.head, optimizer(model), 2, 2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    assert rifle.step()


@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_heads_state_is_kept_or_forgotten(kind: str, reset_state: bool) -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model, kind), 4, 2, reset_state=reset_state)
    step(model, opt, 0)
    rifle.step()
    step(model, opt, 1)
    before = copy.deepcopy([states(opt, model[0]), states(opt, model.head)])
    assert rifle.step()
    for module, old, kept in ((model[0], before[0], True), (model.head, before[1], not reset_state)):
        assert len(old) == 2
        assert [*map(str, states(opt, module))] == ([*map(str, old)] if kept else [])


def test_what_old_weights_lost_by_rounding_is_not_added_to_new_ones() -> None:
    model = network(torch.bfloat16)
    rifle = pytl.RIFLE(model.head, opt := optimizer(model, "pytl.AdamW", lr=1e-3), 8, 2)
    for at in range(4):
        step(model, opt, at)
        losses = [state["compensation"].abs().sum() for state in states(opt, model.head)]
        assert sum(losses) > 0
        moments = [state["exp_avg"].clone() for state in states(opt, model.head)]
        rifle.step()
    kept = states(opt, model.head)
    assert all((state["compensation"] == 0).all() for state in kept)
    assert all(torch.equal(state["exp_avg"], m) for state, m in zip(kept, moments, strict=True))
    assert any(state["compensation"].abs().sum() > 0 for state in states(opt, model[0]))


@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW])
def test_the_head_has_no_starting_point(kind: Any, reset_state: bool) -> None:
    model = network()
    opt = kind(pytl.param_groups(model, head="head", sp_decay=0.1, verbose=False), lr=0.1)
    rifle = pytl.RIFLE("head", opt, 6, 3, model=model, reset_state=reset_state)
    assert trained(rifle, model, 6) == [2, 4]
    assert all(state.get("start") is None for state in states(opt, model.head))
    assert opt.state[model[0].weight]["start"] is not None


def test_each_reset_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, optimizer(model), 12, 3)
    with caplog.at_level(logging.INFO, "pytl.rifle"):
        trained(rifle, model, 12)
    assert [record.getMessage() for record in caplog.records] == [
        "head re-initialised after step 4 of 12, period 1 of 3",
        "head re-initialised after step 8 of 12, period 2 of 3",
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


# Resume


def resumable(begin: int, end: int, kind: str, reset_state: bool, state: Any = None) -> tuple[nn.Module, Any]:
    model = network()
    opt = optimizer(model, kind)
    scheduler = lr_scheduler.LambdaLR(opt, lambda at: 1 - at / 9)
    rifle = pytl.RIFLE(model.head, opt, 9, 3, reset_state=reset_state)
    parts = (model, opt, scheduler, rifle)
    for part, saved in zip(parts, state or [], strict=False):
        part.load_state_dict(saved)
    for at in range(begin, end):
        torch.manual_seed(begin)  # the head's new weights do not hang on it
        step(model, opt, at)
        scheduler.step()
        rifle.step()
    return model, [copy.deepcopy(part.state_dict()) for part in parts]


@pytest.mark.parametrize("stopped", range(10))
@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_has_the_same_bits(kind: str, reset_state: bool, stopped: int) -> None:
    whole, wanted = resumable(0, 9, kind, reset_state)
    _, state = resumable(0, stopped, kind, reset_state)
    resumed, found = resumable(stopped, 9, kind, reset_state, state)
    assert_same_bits(whole, resumed)
    assert found[-1] == wanted[-1]


def test_full_rates_are_saved() -> None:
    """The optimizer's own are those of the moment, and a scheduler's initial ones need not be there."""
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model, lr=0.8), 12, 3)
    for _ in range(3):
        rifle.step()
    opt.param_groups[1]["lr"] = 0.5
    late = pytl.RIFLE(model.head, opt, 12, 3)  # takes the rate of now for the full one
    late.load_state_dict(rifle.state_dict())
    assert rates(opt)[1] == pytest.approx(0.1171573)
    late.step()
    assert rates(opt)[1] == 0.8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boundaries": [0, 6, 12]}, "state must have boundaries [0, 4, 8, 12]; got [0, 6, 12]"),
        ({"rates": [0.1, 0.2]}, "state must have rates of 1 groups; got 2"),
    ],
)
def test_another_runs_state_is_refused_before_anything_is_changed(changed: dict[str, Any], message: str) -> None:
    model = network()
    rifle = pytl.RIFLE(model.head, opt := optimizer(model), 12, 3)
    rifle.step()
    before = rifle.state_dict(), rates(opt)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rifle.load_state_dict({"steps": 3, "rates": [0.7], "boundaries": [0, 4, 8, 12], **changed})
    assert (rifle.state_dict(), rates(opt)) == before
