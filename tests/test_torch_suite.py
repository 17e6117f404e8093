"""torch's own samples of optimizer options, valid and bad, run on pytl's classes."""

from __future__ import annotations

import copy
import sys
import types
import unittest
import warnings
from typing import Any

import pytest
import torch
from oracle import assert_same, copy_of, draw, give, parameters
from torch import Tensor, nn
from torch.nn import Parameter

import pytl

# The samples need nothing of it, but the module that torch keeps them in imports it for its own test cases.
expecttest = types.ModuleType("expecttest")
expecttest.TestCase = unittest.TestCase  # type: ignore[attr-defined]
sys.modules.setdefault("expecttest", expecttest)
torch_suite = pytest.importorskip("torch.testing._internal.common_optimizers")

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SHAPES = ((4, 3), (4,), (), (2, 3, 2))
PAIRS = {
    "SGD": (pytl.SGD, torch.optim.SGD, torch_suite.optim_inputs_func_sgd, torch_suite.optim_error_inputs_func_sgd),
    "AdamW": (
        pytl.AdamW,
        torch.optim.AdamW,
        torch_suite.optim_inputs_func_adamw,
        torch_suite.optim_error_inputs_func_adamw,
    ),
}
FLAGS: list[dict[str, Any]] = [{}, {"fused": True}, {"foreach": True}]
INPUTS = [
    pytest.param(name, sample.kwargs, id=f"{name}: {sample.desc}")
    for name, (_, _, inputs, _) in PAIRS.items()
    for sample in inputs(CPU, torch.float64)
]
ERRORS = [
    pytest.param(name, bad, id=f"{name}: {bad.optimizer_error_input.desc}")
    for name, (_, _, _, errors) in PAIRS.items()
    for bad in errors(CPU, torch.float64)
]


def make(name: str, kwargs: dict[str, Any], params: Any = None) -> Any:
    return PAIRS[name][0](parameters(0, SHAPES) if params is None else params, **kwargs)


def steps(optimizer: Any, count: int, first: int = 1) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, first + count):
        give(params, draw(t, [p.shape for p in params]))
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize(("name", "kwargs"), INPUTS)
def test_every_sample_steps_as_in_torch(name: str, kwargs: dict[str, Any], flags: dict[str, Any]) -> None:
    if flags.get("foreach") and name == "AdamW" and isinstance(kwargs.get("lr"), Tensor):
        pytest.skip("torch refuses it")
    # A float32 tensor as lr makes torch itself round in float32.
    tolerance = 1e-7 if isinstance(kwargs.get("lr"), Tensor) else 1e-13
    expected = steps(PAIRS[name][1](parameters(0, SHAPES), **kwargs), 6)
    torch.testing.assert_close(steps(make(name, kwargs | flags), 6), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "bad"), ERRORS)
def test_every_bad_sample_raises_what_torch_raises(name: str, bad: Any) -> None:
    sample = bad.optimizer_error_input
    if issubclass(bad.error_type, Warning):
        with pytest.warns(bad.error_type, match=bad.error_regex):
            make(name, sample.kwargs, sample.params)
    else:
        with pytest.raises(bad.error_type, match=bad.error_regex):
            make(name, sample.kwargs, sample.params)


@pytest.mark.parametrize(("name", "kwargs"), INPUTS)
def test_loss_falls_with_and_without_a_scheduler(name: str, kwargs: dict[str, Any]) -> None:
    for schedule in (None, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.99)):
        params = [Parameter(torch.randn(5, 3)), Parameter(torch.randn(5))]
        optimizer = make(name, copy.deepcopy(kwargs), params)
        scheduler = schedule and schedule(optimizer)
        sign = -1 if kwargs.get("maximize") else 1
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (params[0] @ torch.ones(3) + params[1]).pow(2).sum()
            (sign * loss).backward()
            losses.append(loss.item())
            optimizer.step()
            if scheduler:
                scheduler.step()
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize(("name", "kwargs"), INPUTS)
def test_state_dict_round_trip_is_exact(name: str, kwargs: dict[str, Any], flags: dict[str, Any]) -> None:
    optimizer = make(name, kwargs | flags)
    steps(optimizer, 2)
    again = make(name, {}, [Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(again.state_dict(), optimizer.state_dict())
    assert_same(steps(again, 2, first=5), steps(optimizer, 2, first=5))


@pytest.mark.parametrize(("name", "kwargs"), INPUTS)
def test_deepcopy_is_independent_and_whole(name: str, kwargs: dict[str, Any]) -> None:
    optimizer = make(name, kwargs)
    steps(optimizer, 2)
    other = copy.deepcopy(optimizer)
    public = {key for key in vars(optimizer) if not key.startswith("_")}
    assert public == {key for key in vars(other) if not key.startswith("_")}
    before = copy_of(optimizer)
    steps(other, 2, first=5)
    assert_same(copy_of(optimizer), before)


@pytest.mark.parametrize("name", PAIRS)
def test_step_counters_that_are_numbers_load(name: str) -> None:
    optimizer = make(name, {})
    steps(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = float(state["step"])
    again = make(name, {}, [Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]])
    again.load_state_dict(saved)
    assert_same(steps(again, 1, first=5), steps(optimizer, 1, first=5))


@pytest.mark.parametrize("name", PAIRS)
def test_hooks_of_saving_and_loading_run_and_may_change_the_state(name: str) -> None:
    optimizer, calls = make(name, {"lr": 0.1}), []
    steps(optimizer, 1)

    def relabel(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = copy.deepcopy(state)
        state["param_groups"][0]["lr"] = 0.25
        return state

    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(relabel)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["lr"] == 0.25
    optimizer.register_load_state_dict_pre_hook(relabel)
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after loading"))
    saved["param_groups"][0]["lr"] = 9.0
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert calls == ["before saving", "after loading"]


@pytest.mark.parametrize("name", PAIRS)
def test_steps_without_gradients_and_with_zero_gradients_keep_the_weights(name: str) -> None:
    optimizer = make(name, {"weight_decay": 0})
    params = optimizer.param_groups[0]["params"]
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert_same([p.detach() for p in params], before)
    give(params, [torch.zeros_like(p) for p in params])
    optimizer.step()
    assert_same([p.detach() for p in params], before)


@pytest.mark.parametrize("name", PAIRS)
def test_param_groups_with_their_own_lr_and_decay_equal_torch(name: str) -> None:
    both = []
    for one in PAIRS[name][:2]:
        params = parameters(0, SHAPES)
        groups = [{"params": params[:2], "weight_decay": 0.2}, {"params": params[2:], "lr": 0.05}]
        both.append(steps(one(groups, lr=0.01, weight_decay=0.0), 5))
    torch.testing.assert_close(*both, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", PAIRS)
def test_mixed_dtypes_step_as_in_torch(name: str) -> None:
    both = []
    for one in PAIRS[name][:2]:
        params = [Parameter(t.to(d)) for t, d in zip(draw(0, SHAPES[:2]), (torch.float32, torch.float64), strict=True)]
        both.append(steps(one(params, lr=0.1), 5))
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("name", PAIRS)
def test_state_dict_of_a_model_that_trains_further_is_the_same_twice(name: str) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        optimizer = make(name, {"lr": 0.1}, model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        results.append([optimizer.state_dict(), dict(model.state_dict())])
    assert_same(*results)


@pytest.mark.parametrize("name", PAIRS)
def test_no_warning_in_ordinary_use(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(make(name, {}), 2)
