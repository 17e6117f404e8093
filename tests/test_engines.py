"""Engines that flatten parameters: what is taken element by element goes on, what needs whole tensors is refused.

DeepSpeed is not installed here: its ZeRO leaves each group with one flat piece of its own, which is what these tests do
to an optimizer. FSDP1 marks what it flattens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import assert_same, copy_of, draw, give, parameters
from torch.nn import Parameter

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(3, 4), (5,)]


def flattened(method: Any, **options: Any) -> tuple[Any, Parameter]:
    """An optimizer whose parameters were replaced by the first 12 of their 17 elements, as on one of two ranks."""
    params = parameters(0, SHAPES)
    opt = method(params, lr=0.1, sp_decay=0.1, **options)
    piece = Parameter(torch.cat([p.detach().flatten() for p in params])[:12])
    opt.param_groups[0]["params"] = [piece]
    piece.grad = torch.ones(12, dtype=piece.dtype)
    return opt, piece


@pytest.mark.parametrize("options", [{"direction": "dtnh"}, {"max_grad_norm": 1.0}, {"direction": "grod"}])
def test_what_needs_whole_tensors_is_refused_and_nothing_changed(method: Any, options: dict[str, Any]) -> None:
    opt, _ = flattened(method, **options)
    before = copy_of(opt)
    with pytest.raises(RuntimeError, match=r"needs each parameter for itself, which .* DeepSpeed's ZeRO.* group 0"):
        opt.step()
    assert_same(copy_of(opt), before)


def test_the_sum_is_taken_element_by_element(method: Any) -> None:
    opt, piece = flattened(method)
    params = parameters(0, SHAPES)
    whole = method(params, lr=0.1, sp_decay=0.1)
    for _ in range(3):
        opt.step()
        give(params, [torch.ones(shape) for shape in SHAPES])
        whole.step()
    torch.testing.assert_close(piece.detach(), torch.cat([p.detach().flatten() for p in params])[:12])


def test_named_parameters_say_that_they_were_replaced(method: Any) -> None:
    params = parameters(0, SHAPES)
    opt = method([("a", params[0]), ("b", params[1])], lr=0.1, sp_decay=0.1)
    opt.param_groups[0]["params"] = [Parameter(torch.ones(12))]
    with pytest.raises(ValueError, match=r"param_names must name each parameter of group 0; got 2 for 1"):
        opt.step()


def test_fsdp1_is_refused_where_a_direction_needs_whole_tensors(method: Any) -> None:
    params = parameters(0, SHAPES)
    for p in params:
        p._fsdp_flattened = True  # type: ignore[attr-defined]
    opt = method(params, lr=0.1, sp_decay=0.1, direction="dtnh")
    give(params, draw(1, SHAPES))
    with pytest.raises(RuntimeError, match=r"which FSDP1 \(FullyShardedDataParallel\) does not leave in group 0"):
        opt.step()


def test_a_group_that_a_user_cuts_down_to_a_bias_is_no_engine_s(method: Any) -> None:
    params = parameters(0, SHAPES)
    opt = method(params, lr=0.1, sp_decay=0.1, direction="dtnh")
    opt.param_groups[0]["params"] = params[1:]
    give(params, draw(1, SHAPES))
    opt.step()
