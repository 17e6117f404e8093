"""What only a GPU can show: streams, graphs, sizes, and that nothing waits. ``--device cuda`` runs the others there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracle import assert_same, draw, give, parameters
from torch import Tensor
from torch.nn import Parameter

import pytl
from pytl.optim import prefetch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SHAPES = ((64, 33), (), (0, 4), (7,), (70_000,), (5, 4097), (1,))
DTNH: dict[str, Any] = {"lr": 0.01, "sp_decay": 0.3, "weight_decay": 0.05, "direction": "dtnh", "fused": True}


class Opposed(pytl.Direction):
    """A rule that the core does not know: half of the regulariser where it opposes the task."""

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gg), 1 - 0.5 * (gr < 0).double()


WAYS: dict[str, dict[str, Any]] = {
    "one launch": {},
    "w0 in float32": {"start_dtype": torch.float32},
    "sum": {"direction": "sum"},
    "global": {"granularity": "global"},
    "clipping": {"max_grad_norm": 0.5},
    "own rule": {"direction": Opposed()},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DTNH | WAYS[request.param]


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    with torch.device("cuda"):
        yield


def take_steps(optimizer: Any, count: int, first: int = 1) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, first + count):
        give(params, draw(t, [p.shape for p in params]))
        optimizer.step()


def weights(optimizer: Any) -> list[Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bits_are_the_same_in_every_run(way: dict[str, Any], method: Any) -> None:
    seen = []
    for _ in range(2):
        optimizer = method(parameters(0, SHAPES, torch.float32), **way)
        take_steps(optimizer, 5)
        seen.append([*weights(optimizer), optimizer.gram.clone()])
    assert_same(*seen)


def test_a_step_waits_for_nothing(way: dict[str, Any], method: Any) -> None:
    params = parameters(0, SHAPES, torch.float32)
    optimizer = method(params, **way)
    take_steps(optimizer, 1)
    gradients = draw(2, SHAPES, torch.float32)
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(1), torch.ones(1)
    with nothing_waits():
        give(params, gradients)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()


def test_a_step_allocates_nothing(method: Any) -> None:
    optimizer = method(parameters(0, SHAPES, torch.float32), **DTNH)
    take_steps(optimizer, 2)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    optimizer.step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("overflow", [False, True])
def test_overflow_and_loss_scale_are_read_on_the_device(overflow: bool, way: dict[str, Any], method: Any) -> None:
    scaled, plain = (method(parameters(0, SHAPES, torch.float32), **way) for _ in range(2))
    for optimizer in (scaled, plain):
        take_steps(optimizer, 1)
    before, steps = weights(scaled), scaled.state[scaled.param_groups[0]["params"][0]]["step"].clone()
    scaled.found_inf, scaled.grad_scale = torch.full((1,), float(overflow)), torch.full((1,), 1024.0)
    give(scaled.param_groups[0]["params"], [1024 * g for g in draw(2, SHAPES, torch.float32)])
    with nothing_waits():
        scaled.step()
    take_steps(plain, 1, first=2)
    assert_same(weights(scaled), before if overflow else weights(plain))
    assert scaled.state[scaled.param_groups[0]["params"][0]]["step"] == steps + (not overflow)


def captured(optimizer: Any, gradients: list[Tensor]) -> torch.cuda.CUDAGraph:
    """A graph of one step with these gradients. The stream of the capture must wait for what came before."""
    give([p for group in optimizer.param_groups for p in group["params"]], gradients)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


@pytest.mark.parametrize("lr_is", ["tensor", "number"])
def test_a_captured_step_follows_schedules(lr_is: str, way: dict[str, Any], method: Any) -> None:
    replayed, stepped = (method(parameters(0, SHAPES, torch.float32), **way) for _ in range(2))
    lr = torch.tensor(0.01)
    if lr_is == "tensor":
        replayed.param_groups[0]["lr"] = lr
    for optimizer in (replayed, stepped):
        take_steps(optimizer, 1)
    gradients = draw(0, SHAPES, torch.float32)
    graph = captured(replayed, gradients)
    for t in range(2, 8):
        stepped.param_groups[0]["lr"] = 0.01 / t
        if lr_is == "tensor":
            lr.fill_(0.01 / t)
            stepped.param_groups[0]["lr"] = float(lr)
        else:
            replayed.param_groups[0]["lr"] = 0.01 / t
            replayed.write_options()
        for gradient, drawn in zip(gradients, draw(t, SHAPES, torch.float32), strict=True):
            gradient.copy_(drawn)
        graph.replay()
        take_steps(stepped, 1, first=t)
    assert_same(weights(replayed), weights(stepped))
    assert_same(replayed.gram, stepped.gram)


def test_steps_beside_a_captured_one_do_not_disturb_it(method: Any) -> None:
    optimizer = method(parameters(0, SHAPES, torch.float32), **DTNH)
    take_steps(optimizer, 1)
    gradients = draw(2, SHAPES, torch.float32)
    graph = captured(optimizer, gradients)
    expected = method(parameters(0, SHAPES, torch.float32), **DTNH)
    take_steps(expected, 1)
    for t in (2, 3, 2, 4, 2):
        if t == 2:
            graph.replay()
        else:
            take_steps(optimizer, 1, first=t)
        take_steps(expected, 1, first=t)
    assert_same(weights(optimizer), weights(expected))


def test_a_capture_before_the_first_step_is_refused(method: Any) -> None:
    optimizer = method(parameters(0, SHAPES, torch.float32), **DTNH)
    with pytest.raises(RuntimeError, match="take one before the capture"):
        captured(optimizer, draw(1, SHAPES, torch.float32))
    assert not optimizer.state


def test_a_capture_after_a_change_of_numbers_is_refused(method: Any) -> None:
    optimizer = method(parameters(0, SHAPES, torch.float32), **DTNH)
    take_steps(optimizer, 1)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match="write_options"):
        captured(optimizer, draw(1, SHAPES, torch.float32))


def test_streams_do_not_disturb_one_another(method: Any) -> None:
    """Four optimizers on streams of their own, in turn, without waiting."""
    optimizers = [method(parameters(seed, SHAPES, torch.float32), **DTNH) for seed in range(4)]
    streams = [torch.cuda.Stream() for _ in optimizers]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for t in range(1, 20):
        for optimizer, stream in zip(optimizers, streams, strict=True):
            with torch.cuda.stream(stream):
                take_steps(optimizer, 1, first=t)
    torch.cuda.synchronize()
    for seed, optimizer in enumerate(optimizers):
        alone = method(parameters(seed, SHAPES, torch.float32), **DTNH)
        take_steps(alone, 19)
        assert_same(weights(optimizer), weights(alone))


@pytest.mark.parametrize("length", [2**31 + 3])
def test_a_tensor_of_more_than_2_31_elements(length: int) -> None:
    if torch.cuda.mem_get_info()[0] < 20 * length:
        pytest.skip("needs 40 GiB of free memory on the device")
    p = Parameter(torch.ones(length, dtype=torch.bfloat16))
    optimizer = pytl.SGD([p], lr=0.5, sp_decay=0.1, direction="dtnh", compensated=False, fused=True)
    for _ in range(2):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    # The pull is 0 in the first step; in the second r = 0.1 * (0.75 - 1) opposes g and is taken out of it.
    assert p.detach().amin() == p.detach().amax() == 0.5
    assert optimizer.gram[0, 0].item() == pytest.approx(0.25 * length)
    assert optimizer.gram[0, 1].item() == pytest.approx(-0.0125 * length, rel=1e-2)


def test_thousands_of_tiny_tensors_equal_the_reference(method: Any) -> None:
    shapes = [(64,)] * 5000
    core, reference = (method(parameters(0, shapes, torch.float32), **(DTNH | own)) for own in ({}, {"fused": None}))
    reference.param_groups[0]["foreach"] = True
    for optimizer in (core, reference):
        take_steps(optimizer, 2)
    torch.testing.assert_close(torch.stack(weights(core)), torch.stack(weights(reference)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept_in", ["bfloat16", "8bit"])
def test_moments_in_fewer_bits_are_the_cpus(kept_in: str, dtype: torch.dtype, method: Any) -> None:
    """Bit for bit: halves of what bfloat16 holds are exact, so that nothing but the rounding is compared."""
    own: dict[str, Any] = {"momentum": 0.5} if method is pytl.SGD else {"betas": (0.5, 0.5), "amsgrad": True}
    kept, moved = [], []
    for device in ("cpu", "cuda"):
        with torch.device(device):
            optimizer = method(
                parameters(0, SHAPES, dtype), lr=1e-3, weight_decay=0.0, moments=kept_in, fused=True, **own
            )
            take_steps(optimizer, 5)
        moved.append([w.cpu().float() for w in weights(optimizer)])
        kept.append([{k: t.cpu() for k, t in s.items() if k != "compensation"} for s in optimizer.state.values()])
    assert_same(*kept)
    for found, expected in zip(*moved, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("kept_in", ["bfloat16", "8bit"])
def test_moments_in_fewer_bits_in_a_captured_step(kept_in: str, way: dict[str, Any], method: Any) -> None:
    """What is rounded at random depends on the number of the step, which lies on the device."""
    own = way | {"moments": kept_in} | ({"momentum": 0.9} if method is pytl.SGD else {})
    replayed, stepped = (method(parameters(0, SHAPES, torch.float32), **own) for _ in range(2))
    for optimizer in (replayed, stepped):
        take_steps(optimizer, 1)
    gradients = draw(0, SHAPES, torch.float32)
    graph = captured(replayed, gradients)
    for t in range(2, 5):
        for gradient, drawn in zip(gradients, draw(t, SHAPES, torch.float32), strict=True):
            gradient.copy_(drawn)
        graph.replay()
        take_steps(stepped, 1, first=t)
    assert_same(weights(replayed), weights(stepped))
    assert_same(*([dict(s) for s in optimizer.state.values()] for optimizer in (replayed, stepped)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_parameters_on_two_devices_decide_together(way: dict[str, Any], method: Any) -> None:
    both, one = parameters(0, SHAPES, torch.float32), parameters(0, SHAPES, torch.float32)
    both = [Parameter(p.detach().to(f"cuda:{i % 2}")) for i, p in enumerate(both)]
    found, expected = method(both, **way), method(one, **way)
    for t in range(1, 5):
        gradients = draw(t, SHAPES, torch.float32)
        for p, q, g in zip(both, one, gradients, strict=True):
            p.grad, q.grad = g.to(p.device), g
        found.step()
        expected.step()
    for p, q in zip(both, one, strict=True):
        torch.testing.assert_close(p.detach().to(q.device), q.detach(), rtol=1e-6, atol=1e-7)


def test_running_out_of_memory_changes_nothing(method: Any) -> None:
    params = parameters(0, SHAPES, torch.float32)
    optimizer = method(params, **DTNH)
    before = weights(optimizer)
    give(params, draw(1, SHAPES))
    torch.cuda.memory.set_per_process_memory_fraction(1e-9)
    try:
        torch.cuda.empty_cache()
        filled = list(itertools.islice(_all_that_is_left(), 100_000))
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
    finally:
        torch.cuda.memory.set_per_process_memory_fraction(1.0)
    del filled
    assert not optimizer.state
    assert_same(weights(optimizer), before)
    optimizer.step()


def _all_that_is_left() -> Iterator[Tensor]:
    """What torch's cache still gives without asking the device."""
    for size in (2**20, 2**9):
        while True:
            try:
                yield torch.empty(size, dtype=torch.uint8)
            except torch.OutOfMemoryError:
                break


@pytest.mark.parametrize("window", [1 << 16, 64 << 20])
def test_a_start_in_pinned_memory_gives_the_bits_of_one_on_the_gpu(
    way: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are brought on a stream of their own while the one before is in use."""
    monkeypatch.setattr(prefetch, "WINDOW", window)
    found = []
    for device in (None, "cpu"):
        optimizer = pytl.AdamW(parameters(0, SHAPES, torch.float32), **way, start_device=device)
        take_steps(optimizer, 5)
        starts = [state["start"] for state in optimizer.state.values()]
        assert {start.device.type for start in starts} == {device or "cuda"}
        assert all(start.is_pinned() for start in starts if device)
        found.append(weights(optimizer))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
