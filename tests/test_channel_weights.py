"""Which channels matter: against a loop over channels in float64, through interruptions, and nothing left behind."""

from __future__ import annotations

import contextlib
import copy
import math
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracle import array, assert_same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl.files import read_tensors, write_tensors
from pytl.regularizers.channels import ledger
from pytl.regularizers.channels.weights import ChannelWeights, channel_weights, weights_from_scores

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("exact", "first-order")
SIZES = (5, 4, 2)  # of the batches: unequal, so that a mean of means would show


class Residual(nn.Module):
    """A ResNet's block: BatchNorm, in-place ReLU, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.norm(self.conv(x))
        out += x
        return self.head(self.relu(out).mean((2, 3)))


class Pair(NamedTuple):
    kept: None
    first: Tensor
    second: Tensor


class Block(nn.Module):
    """Mixes tokens and answers in the form that `wrap` gives the mixed tokens."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(6, 6), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(torch.tanh(self.linear(x)) + x.mean(1, keepdim=True))


class Tokens(nn.Module):
    """[B, T, 6] -> logits, through a block whose output is unwrapped by `unwrap`."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda x: x, unwrap: Callable[[Any], Tensor] = lambda x: x):
        super().__init__()
        self.block, self.unwrap, self.head = Block(wrap), unwrap, nn.Linear(6, 3)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> Any:
        return self.head(torch.tanh(scale * self.unwrap(self.block(tokens))).mean(1))


class Twice(nn.Module):
    """Calls one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Answering(Tokens):
    """As Hugging Face's models: keywords in, an object with logits out."""

    def forward(self, tokens: Tensor, scale: float = 1.0) -> Any:
        return SimpleNamespace(logits=super().forward(tokens, scale))


class Shared(nn.Module):
    """A layer that hands on its input itself, which the network uses again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        return self.head(torch.tanh(self.layer(x)) + x)


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    batch: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y)


def flat() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(inplace=True), nn.Linear(7, 3))


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))


CASES = {
    "[B, D] before an in-place ReLU": Case(flat, ("0",), (6,)),
    "[B, C, H, W] in a residual block": Case(Residual, ("conv", "stem", "norm"), (2, 5, 4)),
    "[B, C, T, H, W]": Case(volumes, ("0",), (2, 3, 3, 3)),
    "[B, T, D]": Case(Tokens, ("block",), (4, 6)),
    "tuple": Case(lambda: Tokens(lambda x: (None, x, 2 * x), lambda o: o[1] + o[2]), ("block",), (4, 6)),
    "named tuple": Case(lambda: Tokens(lambda x: Pair(None, x, x), lambda o: o.first), ("block",), (4, 6)),
    "last_hidden_state": Case(
        lambda: Tokens(lambda x: SimpleNamespace(last_hidden_state=x), lambda o: o.last_hidden_state),
        ("block", "block.linear"),
        (4, 6),
    ),
    "a layer called twice": Case(Twice, ("layer",), (6,)),
    "a layer that hands on its input": Case(Shared, ("layer",), (6,)),
    "mapping, and an object with logits": Case(
        Answering, ("block",), (4, 6), lambda x, y: OrderedDict(labels=y, tokens=x, scale=0.5)
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def model_of(case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With BatchNorm's statistics as if it had been trained."""
    torch.manual_seed(1)
    model = case.model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.to(dtype)


def batches_of(case: Case, dtype: torch.dtype = torch.float64, seed: int = 2) -> list[Any]:
    torch.manual_seed(seed)
    return [case.batch(torch.randn(size, *case.shape).to(dtype), torch.randint(3, (size,))) for size in SIZES]


RESIDUAL = CASES["[B, C, H, W] in a residual block"]


def find(case: Case = RESIDUAL, model: nn.Module | None = None, loader: Any = None, **options: Any) -> ChannelWeights:
    options = {"layers": case.layers, "loader": batches_of(case) if loader is None else loader} | options
    return channel_weights(model_of(case) if model is None else model, progress=False, **options)


def scaled_losses(case: Case, layer: str, channel: int, factor: float) -> float:
    """The mean loss over all samples where one channel of a layer's output is multiplied: a loop as plain as can be."""
    model = model_of(case).eval()

    def scale(output: Any) -> Any:
        if isinstance(output, SimpleNamespace):
            return SimpleNamespace(last_hidden_state=scale(output.last_hidden_state))
        if isinstance(output, Pair):
            return Pair(None, scale(output.first), output.second)
        if isinstance(output, tuple):
            return (output[0], scale(output[1]), output[2])
        factors = torch.ones(output.shape[-1 if output.dim() == 3 else 1], dtype=output.dtype)
        factors[channel] = factor
        return output * (factors if output.dim() == 3 else factors.reshape(-1, *[1] * (output.dim() - 2)))

    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: scale(output))
    total = 0.0
    with torch.no_grad():
        for batch in batches_of(case):
            if isinstance(batch, Mapping):
                logits, labels = model(batch["tokens"], batch["scale"]).logits, batch["labels"]
            else:
                logits, labels = model(batch[0]), batch[1]
            total += cross_entropy(logits, labels, reduction="sum").item()
    return total / sum(SIZES)


def test_exact_scores_equal_a_loop_over_channels(case: Case) -> None:
    found = find(case)
    assert tuple(found.scores) == tuple(found.weights) == case.layers
    for layer, row in found.scores.items():
        zeroed = [scaled_losses(case, layer, channel, 0) for channel in range(len(row))]
        whole = scaled_losses(case, layer, 0, 1)
        assert row.dtype == torch.float64
        np.testing.assert_allclose(array(row), np.array(zeroed) - whole, rtol=0, atol=1e-10)
        assert row.abs().max() > 1e-3  # otherwise nothing was compared


def test_first_order_scores_equal_slopes_of_the_loss(case: Case) -> None:
    for layer, row in find(case, method="first-order").scores.items():
        for channel, score in enumerate(row.tolist()):
            up, down = (scaled_losses(case, layer, channel, 1 + step) for step in (1e-4, -1e-4))
            assert score == pytest.approx((down - up) / 2e-4, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("frozen", [False, True])
def test_first_order_scores_equal_gradient_times_feature_map(frozen: bool) -> None:
    model = model_of(RESIDUAL).requires_grad_(not frozen)
    expected, plain = torch.zeros(4, dtype=torch.float64), copy.deepcopy(model).eval()
    for x, y in batches_of(RESIDUAL):
        start = torch.relu(plain.stem(x))
        feature = plain.conv(start).detach().requires_grad_()
        logits = plain.head(torch.relu(plain.norm(feature) + start).mean((2, 3)))
        [gradient] = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), feature)
        expected -= (gradient * feature).sum((0, 2, 3)).detach()
    found = find(model=model, method="first-order").scores["conv"]
    np.testing.assert_allclose(array(found), array(expected) / sum(SIZES), rtol=0, atol=1e-12)


def test_first_order_is_exact_where_the_loss_is_linear_in_the_features() -> None:
    case = Case(lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), ("0",), (6,))
    exact, estimate = (find(case, loss=lambda logits, y: logits[:, 0].mean(), method=method) for method in METHODS)
    np.testing.assert_allclose(array(exact.scores["0"]), array(estimate.scores["0"]), rtol=0, atol=1e-12)


def test_zeroed_outputs_are_the_released_codes_zeroed_filters() -> None:
    found, whole = find().scores["conv"], scaled_losses(RESIDUAL, "conv", 0, 1)
    for channel, score in enumerate(found.tolist()):
        model = model_of(RESIDUAL).eval()
        model.conv.weight.data[channel] = 0
        losses = [cross_entropy(model(x), y, reduction="sum").item() for x, y in batches_of(RESIDUAL)]
        assert score == pytest.approx(sum(losses) / sum(SIZES) - whole, abs=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunk_changes_rounding_only(chunk: int, method: str) -> None:
    for layer, row in find(chunk=chunk, method=method).scores.items():
        np.testing.assert_allclose(array(row), array(find(method=method).scores[layer]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("method", "forwards"), [("exact", 1 + 3 * (1 + 3 * 2)), ("first-order", 1 + 3)])
def test_cost_is_what_the_docstring_says(method: str, forwards: int) -> None:
    model, calls = model_of(RESIDUAL), []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    find(model=model, method=method, chunk=3)
    assert len(calls) == forwards


@pytest.mark.parametrize("method", METHODS)
def test_dead_channel_has_score_zero(method: str) -> None:
    model = model_of(RESIDUAL)
    model.stem.weight.data[2], model.stem.bias.data[2] = 0, 0
    found = find(model=model, method=method)
    assert abs(found.scores["stem"][2].item()) < 1e-15
    assert found.scores["stem"].abs().sum() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_in_low_precision(dtype: torch.dtype, method: str) -> None:
    rounded, batches = model_of(RESIDUAL, dtype), batches_of(RESIDUAL, dtype)
    found = find(model=rounded, loader=batches, method=method).scores
    expected = find(model=rounded.double(), loader=[(x.double(), y) for x, y in batches], method=method).scores
    for layer, row in expected.items():
        assert found[layer].dtype == torch.float64
        np.testing.assert_allclose(array(found[layer]), array(row), rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_a_16_bit_network_are_not_rounded_to_16_bits(method: str) -> None:
    x, y = batches_of(RESIDUAL, torch.bfloat16)[1]  # 4 samples: their mean does not round
    row = find(model=model_of(RESIDUAL, torch.bfloat16), loader=[(x, y)], method=method).scores["conv"]
    assert ((row - row.bfloat16()).abs() > 1e-6 * row.abs()).any()


@pytest.mark.parametrize("method", METHODS)
def test_compiled_network_is_scored_by_its_own_names(method: str) -> None:
    class Compiled(nn.Module):
        """As torch.compile makes it, and with code from before there were hooks."""

        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = model_of(RESIDUAL)

        def forward(self, x: Tensor) -> Tensor:
            return model_of(RESIDUAL)(x)

    assert_same(find(model=Compiled(), method=method).scores, find(method=method).scores)


def test_only_the_first_batches_are_read() -> None:
    def endless() -> Iterator[Any]:
        yield from batches_of(RESIDUAL)[:2]
        raise AssertionError("read further than asked")

    assert_same(find(loader=endless(), batches=2).scores, find(loader=batches_of(RESIDUAL)[:2]).scores)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_batches_follow_the_model_to_its_device(method: str) -> None:
    loader = [(x.cpu(), y.cpu()) for x, y in batches_of(RESIDUAL)]
    found, expected = (
        find(RESIDUAL, model_of(RESIDUAL).to(device), loader, method=method) for device in ("cuda", "cpu")
    )
    for layer, row in expected.scores.items():
        assert found.scores[layer].device.type == "cpu"
        np.testing.assert_allclose(array(found.scores[layer]), array(row), rtol=0, atol=1e-10)


# Weights:


def test_weights_are_the_softmax_of_z_scores() -> None:
    row = np.array([0.3, -0.1, 0.02, 1.5, 0.0])
    z = (row - row.mean()) / row.std()
    expected = np.exp(z / 5) / np.exp(z / 5).sum()
    found = weights_from_scores({"layer": torch.tensor(row)})["layer"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(array(found), expected, rtol=1e-6)
    sharper = np.exp(z / 2) / np.exp(z / 2).sum()
    np.testing.assert_allclose(array(weights_from_scores({"a": torch.tensor(row)}, 2.0)["a"]), sharper, rtol=1e-6)
    assert_same(find().weights, weights_from_scores(find().scores))


@pytest.mark.parametrize("row", [[0.0] * 4, [0.1] * 3, [-7.3]], ids=str)
def test_equal_scores_give_uniform_weights(row: list[float]) -> None:
    found = weights_from_scores({"layer": torch.tensor(row, dtype=torch.float64)})["layer"]
    np.testing.assert_allclose(array(found), 1 / len(row), rtol=1e-6)


def test_impossible_scores_and_temperatures_are_named() -> None:
    with pytest.raises(ValueError, match=r"scores must be finite.*layer b"):
        weights_from_scores({"a": torch.ones(2), "b": torch.tensor([1, math.nan])})
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"temperature must be > 0; got {temperature}"):
            weights_from_scores({"a": torch.ones(2)}, temperature)


@pytest.mark.filterwarnings("error")
def test_rank_correlation_shares_ranks_of_equal_scores() -> None:
    def of(*rows: list[float]) -> ChannelWeights:
        scores = {str(i): torch.tensor(row, dtype=torch.float64) for i, row in enumerate(rows)}
        return ChannelWeights(weights_from_scores(scores), scores, "exact")

    a, b = of([1, 2, 2, 3], [5, 1, 9], [1, 1, 1], [4]), of([10, 20, 30, 999], [-5, -1, -9], [1, 2, 3], [4])
    found = a.rank_correlation(b)
    assert [found["0"], found["1"]] == pytest.approx([4.5 / math.sqrt(4.5 * 5), -1])
    assert math.isnan(found["2"])
    assert math.isnan(found["3"])
    with pytest.raises(ValueError, match=r"other must have the same layers.*'0': 4.*'0': 3"):
        a.rank_correlation(of([1, 2, 3]))


# Files:


def test_saved_weights_are_loaded_as_they_were(tmp_path: Path) -> None:
    found = find(method="first-order")
    found.save(tmp_path / "weights")
    loaded = ChannelWeights.load(tmp_path / "weights")
    assert_same([loaded.weights, loaded.scores, loaded.method], [found.weights, found.scores, "first-order"])
    assert list(loaded.weights) == list(loaded.scores) == ["conv", "stem", "norm"]


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    find().save(path)
    broken = [path.read_bytes()[:-1], path.read_bytes()[:20], b"", b"no safetensors"]
    for kind, about in (("other things", {}), ("channel weights", {"layers": '["a"]'})):
        write_tensors(path, kind, {"a": torch.ones(2)}, about)
        broken.append(path.read_bytes())
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path} must (be a whole safetensors|hold (channel )?weights)"):
            ChannelWeights.load(path)
    write_tensors(path, "other things", {"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match=f"{path} must hold channel weights; found other things"):
        ChannelWeights.load(path)
    with pytest.raises(FileNotFoundError):
        ChannelWeights.load(tmp_path / "none")


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scores = {"a": torch.randn(30), "a name too long for half of the width": torch.zeros(8), "c": torch.ones(1)}
    ChannelWeights(weights_from_scores(scores), scores, "exact").plot(tmp_path / "weights.png")
    picture = (tmp_path / "weights.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    assert [file.name for file in tmp_path.iterdir()] == ["weights.png"]


# Going on after an interruption:


def test_sums_are_replaced_never_changed() -> None:
    kept = ledger.Ledger(None, {"a": 3}, {})
    before = kept.sums
    kept.add("a", 1, torch.ones(2, dtype=torch.float64), 5)
    assert [before.done, before.samples, before.rows["a"].tolist()] == [0, 0, [0, 0, 0]]
    assert [kept.sums.done, kept.sums.samples, kept.sums.rows["a"].tolist()] == [2, 5, [0, 1, 1]]


class Stopping:
    """A loss that is interrupted at its n-th call."""

    def __init__(self, at: float, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.left, self.calls, self.error = at, 0, error

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.left:
            raise self.error
        return cross_entropy(logits, labels)


LOSSES = 1 + 3 * (1 + 3 * 4)
"""Of an uninterrupted exact run: a look at the shapes, and in each batch nothing zeroed and 3 layers' 4 channels."""


@pytest.mark.parametrize("at", [1, 2, 3, 5, 9, 14, 15, 16, 21, 39, 40])
def test_interrupted_run_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "sums"
    expected, stopping, rest = find(chunk=3, loss=Stopping(math.inf)), Stopping(at), Stopping(math.inf)
    with pytest.raises(KeyboardInterrupt):
        find(chunk=3, loss=stopping, resume=path)
    assert path.exists() == (at > 2)
    assert_same(find(chunk=3, loss=rest, resume=path).scores, expected.scores)
    assert at - 1 + rest.calls <= LOSSES + 1 + 2  # only the look and the interrupted chunk are repeated
    assert not path.exists()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_interrupted_first_order_run_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    options = {"method": "first-order", "resume": tmp_path / "sums"}
    rest = Stopping(math.inf)
    with pytest.raises(KeyboardInterrupt):
        find(loss=Stopping(at), **options)
    assert_same(find(loss=rest, **options).scores, find(loss=Stopping(math.inf), method="first-order").scores)
    assert rest.calls == 1 + 3 - max(0, at - 2)


def test_run_that_is_interrupted_again_and_again_ends(tmp_path: Path) -> None:
    runs = 0
    while runs == 0 or (tmp_path / "sums").exists():
        with contextlib.suppress(MemoryError):
            found = find(chunk=1, loss=Stopping(3, MemoryError), resume=tmp_path / "sums")
        runs += 1
    assert runs == LOSSES - 1  # each got one loss further, beside its look at the shapes
    assert_same(found.scores, find(chunk=1, loss=Stopping(math.inf)).scores)


def test_too_large_a_chunk_is_resumed_with_a_smaller_one(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        find(chunk=3, loss=Stopping(12, MemoryError), resume=tmp_path / "sums")
    rest = Stopping(math.inf)
    found = find(chunk=2, loss=rest, resume=tmp_path / "sums")
    assert rest.calls == LOSSES - 9  # nothing, conv and stem of the first batch were there
    for layer, row in find(loss=Stopping(math.inf)).scores.items():
        np.testing.assert_allclose(array(found.scores[layer]), array(row), rtol=0, atol=1e-12)


def test_sums_are_saved_now_and_then_not_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = ledger.write_tensors
    monkeypatch.setattr(ledger, "write_tensors", lambda *args: (written.append(args[3]["done"]), write(*args)))
    find(chunk=2, resume=tmp_path / "sums")
    assert written == []
    monkeypatch.setattr(ledger, "SECONDS", 0)
    find(chunk=2, resume=tmp_path / "sums", batches=1)
    assert written == ["1", "3", "5", "7", "9", "11", "13"]
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_channel_weights as test
from pytl import files
from pytl.regularizers.channels import ledger

savings, fsync = [], os.fsync

def kill_in_the_fifth(descriptor):
    savings.append(descriptor)
    if len(savings) == 9:  # each saving syncs a file and its folder
        os.ftruncate(descriptor, 40)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync, ledger.SECONDS = kill_in_the_fifth, 0
test.torch.set_num_threads(1)
test.find(chunk=3, resume=Path(sys.argv[1]))
"""


def test_kill_in_the_middle_of_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert read_tensors(path, "sums of channel scores")[1]["done"] == "8"
    assert_same(find(chunk=3, resume=path).scores, find(chunk=3).scores)
    assert not path.exists()


def other_model() -> nn.Module:
    model = model_of(RESIDUAL)
    model.head.bias.data[0] += 1e-9
    return model


def with_other_statistics() -> nn.Module:
    model = model_of(RESIDUAL)
    model.norm.running_var[3] += 1e-9
    return model


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "model": (lambda: {"model": other_model()}, r"\n  weights: saved \w+, now \w+$"),
    "statistics": (lambda: {"model": with_other_statistics()}, "weights: saved"),
    "layers": (lambda: {"layers": ("conv",)}, r"layers: saved conv \[4\], stem \[4\], norm \[4\], now conv \[4\]$"),
    "method": (lambda: {"method": "first-order"}, "method: saved exact, now first-order$"),
    "batches": (lambda: {"batches": 2}, "batches: saved 3, now 2$"),
    "loss": (lambda: {"loss": nn.CrossEntropyLoss()}, "loss: saved Stopping, now CrossEntropyLoss$"),
    "data": (lambda: {"loader": batches_of(RESIDUAL, seed=9)}, "first batch: saved"),
    "labels": (lambda: {"loader": [(x, (y + 1) % 3) for x, y in batches_of(RESIDUAL)]}, "first batch: saved"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_file_of_another_run_is_refused_and_left(other: str, tmp_path: Path) -> None:
    options, message = OTHERS[other]
    path = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        find(loss=Stopping(9), resume=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        find(**{"loss": Stopping(math.inf), "resume": path} | options())
    assert f"{path} is another run's" in str(caught.value)
    assert path.read_bytes() == before


def test_broken_file_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        find(loss=Stopping(9), resume=path)
    before = path.read_bytes()
    find().save(tmp_path / "weights")
    for data in (before[:-1], b"", tmp_path.joinpath("weights").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=str(path)):
            find(loss=Stopping(math.inf), resume=path)
        assert path.read_bytes() == data


# What is left behind:


def everything(model: nn.Module) -> Any:
    """All that the search must not change."""
    return copy.deepcopy(
        [
            dict(model.state_dict()),
            [module.training for module in model.modules()],
            [[p.grad if p.grad is not None else "none", p.requires_grad] for p in model.parameters()],
            [[len(module._forward_hooks), len(module._forward_pre_hooks)] for module in model.modules()],
        ]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [None, 1, 3], ids="interrupted at {}".format)
def test_model_is_left_as_it_was(method: str, stop: int | None) -> None:
    model = model_of(RESIDUAL).train()
    model.norm.eval()  # frozen, as some fine-tune
    model.stem.weight.requires_grad_(False)
    cross_entropy(model(batches_of(RESIDUAL)[0][0]), batches_of(RESIDUAL)[0][1]).backward()
    model.head.bias.grad = None
    model.conv.register_forward_hook(lambda *_: None)
    before = everything(model)
    if stop is None:
        find(model=model, method=method)
    else:
        with pytest.raises(KeyboardInterrupt):
            find(model=model, method=method, loss=Stopping(stop))
    assert_same(everything(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_objects_that_layers_return_are_left_as_they_were(method: str) -> None:
    returned: list[tuple[SimpleNamespace, Tensor]] = []

    def wrap(x: Tensor) -> SimpleNamespace:
        returned.append((SimpleNamespace(last_hidden_state=x), x))
        return returned[-1][0]

    find(Case(lambda: Tokens(wrap, lambda o: o.last_hidden_state), ("block",), (4, 6)), method=method)
    assert all(one.last_hidden_state is x for one, x in returned)


def test_hooks_are_removed_where_the_network_itself_fails() -> None:
    model = model_of(RESIDUAL)
    before = everything(model)
    with pytest.raises(RuntimeError):
        find(model=model, loader=[(torch.randn(2, 3, 4, 4).double(), torch.zeros(2).long())])
    assert_same(everything(model), before)


def test_networks_output_is_that_of_evaluation() -> None:
    assert_same(find(model=model_of(RESIDUAL).train()).scores, find(model=model_of(RESIDUAL).eval()).scores)


def test_under_no_grad_the_estimate_is_the_same() -> None:
    with torch.no_grad():
        found = find(method="first-order").scores
    assert_same(found, find(method="first-order").scores)


# Errors:

ROW = torch.zeros(2, dtype=torch.long)
IMAGES = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "layer": ({"layers": ("stem", "conv1")}, ValueError, "layers must be names.*got 'conv1'; did you mean conv"),
    "one string": ({"layers": "conv"}, TypeError, "layers must be a sequence of names; got one string, 'conv'"),
    "no layers": ({"layers": ()}, ValueError, r"layers must be at least one name.*got \[\]"),
    "layer twice": ({"layers": ("conv", "conv")}, ValueError, r"each once; got \['conv', 'conv'\]"),
    "the network itself": ({"layers": ("",)}, ValueError, "layers must be names.*got ''"),
    "method": ({"method": "exakt"}, ValueError, "method must be one of exact, first-order; got 'exakt'; did you mean"),
    "chunk": ({"chunk": 0}, ValueError, "chunk must be >= 1; got 0"),
    "batches": ({"batches": 0}, ValueError, "batches must be >= 1 or None; got 0"),
    "loader": ({"loader": []}, ValueError, "loader must give at least one batch; got none"),
    "labels a list": ({"loader": [(IMAGES, [1, 2])]}, TypeError, "loader must give .inputs, labels.*got a tuple"),
    "four": ({"loader": [[IMAGES, ROW, ROW, ROW]]}, TypeError, "loader must give .inputs, labels.*got a list"),
    "labels": ({"loader": [{"x": IMAGES}]}, TypeError, "a mapping with 'labels', a tensor; got a dict with x"),
    "loss": (
        {"loss": lambda a, b: a.mean(1)},
        ValueError,
        r"loss must return the batch's mean, 0-dim; got shape \[5\]",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_errors_name_the_argument_before_any_work(bad: str, tmp_path: Path) -> None:
    options, error, message = BAD[bad]
    model = model_of(RESIDUAL)
    before = everything(model)
    with pytest.raises(error, match=message):
        find(**{"model": model, "resume": tmp_path / "sums"} | options)
    assert_same(everything(model), before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
def test_answers_that_are_no_logits_are_named(method: str) -> None:
    model = model_of(CASES["[B, T, D]"])
    model.register_forward_hook(lambda module, inputs, output: (output,))
    with pytest.raises(TypeError, match="model must return logits, or an object with logits; got a tuple"):
        find(CASES["[B, T, D]"], model, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_cannot_be_scored_are_named(method: str) -> None:
    model = nn.Sequential(OrderedDict(used=nn.Linear(6, 3)))
    model.used.register_module("spare", nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"layers must be called in a forward; got used\.spare, which"):
        find(Case(lambda: model, ("used", "used.spare"), (6,)), method=method)
    mapping = Case(lambda: Tokens(lambda x: {"x": x}, lambda o: o["x"]), ("block",), (4, 6))
    with pytest.raises(TypeError, match=r"layers must return a tensor, a tuple.*'block' returned a dict"):
        find(mapping, method=method)
    by_time = Case(
        lambda: nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, 4)), *Tokens().children()), ("0",), (4, 6)
    )
    with pytest.raises(ValueError, match=r"layers must return.*B = 5; '0' returned \[20, 6\]"):
        find(by_time, method=method)


@pytest.mark.parametrize("cut", ["features", "loss"])
def test_layer_out_of_reach_of_gradients_is_named(cut: str) -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    model = nn.Sequential(nn.Linear(6, 6), Cut(), nn.Linear(6, 3)).requires_grad_(cut == "features")
    case = Case(lambda: model, ("0",) if cut == "loss" else ("0", "2"), (6,))
    with pytest.raises(ValueError, match=r'layers must reach the loss by gradients, or method be "exact"; got 0$'):
        find(case, method="first-order")
    assert find(case).scores["0"].abs().max() > 0


@pytest.mark.parametrize(
    ("at", "zeroed"), [(2, "nothing"), (5, "channel 2 of layer 'conv'"), (7, "channel 0 of layer 'stem'")]
)
def test_loss_that_is_not_finite_names_the_layer(at: int, zeroed: str) -> None:
    calls: list[int] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return cross_entropy(logits, labels) * (math.nan if len(calls) == at else 1)

    with pytest.raises(ValueError, match=f"loss must be finite; got nan with {zeroed} zeroed"):
        find(loss=loss, chunk=2)


def test_infinite_channel_is_zeroed_not_multiplied() -> None:
    case = Case(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), ("0",), (6,))
    infinite, large = model_of(case), model_of(case)
    infinite[0].bias.data[1], large[0].bias.data[1] = math.inf, 1e9
    assert_same(find(case, infinite).scores, find(case, large).scores)
