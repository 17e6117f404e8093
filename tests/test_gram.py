"""The Gram numbers against float64 sums, on every shape, layout and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle import PATHS, WEIGHT_DTYPES, array, doubles, draw, give, give_penalties
from torch import Tensor
from torch.nn import Parameter

import pytl

DECAYS = {"sp_decay": 0.3, "weight_decay": 0.05}


def unaligned(tensor: Tensor) -> Tensor:
    """The same values, one element behind the start of their storage."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


LAYOUTS = {
    "contiguous": (lambda t: t, (17, 31)),
    "unaligned": (unaligned, (1025,)),
    "channels_last": (lambda t: t.contiguous(memory_format=torch.channels_last), (4, 3, 5, 2)),
    "transposed": (lambda t: t.t().contiguous().t(), (19, 33)),
    "with gaps": (with_gaps, (9, 7)),
    "flipped dims of size 1": (lambda t: t.permute(2, 0, 1), (6, 1, 5)),
    "empty": (lambda t: t, (0, 3)),
    "0-d": (lambda t: t, ()),
    "0-d unaligned": (unaligned, ()),
    "one more than a tile": (lambda t: t, (1025,)),
    "one more than a chunk": (lambda t: t, ((1 << 16) + 1,)),
    "odd": (lambda t: t, (13, 7, 3)),
}


def expected_row(
    w: Tensor, g: Tensor, w0: Tensor | None, h: Tensor | None, *, sp: float = 0.3, wd: float = 0.05
) -> np.ndarray:
    """The numbers, and what their errors are measured by."""
    w, g, w0, h = (None if x is None else array(x) for x in (w, g, w0, h))
    terms = [wd * w, 0 * w if w0 is None else sp * (w - w0), 0 * w if h is None else h]
    r, size = sum(terms), sum(map(abs, terms))
    gg, rr = np.sum(g * g), np.sum(size * size)
    return np.array([[gg, np.sum(g * r), np.sum(r * r)], [gg, np.sqrt(gg * rr), rr]])


def assert_gram(found: Tensor, expected: list[np.ndarray], tolerance: float = 1e-6) -> None:
    """The terms of r, and <g,r>, may cancel: errors are measured by the lengths before that."""
    assert found.dtype == torch.float64
    for row, (truth, scale) in zip(array(found), expected, strict=True):
        assert (abs(row - truth) <= tolerance * scale).all(), (row, truth)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gram_equals_float64_sums(layout: str, dtype: torch.dtype, path: dict[str, bool]) -> None:
    arrange, shape = LAYOUTS[layout]
    w, g, w0, h = (arrange(draw(seed, [shape], dtype)[0]) for seed in range(4))
    fused = "fused" in path and layout not in ("with gaps",)
    found = pytl.ops.gram([w], [g], [w0], [h], **DECAYS, fused=fused)
    assert_gram(found, [expected_row(w, g, w0, h)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient_layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.filterwarnings("ignore:.*gradients keep their elements in another order")
def test_gradients_in_another_layout_than_their_weight(layout: str, gradient_layout: str) -> None:
    arrange, shape = LAYOUTS[layout]
    w, g = (draw(seed, [shape], torch.float32)[0] for seed in range(2))
    w = Parameter(arrange(w))
    g = arrange(g)
    if gradient_layout == "transposed":
        g = g.mT.contiguous().mT if g.dim() > 1 else g
    elif gradient_layout == "expanded":
        g = g.new_tensor(0.5).expand_as(g)
    else:
        g = g.contiguous()
    optimizer = pytl.SGD([w], lr=0.1, weight_decay=0.3, direction="dtnh")
    for _ in range(2):
        before, w.grad = w.detach().clone(), g
        optimizer.step()
        expected = expected_row(before, g, None, None, sp=0, wd=0.3)
        assert_gram(optimizer.gram, [expected])
        c_g = 1 - min(0.0, expected[0, 1] / expected[0, 0]) if w.numel() else 1
        torch.testing.assert_close(w.detach(), before - 0.1 * (c_g * g + 0.3 * before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start_dtype", [*WEIGHT_DTYPES, None], ids=str)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
def test_start_keeps_its_own_dtype(dtype: torch.dtype, start_dtype: torch.dtype | None, path: dict[str, bool]) -> None:
    w, g = (draw(seed, [(1027,)], dtype)[0] for seed in range(2))
    w0 = None if start_dtype is None else draw(2, [(1027,)], start_dtype)[0]
    found = pytl.ops.gram([w], [g], [w0], **DECAYS, fused="fused" in path)
    assert_gram(found, [expected_row(w, g, w0, None)])


def test_gram_of_ten_million_elements() -> None:
    w, g, w0 = (torch.randn(10_000_000) for _ in range(3))
    assert_gram(pytl.ops.gram([w], [g], [w0], **DECAYS), [expected_row(w, g, w0, None)])


def test_float32_sums_that_float32_could_not_hold() -> None:
    g = torch.full((10_000_000,), 1e-4)
    g[0] = 1e4
    found = pytl.ops.gram([torch.zeros_like(g)], [g])
    assert found[0, 0].item() == pytest.approx(float((g.double() ** 2).sum()), rel=1e-12)


def test_thousands_of_tiny_tensors_and_mixed_dtypes() -> None:
    shapes = [(i % 5,) for i in range(3000)]
    dtypes = [WEIGHT_DTYPES[i % 4] for i in range(3000)]
    lists = [[t.to(d) for t, d in zip(draw(seed, shapes), dtypes, strict=True)] for seed in range(3)]
    found = pytl.ops.gram(*lists, **DECAYS)
    assert_gram(found, [expected_row(*row, None) for row in zip(*lists, strict=True)])


def test_empty_list_has_no_rows() -> None:
    assert pytl.ops.gram([], []).shape == (0, 3)


@pytest.mark.parametrize("decoupled", [False, True])
def test_opt_gram_is_of_the_weights_before_the_step(decoupled: bool, path: dict[str, bool]) -> None:
    shapes = [(5, 3), (70_000,), (), (4, 4)]
    params = [Parameter(t) for t in draw(0, shapes, torch.float32)]
    params[3] = Parameter(with_gaps(params[3].detach()))
    flags = path if "foreach" in path else {}
    optimizer = pytl.SGD(params, lr=0.1, decoupled=decoupled, direction="dtnh", **DECAYS, **flags)
    starts = [p.detach().clone() for p in params]
    for t in range(3):
        g, h = draw(2 * t + 1, shapes), draw(2 * t + 2, shapes)
        before = [p.detach().clone() for p in params]
        give(params, [g[0], None, *g[2:]])
        give_penalties(optimizer, params, h)
        optimizer.step()
        coupled_h = [None] * 4 if decoupled else h
        rows = [expected_row(*row) for row in zip(before, g, starts, coupled_h, strict=True)]
        rows[1] = np.zeros((2, 3))
        assert_gram(optimizer.gram, rows)
        if decoupled:
            pairs = [expected_row(torch.zeros_like(x), x, None, y, sp=0, wd=0) for x, y in zip(g, h, strict=True)]
            pairs[1] = np.zeros((2, 3))
            assert_gram(optimizer.penalty_gram, pairs)


def test_functional_forms_change_no_input(path: dict[str, bool]) -> None:
    w, g, w0, h = (draw(seed) for seed in range(4))
    pytl.ops.gram(w, g, w0, h, **DECAYS, fused="fused" in path)
    for seed, tensors in enumerate((w, g, w0, h)):
        assert all(map(torch.equal, tensors, draw(seed)))


BAD: dict[str, tuple[Any, Any, str]] = {
    "fewer gradients": (lambda w, g: ([w, w], [g]), ValueError, "gradient.*2.*got 1"),
    "shape": (lambda w, g: ([w], [g[:2]]), ValueError, r"gradient.*\[3\].*\[2\]"),
    "dtype": (lambda w, g: ([w], [g.double()]), TypeError, "gradient.*float32.*float64"),
    "device": (lambda w, g: ([w], [g.to("meta")]), RuntimeError, "gradient.*cpu.*meta"),
    "sparse": (lambda w, g: ([w], [g.to_sparse()]), RuntimeError, "sparse"),
    "complex": (lambda w, g: ([w], [g.to(torch.complex64)]), RuntimeError, "complex"),
    "integer": (lambda w, g: ([w.int()], [g.int()]), (TypeError, RuntimeError), "int32"),
}


@pytest.mark.parametrize("case", BAD)
def test_operands_that_disagree_are_named(case: str, path: dict[str, bool]) -> None:
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        pytl.ops.gram(*arguments(torch.ones(3), torch.ones(3)), fused="fused" in path)


def test_core_and_reference_agree() -> None:
    lists = [draw(seed, dtype=torch.float32) for seed in range(4)]
    rows = [doubles([pytl.ops.gram(*lists, **DECAYS, fused=fused)]) for fused in (True, False)]
    np.testing.assert_allclose(*rows, rtol=1e-6, atol=1e-6)
    assert len(PATHS) == 2
