"""The rules' properties on random draws, and what extreme gradients do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oracle import DIRECTIONS, PATHS, Oracle, array, assert_same, draw, give, give_penalties, parameters, weights_of
from torch import Tensor
from torch.nn import Parameter

import pytl

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 5, 18)
numbers = st.floats(-1e3, 1e3).map(lambda x: x if abs(x) > 1e-3 else 0.0)
vectors = st.tuples(*(arrays.arrays(np.float64, n, elements=numbers) for n in LENGTHS))
norms = st.floats(0, 1e300) | st.sampled_from([0.0, 5e-324, 1e-308, 1e-200, math.inf, math.nan])
granularities = st.sampled_from(["tensor", "global"])
paths = st.sampled_from(list(PATHS.values()))


def directions_of(g: Any, r: Any, direction: str, granularity: str, path: dict[str, bool]) -> list[np.ndarray]:
    """d of each tensor, read off a step of plain SGD with lr 1 from 0: r is a penalty's gradient."""
    params = [Parameter(torch.zeros(n, dtype=torch.float64)) for n in LENGTHS]
    optimizer = pytl.SGD(params, lr=1.0, direction=direction, granularity=granularity, **path)
    give(params, list(map(torch.from_numpy, g)))
    give_penalties(optimizer, params, list(map(torch.from_numpy, r)))
    optimizer.step()
    return [-array(p) for p in params]


def parts(granularity: str, *lists: Any) -> list[list[np.ndarray]]:
    """What a direction decides over: each tensor, or all of them as one."""
    return list(zip(*lists, strict=True)) if granularity == "tensor" else [[np.concatenate(xs) for xs in lists]]


def slack(g: np.ndarray, r: np.ndarray) -> float:
    """The issue's 1e-6 of <g,g>, and what float64 itself loses where r is far longer than g."""
    return 1e-6 * (g @ g) + 1e-13 * np.linalg.norm(g) * np.linalg.norm(r)


@given(vectors, vectors, granularities, paths)
def test_dtnh_never_opposes_the_task(g: Any, r: Any, granularity: str, path: dict[str, bool]) -> None:
    d = directions_of(g, r, "dtnh", granularity, path)
    for one_d, one_g, one_r in parts(granularity, d, g, r):
        assert one_d @ one_g >= one_g @ one_g - slack(one_g, one_r)


@given(vectors, vectors, granularities, paths)
def test_dtnh_is_the_sum_where_nothing_conflicts(g: Any, r: Any, granularity: str, path: dict[str, bool]) -> None:
    if granularity == "global" and sum(a @ b for a, b in zip(g, r, strict=True)) < 0:
        r = tuple(-x for x in r)
    if granularity == "tensor":
        r = tuple(b if a @ b >= 0 else -b for a, b in zip(g, r, strict=True))
    for one_d, one_g, one_r in zip(directions_of(g, r, "dtnh", granularity, path), g, r, strict=True):
        np.testing.assert_array_equal(one_d, one_g + one_r)


@given(vectors, vectors, granularities, paths)
def test_grod_neither_hurts_nor_helps_the_task(g: Any, r: Any, granularity: str, path: dict[str, bool]) -> None:
    d = directions_of(g, r, "grod", granularity, path)
    for one_d, one_g, one_r in parts(granularity, d, g, r):
        if one_g.any():
            assert one_d @ one_g == pytest.approx(one_g @ one_g, abs=slack(one_g, one_r))


@given(vectors, vectors, granularities)
def test_core_and_reference_give_one_direction(g: Any, r: Any, granularity: str) -> None:
    for direction in DIRECTIONS:
        both = [directions_of(g, r, direction, granularity, path) for path in PATHS.values()]
        for found, expected, one_g, one_r in zip(*both, g, r, strict=True):
            scale = np.linalg.norm(one_g) + np.linalg.norm(one_r) + sum(map(np.linalg.norm, r))
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * scale)


@given(st.lists(st.tuples(norms, st.floats(-1, 1), norms), min_size=1, max_size=4), st.sampled_from(DIRECTIONS))
def test_weights_of_gram_numbers(rows: list[tuple[float, float, float]], direction: str) -> None:
    """Against the formulas; finite for whatever numbers, zero, subnormal and not finite ones among them."""
    with np.errstate(all="ignore"):
        gram = [(q, cosine * math.sqrt(q) * math.sqrt(rr), rr) for q, cosine, rr in rows]
        expected = np.array([weights_of(direction, *row) for row in gram])
    found = array(pytl.ops.direction_weights(torch.tensor(gram, dtype=torch.float64), direction))
    assert np.isfinite(found).all()
    ordinary = np.isfinite(expected) & (abs(expected) <= np.finfo(np.float32).max)  # beyond, nothing is projected
    np.testing.assert_allclose(found[ordinary], expected[ordinary], rtol=1e-12)


@given(st.lists(st.tuples(norms, st.floats(-1, 1), norms), min_size=1, max_size=4), granularities)
def test_core_and_reference_give_the_same_weights(rows: list[tuple[float, float, float]], granularity: str) -> None:
    gram = torch.tensor([(q, c * math.sqrt(q) * math.sqrt(rr), rr) for q, c, rr in rows], dtype=torch.float64)
    for direction in DIRECTIONS:
        summed = gram.sum(0, keepdim=True) if granularity == "global" else gram
        expected = pytl.directions.RULES[direction](summed).expand(len(gram), 2)
        assert torch.equal(pytl.ops.direction_weights(gram, direction, granularity), expected)


def test_projection_is_continuous_where_the_conflict_begins() -> None:
    gram = torch.tensor([[1.0, s, 1.0] for s in (1e-300, 0.0, -0.0, -1e-300, -1e-16)], dtype=torch.float64)
    torch.testing.assert_close(pytl.ops.direction_weights(gram, "dtnh"), torch.ones(5, 2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_worked_example_of_the_method(path: dict[str, bool], granularity: str, dtype: torch.dtype) -> None:
    p = Parameter(torch.zeros(3, dtype=dtype))
    optimizer = pytl.SGD([p], lr=1.0, direction="dtnh", granularity=granularity, **path)
    p.grad = torch.tensor([-4.0, 1, 1], dtype=dtype)
    optimizer.take_penalty((p * p.new_tensor([6.0, 1, 1])).sum())
    optimizer.step()
    assert optimizer.gram.tolist() == [[18, -22, 38]]
    torch.testing.assert_close(-p.detach(), p.new_tensor([-26 / 9, 29 / 9, 29 / 9]))
    assert optimizer.report().conflict_rate == 1
    assert optimizer.report().cosine == pytest.approx([-22 / math.sqrt(18 * 38)])


@given(st.sampled_from([1e-300, 1e-160, 1e-100, 1e-50, 1e-45, 1e-30, 1e-10]), paths)
def test_float64_gradient_however_tiny_is_not_opposed(size: float, path: dict[str, bool]) -> None:
    """<g,g> is a normal number down to 1e-154; METHODS.md leaves the sum only below."""
    g, r = tuple(np.full(n, size) for n in LENGTHS), tuple(np.full(n, -1.0) for n in LENGTHS)
    for one_d, one_g in zip(directions_of(g, r, "dtnh", "tensor", path), g, strict=True):
        if one_g @ one_g >= np.finfo(np.float64).tiny:
            np.testing.assert_allclose(one_d, one_g, atol=1e-15)


# Extremes.

SIZES = (1e-45, 1e-38, 1e-30, 1.0, 1e30, 1e38)
signs = st.sampled_from([-1.0, 1.0])
extreme = st.tuples(st.sampled_from([0.0, *SIZES]), signs).map(lambda x: x[0] * x[1])
extreme_vectors = st.tuples(*(arrays.arrays(np.float32, n, elements=extreme.map(np.float32)) for n in LENGTHS))


@given(
    g=extreme_vectors,
    direction=st.sampled_from(DIRECTIONS),
    granularity=granularities,
    max_grad_norm=st.sampled_from([1e-3, 1.0, 1e6]),
    decoupled=st.booleans(),
    path=paths,
)
def test_finite_gradients_never_make_a_clipped_weight_non_finite(
    *, g: Any, direction: str, granularity: str, max_grad_norm: float, decoupled: bool, path: dict[str, bool]
) -> None:
    params = [Parameter(torch.full((n,), 0.5)) for n in LENGTHS]
    options = {"direction": direction, "granularity": granularity, "decoupled": decoupled, "weight_decay": 1.0}
    optimizer = pytl.SGD(params, lr=0.1, max_grad_norm=max_grad_norm, **options, **path)
    for _ in range(2):
        give(params, list(map(torch.from_numpy, g)))
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


@given(extreme_vectors, st.sampled_from(DIRECTIONS), granularities, st.booleans(), paths)
def test_finite_gradients_never_make_a_weight_non_finite_by_projection(
    g: Any, direction: str, granularity: str, decoupled: bool, path: dict[str, bool]
) -> None:
    params = [Parameter(torch.full((n,), 0.5)) for n in LENGTHS]
    options = {"direction": direction, "granularity": granularity, "decoupled": decoupled}
    for optimizer in (
        pytl.SGD(params, lr=1e-3, weight_decay=1.0, **options, **path),
        pytl.AdamW(params, lr=1e-3, weight_decay=1.0, **options, **path),
    ):
        give(params, list(map(torch.from_numpy, g)))
        optimizer.step()
        assert all(p.isfinite().all() for p in params)
        for p in params:
            p.data.fill_(0.5)


@pytest.mark.parametrize("direction", ["dtnh", "grod"])
def test_huge_gradients_that_cancel_stay_finite(direction: str, path: dict[str, bool]) -> None:
    """c_g * g alone is beyond float32 here; d is g."""
    p = Parameter(torch.zeros(4))
    optimizer = pytl.SGD([p], lr=1e-38, direction=direction, **path)
    p.grad = torch.full((4,), 3e38)
    optimizer.take_penalty((p * -3e38).sum())
    optimizer.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("decoupled", [False, True])
def test_non_finite_gradient_does_what_it_does_in_torch_and_to_its_own_tensor_only(
    bad: float, decoupled: bool, direction: str, method: Any, path: dict[str, bool]
) -> None:
    params, theirs = parameters(), parameters()
    gradients = draw(1)
    gradients[0][1, 2] = bad
    options = {"lr": 0.1, "weight_decay": 0.1}
    ours = method(params, **options, decoupled=decoupled, direction=direction, max_grad_norm=1e9, **path)
    torch_class = {pytl.SGD: torch.optim.SGD, pytl.AdamW: torch.optim.AdamW if decoupled else torch.optim.Adam}[method]
    expected = torch_class(theirs, **options)
    for _ in range(2):
        give(params, gradients)
        give(theirs, gradients)
        ours.step()
        expected.step()
    assert ours.report().nonfinite == 1
    assert all(p.isfinite().all() for p in params[1:])
    if method is pytl.SGD and decoupled:
        theirs[0], gradient = params[0].detach(), gradients[0]
        assert torch.equal(params[0].isfinite(), gradient.isfinite())
    else:
        torch.testing.assert_close(params[0], theirs[0], equal_nan=True)


def test_non_finite_gradient_leaves_the_clipping_of_the_others(path: dict[str, bool]) -> None:
    params, theirs, gradients = parameters(), parameters(), draw(1)
    gradients[0][0, 0] = math.inf
    optimizer = pytl.SGD(params, lr=1.0, max_grad_norm=0.5, **path)
    give(params, gradients)
    give(theirs[1:], gradients[1:])
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(theirs[1:], 0.5)
    torch.optim.SGD(theirs[1:], lr=1.0).step()
    torch.testing.assert_close(params[1:], theirs[1:])


# A rule of one's own.


class Cautious(pytl.Direction):
    """Takes the regulariser only where it does not oppose the task."""

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gg), (gr >= 0).double()


class Doubled(pytl.Direction):
    """Neither weight is what a rule of the library gives."""

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(gg, 2.0), torch.full_like(gg, 0.25)


OWN = {
    "cautious": (Cautious(), lambda q, s, rr: (1.0, float(s >= 0))),
    "doubled": (Doubled(), lambda q, s, rr: (2.0, 0.25)),
}


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("regulariser", ["pull", "penalty", "both"])
@pytest.mark.parametrize("own", OWN)
def test_own_direction_works_on_every_path(
    *,
    own: str,
    regulariser: str,
    decoupled: bool,
    granularity: str,
    method: Any,
    path: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direction, formula = OWN[own]
    monkeypatch.setattr("oracle.weights_of", lambda _, *gram: formula(*gram))
    decays = {"lr": 0.01, "decoupled": decoupled, "granularity": granularity}
    decays |= {"weight_decay": 0.0} if regulariser == "penalty" else {"weight_decay": 0.2, "sp_decay": 0.1}
    params = parameters()
    oracle = Oracle("sgd" if method is pytl.SGD else "adamw", params, decays | {"direction": own})
    optimizer = method(params, **decays, direction=direction, **path)
    for t in range(5):
        g, h = draw(2 * t + 1), draw(2 * t + 2)
        h = [torch.zeros_like(x) for x in h] if regulariser == "pull" else h
        give(params, g)
        if regulariser != "pull":
            give_penalties(optimizer, params, h)
        optimizer.step()
        oracle.step(g, h)
    for p, expected in zip(params, oracle.weights, strict=True):
        np.testing.assert_allclose(array(p), expected, rtol=1e-12, atol=1e-12)


def test_changed_rule_of_the_library_is_the_one_that_runs(path: dict[str, bool]) -> None:
    class Nothing(pytl.DTNH):
        def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(gg), torch.zeros_like(gg)

    params = parameters()
    give(params, draw(1))
    pytl.SGD(params, lr=1.0, direction=Nothing(), weight_decay=0.1, **path).step()
    assert_same([p.detach() for p in params], draw(0))


def test_own_direction_gets_float64_vectors(path: dict[str, bool]) -> None:
    class Watching(pytl.Direction):
        def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
            assert gg.dtype == gr.dtype == rr.dtype == torch.float64
            assert gg.shape == gr.shape == rr.shape == (len(gg),)
            return torch.ones_like(gg), torch.ones_like(gg)

    params = parameters(dtype=torch.float32)
    give(params, draw(1))
    pytl.SGD(params, direction=Watching(), weight_decay=0.1, **path).step()


def test_direction_without_a_formula_says_so() -> None:
    params = parameters()
    give(params, draw(1))
    with pytest.raises(TypeError, match="weights"):
        pytl.SGD(params, direction=pytl.Direction()).step()
