"""What only a GPU can show of the operations on features: streams, graphs, sizes, and that nothing waits.

``test_feature_ops.py --device cuda`` compares them with float64 on every layout.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import assert_same
from test_cuda import _on_the_gpu, nothing_waits  # noqa: F401
from torch import Tensor

from pytl import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

MAPS, TOKENS, LOGITS, LONG = (8, 256, 28, 28), (16, 197, 768), (512, 1000), (24, 50257)


def weights_for(x: Tensor) -> Tensor:
    return torch.linspace(0.1, 2, x.shape[2 if x.dim() == 3 else 1], dtype=torch.float32)


CASES: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "distance of maps": (MAPS, lambda x, s, **how: ops.feature_distance(x, s, weights_for(x), **how)),
    "distance of tokens": (TOKENS, lambda x, s, **how: ops.feature_distance(x, s, weights_for(x), **how)),
    "distance without weights": (MAPS, ops.feature_distance),
    "attention of maps": (MAPS, ops.attention_map_distance),
    "attention of small maps": ((8, 2048, 7, 7), ops.attention_map_distance),
    "attention of tokens": (TOKENS, ops.attention_map_distance),
    "distillation": (LOGITS, lambda x, s, **how: ops.distillation(x, s, 2.0, **how)),
    "distillation of long rows": (LONG, lambda x, s, **how: ops.distillation(x, s, 2.0, **how)),
    "distillation of several blocks a row": ((40, 128_256), lambda x, s, **how: ops.distillation(x, s, 2.0, **how)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[tuple[int, ...], Callable[..., Tensor]]:
    return CASES[request.param]


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed)).to(dtype)


def value_and_gradient(function: Callable[..., Tensor], x: Tensor, source: Tensor, **how: bool) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    value = function(leaf, source, **how)
    return [value.detach(), *torch.autograd.grad(value, leaf)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sizes_of_real_networks_equal_the_reference(
    dtype: torch.dtype, case: tuple[tuple[int, ...], Callable[..., Tensor]]
) -> None:
    shape, function = case
    x, source = drawn(shape, 1, dtype), drawn(shape, 2, dtype)
    found = value_and_gradient(function, x, source, fused=True)
    expected = value_and_gradient(function, x.double(), source.double(), fused=False)
    close = {torch.float64: 1e-10, torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
    torch.testing.assert_close(found[0].double(), expected[0], rtol=min(close[dtype], 5e-5), atol=0)
    scale = expected[1].abs().amax()
    smallest = 2.0**-24 if dtype == torch.float16 else 0.0
    assert (found[1].double() - expected[1]).abs().amax() <= close[dtype] * scale + smallest


def test_bits_are_the_same_in_every_run_and_wherever_operands_lie(
    case: tuple[tuple[int, ...], Callable[..., Tensor]],
) -> None:
    shape, function = case
    x, source = drawn(shape, 1, torch.bfloat16), drawn(shape, 2, torch.bfloat16)
    first = value_and_gradient(function, x, source)
    for _ in range(3):
        assert_same(value_and_gradient(function, x, source), first)
    aside = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(shape) for t in (x, source)]
    assert_same(value_and_gradient(function, *aside), first)


def test_nothing_waits(case: tuple[tuple[int, ...], Callable[..., Tensor]]) -> None:
    shape, function = case
    x, source = drawn(shape, 1), drawn(shape, 2)
    value_and_gradient(function, x, source)
    with nothing_waits():
        value_and_gradient(function, x, source)


def test_a_captured_call_follows_its_operands(case: tuple[tuple[int, ...], Callable[..., Tensor]]) -> None:
    shape, function = case
    x, source = drawn(shape, 1), drawn(shape, 2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        value_and_gradient(function, x, source)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradient(function, x, source)
    for seed in (3, 5):
        x.copy_(drawn(shape, seed))
        source.copy_(drawn(shape, seed + 1))
        graph.replay()
        assert_same(captured, value_and_gradient(function, x, source))


def test_streams_do_not_disturb_one_another(case: tuple[tuple[int, ...], Callable[..., Tensor]]) -> None:
    shape, function = case
    pairs = [(drawn(shape, seed), drawn(shape, seed + 10)) for seed in range(3)]
    alone = [value_and_gradient(function, *pair) for pair in pairs]
    streams = [torch.cuda.Stream() for _ in pairs]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    found: list[list[Tensor]] = []
    for _ in range(5):
        found = []
        for stream, pair in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                found.append(value_and_gradient(function, *pair))
    torch.cuda.synchronize()
    for one, other in zip(found, alone, strict=True):
        assert_same(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_another_device_than_the_current_one(case: tuple[tuple[int, ...], Callable[..., Tensor]]) -> None:
    shape, function = case
    x, source = drawn(shape, 1), drawn(shape, 2)
    here = value_and_gradient(function, x, source)
    there = value_and_gradient(function, x.to("cuda:1"), source.to("cuda:1"))
    assert_same([t.to("cuda:0") for t in there], here)


def free_gib() -> float:
    return torch.cuda.mem_get_info()[0] / 2**30


@pytest.mark.skipif(torch.cuda.is_available() and free_gib() < 40, reason="needs 40 GiB of free memory on the device")
class TestMoreThan2To31Elements:
    def test_feature_distance(self) -> None:
        for weights, share in ((None, 1.0), (torch.tensor([0.0, 2.0]), 1.0), (torch.tensor([0.0, 1.0]), 0.5)):
            shape = (1, 2, 2**30 + 8) if weights is not None else (1, 2**31 + 3, 1)
            leaf = torch.ones(shape, dtype=torch.bfloat16, requires_grad=True)
            source = torch.zeros(shape, dtype=torch.bfloat16)
            value = ops.feature_distance(leaf, source, weights, channel_dim=1, fused=True)
            assert value.item() == pytest.approx(share * leaf.numel() / 2, rel=1e-6)
            gradient = torch.autograd.grad(value, leaf)[0]
            for channel in (0, 1) if weights is not None else (0, -1):
                expected = 1.0 if weights is None else weights[channel].item()
                assert gradient[0, channel].amin() == gradient[0, channel].amax() == expected
            del leaf, source, value, gradient

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_attention_map(self, channels_last: bool) -> None:
        order = torch.channels_last if channels_last else torch.contiguous_format
        leaf = torch.ones(2, 2**16 + 1, 128, 128, dtype=torch.bfloat16).contiguous(memory_format=order)
        leaf.requires_grad_()
        maps = ops.attention_map(leaf, fused=True)
        torch.testing.assert_close(maps, torch.full_like(maps, 1 / 128))
        upstream = torch.zeros_like(maps)
        upstream[1, -1] = 1.0
        gradient = torch.autograd.grad(maps, leaf, upstream)[0]
        assert (gradient[0] == 0).all()
        energy = 2**16 + 1
        expected = 2 * (1 - 1 / 128**2) / (128 * energy)
        torch.testing.assert_close(gradient[1, -1, -1, -1].float(), torch.tensor(expected), rtol=1e-2, atol=0)

    def test_distillation(self) -> None:
        for columns in (1024, 2**20):
            rows = 2**31 // columns + 1
            x = torch.zeros(rows, columns, dtype=torch.bfloat16)
            source = torch.zeros_like(x)
            source[-1, -1] = 5.0
            value, gradient = value_and_gradient(lambda a, b: ops.distillation(a, b, fused=True), x, source)
            one = ops.distillation(x[-1:].double(), source[-1:].double(), fused=False)
            torch.testing.assert_close(value.double() * rows, one, rtol=1e-3, atol=0)
            assert (gradient[:-1] == 0).all()
            assert gradient[-1, -1] < 0 < gradient[-1, 0]
            del x, source, gradient
