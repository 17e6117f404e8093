"""The steps against an independent float64 oracle, and against torch's optimizers where there is no regulariser."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from oracle import (
    PATHS,
    SHAPES,
    WEIGHT_DTYPES,
    Oracle,
    array,
    assert_same,
    doubles,
    draw,
    give,
    give_penalties,
    parameters,
    relative_error,
)

import pytl

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {"sgd": pytl.SGD, "adamw": pytl.AdamW}
USUAL = {
    "sgd": {"lr": 0.01, "momentum": 0.9, "sp_decay": 0.3, "weight_decay": 0.05},
    "adamw": {"lr": 0.01, "sp_decay": 0.3, "weight_decay": 0.05},
}
# What one option changes; each is run coupled and decoupled.
VARIANTS = [
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"dampening": 0.4}),
    ("sgd", {"nesterov": True}),
    ("sgd", {"maximize": True, "lr": 1e-3}),
    ("sgd", {"sp_decay": 0.0}),
    ("sgd", {"weight_decay": 0.0}),
    ("sgd", {"max_grad_norm": 3.0, "granularity": "global"}),
    ("adamw", {"amsgrad": True}),
    ("adamw", {"maximize": True, "lr": 1e-3}),
    ("adamw", {"betas": (0.5, 0.6), "eps": 1e-3}),
    ("adamw", {"betas": (0.0, 0.0)}),
    ("adamw", {"sp_decay": 0.0}),
    ("adamw", {"weight_decay": 0.0}),
    ("adamw", {"max_grad_norm": 3.0}),
    ("adamw", {"max_grad_norm": 3.0, "granularity": "global", "amsgrad": True}),
]


def run_both(
    kind: str,
    options: dict[str, Any],
    flags: dict[str, Any],
    steps: int,
    *,
    dtype: torch.dtype = torch.float64,
    shapes: Any = SHAPES,
) -> tuple[Any, Oracle]:
    options = USUAL[kind] | {"direction": "dtnh"} | options
    params = parameters(0, shapes, dtype)
    max_grad_norm = options.pop("max_grad_norm", None)
    oracle = Oracle(kind, params, options, max_grad_norm=max_grad_norm)
    optimizer = CLASSES[kind](params, **options, max_grad_norm=max_grad_norm, **flags)
    draws = [draw(seed, shapes) for seed in range(1, 9)]
    for t in range(steps):
        g, h = draws[t % 8], draws[(3 * t + 1) % 7]
        give(params, g)
        give_penalties(optimizer, params, h)
        optimizer.step()
        oracle.step(g, h)
    return optimizer, oracle


def weights(optimizer: Any) -> list[np.ndarray]:
    """What the weights stand for: with what rounding took from them."""
    zero, state = torch.zeros(()), optimizer.state
    return doubles([p.double() + state[p].get("compensation", zero) for p in optimizer.param_groups[0]["params"]])


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_float64_equals_the_oracle_over_200_steps(
    kind: str, decoupled: bool, direction: str, granularity: str, path: dict[str, bool]
) -> None:
    options = {"decoupled": decoupled, "direction": direction, "granularity": granularity}
    # PCGrad takes two opposed numbers to 0, and Adam makes a step of what rounding leaves there.
    shapes = [shape for shape in SHAPES if direction != "pcgrad" or math.prod(shape) != 1]
    optimizer, oracle = run_both(kind, options, path, steps=200, shapes=shapes)
    for found, expected in zip(optimizer.param_groups[0]["params"], oracle.weights, strict=True):
        np.testing.assert_allclose(array(found), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("kind", "option"), VARIANTS)
def test_every_option_equals_the_oracle(
    kind: str, option: dict[str, Any], decoupled: bool, path: dict[str, bool]
) -> None:
    optimizer, oracle = run_both(kind, option | {"decoupled": decoupled}, path, steps=30)
    for found, expected in zip(optimizer.param_groups[0]["params"], oracle.weights, strict=True):
        np.testing.assert_allclose(array(found), expected, rtol=1e-12, atol=1e-12)


# 16 bits: weight and compensation together hold about 16 (bfloat16) and 22 (float16) bits.
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 3e-4, torch.float16: 1e-5}


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("kind", CLASSES)
def test_error_of_each_dtype_after_100_steps(
    kind: str, dtype: torch.dtype, decoupled: bool, granularity: str, path: dict[str, bool]
) -> None:
    options = {"decoupled": decoupled, "granularity": granularity}
    optimizer, oracle = run_both(kind, options, path, steps=100, dtype=dtype)
    assert relative_error(weights(optimizer), oracle.weights) <= ERRORS[dtype]


def test_bfloat16_follows_float32_for_1000_steps_with_compensation_and_not_without(path: dict[str, bool]) -> None:
    """A step of Adam and a pull are below bfloat16's resolution here: what is lost each time adds up."""
    ends = {}
    for compensated, dtype in ((None, torch.float32), (None, torch.bfloat16), (False, torch.bfloat16)):
        params = parameters(0, [(64, 32)], dtype)
        target = draw(3, [(64, 32)], dtype)[0]
        opt = pytl.AdamW(params, lr=1e-3, sp_decay=1.0, direction="dtnh", compensated=compensated, **path)
        for step in range(1000):
            noise = draw(step % 50 + 10, [(64, 32)], dtype)[0]
            give(params, [params[0].detach() - target + noise])
            opt.step()
        ends[compensated, dtype] = weights(opt)
    exact = ends[None, torch.float32]
    assert relative_error(ends[None, torch.bfloat16], exact) < 1e-2
    assert relative_error(ends[False, torch.bfloat16], exact) > 1e-1


def test_groups_keep_their_own_options(path: dict[str, bool]) -> None:
    each = [
        {"lr": 0.1, "sp_decay": 0.5, "direction": "dtnh", "granularity": "global"},
        {"lr": 0.01, "weight_decay": 0.2, "direction": "grod"},
        {"lr": 0.02, "sp_decay": 0.1, "direction": "dtnh", "granularity": "global", "decoupled": True},
        {"lr": 0.03, "momentum": 0.0},
    ]
    shapes = SHAPES[:4]
    params = parameters(0, shapes)
    oracle = Oracle("sgd", params, {"momentum": 0.9}, each=each, max_grad_norm=2.0)
    groups = [{"params": [p], **own} for p, own in zip(params, each, strict=True)]
    optimizer = pytl.SGD(groups, momentum=0.9, max_grad_norm=2.0, **path)
    for t in range(20):
        g = draw(t + 1, shapes)
        give(params, g)
        optimizer.step()
        oracle.step(g)
    for p, expected in zip(params, oracle.weights, strict=True):
        np.testing.assert_allclose(array(p), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
def test_parameters_without_gradient_wait(kind: str, granularity: str, path: dict[str, bool]) -> None:
    options = USUAL[kind] | {"direction": "dtnh", "granularity": granularity, "decoupled": False}
    params = parameters()
    oracle, optimizer = Oracle(kind, params, options), CLASSES[kind](params, **options, **path)
    for t in range(12):
        g = [None if (t + i) % 3 == 0 or (i == 3 and t < 6) else g for i, g in enumerate(draw(t + 1))]
        before = [p.detach().clone() for p in params]
        give(params, g)
        optimizer.step()
        oracle.step(g)
        for p, old, gradient, row in zip(params, before, g, optimizer.gram, strict=True):
            if gradient is None:
                assert torch.equal(p, old)
                assert not row.any()
    for p, expected in zip(params, oracle.weights, strict=True):
        np.testing.assert_allclose(array(p), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("kind", CLASSES)
def test_core_and_reference_agree(kind: str, dtype: torch.dtype, direction: str) -> None:
    options = {"direction": direction, "decoupled": True, "max_grad_norm": 5.0}
    found, expected = (weights(run_both(kind, options, flags, 10, dtype=dtype)[0]) for flags in PATHS.values())
    eps = 2e-7 if dtype != torch.float64 else 1e-15
    assert relative_error(found, expected) <= {torch.bfloat16: 3e-5}.get(dtype, 10 * eps)


@pytest.mark.parametrize("direction", ["sum", "dtnh"])
@pytest.mark.parametrize("kind", CLASSES)
def test_more_than_one_chunk_and_tensor_shared_by_threads(kind: str, direction: str) -> None:
    torch.set_num_threads(2)
    shapes = [((1 << 20) + 3,), ((1 << 16) + 1,), (1023,), (5,)]
    options = {"direction": direction, "decoupled": False}
    optimizer, oracle = run_both(kind, options, PATHS["core"], 3, dtype=torch.float32, shapes=shapes)
    assert relative_error(doubles(optimizer.param_groups[0]["params"]), oracle.weights) <= 1e-6


# With sp_decay=0: torch.


def combinations(**choices: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


SGD_OPTIONS = [
    options
    for options in combinations(
        lr=[0.1, torch.tensor(0.05)],
        momentum=[0, 0.9],
        dampening=[0, 0.5],
        weight_decay=[0, 0.1],
        nesterov=[False, True],
        maximize=[False, True],
    )
    if not options["nesterov"] or (options["momentum"] and not options["dampening"])
]
ADAM_OPTIONS = combinations(
    lr=[1e-2, torch.tensor(1e-3, dtype=torch.float64)],
    betas=[(0.9, 0.999), (0.8, 0.9)],
    weight_decay=[0, 0.1],
    amsgrad=[False, True],
    maximize=[False, True],
)


def compare_with_torch(make: Any, torch_class: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = parameters(0, dtype=dtype), parameters(0, dtype=dtype)
    optimizer, expected = make(ours, **options), torch_class(theirs, **options)
    for t in range(4):
        gradients = [None if i == 1 and t % 3 == 1 else g for i, g in enumerate(draw(t + 1))]
        give(ours, gradients)
        give(theirs, gradients)
        optimizer.step()
        expected.step()
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6}[dtype]
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sgd_equals_torch_for_every_combination_of_options(path: dict[str, bool], dtype: torch.dtype) -> None:
    for options in SGD_OPTIONS:
        compare_with_torch(lambda p, **o: pytl.SGD(p, **o, **path), torch.optim.SGD, options, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("decoupled", [True, False])
def test_adamw_and_adam_equal_torch_for_every_combination_of_options(
    path: dict[str, bool], decoupled: bool, dtype: torch.dtype
) -> None:
    flags = {"decoupled": decoupled} | ({} if "fused" in path else {"fused": False})
    for options in ADAM_OPTIONS:
        torch_class = torch.optim.AdamW if decoupled else torch.optim.Adam
        compare_with_torch(lambda p, **o: pytl.AdamW(p, **o, **flags), torch_class, options, dtype)


def test_defaults_are_those_of_torch() -> None:
    for ours, theirs in ((pytl.SGD, torch.optim.SGD), (pytl.AdamW, torch.optim.AdamW)):
        expected, found = theirs(parameters()).defaults, ours(parameters()).defaults
        assert {k: found[k] for k in expected if k in found} == {k: v for k, v in expected.items() if k in found}
        assert set(expected) - set(found) <= {"decoupled_weight_decay"}


def test_positional_order_is_that_of_torch() -> None:
    sgd, adamw = (0.5, 0.9, 0.0, 0.1, True), (0.5, (0.8, 0.9), 1e-3, 0.1, True)
    for ours, theirs, arguments in ((pytl.SGD, torch.optim.SGD, sgd), (pytl.AdamW, torch.optim.AdamW, adamw)):
        expected, found = theirs(parameters(), *arguments).defaults, ours(parameters(), *arguments).defaults
        assert {k: found[k] for k in expected if k in found} == {k: v for k, v in expected.items() if k in found}


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipping_equals_torch_over_all_groups(max_norm: float, path: dict[str, bool]) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = pytl.SGD([{"params": ours[:3]}, {"params": ours[3:]}], lr=1.0, max_grad_norm=max_norm, **path)
    give(ours, draw(1))
    give(theirs, draw(1))
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    optimizer.step()
    torch.optim.SGD(theirs, lr=1.0).step()
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_momentum_switched_on_later_starts_as_in_torch(path: dict[str, bool]) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, expected = pytl.SGD(ours, lr=0.1, dampening=0.5, **path), torch.optim.SGD(theirs, lr=0.1, dampening=0.5)
    for t in range(6):
        for params, o in ((ours, optimizer), (theirs, expected)):
            o.param_groups[0]["momentum"] = 0.9 if t >= 3 else 0
            give(params, draw(t))
            o.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", CLASSES)
def test_functional_form_equals_the_optimizer(kind: str, path: dict[str, bool]) -> None:
    params, ours = parameters(), [p.detach().clone() for p in parameters()]
    options = USUAL[kind] | {"direction": "dtnh", "max_grad_norm": 2.0}
    optimizer = CLASSES[kind](params, **options, **path)
    starts = [p.clone() for p in ours]
    states = [[torch.zeros_like(p) for p in ours] for _ in range(2 if kind == "adamw" else 1)]
    steps = [torch.zeros(()) for _ in ours]
    step = pytl.ops.adamw_step if kind == "adamw" else pytl.ops.sgd_step
    for t in range(5):
        give(params, draw(t + 1))
        optimizer.step()
        gram = step(ours, draw(t + 1), *states, steps, starts=starts, **options, fused="fused" in path)
    assert_same([p.detach() for p in params], ours)
    assert torch.equal(gram, optimizer.gram)
