"""The same bits with one thread and with two, from run to run, and on each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import WEIGHT_DTYPES, assert_same, draw, give, give_penalties, parameters

import pytl
from pytl.ops import core

pytestmark = pytest.mark.skipif(core.module is None, reason="the core is not built")

# One tensor that the threads share, one of more than one chunk, odd ones, and many for the runs.
SHAPES = [((1 << 20) + 77,), ((1 << 16) + 5,), (1025, 3), (), (0,), *[(i % 67,) for i in range(100)]]


@pytest.fixture
def _restored() -> Iterator[None]:
    before = core.module.instruction_set()
    yield
    core.module.use_instruction_set(before)


def run(method: Any, options: dict[str, Any], dtype: torch.dtype, penalty: bool = True) -> list[Any]:
    """Weights, state and Gram numbers after two steps."""
    params = parameters(0, SHAPES, dtype)
    optimizer = method(params, lr=0.01, sp_decay=0.3, weight_decay=0.05, fused=True, **options)
    for t in range(2):
        give(params, draw(2 * t + 1, SHAPES, dtype))
        if penalty:
            give_penalties(optimizer, params, draw(2 * t + 2, SHAPES, dtype))
        optimizer.step()
    return [[p.detach() for p in params], list(optimizer.state.values()), optimizer.gram.clone()]


OPTIONS = [
    (pytl.SGD, {"direction": "dtnh", "momentum": 0.9}),
    (pytl.SGD, {"direction": "sum", "decoupled": True, "momentum": 0.9, "nesterov": True}),
    (pytl.AdamW, {"direction": "dtnh"}),
    (pytl.AdamW, {"direction": "grod", "granularity": "global", "max_grad_norm": 1.0, "decoupled": False}),
    (pytl.AdamW, {"direction": "pcgrad", "amsgrad": True, "max_grad_norm": 1.0}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("method", "options"), OPTIONS)
def test_same_bits_with_one_thread_and_two_and_from_run_to_run(
    method: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    results = []
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        results.append(run(method, options, dtype))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize(("method", "options"), [OPTIONS[0], OPTIONS[4]])
def test_same_bits_on_every_instruction_set(method: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    results = []
    for name in core.module.instruction_sets():
        core.module.use_instruction_set(name)
        assert core.module.instruction_set() == name
        results.append(run(method, options, dtype))
    for result in results[1:]:
        assert_same(results[0], result)


def test_unknown_instruction_set_is_refused_and_the_old_one_stays() -> None:
    before = core.module.instruction_set()
    with pytest.raises(ValueError, match=r"baseline.*got mmx"):
        core.module.use_instruction_set("mmx")
    assert core.module.instruction_set() == before


def test_a_tensor_gets_the_same_bits_alone_and_among_others() -> None:
    """The order of sums follows the lengths of the tensor itself, not what else is in the list."""
    lists = [draw(seed, SHAPES[:4], torch.float32) for seed in range(3)]
    together = pytl.ops.gram(*lists, sp_decay=0.3, weight_decay=0.05)
    alone = [pytl.ops.gram(*([x] for x in row), sp_decay=0.3, weight_decay=0.05) for row in zip(*lists, strict=True)]
    assert torch.equal(together, torch.cat(alone))
