"""Moments in fewer than 32 bits: codes, rounding, and what training with them keeps."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from oracle import PATHS, array, assert_same, draw, give, parameters, relative_error
from torch import Tensor
from torch.nn import Parameter

import pytl
from pytl.ops import moments
from pytl.optim import state
from pytl.optim.options import MOMENTS

pytestmark = pytest.mark.usefixtures("one_thread")

FORMATS = ("bfloat16", "8bit")
LENGTHS = ((1,), (255,), (256,), (257,), (3, 171), (66_000,))  # a tile is 512 elements, a chunk 65,536


@pytest.fixture
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SMALL", 0)


def stored(values: Tensor, kept_in: str, squares: bool, step: int = 1) -> Tensor:
    """What is left of moments that were kept."""
    codes = torch.zeros_like(values, dtype=MOMENTS[kept_in])
    scales = torch.zeros(moments.blocks(values.numel()))
    moments.store(values, codes, scales, squares, step, int(squares))
    return moments.load(codes, scales, squares)


@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept_in", FORMATS)
@pytest.mark.parametrize("kind", ["sgd", "adamw", "amsgrad"])
def test_all_paths_keep_the_same_bits(kind: str, kept_in: str, dtype: torch.dtype) -> None:
    """Halves of what bfloat16 holds are exact, so that nothing but the rounding of moments is compared."""
    kept = []
    for path in PATHS.values():
        params = parameters(0, LENGTHS, dtype)
        options = {"lr": 1e-3, "moments": kept_in, "weight_decay": 0.0, **path}
        if kind == "sgd":
            opt: Any = pytl.SGD(params, momentum=0.5, **options)
        else:
            opt = pytl.AdamW(params, betas=(0.5, 0.5), amsgrad=kind == "amsgrad", **options)
        for step in range(4):
            give(params, draw(step + 1, LENGTHS))
            opt.step()
        kept.append([{k: v for k, v in opt.state[p].items() if k not in ("compensation", "step")} for p in params])
    assert_same(kept[0], kept[1])


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize(("kept_in", "bits"), [("bfloat16", 7), ("8bit", 3)])
def test_error_is_less_than_a_step_of_the_code(kept_in: str, bits: int, squares: bool) -> None:
    values = draw(1, [(5000,)], torch.float32)[0] * torch.logspace(-3, 0, 5000)
    values = values.square() if squares else values
    found = stored(values, kept_in, squares)
    scales = values.abs().view(-1, 250).amax(1).repeat_interleave(250)  # no less than those of most blocks
    error = (found - values).abs()
    assert (error <= values.abs() * 2.0**-bits + scales * 2.0**-15).all()


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("kept_in", FORMATS)
def test_rounding_is_right_on_average(kept_in: str, squares: bool) -> None:
    values = draw(1, [(600,)], torch.float32)[0].abs() + 0.1
    kept = values.square() if squares else values
    mean = torch.stack([stored(kept, kept_in, squares, step).double() for step in range(1, 401)]).mean(0)
    spread = 2.0**-3 / math.sqrt(12 * 400)
    assert relative_error([mean], [kept]) < 2 * spread
    assert abs(float((mean / kept).mean()) - 1) < 1e-2 * spread * 400**0.5  # a bias would not average out


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("kept_in", FORMATS)
def test_zero_stays_zero_and_what_is_not_finite_stays_so(kept_in: str, squares: bool) -> None:
    values = torch.zeros(1024)
    values[300], values[600] = math.nan, math.inf
    found = stored(values, kept_in, squares)
    assert (found[:256] == 0).all()
    assert (found[768:] == 0).all()
    assert not found[300].isfinite()
    assert not found[600].isfinite()


def test_a_root_that_is_not_zero_does_not_become_it() -> None:
    values = torch.full((256,), 1e-30)
    values[0] = 1.0
    assert (stored(values, "8bit", True) > 0).all()


@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.parametrize("kept_in", FORMATS)
def test_squares_decay_as_they_should(kept_in: str, path: dict[str, bool]) -> None:
    """A decay of a thousandth lies below the resolution: rounded to the nearest, squares would never fall."""
    p = Parameter(torch.zeros(2048))
    opt = pytl.AdamW([p], lr=0.0, moments=kept_in, **path)
    for step in range(1501):
        p.grad = torch.full_like(p, float(step == 0))
        opt.step()
    kept = opt.state[p]
    squares = moments.load(kept["exp_avg_sq"], kept.get("exp_avg_sq_scales"), True)
    assert float(squares.double().mean()) == pytest.approx(1e-3 * 0.999**1500, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept_in", FORMATS)
def test_resumed_training_has_the_same_bits(
    kept_in: str, dtype: torch.dtype, method: Any, path: dict[str, bool], tmp_path: Any
) -> None:
    options = {"lr": 0.01, "sp_decay": 0.1, "moments": kept_in, **({"momentum": 0.9} if method is pytl.SGD else {})}
    shapes = [(80, 70), (9,)]
    params = parameters(0, shapes, dtype)
    opt = method(params, **options, **path)
    steps(opt, params, range(3))
    resumed = [Parameter(p.detach().clone()) for p in params]
    other = method(resumed, **options, **path)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(opt, params, range(3, 6))
    steps(other, resumed, range(3, 6))
    assert_same([p.detach() for p in params], [p.detach() for p in resumed])
    assert_same(opt.state_dict()["state"], other.state_dict()["state"])


def steps(opt: Any, params: list[Parameter], numbers: range) -> None:
    for step in numbers:
        give(params, draw(step + 1, [p.shape for p in params]))
        opt.step()


@pytest.mark.parametrize("before", ["float32", *FORMATS])
@pytest.mark.parametrize("after", ["float32", *FORMATS])
def test_moments_are_converted_where_the_format_changes(before: str, after: str, path: dict[str, bool]) -> None:
    params = parameters(0, [(80, 70)], torch.float32)
    opt = pytl.AdamW(params, moments=before, **path)
    steps(opt, params, range(2))
    expected = values_of(opt, params[0])
    opt.param_groups[0].update(moments=after, betas=(1 - 1e-7, 1 - 1e-7))
    give(params, [torch.zeros(80, 70)])
    opt.step()
    assert opt.state[params[0]]["exp_avg"].dtype == MOMENTS[after]
    for found, there in zip(values_of(opt, params[0]), expected, strict=True):
        assert relative_error([found], [there]) < (0.12 if "8bit" in (before, after) else 0.01)


def values_of(opt: Any, p: Tensor) -> list[Tensor]:
    kept = opt.state[p]
    names = ("exp_avg", "exp_avg_sq")
    return [moments.load(kept[n], kept.get(f"{n}_scales"), k > 0).clone() for k, n in enumerate(names)]


@pytest.mark.parametrize("kept_in", FORMATS)
def test_order_of_a_weights_elements_changes_no_result(kept_in: str, path: dict[str, bool]) -> None:
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        p = Parameter(draw(0, [(16, 8, 8, 8)], torch.float32)[0].to(memory_format=order))
        opt = pytl.AdamW([p], lr=1e-2, moments=kept_in, **path)
        for step in range(3):
            p.grad = draw(step + 1, [p.shape], torch.float32)[0].to(memory_format=order)
            opt.step()
        found.append(array(p))
    assert relative_error([found[0]], [found[1]]) < (2e-3 if kept_in == "8bit" else 2e-4)  # rounded otherwise


def test_moments_take_the_memory_that_is_said(path: dict[str, bool]) -> None:
    p = Parameter(torch.ones(1 << 16))
    per_element = {}
    for kept_in in ("float32", *FORMATS):
        opt = pytl.AdamW([p], moments=kept_in, **path)
        p.grad = torch.ones_like(p)
        opt.step()
        per_element[kept_in] = sum(t.nbytes for t in opt.state[p].values() if t.dim()) / p.numel()
    assert per_element == {"float32": 8, "bfloat16": 4, "8bit": 2 + 2 * 4 / 256}


def test_small_tensors_and_float64_keep_their_moments(path: dict[str, bool]) -> None:
    small, double = Parameter(torch.ones(4095)), Parameter(torch.ones(5000, dtype=torch.float64))
    opt = pytl.AdamW([small, double], moments="8bit", **path)
    give([small, double], [torch.ones(4095), torch.ones(5000)])
    opt.step()
    assert opt.state[small]["exp_avg"].dtype == torch.float32
    assert opt.state[double]["exp_avg"].dtype == torch.float64


def test_an_unknown_format_is_refused_before_anything_changes(method: Any) -> None:
    with pytest.raises(ValueError, match="moments must be one of float32, bfloat16, 8bit; got 'int4'"):
        method([Parameter(torch.ones(3))], moments="int4")


@pytest.mark.parametrize("kept_in", FORMATS)
def test_an_overflow_changes_no_moment(kept_in: str, path: dict[str, bool]) -> None:
    p = Parameter(torch.ones(5000))
    opt = pytl.AdamW([p], moments=kept_in, **path)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for bad in (False, True):
        before = copy.deepcopy(opt.state_dict()["state"])
        loss = (p * (math.inf if bad else 1.0)).sum()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    assert_same(before, opt.state_dict()["state"])
