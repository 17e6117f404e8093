"""Penalties beside the task: apart from its gradient, under every direction, precision, wrapper and number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import DIRECTIONS, Oracle, array, relative_error
from ranks import free_port, leave
from test_regularizers import Network, gradients, moved, network
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import pytl

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: dict[str, Callable[..., Any]] = {
    "delta": pytl.DELTA,
    "at": lambda model, **options: pytl.AttentionTransfer(model, strength=3.0, **options),
    "distillation": lambda model, **options: pytl.Distillation(model, soft_labels=1.0, **options),
}


def batch(seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (size,), generator=generator)


def start_and_model() -> tuple[Network, nn.Module]:
    start = network().eval()
    return start, moved(copy.deepcopy(start), 0.05)


def weights_of(model: nn.Module) -> list[Any]:
    return [array(p) for p in model.parameters()]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_steps_equal_an_oracle_that_is_given_both_gradients(name: str, direction: str) -> None:
    start, model = start_and_model()
    params = [*model.parameters()]
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "direction": direction}
    opt = pytl.SGD(params, **options)
    oracle = Oracle("sgd", params, options)
    with METHODS[name](model, source=start) as reg:
        for step in range(3):
            x, y = batch(step)
            loss = cross_entropy(model(x), y)
            value = reg(x)
            task, penalty = gradients(model, loss), gradients(model, value)
            opt.take_penalty(value)
            loss.backward()
            opt.step()
            opt.zero_grad()
            oracle.step(task, penalty)
    assert relative_error(weights_of(model), oracle.weights) < 1e-12


def test_micro_batches_add_up_to_the_batch() -> None:
    found = []
    for parts in (1, 2):
        start, model = start_and_model()
        opt = pytl.AdamW(model.parameters(), lr=0.01, direction="dtnh")
        with pytl.DELTA(model, source=start) as reg:
            for step in range(3):
                x, y = batch(step)
                for part, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
                    loss = cross_entropy(model(part), labels) / parts
                    opt.take_penalty(reg(part) / parts)
                    loss.backward()
                opt.step()
                opt.zero_grad()
        found.append(weights_of(model))
    assert relative_error(found[1], found[0]) < 1e-10


def test_with_the_sum_a_penalty_in_the_loss_does_the_same() -> None:
    found = []
    for apart in (True, False):
        start, model = start_and_model()
        opt = pytl.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with pytl.DELTA(model, source=start) as reg:
            for step in range(3):
                x, y = batch(step)
                loss = cross_entropy(model(x), y)
                if apart:
                    opt.take_penalty(reg(x))
                else:
                    loss = loss + reg(x)
                loss.backward()
                opt.step()
                opt.zero_grad()
        found.append(weights_of(model))
    assert relative_error(found[1], found[0]) < 1e-12


class Counted(torch.autograd.Function):
    """An identity that counts how often gradients come back through it."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Counted.calls += 1
        return gradient


@pytest.mark.parametrize(
    ("name", "direction", "passes"),
    [("delta", "sum", 1), ("delta", "dtnh", 2), ("both", "dtnh", 2), ("l1sp", "sum", 1), ("l1sp", "dtnh", 1)],
)
def test_a_penalty_costs_at_most_one_more_pass_backwards(name: str, direction: str, passes: int) -> None:
    """None where it is added to the loss, and none of the network's where its gradient is a formula of the weights."""
    start, model = start_and_model()
    model.stem.register_forward_hook(lambda m, a, out: Counted.apply(out))
    makers: dict[str, Callable[[], Any]] = {
        "delta": lambda: pytl.DELTA(model, source=start),
        "both": lambda: pytl.DELTA(model, source=start) + pytl.Distillation(model, source=copy.deepcopy(start)),
        "l1sp": lambda: pytl.L1SP(model, 0.1),
    }
    opt = pytl.SGD(model.parameters(), lr=0.05, direction=direction)
    with makers[name]() as reg:
        x, y = batch()
        Counted.calls = 0
        loss = cross_entropy(model(x), y)
        if direction == "sum":
            loss = loss + reg(x)
        else:
            opt.take_penalty(reg(x))
        loss.backward()
    assert Counted.calls == passes


@pytest.mark.parametrize("direction", ["sum", "dtnh"])
def test_a_compiled_model_steps_the_same(direction: str) -> None:
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        start, model = start_and_model()
        model.eval()
        run = torch.compile(model, backend="aot_eager") if compiled else model
        opt = pytl.SGD(model.parameters(), lr=0.05, direction=direction)
        with pytl.DELTA(run, source=start) as reg:
            for step in range(2):
                x, y = batch(step)
                loss = cross_entropy(run(x), y)
                opt.take_penalty(reg(x))
                loss.backward()
                opt.step()
                opt.zero_grad()
        found.append(weights_of(model))
    assert relative_error(found[1], found[0]) < 1e-10


# Precision:


def test_bfloat16_autocast_stays_near_float32() -> None:
    found = []
    for enabled in (False, True):
        start, model = (net.float() for net in start_and_model())
        opt = pytl.SGD(model.parameters(), lr=0.05, direction="dtnh")
        with pytl.DELTA(model, source=start) as reg:
            for step in range(3):
                x, y = batch(step)
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    loss = cross_entropy(model(x.float()), y)
                    value = reg(x.float())
                opt.take_penalty(value)
                loss.backward()
                opt.step()
                opt.zero_grad()
        assert value.dtype == torch.float32
        found.append(weights_of(model))
    assert relative_error(found[1], found[0]) < 1e-2


def scaled_run(scale: float | None, steps: int = 3) -> nn.Module:
    start, model = (net.float() for net in start_and_model())
    opt = pytl.SGD(model.parameters(), lr=0.05, direction="dtnh")
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    with pytl.DELTA(model, source=start) as reg:
        for step in range(steps):
            x, y = batch(step)
            loss = cross_entropy(model(x.float()), y)
            opt.take_penalty(reg(x.float()), scaler)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
    return model


def test_a_scaled_penalty_is_unscaled() -> None:
    """Powers of two change no bit."""
    expected = weights_of(scaled_run(None))
    assert relative_error(weights_of(scaled_run(1024.0)), expected) == 0


@pytest.mark.parametrize("direction", ["sum", "dtnh"])
def test_an_overflow_of_the_penalty_skips_the_step_and_shrinks_the_scale(direction: str) -> None:
    model = nn.Linear(3, 2)
    opt = pytl.SGD(model.parameters(), lr=0.1, direction=direction)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, size in enumerate((1e38, 1.0)):
        before = weights_of(copy.deepcopy(model))
        value = (model.weight * size).sum()
        opt.take_penalty(value, scaler)
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        moved_by = relative_error(weights_of(model), before)
        assert (moved_by == 0) == (step == 0)
        assert scaler.get_scale() == 512.0
    assert all(p.isfinite().all() for p in model.parameters())


# Ranks:


def train(run: nn.Module, model: nn.Module, start: nn.Module, name: str, direction: str, ranks: slice) -> None:
    opt = pytl.SGD(model.parameters(), lr=0.05, momentum=0.9, direction=direction)
    with METHODS[name](run, source=start) as reg:
        for step in range(3):
            x, y = batch(step)
            x, y = x[ranks], y[ranks]
            loss = cross_entropy(run(x), y)
            opt.take_penalty(reg(x))
            loss.backward()
            opt.step()
            opt.zero_grad()


CASES = [("delta", "sum"), ("delta", "dtnh"), ("at", "grod"), ("distillation", "dtnh")]


def rank_main(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, direction in CASES:
        start, model = start_and_model()
        train(DistributedDataParallel(model), model, start, name, direction, slice(2 * rank, 2 * rank + 2))
        torch.save(model.state_dict(), Path(folder, f"{name}-{direction}-{rank}.pt"))
    torch.save(trained_sharded(rank), Path(folder, f"sharded-{rank}.pt"))
    leave()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what both ranks trained; they start once, which takes longer than their work."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(rank_main, (free_port(), str(folder)), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize(("name", "direction"), CASES)
def test_two_ranks_equal_one_process_with_the_whole_batch(two_ranks: Path, name: str, direction: str) -> None:
    start, model = start_and_model()
    train(model, model, start, name, direction, slice(None))
    saved = [torch.load(two_ranks / f"{name}-{direction}-{rank}.pt") for rank in range(2)]
    for state in saved:
        found = [array(state[key]) for key, _ in model.named_parameters()]
        assert relative_error(found, weights_of(model)) < 1e-6
    assert all(torch.equal(saved[0][key], saved[1][key]) for key, _ in model.named_parameters())


def trained_sharded(rank: int) -> dict[str, Tensor]:
    """The whole weights after three steps of FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    start, model = start_and_model()
    mesh = init_device_mesh("cpu", (2,))
    for block in (*model.layer1, *model.layer2):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match="model is sharded and cannot be copied: give source="):
        pytl.DELTA(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytl.DELTA(model, source=start) as reg:
        for step in range(3):
            x, y = (part[2 * rank : 2 * rank + 2] for part in batch(step))
            (cross_entropy(model(x), y) + reg(x)).backward()
            opt.step()
            opt.zero_grad()
    return {name: p.full_tensor() for name, p in model.named_parameters()}


def test_features_of_a_sharded_model_equal_those_of_a_whole_one(two_ranks: Path) -> None:
    start, model = start_and_model()
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytl.DELTA(model, source=start) as reg:
        for step in range(3):
            x, y = batch(step)
            (cross_entropy(model(x), y) + reg(x)).backward()
            opt.step()
            opt.zero_grad()
    for rank in range(2):
        found = torch.load(two_ranks / f"sharded-{rank}.pt")
        assert relative_error([array(found[n]) for n, _ in model.named_parameters()], weights_of(model)) < 1e-6


def test_without_averaging_each_rank_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda flat, group: calls.append(group))
    p = nn.Parameter(torch.ones(3))
    opt = pytl.SGD([p], lr=0.1)
    for average in (True, False):
        opt.take_penalty(p.sum(), average=average)
        p.grad = torch.zeros(3)
        opt.step()
    assert calls == [None]


def test_an_overflow_counts_where_the_task_does_not_reach_the_parameters() -> None:
    reached, unreached = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    empty = nn.Parameter(torch.ones(0))
    opt = pytl.SGD([reached, unreached, empty], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt.take_penalty((unreached * 1e38).sum() + empty.sum(), scaler)
    unreached.grad = torch.zeros(2)
    scaler.scale(reached.sum()).backward()
    scaler.step(opt)
    scaler.update()
    assert (unreached == 1).all()
    assert scaler.get_scale() == 512.0


def test_sixteen_bit_weights_keep_a_scaled_penalty() -> None:
    p = nn.Parameter(torch.ones(4, dtype=torch.float16))
    opt = pytl.SGD([p], lr=1.0, compensated=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt.take_penalty((p * 2.0**-10).sum(), scaler)
    assert (opt._penalties.of[p] == 2.0**-10).all()
    opt.zero_grad()
    opt.take_penalty((p.float() * 2.0**-10).sum(), torch.amp.GradScaler("cpu", init_scale=2.0**16))
    assert (opt._penalties.of[p] == 2.0**-10).all()
