import copy
import errno
import json
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pytl
from pytl.analysis import GradientNorms
from pytl.training import resets
from pytl.training.checkpoint import ResumeError
from pytl.training.fine_tuning import Result, finetune
from pytl.training.interrupt import Interrupted
from pytl.training.methods import Method, parse
from pytl.training.penalties import REGULARIZERS

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, BATCHES, EVAL_BATCHES = 3, 5, 2
CALLS_IN_AN_EPOCH = BATCHES + EVAL_BATCHES  # of the loss


class Noisy(Dataset[Any]):
    """Points in 6 dimensions whose augmentation draws from all three generators."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.points = torch.randn(count, 6, generator=generator)
        self.labels = (self.points[:, 0] > 0).long() + (self.points[:, 1] > 0).long()

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = random.random() + np.random.randn() + torch.randn(())
        return (self.points[index] + 0.1 * shift).float(), self.labels[index]


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
    model.add_module("head", nn.Linear(16, 3))
    return model


def train(model: nn.Module, loss: Callable[..., Tensor] = cross_entropy, **options: Any) -> Result:
    loader = DataLoader(Noisy(18), 4, shuffle=True, num_workers=options.pop("num_workers", 0))
    evaluation = DataLoader(Noisy(8), 4, shuffle=True)
    fixed = {"method": "dtnh", "head": "head", "epochs": EPOCHS, "lr": 0.1, "seed": 5, "progress": False}
    return finetune(model, loader, evaluation, loss=loss, **{**fixed, **options})


def at_call(number: int, act: Callable[[], None]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that acts at one of its calls."""
    calls = iter(range(1, 10_000))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == number:
            act()
        return cross_entropy(logits, labels)

    return loss


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def without_seconds(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "l2sp"},
        {"method": "grod", "optimizer": "adamw", "lr": 0.01},
        {"amp": "fp16"},
        {"amp": "bf16", "num_workers": 2},
        {"method": "distillation+l2spfisher+dtnh"},
        {"method": "bss+l1sp", "amp": "fp16"},
        {"method": "dropout+dropconnect+disturblabel+dtnh+rifle"},
    ],
    ids=["l2sp", "adamw", "fp16", "workers", "penalties apart", "penalties added", "noise and rifle"],
)
@pytest.mark.parametrize(
    "call", [1, 3, BATCHES, BATCHES + 1, CALLS_IN_AN_EPOCH, CALLS_IN_AN_EPOCH + 3, EPOCHS * CALLS_IN_AN_EPOCH]
)
def test_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, call: int, options: dict[str, Any]
) -> None:
    whole = network()
    train(whole, out=tmp_path / "whole", **options)
    with pytest.raises(Interrupted, match=f"saved to {tmp_path}"):
        train(network(), loss=at_call(call, ctrl_c), out=tmp_path / "stopped", **options)
    resumed = network()
    train(resumed, out=tmp_path / "stopped", resume=True, **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert without_seconds(tmp_path / "stopped") == without_seconds(tmp_path / "whole")


@pytest.mark.parametrize("call", range(2, 2 * CALLS_IN_AN_EPOCH, 3))
def test_crash_anywhere_loses_only_what_came_after_the_last_checkpoint(tmp_path: Path, call: int) -> None:
    def crash() -> None:
        raise RuntimeError("crash")

    whole = network()
    train(whole, out=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(network(), loss=at_call(call, crash), out=tmp_path / "crashed", checkpoint_every=2)
    resumed = network()
    train(resumed, out=tmp_path / "crashed", checkpoint_every=3, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert without_seconds(tmp_path / "crashed") == without_seconds(tmp_path / "whole")


def test_ctrl_c_in_the_very_last_step_is_not_lost(tmp_path: Path) -> None:
    batches = [(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))]
    loss = at_call(1, ctrl_c)
    with pytest.raises(Interrupted):
        finetune(network(), batches, loss=loss, epochs=1, head="head", out=tmp_path)
    assert finetune(network(), batches, loss=loss, epochs=1, head="head", out=tmp_path, resume=True).history


def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(network(), loss=at_call(2, twice), out=tmp_path)
    assert not isinstance(stopped.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_metrics_hold_each_epoch_once_after_a_kill_between_two_writes(tmp_path: Path) -> None:
    train(network(), out=tmp_path)
    first = without_seconds(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3}\n{"epo')
    train(network(), out=tmp_path, resume=True)
    assert without_seconds(tmp_path) == first
    assert [record["epoch"] for record in first] == [1, 2, 3]


def test_finished_run_is_returned_without_training(tmp_path: Path) -> None:
    done = train(network(), out=tmp_path)
    again = train(network(), out=tmp_path, resume=True, loss=at_call(1, ctrl_c))
    assert again.history == done.history
    assert torch.equal(weights(again.model), weights(done.model))


def test_resume_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert torch.equal(weights(train(network(), out=tmp_path, resume=True).model), weights(train(network()).model))


def test_second_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    train(network(), out=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="resume it, or choose another out"):
        train(network(), out=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"method": "grod"}, "method: saved dtnh, now grod"),
        ({"epochs": 4}, "epochs: saved 3, now 4"),
        ({"lr": 0.2}, r"groups.0.lr: saved 0.1, now 0.2"),
        ({"seed": 6}, "seed: saved 5, now 6"),
        ({"optimizer": "adamw"}, "optimizer: saved SGD, now AdamW"),
    ],
)
def test_resume_of_another_run_is_refused_before_anything_changes(
    tmp_path: Path, options: dict[str, Any], difference: str
) -> None:
    train(network(), out=tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = network()
    before = weights(model)
    with pytest.raises(ResumeError, match=difference):
        train(model, out=tmp_path, resume=True, **options)
    assert torch.equal(weights(model), before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_resume_with_another_model_is_refused(tmp_path: Path) -> None:
    train(network(), out=tmp_path)
    wider = nn.Sequential(nn.Linear(6, 17), nn.ReLU())
    wider.add_module("head", nn.Linear(17, 3))
    with pytest.raises(ResumeError, match=r"parameters.0.weight: saved \[16, 6\], now \[17, 6\]"):
        train(wider, out=tmp_path, resume=True)


def test_full_disk_stops_the_run_and_the_previous_checkpoint_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = network()
    train(whole)
    with monkeypatch.context() as patch:
        fills = at_call(CALLS_IN_AN_EPOCH + 2, lambda: patch.setattr(os, "fsync", fill))
        with pytest.raises(OSError, match=r"previous one is whole.*No space left"):
            train(network(), out=tmp_path, loss=fills)
    resumed = network()
    train(resumed, out=tmp_path, resume=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_evaluation_does_not_change_what_is_learnt() -> None:
    with_evaluation, without = network(), network()
    train(with_evaluation)
    loader = DataLoader(Noisy(18), 4, shuffle=True)
    finetune(without, loader, method="dtnh", head="head", epochs=EPOCHS, lr=0.1, seed=5)
    assert torch.equal(weights(with_evaluation), weights(without))


def test_epoch_record_holds_what_was_asked_for() -> None:
    record = train(network()).history[-1]
    assert record["epoch"] == EPOCHS
    assert {"train_loss", "loss", "accuracy", "lr", "seconds"} <= record.keys()
    assert record["distance"] > 0
    assert record["penalty"] > 0
    assert 0 <= record["conflict_rate"] <= 1
    assert -1 <= record["mean_cosine"] <= 1


def test_rate_falls_from_lr_to_zero() -> None:
    rates = [record["lr"] for record in train(network(), epochs=4).history]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01
    assert {record["lr"] for record in train(network(), schedule="constant").history} == {0.1}


def test_dict_batches_and_outputs_with_logits_train_like_pairs() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, points: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.inner(points))

    data = TensorDataset(Noisy(12).points, Noisy(12).labels)
    pairs = [data[i : i + 4] for i in range(0, 12, 4)]
    mappings = [{"points": points, "labels": labels} for points, labels in pairs]
    plain, wrapped = network(), Wrapped()
    finetune(plain, pairs, pairs, head="head", seed=0)
    finetune(wrapped, mappings, mappings, head="inner.head", seed=0)
    assert torch.equal(weights(wrapped), weights(plain))


def test_own_optimizer_is_used_as_it_is(tmp_path: Path) -> None:
    model = network()
    own = torch.optim.Adam(model.parameters(), lr=0.01)
    result = train(model, optimizer=own, out=tmp_path)
    assert result.optimizer is own
    assert "conflict_rate" not in result.history[-1]


def test_iterable_without_a_length_trains_at_a_constant_rate() -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Noisy(8))

    loader = DataLoader(Endless(), 4)
    assert finetune(network(), loader, schedule="constant", epochs=2, head="head").history[-1]["epoch"] == 2
    with pytest.raises(TypeError, match="schedule='cosine' needs a train_loader with a length"):
        finetune(network(), loader, head="head")


@pytest.mark.parametrize("call", range(1, 5))
def test_iterable_without_a_length_resumes(tmp_path: Path, call: int) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from torch.utils.data.DataLoader(TensorDataset(Noisy(8).points, Noisy(8).labels), 4)

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return batches()

    fixed: dict[str, Any] = {"schedule": "constant", "epochs": 2, "head": "head", "seed": 0}
    whole, resumed = network(), network()
    finetune(whole, Stream(), **fixed)
    with pytest.raises(Interrupted):
        finetune(network(), Stream(), out=tmp_path, loss=at_call(call, ctrl_c), **fixed)
    finetune(resumed, Stream(), out=tmp_path, resume=True, **fixed)
    assert torch.equal(weights(resumed), weights(whole))


def test_nothing_is_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    train(network(), progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1; got 0"),
        ({"lr": -1.0}, "lr must be finite and >= 0; got -1.0"),
        ({"lr": float("nan")}, "lr must be finite and >= 0; got nan"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant; got 'linear'"),
        ({"amp": "int8"}, "amp must be None or one of bf16, fp16; got 'int8'"),
        ({"checkpoint_every": 0}, "checkpoint_every must be >= 1; got 0"),
        ({"method": "l3"}, "method must be one of plain, .*dtnh, .*; got 'l3'"),
        ({"method": "dtnh+grod"}, "method must have one direction; got 'dtnh.grod' with dtnh, grod"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw; got 'lion'"),
        ({"resume": True}, "resume needs out"),
    ],
)
def test_bad_argument_is_named_before_anything_changes(options: dict[str, Any], message: str) -> None:
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, **options)
    assert torch.equal(weights(model), before)


def test_empty_loader_is_named() -> None:
    with pytest.raises(ValueError, match="train_loader must have >= 1 batch; got 0"):
        finetune(network(), [], head="head")


def small_convolutions() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 1, stride=1))
    model.append(nn.Flatten())
    model.add_module("head", nn.Linear(8, 3))
    return model


def fine_tuned(method: str | Method, **options: Any) -> Result:
    loader = DataLoader(Noisy(18), 4, shuffle=True)
    fixed = {"method": method, "head": "head", "epochs": 2, "lr": 0.05, "seed": 5, "progress": False}
    return finetune(small_convolutions(), loader, options.pop("eval", None), **{**fixed, **options})


@pytest.mark.filterwarnings("ignore:the split by")
@pytest.mark.parametrize("name", sorted(REGULARIZERS))
@pytest.mark.parametrize("direction", ["", "+dtnh"])
def test_each_regulariser_is_a_method_whose_terms_are_recorded(name: str, direction: str) -> None:
    result = fine_tuned(name + direction)
    plain = fine_tuned("plain")
    assert not torch.equal(weights(result.model), weights(plain.model))
    for record in result.history:
        (term,) = (key.removeprefix("conflict/") for key in record if key.startswith("conflict/"))
        assert name.startswith(term)
        assert {key for key in record if key.startswith(f"term/{term} ")}
        assert -1 <= record[f"cosine/{term}"] <= 1  # type: ignore[operator]
        assert 0 <= record[f"conflict/{term}"] <= 1  # type: ignore[operator]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.modules())


def test_regularisers_and_a_direction_compose() -> None:
    result = fine_tuned("delta+bss+l2sp+dtnh")
    assert [key for key in result.history[0] if key.startswith("conflict/")] == [
        *("conflict/delta", "conflict/bss", "conflict/l2sp")
    ]
    group = next(group for group in result.optimizer.param_groups if group["role"] == "transferred")
    assert group["direction"] == "dtnh"
    assert group["sp_decay"] > 0


def test_a_direction_has_the_pull_unless_a_regulariser_is_named() -> None:
    assert parse("dtnh").sp_decay == parse("l2sp+dtnh").sp_decay == parse("l2+dtnh").sp_decay == parse("l2sp").sp_decay
    assert parse("delta+dtnh").sp_decay is None
    assert [*parse("delta+l1sp+dtnh").penalties] == ["delta", "l1sp"]


def test_the_recorded_cosine_is_that_of_both_gradients() -> None:
    """At the end of the one epoch, of one step."""
    points, labels = Noisy(6).points, Noisy(6).labels
    start, model = small_convolutions(), small_convolutions()
    with torch.no_grad():
        for p in start.parameters():
            p.add_(0.1)
    penalty = pytl.Distillation(model, source=start)
    for direction in ("sum", "dtnh"):
        twin = copy.deepcopy(small_convolutions())
        with pytl.Distillation(twin, source=copy.deepcopy(start)) as reg:
            loss = cross_entropy(twin(points), labels)
            params = [*twin.parameters()]
            value = reg(points)
            h = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
            g = torch.autograd.grad(loss, params)
        pairs = [(a.flatten(), b.flatten()) for a, b in zip(g, h, strict=True) if b is not None and b.any()]
        cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in pairs]
        model.load_state_dict(small_convolutions().state_dict())
        opt = pytl.SGD(model.parameters(), lr=0.1, direction=direction)
        result = finetune(model, [(points, labels)], optimizer=opt, penalty=penalty, epochs=1, progress=False)
        record = result.history[0]
        assert record["cosine/distillation"] == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-4)
        assert record["conflict/distillation"] == float((torch.stack(cosines) < 0).double().mean())
        parts = [v for key, v in record.items() if key.startswith("term/distillation ")]
        assert sum(parts) == pytest.approx(float(value.detach()), rel=1e-5)  # type: ignore[arg-type]
    penalty.close()


def test_a_penalty_of_ones_own_with_an_optimizer_of_torch() -> None:
    model = small_convolutions()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytl.L1SP(model, 1e3, head="head") as reg:
        batches = [(Noisy(6).points, Noisy(6).labels)]
        result = finetune(model, batches, optimizer=opt, penalty=reg, epochs=2, progress=False)
        assert not reg.closed
    assert "term/l1sp weights" in result.history[0]


def test_channel_weights_are_kept_and_taken_up_again(tmp_path: Path) -> None:
    whole = fine_tuned("delta", out=tmp_path / "whole")
    kept = list((tmp_path / "whole").glob("channel-weights-*.safetensors"))
    assert len(kept) == 1
    with pytest.raises(Interrupted):  # the head's training calls the loss 25 times, scoring 26
        fine_tuned("delta", loss=at_call(55, ctrl_c), out=tmp_path / "stopped")
    resumed = fine_tuned("delta", out=tmp_path / "stopped", resume=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_run_is_not_resumed_from_another_source(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fine_tuned("distillation", loss=at_call(3, ctrl_c), out=tmp_path)
    model = small_convolutions()
    with torch.no_grad():
        model[1].weight.add_(1)
    loader = DataLoader(Noisy(18), 4, shuffle=True)
    options: dict[str, Any] = {"method": "distillation", "head": "head", "epochs": 2, "lr": 0.05, "seed": 5}
    with pytest.raises(ResumeError, match=r"source: saved .*, now"):
        finetune(model, loader, out=tmp_path, resume=True, progress=False, **options)


def test_delta_without_a_head_says_what_is_missing() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="head must be named for delta, which trains it alone first"):
        finetune(model, [(Noisy(6).points, Noisy(6).labels)], method="delta", epochs=1, progress=False)


def test_each_noise_is_a_method_and_gone_in_the_end() -> None:
    plain = weights(fine_tuned("plain").model)
    for name in ("dropout", "dropconnect", "disturblabel"):
        result = fine_tuned(name)
        assert not torch.equal(weights(result.model), plain)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.modules())
        assert parse(name).options() | {"weight_decay": 0.03} == parse("l2+" + name).options()
    assert parse("dropout+dropconnect+dropout").noise == parse("dropout").noise | parse("dropconnect").noise
    with pytest.raises(ValueError, match="stochastic depth needs residual branches, and finds none"):
        fine_tuned("stochasticdepth")


def test_noise_is_in_training_alone() -> None:
    """With a rate of 0 nothing is learnt, and the loss that is reported is the network's own."""
    fixed = [(Noisy(8).points, Noisy(8).labels)]
    losses = {name: fine_tuned(name, lr=0.0, eval=fixed) for name in ("plain", "disturblabel", "dropout")}
    measured = [result.history[0]["loss"] for result in losses.values()]
    assert measured == [measured[0]] * 3
    assert losses["disturblabel"].history[0]["train_loss"] != losses["plain"].history[0]["train_loss"]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_cyclic_rates_restart_in_each_period(schedule: str) -> None:
    loader = [(Noisy(4).points, Noisy(4).labels)] * 2
    method = replace(parse("cycliclr"), cycles=3)
    options: dict[str, Any] = {"head": "head", "epochs": 6, "lr": 0.1, "schedule": schedule, "progress": False}
    history = finetune(network(), loader, method=method, **options).history
    assert [record["lr"] for record in history] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 3, 1, 3, 1, 3)]
    )


THREE_PERIODS = replace(parse("rifle"), periods=3)


def test_resets_are_recorded_with_the_gradients_around_them() -> None:
    history = fine_tuned(THREE_PERIODS, epochs=3).history  # of 5 batches: new heads after steps 5 and 10
    told = {key: value for record in history for key, value in record.items() if key.startswith("reset/")}
    assert told == {"reset/1": 1.0, "reset/2": 2.0}
    assert "reset/1" in history[0]
    for number, when in product((1, 2), ("before", "after")):
        blocks = [key for record in history for key in record if key.startswith(f"gradient/{number} {when}/")]
        assert [key.rpartition("/")[2] for key in blocks] == ["1", "3", "head"]


def test_before_is_before_and_after_is_after(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count(1)
    monkeypatch.setattr(resets, "gradient_norms", lambda *args, **options: GradientNorms({"a": next(looks)}, 0.0, 1))
    record = fine_tuned(THREE_PERIODS, epochs=3).history[0]
    assert (record["gradient/1 before/a"], record["gradient/1 after/a"]) == (1, 2)


def test_measuring_gradients_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = weights(fine_tuned("dropout+disturblabel+delta+dtnh+rifle", epochs=3).model)
    monkeypatch.setattr(resets, "gradient_norms", lambda *args, **options: GradientNorms({}, 0.0, 1))
    assert torch.equal(weights(fine_tuned("dropout+disturblabel+delta+dtnh+rifle", epochs=3).model), looked_at)


def test_more_periods_than_steps_are_refused_before_training() -> None:
    model = network()
    before, batches = weights(model), [(Noisy(4).points, Noisy(4).labels)]
    with pytest.raises(ValueError, match=r"periods must be in \[1, total_steps = 2\]; got 3"):
        finetune(model, batches, method=THREE_PERIODS, epochs=2, head="head", progress=False)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("change", [{"periods": 2}, {"cycles": 2}, {"noise": {"dropout": 0.1}}])
def test_a_run_is_not_resumed_with_other_periods_or_noise(tmp_path: Path, change: dict[str, Any]) -> None:
    method = replace(parse("rifle+dropout"), periods=3)
    with pytest.raises(Interrupted):
        fine_tuned(method, loss=at_call(3, ctrl_c), out=tmp_path)
    with pytest.raises(ResumeError, match=f"{next(iter(change))}.*: saved"):
        fine_tuned(replace(method, **change), out=tmp_path, resume=True)


@pytest.mark.filterwarnings("ignore:the split by")
def test_a_split_is_kept_and_taken_up_again(tmp_path: Path) -> None:
    whole = fine_tuned("tred", out=tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("split-both-*.safetensors"))) == 1
    assert "fact/tred probe F_p of 3" in whole.history[0]
    with pytest.raises(Interrupted):
        fine_tuned("tred", loss=at_call(3, ctrl_c), out=tmp_path / "stopped")
    resumed = fine_tuned("tred", out=tmp_path / "stopped", resume=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_one_class_is_refused_before_training() -> None:
    loader = [(Noisy(8).points, torch.ones(8, dtype=torch.int64))]
    with pytest.raises(ValueError, match="loader must give >= 2 classes; got 8 samples of class 1"):
        finetune(small_convolutions(), loader, method="tred", head="head", progress=False)
