"""The operations on features against float64 formulas written from METHODS.md, on every layout and dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import array
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from pytl import ops
from pytl.ops import core

FUSED = {"core": None, "reference": False}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
VALUE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

SHAPES = {
    "maps": (3, 5, 7, 7),
    "rows of a vector": (2, 4, 8, 8),
    "small maps": (3, 37, 2, 3),
    "one position": (4, 9, 1, 1),
    "one channel": (4, 1, 6, 5),
    "tokens": (3, 6, 5),
    "pooled": (7, 33),
    "beyond a chunk": (3, 40, 33, 35),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "with gaps": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


def drawn(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    draw = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return draw.bfloat16().to(torch.get_default_device(), dtype)


def close(found: Tensor, expected: np.ndarray | float, tolerance: float) -> None:
    expected = np.asarray(expected, dtype=np.float64)
    scale = np.abs(expected).max(initial=0) or 1.0
    smallest = 2.0**-24 if found.dtype == torch.float16 else 0.0
    assert np.abs(array(found) - expected).max(initial=0) <= tolerance * scale + smallest


def along(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    dim = x.ndim - 1 if x.ndim == 3 else 1
    return weights.reshape([-1 if d == dim else 1 for d in range(x.ndim)])


def distance_and_gradient(x: np.ndarray, source: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    difference = x - source
    return (along(weights, x) * difference**2).sum() / (2 * len(x)), along(weights, x) * difference / len(x)


def maps_of(a: np.ndarray) -> np.ndarray:
    energy = (a**2).mean(axis=1 if a.ndim == 4 else 2).reshape(len(a), -1)
    norm = np.linalg.norm(energy, axis=1, keepdims=True)
    return np.divide(energy, norm, out=np.zeros_like(energy), where=norm > 0)


def attention_and_gradient(a: np.ndarray, source: np.ndarray) -> tuple[float, np.ndarray]:
    u, v = maps_of(a), maps_of(source)
    channels = a.shape[1 if a.ndim == 4 else 2]
    energy = (a**2).mean(axis=1 if a.ndim == 4 else 2).reshape(len(a), -1)
    norm = np.linalg.norm(energy, axis=1, keepdims=True)
    g = 2 * (u - v) / u.size
    g = (g - u * (u * g).sum(1, keepdims=True)) / norm
    spread = g.reshape(len(a), 1, *a.shape[2:]) if a.ndim == 4 else g[:, :, None]
    return ((u - v) ** 2).mean(), 2 * a / channels * spread


def divergence_and_gradient(x: np.ndarray, source: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    def log_softmax(z: np.ndarray) -> np.ndarray:
        z = z / temperature
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(source), log_softmax(x)
    rows = x[..., 0].size
    value = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum() / rows
    return value, temperature * (np.exp(log_q) - np.exp(log_p)) / rows


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


CASES = [(shape, layout) for shape in SHAPES for layout in LAYOUTS]


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), CASES)
class TestAgainstFloat64:
    def test_feature_distance(self, shape: str, layout: str, dtype: torch.dtype, fused: bool | None) -> None:
        x, source = (drawn(SHAPES[shape], seed, dtype) for seed in (1, 2))
        weights = drawn((x.shape[x.dim() - 1 if x.dim() == 3 else 1],), 3).abs()
        for chosen in (None, weights):
            used = array(torch.ones_like(weights) if chosen is None else chosen)
            value, gradient = distance_and_gradient(array(x), array(source), used)
            found = value_and_gradient(
                lambda leaf, chosen=chosen: ops.feature_distance(leaf, source, chosen, fused=fused), LAYOUTS[layout](x)
            )
            close(found[0], value, VALUE_TOLERANCE[dtype])
            close(found[1], gradient, GRADIENT_TOLERANCE[dtype])

    def test_attention_map(self, shape: str, layout: str, dtype: torch.dtype, fused: bool | None) -> None:
        x, source = (drawn(SHAPES[shape], seed, dtype) for seed in (1, 2))
        if x.dim() == 2:
            return
        value, gradient = attention_and_gradient(array(x), array(source))
        function = lambda leaf: ops.attention_map_distance(leaf, source, fused=fused)  # noqa: E731
        found = value_and_gradient(function, LAYOUTS[layout](x))
        close(found[0], value, VALUE_TOLERANCE[dtype])
        close(found[1], gradient, GRADIENT_TOLERANCE[dtype])

    def test_distillation(self, shape: str, layout: str, dtype: torch.dtype, fused: bool | None) -> None:
        x, source = (3 * drawn(SHAPES[shape], seed, dtype) for seed in (1, 2))
        value, gradient = divergence_and_gradient(array(x), array(source), 2.5)
        function = lambda leaf: ops.distillation(leaf, source, 2.5, fused=fused)  # noqa: E731
        found = value_and_gradient(function, LAYOUTS[layout](x))
        close(found[0], value, VALUE_TOLERANCE[dtype])
        close(found[1], gradient, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_are_zero_at_the_source(dtype: torch.dtype, fused: bool | None) -> None:
    x = drawn((4, 6, 5, 5), 1, dtype)
    weights = drawn((6,), 2).abs()
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda leaf: ops.feature_distance(leaf, x, weights, fused=fused),
        lambda leaf: ops.attention_map_distance(leaf, x, fused=fused),
        lambda leaf: ops.distillation(leaf, x, 2.0, fused=fused),
    ]
    for function in functions:
        value, gradient = value_and_gradient(function, x)
        assert value == 0
        rounding = 0.0 if fused is None else torch.finfo(torch.float32 if dtype.itemsize < 4 else dtype).eps
        assert (gradient.abs() <= rounding).all()  # PyTorch's log_softmax leaves some


def test_maps_of_nothing_are_zero_with_a_gradient_that_is_zero() -> None:
    x = torch.zeros(3, 4, 5, 5)
    x[1] = drawn((4, 5, 5), 1, torch.float32)
    for chosen in FUSED.values():
        value, gradient = value_and_gradient(
            lambda leaf, chosen=chosen: ops.attention_map_distance(leaf, torch.ones_like(x), fused=chosen), x
        )
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


def test_a_tap_adds_the_gradient_to_the_tasks() -> None:
    x, source, task = (drawn((3, 5, 7, 7), seed) for seed in (1, 2, 3))
    weights = drawn((5,), 4).abs()
    leaf = x.requires_grad_()
    through, value = ops.tapped_feature_distance(leaf, source, weights)
    assert through.data_ptr() == leaf.data_ptr()
    expected, gradient = distance_and_gradient(array(x), array(source), array(weights))
    close(value, expected, 1e-10)
    both = torch.autograd.grad((through * task).sum() + 3 * value, leaf, retain_graph=True)[0]
    close(both, array(task) + 3 * gradient, 1e-10)
    close(torch.autograd.grad(value, leaf, retain_graph=True)[0], gradient, 1e-10)
    close(torch.autograd.grad((through * task).sum(), leaf)[0], array(task), 1e-10)


def test_a_tap_is_differentiable_twice() -> None:
    x, source = (drawn((2, 3, 2, 2), seed) for seed in (1, 2))
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def both(leaf: Tensor) -> Tensor:
        through, value = ops.tapped_feature_distance(leaf, source, weights)
        return (through**3).sum() + value

    gradcheck(both, x.requires_grad_())
    gradgradcheck(both, x)


def test_weights_may_be_strided_and_the_channels_anywhere() -> None:
    x, source = (drawn((3, 5, 7, 4), seed) for seed in (1, 2))
    weights = drawn((8,), 3).abs()[::2]
    moved = [t.permute(0, 3, 1, 2).contiguous() for t in (x, source)]
    expected = distance_and_gradient(*map(array, moved), array(weights))[0]
    for dim in (3, -1):
        close(ops.feature_distance(x, source, weights, channel_dim=dim), expected, 1e-10)
        close(ops.feature_distance(x, source, weights, channel_dim=dim, fused=False), expected, 1e-10)


def test_a_core_that_is_demanded_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "why_not", lambda device, dtype: "it is not built")
    x = torch.ones(2, 3, 2, 2)
    for call in (ops.feature_distance, ops.attention_map_distance, ops.distillation):
        with pytest.raises(RuntimeError, match="fused=True needs the compiled core: it is not built"):
            call(x, x, fused=True)  # type: ignore[operator]
        assert call(x, x) == 0  # type: ignore[operator]


def test_gradients_of_a_graph_that_is_kept_are_the_same_each_time() -> None:
    x, source = drawn((3, 5), 1).requires_grad_(), drawn((3, 5), 2)
    value = ops.distillation(x, source, 2.0)
    expected = 3 * divergence_and_gradient(array(x), array(source), 2.0)[1]
    for keep in (True, True, False):
        close(torch.autograd.grad(3 * value, x, retain_graph=keep)[0], expected, 1e-10)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "distance": lambda x, s: ops.feature_distance(x, s, torch.linspace(0.1, 2, x.shape[1], dtype=x.dtype)),
    "attention": ops.attention_map_distance,
    "distillation": lambda x, s: ops.distillation(x, s, 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_finite_differences_once_and_twice(name: str) -> None:
    x, source = drawn((2, 3, 2, 2), 1).requires_grad_(), drawn((2, 3, 2, 2), 2)
    gradcheck(lambda leaf: FUNCTIONS[name](leaf, source), x)
    gradgradcheck(lambda leaf: FUNCTIONS[name](leaf, source), x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_mean_over_parts_of_a_batch_is_the_batchs(name: str) -> None:
    x, source = drawn((6, 4, 3, 3), 1), drawn((6, 4, 3, 3), 2)
    parts = [FUNCTIONS[name](a, b) for a, b in zip(x.split(2), source.split(2), strict=True)]
    close(torch.stack(parts).mean(), array(FUNCTIONS[name](x, source)), 1e-12)


def samples() -> list[tuple[Any, tuple[Any, ...]]]:
    x, source = (drawn((3, 4, 5, 2), seed, torch.float32) for seed in (1, 2))
    weights, one = torch.rand(4), torch.ones(())
    leaf = x.clone().requires_grad_()
    tokens = drawn((3, 4, 6), 5, torch.bfloat16)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    return [
        (torch.ops.pytl.feature_distance, (leaf, source, weights, 1)),
        (torch.ops.pytl.feature_distance, (last, source, None, 1)),
        (torch.ops.pytl.feature_distance, (tokens, tokens + 1, None, 2)),
        (torch.ops.pytl.feature_distance_gradient, (x, source, weights, one, source, 1)),
        (torch.ops.pytl.feature_distance_gradient, (x, source, None, one, None, 1)),
        (torch.ops.pytl.attention_map, (leaf,)),
        (torch.ops.pytl.attention_map, (last,)),
        (torch.ops.pytl.attention_map, (tokens,)),
        (torch.ops.pytl.attention_map_gradient, (x, *torch.ops.pytl.attention_map(x), torch.rand(3, 10))),
        (torch.ops.pytl.distillation, (leaf, source, 2.0, True)),
        (torch.ops.pytl.distillation, (x, source.bfloat16(), 2.0, False)),
    ]


@pytest.mark.parametrize("index", range(11))
def test_operations_are_registered_as_torch_wants_them(index: int) -> None:
    operation, arguments = samples()[index]
    torch.library.opcheck(operation, arguments)


def test_everything_compiles_to_one_graph() -> None:
    x, source = (drawn((3, 4, 5, 2), seed, torch.float32) for seed in (1, 2))
    weights = torch.rand(4)

    def losses(leaf: Tensor) -> Tensor:
        through, tapped = ops.tapped_feature_distance(leaf * 2, source, weights)
        value = tapped + ops.feature_distance(leaf, source) + ops.attention_map_distance(leaf, source)
        return value + ops.distillation(leaf, source, 2.0) + through.sin().sum()

    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True)
    for one, other in zip(value_and_gradient(compiled, x), value_and_gradient(losses, x), strict=True):
        torch.testing.assert_close(one, other)


def test_bits_do_not_depend_on_threads_or_instructions() -> None:
    if core.missing:
        pytest.skip(core.missing)
    x, source = (drawn((5, 40, 33, 35), seed, torch.float32) for seed in (1, 2))

    def all_of_it() -> list[Tensor]:
        each = [value_and_gradient(lambda leaf, f=f: f(leaf, source), x) for f in FUNCTIONS.values()]
        return [tensor for both in each for tensor in both]

    first, used = all_of_it(), core.module.instruction_set()
    try:
        for name in core.module.instruction_sets():
            core.module.use_instruction_set(name)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert all(torch.equal(a, b) for a, b in zip(all_of_it(), first, strict=True)), (name, threads)
    finally:
        core.module.use_instruction_set(used)


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 3, 3), (2, 3, 0, 2)])
def test_nothing_is_at_no_distance(shape: tuple[int, ...], fused: bool | None) -> None:
    x = torch.zeros(shape)
    for function in (
        lambda leaf: ops.feature_distance(leaf, x, torch.ones(shape[1]), fused=fused),
        lambda leaf: ops.attention_map_distance(leaf, x, fused=fused),
    ):
        value, gradient = value_and_gradient(function, x)
        assert value == 0
        assert gradient.shape == x.shape


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
def test_an_excluded_class_has_no_part_and_nan_is_not_hidden(fused: bool | None) -> None:
    source, x = torch.randn(3, 5), torch.randn(3, 5)
    source[:, 2] = -torch.inf
    x[0, 2] = -torch.inf
    value, gradient = value_and_gradient(lambda leaf: ops.distillation(leaf, source, fused=fused), x)
    rest = [0, 1, 3, 4]
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert value >= ops.distillation(x[:, rest], source[:, rest], fused=fused) - 1e-6
    for position in (0, 2):
        spoilt = torch.randn(3, 5)
        spoilt[1, position] = torch.nan
        assert ops.distillation(spoilt, source, fused=fused).isnan()
        assert ops.distillation(x, spoilt, fused=fused).isnan()
        maps = spoilt[:, :, None, None].expand(3, 5, 2, 2)
        assert ops.feature_distance(maps, torch.ones_like(maps), fused=fused).isnan()
        assert ops.attention_map(maps, fused=fused)[1].isnan().all()
        assert ops.attention_map(maps, fused=fused)[0].isfinite().all()


def test_dtypes_may_differ() -> None:
    x, source = drawn((3, 4, 2, 2), 1, torch.bfloat16), drawn((3, 4, 2, 2), 2, torch.float32)
    value, gradient = value_and_gradient(lambda leaf: ops.feature_distance(leaf, source), x)
    expected = distance_and_gradient(array(x), array(source), np.ones(4))
    close(value, expected[0], 1e-5)
    close(gradient, expected[1], 1e-2)
    assert gradient.dtype == torch.bfloat16
    assert value_and_gradient(lambda leaf: ops.distillation(leaf, source), x)[1].dtype == torch.bfloat16


def test_no_gradient_flows_into_the_source() -> None:
    x, source = drawn((3, 4, 2, 2), 1).requires_grad_(), drawn((3, 4, 2, 2), 2).requires_grad_()
    for function in FUNCTIONS.values():
        assert torch.autograd.grad(function(x, source), source, allow_unused=True)[0] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.feature_distance(x, x[:1]), "source must have the shape of x"),
        (lambda x: ops.feature_distance(x, x.long()), "source must be of a floating point dtype; got torch.int64"),
        (
            lambda x: ops.feature_distance(x, x, torch.ones(5)),
            "weights must be of shape .4., the channels of x; got .5.",
        ),
        (lambda x: ops.feature_distance(x, x, torch.ones(4), channel_dim=7), "channel_dim must be a dimension of x"),
        (lambda x: ops.attention_map(x[:, :, 0, 0]), "a must be maps .B, C, H, W. or tokens"),
        (lambda x: ops.attention_map_distance(x, x[..., :1]), "source must have .samples, positions. as a"),
        (lambda x: ops.distillation(x, x, 0.0), "temperature must be finite and > 0; got 0.0"),
        (lambda x: ops.distillation(x[..., :0], x[..., :0]), "x must have >= 1 class"),
        (ops.bss, "features must be .samples, features."),
        (lambda x: ops.bss(x[:1, :, 0, 0]), "features must be of >= 2 samples"),
        (lambda x: ops.bss(x[..., 0, 0], 4), "k must be in .1, 3."),
        (lambda x: ops.bss(x[..., 0, 0] * torch.nan), "features must be finite"),
        (lambda x: ops.mmd(x[:1, :, 0, 0], x[..., 0, 0]), "x and y must have >= 2 points each; got 1 and 3"),
        (lambda x: ops.mmd(x, x), "x and y must be .n, d. and .m, d."),
        (lambda x: ops.mmd(x[..., 0, 0], x[..., 0, 0], ()), "widths must be > 0"),
        (lambda x: ops.mmd(x[..., 0, 0], x[..., 0, 0], (1.0, -1.0)), "widths must be > 0"),
        (lambda x: ops.distillation(x, x, float("inf")), "temperature must be finite and > 0; got inf"),
        (lambda x: ops.feature_distance(x.sum(), x.sum()), "x must be .B, C, .*got shape"),
        (lambda x: ops.feature_distance(x, x, channel_dim=0), "channel_dim must be a dimension of x, .* behind the"),
        (lambda x: ops.feature_distance(x[0, 0, 0], x[0, 0, 0]), "x must be .B, C, .*got shape"),
        (lambda x: ops.attention_map(x.long()), "a must be of a floating point dtype; got torch.int64"),
    ],
)
def test_bad_operands_are_named(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(drawn((3, 4, 2, 2), 1, torch.float32))


@pytest.mark.parametrize(("samples", "width", "k"), [(6, 20, 1), (6, 20, 3), (20, 6, 2), (5, 5, 5)])
def test_bss_is_the_sum_of_the_smallest_squared_singular_values(samples: int, width: int, k: int) -> None:
    x = drawn((samples, width), 1)
    u, s, v = np.linalg.svd(array(x), full_matrices=False)
    value, gradient = value_and_gradient(lambda leaf: ops.bss(leaf, k), x)
    close(value, (s[-k:] ** 2).sum(), 1e-10)
    close(gradient, (u[:, -k:] * 2 * s[-k:]) @ v[-k:], 1e-9)
    gradcheck(lambda leaf: ops.bss(leaf, k), x.requires_grad_())
    close(ops.bss(x.detach().float(), k), (s[-k:] ** 2).sum(), 1e-5)


def test_bss_has_a_finite_gradient_where_singular_values_coincide() -> None:
    for x in (torch.eye(4), torch.ones(4, 7), torch.zeros(4, 3)):
        value, gradient = value_and_gradient(lambda leaf: ops.bss(leaf, 2), x)
        assert value >= 0
        assert gradient.isfinite().all()


def mmd_of(x: np.ndarray, y: np.ndarray, widths: tuple[float, ...]) -> float:
    z = np.concatenate([x, y])
    squared = ((z[:, None] - z[None]) ** 2).sum(-1)
    scale = squared.sum() / (len(z) * (len(z) - 1))
    kernel = sum(np.exp(-squared / (width * scale)) for width in widths)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def test_mmd_is_the_formula_over_all_pairs() -> None:
    x, y = drawn((6, 9), 1), drawn((8, 9), 2) + 3
    expected = mmd_of(array(x), array(y), ops.mmd.__globals__["WIDTHS"])
    close(ops.mmd(x, y), expected, 1e-10)
    close(ops.mmd(x.float(), y.float()), expected, 1e-5)
    close(ops.mmd(x.float() + 1000, y.float() + 1000), expected, 1e-3)
    assert ops.mmd(x, x.flip(0)).abs() < 1e-12
    fixed = y.detach()
    scale = torch.tensor(20.0, dtype=torch.float64)
    gradcheck(lambda leaf: ops.mmd(leaf, fixed, scale=scale), x.requires_grad_())
    gradgradcheck(lambda leaf: ops.mmd(leaf, fixed, scale=scale), x)


def test_mmd_of_one_point_is_zero_with_a_gradient_that_is_zero() -> None:
    x = torch.ones(4, 3)
    value, gradient = value_and_gradient(lambda leaf: ops.mmd(leaf, x), x)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
def test_no_gradient_of_a_gradient_flows_into_the_source(fused: bool | None) -> None:
    x, source = drawn((3, 4, 2, 2), 1).requires_grad_(), drawn((3, 4, 2, 2), 2).requires_grad_()
    for function in (ops.feature_distance, ops.attention_map_distance, ops.distillation):
        value = function(x, source, fused=fused)
        gradient = torch.autograd.grad(value, x, create_graph=True)[0]
        assert torch.autograd.grad(value + gradient.square().sum(), source, allow_unused=True)[0] is None


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
def test_one_operand_in_float64_makes_the_value_float64(fused: bool | None) -> None:
    x, source = drawn((3, 4, 2, 2), 1, torch.float32), drawn((3, 4, 2, 2), 2)
    for function in (ops.feature_distance, ops.distillation):
        assert function(x, source, fused=fused).dtype == function(source, x, fused=fused).dtype == torch.float64


def test_the_registered_gradient_has_the_dtype_of_the_features() -> None:
    """Autograd would hide another one; a compiled graph does not."""
    x, source = drawn((3, 4, 2, 2), 1, torch.bfloat16), drawn((3, 4, 2, 2), 2, torch.float32)
    found = torch.ops.pytl.feature_distance_gradient(x, source, None, torch.ones(()), None, 1)
    assert found.dtype == torch.bfloat16


def test_without_the_core_pytorch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, source = drawn((3, 4, 5, 2), 1), drawn((3, 4, 5, 2), 2)

    def all_of_it() -> list[Tensor]:
        through, tapped = ops.tapped_feature_distance(leaf := x.clone().requires_grad_(), source)
        tap = torch.autograd.grad(through.sin().sum() + tapped, leaf)[0]
        return [tap, *(t for f in FUNCTIONS.values() for t in value_and_gradient(lambda leaf, f=f: f(leaf, source), x))]

    expected = all_of_it()
    monkeypatch.setattr(core, "missing", "not built")
    for one, other in zip(all_of_it(), expected, strict=True):
        close(one, array(other), 1e-12)
    for operation, arguments in samples():
        torch.library.opcheck(operation, arguments, test_utils="test_autograd_registration")
    with pytest.raises(RuntimeError, match="fused=True needs the compiled core: not built"):
        ops.feature_distance(x, source, fused=True)


def test_operands_on_two_devices_are_refused() -> None:
    x = drawn((3, 4, 2, 2), 1, torch.float32)
    with pytest.raises(ValueError, match=r"source must be on the device of x, .*; got meta"):
        ops.feature_distance(x, x.to("meta"))


def test_no_gradient_is_written_where_none_is_asked_for() -> None:
    x, written = drawn((3, 4), 1).requires_grad_(), []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            written.extend([args[3]] if call is torch.ops.pytl.distillation.default else [])
            return call(*args, **kwargs or {})

    with Seen():
        ops.distillation(x, x + 1)
        ops.distillation(x.detach(), x + 1)
        with torch.no_grad():
            ops.distillation(x, x + 1)
    assert written == [True, False, False]


def test_bss_of_float32_features_has_the_precision_of_float64() -> None:
    """In float32 the Gram matrix's rounding alone would be 500 times the value."""
    mix = torch.linalg.qr(drawn((4, 4), 1))[0]
    x = (torch.diag(torch.tensor([1e3, 1.0, 1.0, 1e-2], dtype=torch.float64)) @ mix).float()
    close(ops.bss(x), np.linalg.svd(array(x))[1][-1] ** 2, 1e-4)


def test_bss_refuses_to_be_differentiated_twice() -> None:
    x = drawn((4, 6), 1).requires_grad_()
    gradient = torch.autograd.grad(ops.bss(x), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_mmds_own_scale_is_a_constant_of_the_gradient() -> None:
    x, y = drawn((6, 9), 1), drawn((8, 9), 2) + 3
    points = torch.cat([x, y])
    scale = torch.cdist(points, points).square().sum() / (14 * 13)
    expected = value_and_gradient(lambda leaf: ops.mmd(leaf, y, scale=scale), x)
    found = value_and_gradient(lambda leaf: ops.mmd(leaf, y), x)
    close(found[0], array(expected[0]), 1e-10)
    close(found[1], array(expected[1]), 1e-10)
