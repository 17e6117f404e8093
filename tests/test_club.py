"""CLUB against the densities of all pairs, and its Gaussian against least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import array, assert_same
from scipy.stats import norm
from sklearn.linear_model import Ridge
from test_feature_ops import LAYOUTS, close
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pytl import ops

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def club_of(y: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """By the density of each pair, [i, j, d]."""
    scale = np.sqrt(np.broadcast_to(variance, y.shape))
    log_q = norm.logpdf(y[None], mean[:, None], scale[:, None]).sum(-1)
    return float(np.diagonal(log_q).mean() - log_q.mean())


def samples_of_club(each: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    y = normal(7, 5, seed=1) + 2
    variance = normal(*((7, 5) if each else (5,)), seed=3).exp()
    return y.to(dtype), (0.6 * y + normal(7, 5, seed=2)).to(dtype), variance.to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("each", [False, True], ids=["one variance", "a variance for each sample"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_club_is_the_log_ratio_over_all_pairs(dtype: torch.dtype, each: bool, layout: str) -> None:
    given = [LAYOUTS[layout](t) for t in samples_of_club(each, dtype)]
    found = ops.club(*given)
    expected = club_of(*map(array, given))
    assert abs(expected) > 0.1
    assert (found.dtype, found.shape) == (torch.float64 if dtype == torch.float64 else torch.float32, ())
    close(found, expected, 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("each", [False, True])
def test_clubs_gradients_are_its_slopes_twice(each: bool) -> None:
    given = [t.requires_grad_() for t in samples_of_club(each)]
    assert gradcheck(ops.club, given)
    assert gradgradcheck(ops.club, given)


def test_club_does_not_see_autocast() -> None:
    given = samples_of_club(False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(ops.club(*given), ops.club(*given))
        inside = ops.club(*given)
    assert_same(inside, ops.club(*given))


def test_club_does_not_depend_on_where_the_origin_is() -> None:
    y, mean, variance = samples_of_club(False, torch.float32)
    close(ops.club(y + 1000, mean + 1000, variance), float(ops.club(y, mean, variance)), 1e-3)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_club_with_the_true_conditional_bounds_the_information_from_above(rho: float) -> None:
    n, d = 20_000, 3
    x = normal(n, d, seed=1)
    y = rho * x + math.sqrt(1 - rho**2) * normal(n, d, seed=2)
    true = -d / 2 * math.log(1 - rho**2)
    found = float(ops.club(y, rho * x, torch.full((d,), 1 - rho**2, dtype=torch.float64)))
    assert found == pytest.approx(d * rho**2 / (1 - rho**2), rel=0.05, abs=1e-12)
    assert found >= true


def test_club_is_below_zero_where_the_conditional_is_wrong() -> None:
    y = normal(50, 2)
    assert ops.club(y, -y, torch.ones(2)) < -1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3), (4, 2), (3,)), r"y, mean and variance must be \[n, d\].*got \[4, 3\], \[4, 2\] and \[3\]"),
        (((4, 3), (4, 3), (4,)), r"got \[4, 3\], \[4, 3\] and \[4\]"),
        (((4, 3, 1), (4, 3, 1), (3, 1)), r"got \[4, 3, 1\]"),
        (((1, 3), (1, 3), (3,)), "y must have >= 2 samples; got 1"),
    ],
)
def test_club_names_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.club(*(torch.ones(shape) for shape in shapes))


# The Gaussian that CLUB needs:


def pair(n: int = 40, k: int = 6, d: int = 4) -> tuple[Tensor, Tensor]:
    x = normal(n, k, seed=4) * torch.linspace(0.1, 3, k, dtype=torch.float64) + 5
    return x, x @ normal(k, d, seed=5) + 0.3 * normal(n, d, seed=6) - 2


def test_the_gaussian_is_that_of_least_squares() -> None:
    x, y = pair()
    found = ops.Gaussian.fitted(x, y, ridge=1e-13)
    design = np.column_stack([array(x), np.ones(len(x))])
    fitted = design @ np.linalg.lstsq(design, array(y), rcond=None)[0]
    np.testing.assert_allclose(array(found.mean(x)), fitted, rtol=1e-8)
    residual = ((array(y) - fitted) ** 2).mean(0)
    np.testing.assert_allclose(array(found.variance), residual + 1e-3 * residual.mean(), rtol=1e-6)


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_the_gaussians_ridge_is_a_share_of_the_mean_variance(ridge: float | None) -> None:
    x, y = pair()
    n, k = x.shape
    alpha = n * array(x).var(0).mean() * (k / n if ridge is None else ridge)
    expected = Ridge(alpha=alpha).fit(array(x), array(y)).predict(array(x))
    found = ops.Gaussian.fitted(x, y, ridge)
    np.testing.assert_allclose(array(found.mean(x)), expected, rtol=1e-9)
    residual = ((array(y) - expected) ** 2).mean(0)
    np.testing.assert_allclose(array(found.variance), residual + 1e-3 * residual.mean(), rtol=1e-9)


def test_no_other_mean_or_variance_is_likelier() -> None:
    x, y = pair()
    best = ops.Gaussian.fitted(x, y, ridge=1e-13)

    def likelihood(mean: Tensor, variance: Tensor) -> float:
        return float(norm.logpdf(array(y), array(mean), np.sqrt(array(variance))).sum(1).mean())

    most = likelihood(best.mean(x), best.variance)
    for factor in (0.8, 1.25):
        assert likelihood(best.mean(x), factor * best.variance) < most
        assert likelihood(y.mean(0) + factor * (best.mean(x) - y.mean(0)), best.variance) < most
    assert likelihood(best.mean(x) + 0.1, best.variance) < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gaussian_of_lower_precision_is_float32(dtype: torch.dtype) -> None:
    x, y = (t.to(dtype) for t in pair())
    found = ops.Gaussian.fitted(x, y)
    expected = ops.Gaussian.fitted(x.double(), y.double())
    assert {t.dtype for t in (found.weight, found.centre, found.offset, found.variance)} == {torch.float32}
    close(found.mean(x), array(expected.mean(x)), 1e-4)
    close(found.variance, array(expected.variance), 1e-3)


@pytest.mark.parametrize("constant", ["x", "y", "both", "one column of x"])
def test_constant_samples_give_finite_numbers(constant: str) -> None:
    x, y = (t.float() for t in pair())
    if constant == "one column of x":
        x[:, 0] = 3
    x = torch.full_like(x, 3.0) if constant in ("x", "both") else x
    y = torch.full_like(y, 2.0) if constant in ("y", "both") else y
    found = ops.Gaussian.fitted(x, y)
    value = ops.club(y, found.mean(x), found.variance)
    assert value.isfinite()
    assert (found.variance > 0).all()
    if constant != "one column of x":
        assert value.abs() < 1e-5
        close(found.mean(x), array(y.mean(0).expand_as(y)), 1e-5)


def test_the_fit_is_a_constant_and_its_mean_is_differentiable() -> None:
    x, y = (t.requires_grad_() for t in pair())
    found = ops.Gaussian.fitted(x, y)
    assert not any(t.requires_grad for t in (found.weight, found.centre, found.offset, found.variance))
    assert gradcheck(found.mean, x)


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4, 3)), ((1, 3), (1, 3)), ((4, 3), (4, 3, 1))])
def test_the_gaussian_names_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    x, y = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"x and y must be \[n, k\] and \[n, d\], n >= 2; got \["):
        ops.Gaussian.fitted(x, y)
