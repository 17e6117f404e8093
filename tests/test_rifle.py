"""RIFLE's resets and rates against tables made by hand, and its resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import pytl
from pytl.training.fine_tuning import finetune

TABLES = {  # total steps, periods -> after which steps the head is new
    (12, 1): [],
    (12, 2): [6],
    (12, 3): [4, 8],
    (10, 3): [3, 7],
    (7, 4): [2, 4, 5],
}


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    model.add_module("head", nn.Linear(6, 2))
    return model


def optimizer(model: nn.Module) -> Any:
    head = [*model.head.parameters()]
    return pytl.SGD([{"params": [*model[0].parameters()]}, {"params": head, "lr": 0.5}], lr=0.1, momentum=0.9)


def step(model: nn.Module, opt: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    opt.step()
    opt.zero_grad()


@pytest.mark.parametrize(("total", "periods"), TABLES)
def test_resets_and_rates_are_those_of_the_table(total: int, periods: int) -> None:
    model = network()
    opt = optimizer(model)
    rifle = pytl.RIFLE(model.head, opt, total, periods)
    resets = []
    for at in range(total):
        begins = max([0, *(b for b in TABLES[total, periods] if b <= at)])
        ends = min([total, *(b for b in TABLES[total, periods] if b > at)])
        wanted = 0.5 * (1 + math.cos(math.pi * (at - begins) / (ends - begins))) / 2 if periods > 1 else 0.5
        assert opt.param_groups[1]["lr"] == pytest.approx(wanted)
        assert opt.param_groups[0]["lr"] == 0.1
        step(model, opt, at)
        before = model.head.weight.detach().clone()
        if rifle.step():
            resets.append(at + 1)
            assert not torch.equal(model.head.weight, before)
        else:
            assert torch.equal(model.head.weight, before)
    assert resets == TABLES[total, periods]


def test_one_period_changes_no_bit() -> None:
    found = []
    for with_rifle in (False, True):
        model = network()
        opt = optimizer(model)
        rifle = pytl.RIFLE(model.head, opt, 6, 1) if with_rifle else None
        for at in range(6):
            step(model, opt, at)
            if rifle:
                rifle.step()
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("stopped", range(1, 9))
def test_a_resumed_run_has_the_same_bits(stopped: int) -> None:
    def run(begin: int, end: int, state: Any = None) -> tuple[nn.Module, Any]:
        model = network()
        opt = optimizer(model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda at: 1 - at / 9)
        rifle = pytl.RIFLE(model.head, opt, 9, 3, reset_state=True)
        parts = (model, opt, scheduler, rifle)
        for part, saved in zip(parts, state or [], strict=False):
            part.load_state_dict(saved)
        for at in range(begin, end):
            torch.manual_seed(begin)  # the head's new weights do not hang on it
            step(model, opt, at)
            scheduler.step()
            rifle.step()
        return model, [copy.deepcopy(part.state_dict()) for part in parts]

    whole, _ = run(0, 9)
    _, state = run(0, stopped)
    resumed, _ = run(stopped, 9, state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("init", ["reset_parameters", "normal", "kaiming", lambda head: head.weight.fill_(3.0)])
def test_initialisers_and_states(init: Any) -> None:
    model = network()
    opt = optimizer(model)
    rifle = pytl.RIFLE([model.head], opt, 4, 2, init=init, reset_state=True, cyclic_lr=False)
    random = torch.get_rng_state()
    for at in range(2):
        step(model, opt, at)
        rifle.step()
    assert torch.equal(torch.get_rng_state(), random)
    assert not opt.state[model.head.weight]
    assert opt.state[model[0].weight]
    if callable(init):
        assert (model.head.weight == 3).all()
    if init in ("normal", "kaiming"):
        assert (model.head.bias == 0).all()


def test_method_composes_with_regularisers_and_directions() -> None:
    x, y = torch.randn(8, 4), torch.randint(0, 2, (8,))
    options: dict[str, Any] = {"head": "head", "epochs": 6, "lr": 0.1, "seed": 3, "progress": False}
    heads = []
    for method in ("distillation+dtnh", "distillation+dtnh+rifle"):
        result = finetune(network(), [(x, y)] * 2, method=method, **options)
        heads.append(result.model.head.weight)
        assert "conflict/distillation" in result.history[-1]
    assert not torch.equal(*heads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"periods": 0}, r"periods must be in \[1, total_steps = 6\]; got 0"),
        ({"periods": 7}, r"periods must be in \[1, total_steps = 6\]; got 7"),
        ({"init": "zeros"}, "init must be one of reset_parameters, normal, kaiming or a function; got 'zeros'"),
        ({"head": nn.ReLU()}, "head must have parameters; got ReLU without any"),
        ({"head": []}, "head must have parameters; got no module without any"),
        ({"head": nn.Linear(2, 2)}, "head's parameters must be among the optimizer's; weight, bias are not"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        pytl.RIFLE(**{"head": model.head, "optimizer": optimizer(model), "total_steps": 6, **options})


def test_a_cyclic_head_needs_a_group_of_its_own() -> None:
    model = network()
    opt = pytl.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="head must have parameter groups of its own for cyclic_lr"):
        pytl.RIFLE(model.head, opt, 6)
    pytl.RIFLE(model.head, opt, 6, cyclic_lr=False)
