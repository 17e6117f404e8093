"""The recorder: its numbers against float64 by hand, what it leaves as it was, and files after kills and resumes."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_integrations import QUIET, Digits, classifier
from test_integrations import Random as Sentences
from test_training import (
    BATCHES,
    CALLS_IN_AN_EPOCH,
    EPOCHS,
    Noisy,
    at_call,
    ctrl_c,
    network,
    train,
    weights,
    without_seconds,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

import pytl
from pytl import metrics, recorder
from pytl.analysis.trace import read_trace
from pytl.integrations import hf
from pytl.integrations import lightning as pl
from pytl.plan import Rules, TransferPlan
from pytl.training.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")

Record = dict[str, Any]


class Deep(nn.Module):
    """`shared`: the last layer has the first one's weight."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 6)
        if shared:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(self.norm(x))


BLOCKS = {
    "stem": ("embed.weight", "embed.bias"),
    "layers.0": ("layers.0.weight", "layers.0.bias"),
    "layers.1": ("layers.1.weight", "layers.1.bias", "norm.weight", "norm.bias"),
    "head": ("head.weight", "head.bias"),
}


def deep(**options: Any) -> Deep:
    torch.manual_seed(1)
    return Deep(**options)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 6, (8,), generator=generator, device="cpu")
    return torch.randn(8, 6, generator=generator, device="cpu").to(dtype), labels


def refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def lines(path: Path) -> list[Record]:
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in lines(path)]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in [*tensors, torch.empty(0)]])


def norm(vector: Tensor) -> float:
    return math.sqrt(float(vector.dot(vector)))


def cosine(one: Tensor, other: Tensor) -> float | None:
    both = norm(one) * norm(other)
    return float(one.dot(other)) / both if both else None


def in_float64(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: t.detach().double().clone() for name, t in tensors.items() if t is not None}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return in_float64({name: p.grad for name, p in model.named_parameters()})


def norms(prefix: str, blocks: Mapping[str, Iterable[str]], values: Mapping[str, Tensor]) -> Record:
    return {f"{prefix}/{block}": norm(flat(values[n] for n in own if n in values)) for block, own in blocks.items()}


def moved_from(start: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {name: w - start[name] for name, w in in_float64(dict(model.named_parameters())).items()}


def cosines(prefix: str, g: Mapping[str, Tensor], r: Mapping[str, Tensor]) -> Record:
    found = {}
    for block, names in BLOCKS.items():
        both = [name for name in names if name in g]
        found[f"{prefix}/{block}"] = cosine(flat(g[n] for n in both), flat(r.get(n, 0 * g[n]) for n in both))
    return {key: value for key, value in found.items() if value is not None}


def assert_line(found: Record, wanted: Record, rel: float = 2e-5) -> None:
    assert found == {key: pytest.approx(value, rel=rel, abs=1e-7) for key, value in wanted.items()}


PULLED = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 0.01}}


@pytest.mark.parametrize("kind", PULLED)
@pytest.mark.parametrize("rule", ["sum", "dtnh", "grod"])
@pytest.mark.parametrize("penalised", [False, True], ids=["alone", "penalty"])
def test_lines_of_pytls_optimizers_are_what_float64_says(tmp_path: Path, kind: str, rule: str, penalised: bool) -> None:
    """The pull is to the start in the body and to zero in the head; the penalty is on the first layer's features."""
    model, file = deep(), tmp_path / "metrics.jsonl"
    groups = pytl.param_groups(model, head="head", sp_decay=0.3, head_weight_decay=0.2, verbose=False)
    opt = getattr(pytl, kind)(groups, direction=rule, **PULLED[kind])
    start = in_float64(dict(model.named_parameters()))
    recorded, wanted = pytl.Recorder(model, opt, file, every=1, head="head"), []
    for step in range(1, 5):
        x, labels = batch(step)
        loss = cross_entropy(model(x), labels)
        h: dict[str, Tensor] = {}
        if penalised:
            value = model.embed(x).square().mean()
            names = ["embed.weight", "embed.bias"]
            taken = torch.autograd.grad(value, [*model.embed.parameters()], retain_graph=True)
            h = in_float64(dict(zip(names, taken, strict=True)))
            opt.take_penalty(value)
        loss.backward()
        w, g = in_float64(dict(model.named_parameters())), gradients(model)
        r = {name: 0.3 * (w[name] - start[name]) for name in w if w[name].dim() > 1}
        r["head.weight"] = 0.2 * w["head.weight"]
        opt.step()
        line = {"step": step, "loss": float(loss.detach()), **norms("gradient", BLOCKS, g)}
        if kind == "SGD":  # the pull passes through the momentum, and the penalty with it
            r = {name: r.get(name, 0 * g[name]) + h.get(name, 0 * g[name]) for name in g}
        else:
            line |= cosines("penalty_cosine", g, h)
        wanted.append(line | cosines("cosine", g, r) | norms("distance", BLOCKS, moved_from(start, model)))
        recorded.step(loss)
        opt.zero_grad()
    recorded.close()
    for found, line in zip(lines(file), wanted, strict=True):
        assert_line(found, line)
    assert ("penalty_cosine/stem" in wanted[-1]) == (penalised and kind == "AdamW")
    assert "cosine/layers.0" not in wanted[0]  # at the start nothing pulls
    assert "cosine/layers.0" in wanted[-1]


def recorded_by_torch(
    file: Path,
    model: nn.Module,
    params: Iterable[Any],
    blocks: Mapping[str, Iterable[str]],
    rel: float = 2e-5,
    **how: Any,
) -> None:
    """Three steps of torch's SGD, compared with the same in float64."""
    opt, start = torch.optim.SGD(params, lr=0.1), in_float64(dict(model.named_parameters()))
    here, wanted = pytl.Recorder(model, opt, file, every=1, **how), []
    for step in range(1, 4):
        x, labels = batch(step, next(model.parameters()).dtype)
        loss = cross_entropy(model(x).float(), labels)
        loss.backward()
        opt.step()
        line = {"step": step, "loss": float(loss.detach()), **norms("gradient", blocks, gradients(model))}
        wanted.append(line | norms("distance", blocks, moved_from(start, model)))
        here.step(loss)
        opt.zero_grad()
    here.close()
    for found, line in zip(lines(file), wanted, strict=True):
        assert_line(found, line, rel)


def test_lines_of_torchs_optimizers_are_what_float64_says(tmp_path: Path) -> None:
    model = deep()
    recorded_by_torch(tmp_path / "a.jsonl", model, model.parameters(), BLOCKS)
    model = deep().double()
    recorded_by_torch(tmp_path / "b.jsonl", model, model.parameters(), BLOCKS, rel=1e-6)


def test_frozen_parameters_have_not_moved_and_feel_nothing(tmp_path: Path) -> None:
    model = deep()
    model.layers[0].requires_grad_(False)
    recorded_by_torch(tmp_path / "a.jsonl", model, model.parameters(), BLOCKS)
    assert {(r["distance/layers.0"], r["gradient/layers.0"]) for r in lines(tmp_path / "a.jsonl")} == {(0.0, 0.0)}


@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW, torch.optim.SGD])
def test_parameters_without_a_gradient_count_nothing(tmp_path: Path, kind: Any) -> None:
    """At first some, then all, then none."""
    model, file = deep(), tmp_path / "metrics.jsonl"
    opt = kind(model.parameters(), lr=0.1)
    here = pytl.Recorder(model, opt, file, every=1)
    for given_ in (["layers.0.weight", "head.bias"], [], [name for name, _ in model.named_parameters()]):
        for name, p in model.named_parameters():
            p.grad = torch.full_like(p, 0.5) if name in given_ else None
        opt.step()
        here.step()
    here.close()
    some, none, every = lines(file)
    assert [some[f"gradient/{block}"] for block in BLOCKS] == pytest.approx([0, 3, 0, math.sqrt(6) / 2])
    assert [none[f"gradient/{block}"] for block in BLOCKS] == [0.0] * 4
    sizes = [sum(dict(model.named_parameters())[name].numel() for name in names) for names in BLOCKS.values()]
    assert [every[f"gradient/{block}"] for block in BLOCKS] == pytest.approx([math.sqrt(n) / 2 for n in sizes])
    assert "loss" not in some


def test_only_blocks_that_the_optimizer_has_are_recorded(tmp_path: Path) -> None:
    model, other = deep(), nn.Parameter(torch.ones(3))
    params = [other, model.head.bias, model.layers[1].weight, model.norm.bias]
    blocks = {"layers.1": ("layers.1.weight", "norm.bias"), "head": ("head.bias",)}
    recorded_by_torch(tmp_path / "a.jsonl", model, params, blocks)
    with pytest.raises(ValueError, match="optimizer must have parameters of the model; got none"):
        pytl.Recorder(model, torch.optim.SGD([other], lr=0.1), tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_parameters_of_others_do_not_shift_those_of_the_model(tmp_path: Path) -> None:
    model, other, file = deep(), nn.Parameter(torch.ones(3)), tmp_path / "a.jsonl"
    opt = pytl.SGD([other, *model.parameters()], lr=0.1)
    here = pytl.Recorder(model, opt, file, every=1)
    other.grad = torch.ones(3)
    for number, p in enumerate(model.parameters(), 1):
        p.grad = torch.full_like(p, float(number))
    opt.step()
    here.step()
    here.close()
    found = {key: value for key, value in lines(file)[0].items() if key.startswith("gradient")}
    assert_line(found, norms("gradient", BLOCKS, gradients(model)))


def test_order_of_the_optimizers_groups_does_not_matter(tmp_path: Path) -> None:
    one, files = deep(), [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, backwards in zip(files, (False, True), strict=True):
        model = copy.deepcopy(one)
        params = [*model.parameters()][:: -1 if backwards else 1]
        groups = [{"params": params[:5], "sp_decay": 0.2}, {"params": params[5:], "sp_decay": 0.2}]
        opt = pytl.SGD(groups, lr=0.1)
        here = pytl.Recorder(model, opt, file, every=1)
        for step in range(3):
            x, labels = batch(step)
            opt.zero_grad()
            cross_entropy(model(x), labels).backward()
            opt.step()
            here.step()
        here.close()
    for found, wanted in zip(lines(files[0]), lines(files[1]), strict=True):
        assert_line(found, wanted)


def test_tied_weights_count_once_in_the_first_of_their_blocks(tmp_path: Path) -> None:
    model = deep(shared=True)
    blocks = {key: BLOCKS[key] for key in ("stem", "layers.0")} | {"layers.1": (*BLOCKS["layers.1"], "head.bias")}
    recorded_by_torch(tmp_path / "a.jsonl", model, model.parameters(), blocks, head=())


def test_head_is_the_one_that_is_named(tmp_path: Path) -> None:
    file, two = tmp_path / "a.jsonl", {key: BLOCKS[key] for key in ("stem", "layers.0")}
    model = deep()
    names = tuple(name for name, _ in model.named_parameters() if name.startswith(("layers.1", "norm", "head")))
    blocks = {**two, "head": names}
    recorded_by_torch(file, model, model.parameters(), blocks, head=["layers.1", "norm", model.head])
    assert list(lines(file)[0])[2:5] == ["distance/stem", "distance/layers.0", "distance/head"]


def test_wrappers_do_not_count(tmp_path: Path) -> None:
    model = deep()
    wrapped = nn.DataParallel(model)
    opt = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    here = pytl.Recorder(wrapped, opt, tmp_path / "a.jsonl", every=1)
    here.step()
    here.close()
    assert [key for key in lines(tmp_path / "a.jsonl")[0] if key.startswith("distance")] == [
        f"distance/{block}" for block in BLOCKS
    ]


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALVES
def test_weights_of_half_precision_are_recorded_to_their_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = deep().to(dtype)
    recorded_by_torch(tmp_path / "a.jsonl", model, model.parameters(), BLOCKS, rel=4e-3)


@HALVES
@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW, torch.optim.SGD])
def test_norms_of_half_precision_are_taken_in_full_precision(tmp_path: Path, kind: Any, dtype: torch.dtype) -> None:
    model, file = deep().to(dtype), tmp_path / "a.jsonl"
    opt = kind(model.parameters(), lr=0.01)
    here = pytl.Recorder(model, opt, file, every=1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    opt.step()
    here.step()
    here.close()
    found = {key: value for key, value in lines(file)[0].items() if key.startswith("gradient")}
    assert_line(found, norms("gradient", BLOCKS, gradients(model)), rel=1e-6)


def test_norms_of_half_precision_do_not_overflow(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 300, bias=False)).half()
    model[0].weight.grad = torch.full((300, 300), 300.0, dtype=torch.float16)
    here = pytl.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "a.jsonl", every=1)
    here.step()
    here.close()
    assert lines(tmp_path / "a.jsonl")[0]["gradient/0"] == pytest.approx(90_000, rel=1e-3)


def test_weights_of_two_dtypes_are_recorded_together(tmp_path: Path) -> None:
    model, file = deep(), tmp_path / "a.jsonl"
    model.embed.bfloat16()
    opt = pytl.SGD(model.parameters(), lr=0.5)
    here, start = pytl.Recorder(model, opt, file, every=1), in_float64(dict(model.named_parameters()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    here.step()
    here.close()
    assert_line(
        {key: value for key, value in lines(file)[0].items() if key.startswith("distance")},
        norms("distance", BLOCKS, moved_from(start, model)),
        rel=5e-4,
    )


def test_weights_are_looked_at_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 100, 300):
        monkeypatch.setattr(recorder, "_TOGETHER", size)
        model = deep()
        recorded_by_torch(tmp_path / f"{size}.jsonl", model, model.parameters(), BLOCKS)


def test_distances_are_from_the_start_that_is_given(tmp_path: Path) -> None:
    model, file = deep(), tmp_path / "a.jsonl"
    start = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    here = pytl.Recorder(model, opt, file, every=1, start=start)
    here.step(0.5)
    here.close()
    wanted = norms("distance", BLOCKS, in_float64(dict(model.named_parameters())))
    assert_line(lines(file)[0], {"step": 1, "loss": 0.5, **wanted, **{f"gradient/{block}": 0.0 for block in BLOCKS}})


@pytest.mark.parametrize("name", ["every", "capacity"])
@pytest.mark.parametrize("value", [0, -3])
def test_bad_numbers_are_named(tmp_path: Path, name: str, value: int) -> None:
    model = deep()
    with pytest.raises(ValueError, match=f"{name} must be >= 1; got {value}"):
        pytl.Recorder(model, pytl.SGD(model.parameters(), lr=0.1), tmp_path / "a.jsonl", **{name: value})


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW, torch.optim.SGD])
def test_what_is_not_finite_is_left_out_of_valid_json(tmp_path: Path, kind: Any, bad: float) -> None:
    model, file = deep(), tmp_path / "a.jsonl"
    opt = kind(model.parameters(), lr=0.0)
    here = pytl.Recorder(model, opt, file, every=1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.norm.bias.grad[2] = bad
    opt.step()
    here.step(torch.tensor(bad))
    here.close()
    (found,) = lines(file)
    assert {"loss", "gradient/layers.1", "cosine/layers.1"}.isdisjoint(found)
    assert found["gradient/layers.0"] == pytest.approx(math.sqrt(42))


# What recording leaves as it was


def state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = optimizer.state_dict()["state"]
    return [value for one in found.values() for value in one.values() if isinstance(value, Tensor)]


def random_numbers() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "grod", "optimizer": "adamw", "lr": 0.01},
        {"method": "distillation+l2spfisher+dtnh"},
        {"method": "scratch+dropout+disturblabel"},
        {"method": "dtnh+rifle", "amp": "bf16"},
    ],
    ids=["dtnh", "adamw", "penalties", "scratch and noise", "rifle"],
)
def test_a_recorded_run_has_the_bits_of_one_that_is_not(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = train(network(), out=tmp_path / "plain", **options)
    drawn = random_numbers()
    recorded = train(
        network(), out=tmp_path / "recorded", record=1, snapshots=2, tensorboard=tmp_path / "events", **options
    )
    assert random_numbers() == drawn
    assert torch.equal(weights(recorded.model), weights(plain.model))
    assert all(map(torch.equal, state(recorded.optimizer), state(plain.optimizer)))
    epochs = [record for record in without_seconds(tmp_path / "recorded") if "epoch" in record]
    assert epochs == without_seconds(tmp_path / "plain")


@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW, torch.optim.AdamW])
def test_a_step_writes_to_no_tensor_of_others(tmp_path: Path, kind: Any) -> None:
    model = deep()
    opt = kind(model.parameters(), lr=0.1)
    here = pytl.Recorder(model, opt, tmp_path / "a.jsonl", every=1, capacity=1)
    x, labels = batch(0)
    loss = cross_entropy(model(x), labels)
    loss.backward()
    opt.step()
    held = [loss, *model.parameters(), *(p.grad for p in model.parameters()), *state(opt)]
    before, versions = flat(held), [t._version for t in held]
    generator = torch.get_rng_state()
    here.step(loss)
    assert torch.equal(flat(held), before)
    assert [t._version for t in held] == versions
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(t.grad_fn for _, t in here._kept)


# Waiting for the device


class NoWaiting(TorchDispatchMode):
    """Refuses what reads a tensor's numbers, and what moves a tensor to another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(bad in name for bad in ("_local_scalar_dense", "nonzero", "is_pinned", "aten.equal")), name
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
        if "copy" in name:
            assert len({t.device for t in tensors}) == 1, name
        return out


def read_back(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("read back")


@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("told", ["the loss", None, 0.5])
def test_nothing_is_read_back_until_the_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, told: Any
) -> None:
    model = deep()
    opt = kind(model.parameters(), lr=0.1)
    here = pytl.Recorder(model, opt, tmp_path / "a.jsonl", every=1, capacity=9)
    x, labels = batch(0)
    loss = cross_entropy(model(x), labels)
    loss.backward()
    opt.step()
    with monkeypatch.context() as patch, NoWaiting():
        for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__array__"):
            patch.setattr(Tensor, name, read_back)
        for _ in range(8):
            here.step(loss if told == "the loss" else told)
        with pytest.raises(AssertionError, match="read back"):
            here.flush()
    here.flush()
    assert steps_of(tmp_path / "a.jsonl") == [*range(1, 9)]


@pytest.mark.parametrize("loss", [None, 0.5])
def test_a_loss_that_is_not_on_the_device_is_made_there(tmp_path: Path, loss: float | None) -> None:
    """A copy from the host's pageable memory waits for a GPU; here the other device is one without numbers."""
    with torch.device("meta"):
        model = Deep()
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    here = pytl.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "a.jsonl", every=1)
    with NoWaiting():
        here.step(loss)
    assert here._kept[0][1].device.type == "meta"


@given(every=st.integers(1, 4), capacity=st.integers(1, 5), steps=st.integers(0, 20))
def test_capacity_bounds_what_is_kept_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, every: int, capacity: int, steps: int
) -> None:
    file, model = tmp_path_factory.mktemp("run") / "a.jsonl", nn.Linear(2, 2)
    here = pytl.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), file, every=every, capacity=capacity)
    for step in range(1, steps + 1):
        here.step()
        written = len(lines(file)) if file.exists() else 0
        assert len(here._kept) < capacity
        assert written + len(here._kept) == step // every
        assert written % capacity == 0
    here.close()
    assert (steps_of(file) if file.exists() else []) == [*range(every, steps + 1, every)]
    assert here.steps == steps


# Runs of `finetune`


def kinds(folder: Path) -> list[tuple[str, int]]:
    """Of each line whether it is a step or an epoch, and its number."""
    return [("step", r["step"]) if "step" in r else ("epoch", r["epoch"]) for r in lines(folder / "metrics.jsonl")]


def interleaved(every: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for step in range(1, EPOCHS * BATCHES + 1):
        found += [("step", step)] if step % every == 0 else []
        found += [("epoch", step // BATCHES)] if step % BATCHES == 0 else []
    return found


@pytest.mark.parametrize("every", [1, 2, 5, 7, 100])
def test_steps_stand_among_epochs_in_their_order(tmp_path: Path, every: int) -> None:
    result = train(network(), out=tmp_path, record=every)
    assert kinds(tmp_path) == interleaved(every)
    assert [r for r in lines(tmp_path / "metrics.jsonl") if "epoch" in r] == result.history


def test_lines_of_a_run_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    batches = [batch(step) for step in range(4)]
    fixed: dict[str, Any] = {"schedule": "constant", "progress": False, "epochs": 2}
    runs = [deep(), deep()]
    opts = [pytl.SGD(pytl.param_groups(m, head="head", sp_decay=0.1, verbose=False), lr=0.1) for m in runs]
    pytl.finetune(runs[0], batches, optimizer=opts[0], out=tmp_path, record=3, head="head", **fixed)
    here = pytl.Recorder(runs[1], opts[1], tmp_path / "loop.jsonl", every=3, head="head")
    for x, labels in batches * 2:
        loss = cross_entropy(runs[1](x), labels)
        loss.backward()
        opts[1].step()
        here.step(loss)
        opts[1].zero_grad()
    here.close()
    assert [r for r in lines(tmp_path / "metrics.jsonl") if "step" in r] == lines(tmp_path / "loop.jsonl")


def crash() -> None:
    raise RuntimeError("crash")


@pytest.mark.parametrize(
    "call", [1, 3, BATCHES, BATCHES + 1, CALLS_IN_AN_EPOCH + 1, 2 * CALLS_IN_AN_EPOCH + 4, EPOCHS * CALLS_IN_AN_EPOCH]
)
@pytest.mark.parametrize("stop", [ctrl_c, crash])
def test_a_resumed_run_has_each_step_once(tmp_path: Path, call: int, stop: Callable[[], None]) -> None:
    train(network(), out=tmp_path / "whole", record=2, checkpoint_every=2)
    with pytest.raises(Interrupted if stop is ctrl_c else RuntimeError):
        train(network(), loss=at_call(call, stop), out=tmp_path / "stopped", record=2, checkpoint_every=2)
    train(network(), out=tmp_path / "stopped", resume=True, record=2)
    assert without_seconds(tmp_path / "stopped") == without_seconds(tmp_path / "whole")


def test_what_was_recorded_before_a_crash_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        train(network(), loss=at_call(4, crash), out=tmp_path, record=1)
    assert kinds(tmp_path) == [("step", 1), ("step", 2), ("step", 3)]
    train(network(), out=tmp_path, resume=True, record=1)  # there is no checkpoint: it begins
    assert kinds(tmp_path) == interleaved(1)


DAMAGE: dict[str, Callable[[str], str]] = {
    "lines beyond the checkpoint": lambda text: text + '{"step": 9, "loss": 0.5}\n{"step": 10}\n',
    "an epoch beyond the checkpoint": lambda text: text + '{"step": 10}\n{"epoch": 2, "train_loss": 0.0}\n',
    "a line that was begun": lambda text: text + '{"step": 9, "lo',
    "the last line's end": lambda text: text[:-1],
    "the last line": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "half of the last line": lambda text: text[:-20],
}


AFTER_AN_EPOCH = [(damage, "epoch's end") for damage in DAMAGE]
WITHIN_ONE = [
    (damage, "within an epoch") for damage in DAMAGE if "last line" not in damage
]  # a checkpoint's are written


@pytest.mark.parametrize(("damage", "moment"), AFTER_AN_EPOCH + WITHIN_ONE)
def test_a_copy_made_on_the_way_goes_on_to_the_whole_file(tmp_path: Path, damage: str, moment: str) -> None:
    """After the first epoch's checkpoint, or that of step 8; the file is what a kill may have left beside it."""
    whole, copied = tmp_path / "whole", tmp_path / "copied"
    at = CALLS_IN_AN_EPOCH + (1 if moment == "epoch's end" else 4)
    copying = at_call(at, lambda: shutil.copytree(whole, copied) and None)
    every = None if moment == "epoch's end" else 4
    train(network(), loss=copying, out=whole, record=2, checkpoint_every=every)
    file = copied / "metrics.jsonl"
    file.write_text(DAMAGE[damage](file.read_text()))
    train(network(), out=copied, resume=True, record=2)
    assert without_seconds(copied) == without_seconds(whole)


def test_a_run_may_be_recorded_from_the_resume_on_or_at_another_pace(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(network(), loss=at_call(4, ctrl_c), out=tmp_path)
    with pytest.raises(Interrupted):
        train(network(), loss=at_call(5, ctrl_c), out=tmp_path, record=1, resume=True)  # step 7, behind an evaluation
    train(network(), out=tmp_path, record=5, resume=True)
    steps = [("step", step) for step in (5, 6, 7, 10, 15)]
    assert kinds(tmp_path) == [steps[0], ("epoch", 1), *steps[1:4], ("epoch", 2), steps[4], ("epoch", 3)]


def test_steps_stay_when_the_rest_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(network(), loss=at_call(3, ctrl_c), out=tmp_path, record=1)
    train(network(), out=tmp_path, resume=True)
    assert kinds(tmp_path)[:3] == [("step", 1), ("step", 2), ("step", 3)]
    assert kinds(tmp_path)[3:] == [("epoch", 1), ("epoch", 2), ("epoch", 3)]


def test_a_file_that_is_broken_in_the_middle_costs_its_steps_and_no_epoch(tmp_path: Path) -> None:
    train(network(), out=tmp_path / "whole", record=2)
    with pytest.raises(RuntimeError, match="crash"):
        train(network(), loss=at_call(CALLS_IN_AN_EPOCH + 3, crash), out=tmp_path / "run", record=2)
    file = tmp_path / "run" / "metrics.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first, "{broken\n", *rest]))
    with pytest.warns(RuntimeWarning, match="recorded steps are lost, epochs are kept: .*line 2"):
        train(network(), out=tmp_path / "run", record=2, resume=True)
    assert kinds(tmp_path / "run") == [one for one in interleaved(2) if one not in (("step", 2), ("step", 4))]
    kept = [record for record in without_seconds(tmp_path / "whole") if record.get("step") not in (2, 4)]
    assert without_seconds(tmp_path / "run") == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record": 10}, "record needs out, the run's folder; got None"),
        ({"record": 0}, "record must be >= 1; got 0"),
        ({"record": -1, "out": "run"}, "record must be >= 1; got -1"),
        ({"record": 0, "out": "run"}, "record must be >= 1; got 0"),
        ({"tensorboard": "events"}, "tensorboard needs record, the steps between two of its events; got None"),
        ({"snapshots": 2}, "snapshots needs out, the run's folder; got None"),
        ({"snapshots": -1, "out": "run"}, "snapshots must be >= 0; got -1"),
    ],
)
def test_bad_arguments_are_named_before_anything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, **{"method": "scratch", **options})
    assert torch.equal(weights(model), before)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", [pytl.SGD, pytl.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_step_that_the_scaler_skips_is_recorded_without_gradients(tmp_path: Path, kind: Any, at: int) -> None:
    model = network()
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(4)]
    batches[at] = (batches[at][0] * 1e38, batches[at][1])
    opt = kind(model.parameters(), lr=0.01)
    fixed: dict[str, Any] = {"epochs": 1, "amp": "fp16", "schedule": "constant", "progress": False, "head": "head"}
    pytl.finetune(model, batches, optimizer=opt, out=tmp_path, record=1, **fixed)
    found = [record for record in lines(tmp_path / "metrics.jsonl") if "step" in record]
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    felt = [any(key.startswith("gradient") for key in record) for record in found]
    assert felt == [step != at for step in range(4)]


# Weights that are kept


def parameters(saved: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    return flat(saved[name] for name, _ in model.named_parameters())


def load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def watched(model: nn.Module, seen: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that keeps the weights with which each step of the training begins."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if model.training:
            seen.append(flat(model.parameters()))
        return cross_entropy(logits, labels)

    return loss


STARTS = {
    "as given": {},
    "scratch": {"method": "scratch"},
    "plan": {"method": "plan+dtnh", "plan": TransferPlan.from_rules(network(), Rules(new_blocks=3), head="head")},
}


@pytest.mark.parametrize("case", STARTS)
def test_start_holds_the_weights_before_the_first_step(tmp_path: Path, case: str) -> None:
    model, seen = network(), []
    train(model, loss=watched(model, seen), out=tmp_path, record=1, **STARTS[case])  # type: ignore[arg-type]
    start = load(tmp_path / "start.pt")
    assert start.keys() == model.state_dict().keys()
    assert torch.equal(parameters(start, model), seen[0])
    assert torch.equal(seen[0], flat(network().parameters())) == (case == "as given")
    first = lines(tmp_path / "metrics.jsonl")[0]
    distances = [value for key, value in first.items() if key.startswith("distance/")]
    assert math.hypot(*distances) == pytest.approx(norm(seen[1] - seen[0]), rel=1e-5)


@pytest.mark.parametrize("case", STARTS)
def test_start_is_the_same_after_a_resume_and_made_where_it_lacks(tmp_path: Path, case: str) -> None:
    with pytest.raises(Interrupted):
        train(network(), loss=at_call(4, ctrl_c), out=tmp_path, **STARTS[case])  # type: ignore[arg-type]
    start = tmp_path / "start.pt"
    first, model = load(start), network()
    start.unlink()
    train(model, out=tmp_path, resume=True, **STARTS[case])  # type: ignore[arg-type]
    assert all(torch.equal(first[name], value) for name, value in load(start).items())
    written = start.stat().st_mtime_ns
    train(network(), out=tmp_path, resume=True, **STARTS[case])  # type: ignore[arg-type]
    assert start.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("count", "steps"), [(0, []), (1, [8]), (2, [5, 10]), (4, [3, 6, 9, 12]), (14, [*range(1, 15)])]
)
def test_snapshots_hold_the_weights_after_their_steps(tmp_path: Path, count: int, steps: list[int]) -> None:
    model, seen = network(), []
    train(model, loss=watched(model, seen), out=tmp_path, snapshots=count)
    found = sorted((tmp_path / "snapshots").glob("*")) if count else []
    assert [path.name for path in found] == [f"step-{step:06d}.pt" for step in steps]
    assert not (tmp_path / "snapshots").exists() or count
    for path, step in zip(found, steps, strict=True):
        assert torch.equal(parameters(load(path), model), seen[step])


@pytest.mark.parametrize("call", [3, BATCHES, CALLS_IN_AN_EPOCH + 2, CALLS_IN_AN_EPOCH + 4])
@pytest.mark.parametrize("stop", [ctrl_c, crash])
def test_snapshots_of_a_resumed_run_are_all_there(tmp_path: Path, call: int, stop: Callable[[], None]) -> None:
    train(network(), out=tmp_path / "whole", snapshots=4)
    with pytest.raises(Interrupted if stop is ctrl_c else RuntimeError):
        train(network(), loss=at_call(call, stop), out=tmp_path / "stopped", snapshots=4, checkpoint_every=2)
    train(network(), out=tmp_path / "stopped", resume=True, snapshots=4)
    names = [path.name for path in sorted((tmp_path / "whole" / "snapshots").iterdir())]
    assert [path.name for path in sorted((tmp_path / "stopped" / "snapshots").iterdir())] == names
    for name in names:
        one, other = (load(tmp_path / run / "snapshots" / name) for run in ("whole", "stopped"))
        assert all(map(torch.equal, one.values(), other.values()))


def test_snapshots_need_a_length(tmp_path: Path) -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Noisy(8))

    options: dict[str, Any] = {"schedule": "constant", "epochs": 1, "head": "head", "progress": False}
    with pytest.raises(TypeError, match="snapshots needs a train_loader with a length"):
        pytl.finetune(network(), DataLoader(Endless(), 4), out=tmp_path / "a", snapshots=1, **options)
    pytl.finetune(network(), DataLoader(Endless(), 4), out=tmp_path / "b", record=1, **options)
    assert kinds(tmp_path / "b") == [("step", 1), ("step", 2), ("epoch", 1)]


# TensorBoard


def assert_events_are_the_lines(folder: Path, file: Path) -> None:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    records = [record for record in lines(file) if "step" in record]
    names = {key for record in records for key in record} - {"step"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        wanted = {record["step"]: record[name] for record in records if name in record}
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [*wanted], name
        assert [value for _, value in found] == pytest.approx([*wanted.values()], rel=1e-6), name


def test_tensorboards_events_are_the_lines(tmp_path: Path) -> None:
    options = {"method": "grod", "optimizer": "adamw", "lr": 0.01}
    train(network(), out=tmp_path / "run", record=2, tensorboard=tmp_path / "events", **options)
    assert_events_are_the_lines(tmp_path / "events", tmp_path / "run" / "metrics.jsonl")


@pytest.mark.parametrize("stop", [ctrl_c, crash])
def test_tensorboards_events_of_a_resumed_run_are_the_lines(tmp_path: Path, stop: Callable[[], None]) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "record": 1, "tensorboard": tmp_path / "events"}
    with pytest.raises(Interrupted if stop is ctrl_c else RuntimeError):
        train(network(), loss=at_call(CALLS_IN_AN_EPOCH + 4, stop), **options)
    train(network(), resume=True, **options)
    assert_events_are_the_lines(tmp_path / "events", tmp_path / "run" / "metrics.jsonl")


# Hugging Face


STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def hf_trainer(out: Path, *callbacks: Any, optimizer: Any = None, **options: Any) -> Any:
    defaults = {"max_steps": 9, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
    return transformers.Trainer(
        model=classifier(**STILL),
        args=transformers.TrainingArguments(output_dir=str(out), **{**defaults, **quiet, **options}),
        train_dataset=Sentences(),
        callbacks=[*callbacks],
        optimizer_cls_and_kwargs=optimizer,
    )


OWN = hf.optimizer(lr=0.01, head="classifier", verbose=False)
HF_OPTIMIZERS = pytest.mark.parametrize("optimizer", [None, OWN], ids=["torch's", "pytl's"])


@HF_OPTIMIZERS
@pytest.mark.parametrize(("accumulated", "every"), [(1, 1), (2, 2), (3, 4)])
def test_hf_lines_are_of_steps_of_the_optimizer(tmp_path: Path, optimizer: Any, accumulated: int, every: int) -> None:
    callback = hf.RecorderCallback(every)
    options = {"gradient_accumulation_steps": accumulated, "max_steps": 9}
    trainer = hf_trainer(tmp_path, callback, optimizer=optimizer, **options)
    start = in_float64(dict(trainer.model.named_parameters()))
    trainer.train()
    found = lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in found] == [*range(every, 10, every)]
    assert all("loss" not in record for record in found)
    for record in found:
        felt = {key: value for key, value in record.items() if key.startswith("gradient/")}
        assert {key.replace("gradient", "distance") for key in felt} <= record.keys()
        assert len(felt) > 1
        assert min(felt.values()) > 0
    if found[-1]["step"] == 9:
        total = math.hypot(*(value for key, value in found[-1].items() if key.startswith("distance/")))
        assert total == pytest.approx(norm(flat(moved_from(start, trainer.model).values())), rel=1e-5)


@HF_OPTIMIZERS
def test_hf_resumed_run_goes_on_from_the_first_start(tmp_path: Path, optimizer: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "optimizer": optimizer}
    hf_trainer(tmp_path, hf.RecorderCallback(1), **saving).train()
    whole = lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in whole] == [*range(1, 10)]
    resumed = hf_trainer(tmp_path, hf.RecorderCallback(1), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert lines(tmp_path / "metrics.jsonl") == whole


def test_hf_recording_changes_no_bit(tmp_path: Path) -> None:
    plain, recorded = hf_trainer(tmp_path / "a"), hf_trainer(tmp_path / "b", hf.RecorderCallback(1))
    plain.train()
    recorded.train()
    assert torch.equal(weights(plain.model), weights(recorded.model))


def test_hf_callback_that_is_added_later_has_not_seen_the_start(tmp_path: Path) -> None:
    trainer = hf_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.add_callback(hf.RecorderCallback(3, out=tmp_path / "own"))
    trainer.train()
    assert steps_of(tmp_path / "own" / "metrics.jsonl") == [3, 6, 9]
    late = hf_trainer(tmp_path)
    late.add_callback(hf.RecorderCallback(3))
    before = weights(late.model)
    with pytest.raises(ValueError, match="the callback must be given when the trainer is made"):
        late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not torch.equal(weights(late.model), before)  # the checkpoint's
    assert not (tmp_path / "metrics.jsonl").exists()


class HFCrash(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            crash()


def test_hf_exception_leaves_what_was_recorded(tmp_path: Path) -> None:
    """Trainer tells its callbacks of saves, and of no exception: what is kept since is the callback's."""
    callback = hf.RecorderCallback(1)
    trainer = hf_trainer(tmp_path, callback, HFCrash(), save_strategy="steps", save_steps=4)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train()
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert callback.recorder
    callback.recorder.close()
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    hf_trainer(tmp_path, hf.RecorderCallback(1)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert steps_of(tmp_path / "metrics.jsonl") == [*range(1, 10)]


def test_hf_tensorboard_and_head_reach_the_recorder(tmp_path: Path) -> None:
    callback = hf.RecorderCallback(2, head=("classifier", "bert.pooler"), tensorboard=tmp_path / "events")
    hf_trainer(tmp_path, callback, optimizer=OWN).train()
    assert "distance/head" in lines(tmp_path / "metrics.jsonl")[0]
    assert_events_are_the_lines(tmp_path / "events", tmp_path / "metrics.jsonl")


# Lightning


class Still(L.LightningModule):
    """Without noise, so that a run resumed from a checkpoint has the bits of the whole one."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.fc, self.kind = nn.Linear(4, 6), nn.Linear(6, 2), kind
        self.losses: list[float] = []

    def training_step(self, x: Tensor, at: int) -> Tensor:
        loss = self.fc(torch.tanh(self.body(x))).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.01)


class LightningCrash(L.Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 6:
            crash()


def fitted(out: Path, kind: Any, *callbacks: Any, ckpt_path: Path | None = None, **run: Any) -> Still:
    model = Still(kind)
    trainer = L.Trainer(
        default_root_dir=out,
        accelerator="cpu",
        max_epochs=3,
        callbacks=[*callbacks],
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **QUIET,
        **run,
    )
    loader = DataLoader(Digits(), batch_size=4 // run.get("accumulate_grad_batches", 1))
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return model


KINDS = pytest.mark.parametrize("kind", [torch.optim.AdamW, pytl.AdamW], ids=["torch's", "pytl's"])


@KINDS
@pytest.mark.parametrize(("accumulated", "every"), [(1, 1), (2, 1), (2, 4)])
def test_lightning_lines_are_of_steps_of_the_optimizer(tmp_path: Path, kind: Any, accumulated: int, every: int) -> None:
    start = in_float64(dict(Still(kind).named_parameters()))
    model = fitted(tmp_path, kind, pl.RecorderCallback(every), accumulate_grad_batches=accumulated)
    found = lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in found] == [*range(every, 10, every)]
    assert all(record["gradient/body"] > 0 for record in found)
    if every == 1:
        wanted = norms("distance", {"body": ["body.weight", "body.bias"]}, moved_from(start, model))
        assert found[-1]["distance/body"] == pytest.approx(wanted["distance/body"], rel=1e-5)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightning_loss_is_the_modules_of_the_last_batch(tmp_path: Path, accumulated: int) -> None:
    model = fitted(tmp_path, pytl.AdamW, pl.RecorderCallback(1), accumulate_grad_batches=accumulated)
    found = [record["loss"] for record in lines(tmp_path / "metrics.jsonl")]
    assert found == pytest.approx(model.losses[accumulated - 1 :: accumulated], rel=1e-6)


@KINDS
def test_lightning_resumed_run_goes_on_from_the_first_start(tmp_path: Path, kind: Any) -> None:
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fitted(tmp_path, kind, pl.RecorderCallback(1), saving)
    whole = lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in whole] == [*range(1, 10)]
    again = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fitted(tmp_path, kind, pl.RecorderCallback(1), again, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert lines(tmp_path / "metrics.jsonl") == whole


def test_lightning_recording_changes_no_bit(tmp_path: Path) -> None:
    plain, recorded = (fitted(tmp_path, pytl.AdamW, *own) for own in ((), (pl.RecorderCallback(1),)))
    assert torch.equal(weights(plain), weights(recorded))


def test_lightning_exception_leaves_what_was_recorded(tmp_path: Path) -> None:
    events = tmp_path / "events"
    with pytest.raises(RuntimeError, match="crash"):
        fitted(tmp_path, pytl.AdamW, pl.RecorderCallback(1, tensorboard=events), LightningCrash())
    assert steps_of(tmp_path / "metrics.jsonl") == [*range(1, 7)]
    assert_events_are_the_lines(events, tmp_path / "metrics.jsonl")


# The file


numbers = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
records = st.lists(st.dictionaries(st.text(max_size=6), numbers, max_size=4), max_size=6)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics") / "metrics.jsonl"


@given(first=records, then=records)
def test_what_is_written_is_read(file: Path, first: list[Any], then: list[Any]) -> None:
    metrics.rewrite(file, first)
    assert metrics.read(file) == first
    metrics.append(file, then)
    assert metrics.read(file) == first + then
    metrics.rewrite(file, then)
    assert metrics.read(file) == then
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@given(written=records, data=st.data())
def test_of_a_file_cut_anywhere_all_whole_lines_are_read(file: Path, written: list[Any], data: st.DataObject) -> None:
    file.unlink(missing_ok=True)
    metrics.append(file, written)
    whole = file.read_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    file.write_bytes(cut)
    found, ended = metrics.read(file), cut.count(b"\n")
    assert found in (written[:ended], written[: ended + 1])
    assert len(found) == ended or cut == whole[: len(b"".join(whole.splitlines(keepends=True)[: ended + 1])) - 1]


@given(written=records, added=records, data=st.data())
def test_lines_added_to_a_file_cut_anywhere_can_be_read(
    file: Path, written: list[Any], added: list[Any], data: st.DataObject
) -> None:
    file.unlink(missing_ok=True)
    metrics.append(file, written)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = metrics.read(file)
    metrics.append(file, added)
    assert metrics.read(file) == found + added


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert metrics.read(tmp_path / "none.jsonl") == []
    metrics.append(tmp_path / "none.jsonl", [{"step": 1, "loss": math.nan, "a": math.inf}])
    assert lines(tmp_path / "none.jsonl") == [{"step": 1, "loss": None, "a": None}]


@pytest.mark.parametrize("bad", ["{broken", "3", "[1]", "null", '{"a": 1'])
def test_a_bad_line_that_is_not_the_last_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl must have a record on each line; line 2"):
        metrics.read(path)
    path.write_text(f'{{"step": 1}}\n{bad}\n')
    assert metrics.read(path) == [{"step": 1}]


@pytest.mark.parametrize("tail", ["", '{"st', '{"step": 3}', '{"step": 3}\n{"step": 4}\n', '{"step": 4}'])
def test_a_recorder_goes_on_in_a_file_that_a_kill_has_left(tmp_path: Path, tail: str) -> None:
    model, path = deep(), tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + tail)
    here = pytl.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), path, every=1)
    here.go_on(3)
    here.step()
    here.step()
    here.close()
    assert steps_of(path) == [1, 2, *([3] if '"step": 3' in tail else []), 4, 5]


def test_a_trace_is_what_was_recorded(tmp_path: Path) -> None:
    train(network(), out=tmp_path, record=2)
    trace, found = read_trace(tmp_path), [r for r in lines(tmp_path / "metrics.jsonl") if "step" in r]
    assert trace.steps == (2, 4, 6, 8, 10, 12, 14)
    assert trace.loss == tuple(record["loss"] for record in found)
    assert trace.values["distance"]["0"] == tuple(record["distance/0"] for record in found)
    felt = [record["cosine/0"] for record in found if "cosine/0" in record]
    assert trace.conflict()["0"] == sum(value < 0 for value in felt) / len(felt)
    body = [[value for key, value in r.items() if key.startswith("distance/") and "head" not in key] for r in found]
    assert trace.total("distance") == pytest.approx([math.hypot(*values) for values in body])


def test_a_start_that_is_the_weights_themselves_is_copied(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "metrics.jsonl"
    recorder = pytl.Recorder(model, optimizer, path, every=1, head=(), start=model.state_dict())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    recorder.step()
    recorder.close()
    assert all(value > 0 for key, value in metrics.read(path)[0].items() if key.startswith("distance/"))
