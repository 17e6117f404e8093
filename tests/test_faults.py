"""Kills, full disks, flipped bytes, code in files, a lost rank, infinities, tensors swapped behind an optimizer's back.

None of them loses a finished checkpoint, executes what a file holds, or corrupts weights without a word.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import random
import resource
import signal
import time
import traceback
import zipfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_files import KEPT, REFUSALS, Kept, plain, refusal, same
from oracle import DIRECTIONS, GRANULARITIES, PATHS, assert_same, copy_of, draw, give, parameters
from ranks import free_port
from torch import Tensor, distributed, nn
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import pytl
from pytl import files, metrics
from pytl.training import checkpoint
from pytl.training.checkpoint import ResumeError

pytestmark = pytest.mark.usefixtures("one_thread")

KILLED = -signal.SIGKILL


def xfail(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


def in_child(act: Callable[[], object]) -> int:
    """Runs it in a process of its own; the exit code, or the negative number of the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        act()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Moments:
    """Counts the moments of writing, and acts at one of them."""

    def __init__(self, number: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.number, self.act, self.seen = number, act, 0

    def __call__(self) -> None:
        self.seen += 1
        if self.seen == self.number:
            self.act()


class Watched:
    """A file whose every write is two, with a moment before and between them."""

    def __init__(self, file: Any, moment: Moments) -> None:
        self._file, self._moment = file, moment

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._moment()
        written = self._file.write(data[:half])
        self._file.flush()
        self._moment()
        return written + self._file.write(data[half:])

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def watch(patch: pytest.MonkeyPatch, moment: Moments) -> Moments:
    """Puts a moment before and after each write, fsync and rename of pytl's files."""

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            moment()
            result = call(*arguments)
            moment()
            return result

        return watched

    def opened(*given: Any) -> Watched:
        return Watched(open(*given), moment)

    for module in (files, metrics):
        patch.setattr(module, "open", opened, raising=False)
    for call in ("fsync", "replace"):
        patch.setattr(os, call, around(getattr(os, call)))
    return moment


def moments_of(act: Callable[[], object]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        moment = watch(patch, Moments())
        act()
    return moment.seen


def spread(seed: int, seeds: int, total: int) -> int:
    """The first of all moments, the last, and others between them."""
    return 1 + seed * (total - 1) // (seeds - 1)


# Killed, or without room, in the middle of writing.

WRITERS = ("checkpoint", "plan .yaml", "plan .json", "channel weights", "feature split", "channel sums", "metrics")
MOMENTS = 6


@pytest.fixture
def kept(request: pytest.FixtureRequest) -> Kept:
    return KEPT[request.param]


@pytest.mark.parametrize("seed", range(MOMENTS))
@pytest.mark.parametrize("kept", WRITERS, indirect=True)
def test_a_kill_at_any_moment_of_writing_leaves_a_whole_file(tmp_path: Path, kept: Kept, seed: int) -> None:
    path = kept.made_in(tmp_path, 1)
    versions = [kept.read(kept.made_in(tmp_path / name, k)) for k, name in enumerate(make_folders(tmp_path), 1)]
    number = spread(seed, MOMENTS, moments_of(lambda: kept.make(path, 1)))

    def killed() -> None:
        watch(pytest.MonkeyPatch(), Moments(number, kill))
        kept.make(path, 2)

    assert in_child(killed) == KILLED
    assert any(same(kept.read(path), version) for version in versions)
    kept.make(path, 2)
    assert same(kept.read(path), versions[1])


def make_folders(path: Path) -> tuple[str, str]:
    for name in ("one", "two"):
        (path / name).mkdir()
    return "one", "two"


@pytest.mark.parametrize("seed", range(MOMENTS))
@pytest.mark.parametrize("kept", WRITERS, indirect=True)
def test_a_disk_that_fills_at_any_moment_leaves_a_whole_file_and_no_debris(
    tmp_path: Path, kept: Kept, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept.made_in(tmp_path, 1)
    versions = [kept.read(kept.made_in(tmp_path / name, k)) for k, name in enumerate(make_folders(tmp_path), 1)]
    before = sorted(tmp_path.iterdir())
    number = spread(seed, MOMENTS, moments_of(lambda: kept.make(path, 1)))
    with monkeypatch.context() as patch:
        watch(patch, Moments(number, full))
        with pytest.raises(OSError, match="No space left"):
            kept.make(path, 2)
    assert any(same(kept.read(path), version) for version in versions)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kept", WRITERS, indirect=True)
def test_a_disk_that_is_full_is_named_with_the_file(
    tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept.made_in(tmp_path, 1)
    watch(monkeypatch, Moments(1, full))
    with pytest.raises(OSError, match=path.name):
        kept.make(path, 2)


@pytest.mark.parametrize("size", [0, 1, 100, 511, 512, 1000, 1500])
@pytest.mark.parametrize("kept", ["checkpoint", "channel weights", "metrics"], indirect=True)
def test_a_real_limit_of_the_file_size_leaves_the_previous_file_whole(tmp_path: Path, kept: Kept, size: int) -> None:
    path = kept.made_in(tmp_path, 1)
    before = path.read_bytes()
    limit = min(size, len(before) - 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match="File too large"):
            kept.make(path, 2)

    assert in_child(limited) == 0
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_while_a_line_is_added_leaves_the_lines_before_it(tmp_path: Path, seed: int) -> None:
    path = KEPT["metrics"].made_in(tmp_path)
    before = metrics.read(path)
    added: list[metrics.Record] = [{"step": 5, "loss": 0.1}, {"step": 6, "loss": 0.2}]
    if seed % 2:  # what another kill has left
        path.write_bytes(path.read_bytes() + b'{"step": 5, "lo')
    trial = tmp_path / "trial.jsonl"
    trial.write_bytes(path.read_bytes())
    number = spread(seed // 2, 4, moments_of(lambda: metrics.append(trial, added)))

    def killed() -> None:
        watch(pytest.MonkeyPatch(), Moments(number, kill))
        metrics.append(path, added)

    assert in_child(killed) == KILLED
    assert metrics.read(path) in [before + added[:count] for count in range(3)]
    metrics.append(path, [{"step": 7}])
    assert metrics.read(path)[-1] == {"step": 7}


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_while_features_are_written_leaves_those_that_were(tmp_path: Path, seed: int) -> None:
    network, inputs = nn.Sequential(nn.Linear(6, 4)), draw(0, ((8, 6),), torch.float32)[0]

    def fill(folder: Path) -> None:
        with pytl.features.CachedSource(network, folder=folder) as source:
            source.watch(["0"])
            for ids in ([0, 1, 2], [3, 4, 5, 6, 7]):
                source(inputs[ids], ids=ids)
                source.flush()

    number = spread(seed, 6, moments_of(lambda: fill(tmp_path / "trial")))

    def killed() -> None:
        watch(pytest.MonkeyPatch(), Moments(number, kill))
        fill(tmp_path / "kept")

    assert in_child(killed) == KILLED
    with pytl.features.CachedSource(network, folder=tmp_path / "kept") as source:
        assert source.kept in (0, 3, 8)
        source.watch(["0"])
        assert torch.equal(source(inputs[:3], ids=[0, 1, 2])["0"], network(inputs[:3]))


# A run that is killed and resumed.


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3))
    model.add_module("head", nn.Linear(8, 3))
    return model


def train(model: nn.Module, folder: Path | None, **options: Any) -> nn.Module:
    points = draw(7, ((18, 6),), torch.float32)[0]
    loader = DataLoader(TensorDataset(points, (points[:, 0] > 0).long()), 6, shuffle=True)
    fixed: dict[str, Any] = {"method": "dtnh", "head": "head", "epochs": 2, "lr": 0.1, "seed": 5, "progress": False}
    return pytl.finetune(model, loader, out=folder, **{**fixed, **options}).model


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, int]:
    """The weights of a run that nothing disturbs, and how many moments of writing it has."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        moment = watch(patch, Moments())
        return flat(train(network(), tmp_path_factory.mktemp("whole"), checkpoint_every=1)), moment.seen


RUNS = 16


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_run_killed_while_it_writes_and_resumed_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, seed: int, whole: tuple[Tensor, int]
) -> None:
    expected, total = whole

    def killed(number: int) -> None:
        watch(pytest.MonkeyPatch(), Moments(number, kill))
        train(network(), tmp_path, checkpoint_every=1, resume=True)

    assert in_child(partial(killed, spread(seed, RUNS, total))) == KILLED
    in_child(partial(killed, random.Random(seed).randrange(1, total)))
    assert torch.equal(flat(train(network(), tmp_path, checkpoint_every=1, resume=True)), expected)
    epochs = [record["epoch"] for record in metrics.read(tmp_path / "metrics.jsonl")]
    assert epochs == [1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_at_any_time_has_a_whole_checkpoint_or_none(
    tmp_path: Path, seed: int, whole: tuple[Tensor, int]
) -> None:
    child = os.fork()
    if not child:
        try:
            train(network(), tmp_path, checkpoint_every=1)
            while True:
                KEPT["checkpoint"].make(tmp_path / "other.pt", 1)
        finally:
            os._exit(1)
    time.sleep(random.Random(seed).uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    for path in tmp_path.glob("*.pt"):
        checkpoint.load(path)
    assert torch.equal(flat(train(network(), tmp_path, checkpoint_every=1, resume=True)), whole[0])


@pytest.mark.parametrize("seed", range(8))
def test_a_run_whose_disk_fills_and_is_resumed_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, seed: int, whole: tuple[Tensor, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, total = whole
    with monkeypatch.context() as patch:
        watch(patch, Moments(spread(seed, 8, total), full))
        with pytest.raises(OSError, match="No space left"):
            train(network(), tmp_path, checkpoint_every=1)
    for path in tmp_path.glob("*.pt"):
        checkpoint.load(path)
    assert torch.equal(flat(train(network(), tmp_path, checkpoint_every=1, resume=True)), expected)


# Truncated, and flipped.

BINARY = (
    *("checkpoint", "start .pt", "start .safetensors", "channel weights", "feature split", "channel sums"),
    "cached features",
)
TORCH_FILES = ("checkpoint", "start .pt")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kept", BINARY, indirect=True)
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: Kept, seed: int) -> None:
    path = kept.made_in(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: random.Random(seed).randrange(len(whole)) if seed else len(whole) - 1])
    with pytest.raises(REFUSALS, match=path.name):
        kept.read(path)


def flipped(path: Path, place: int, bit: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1 << bit
    path.write_bytes(whole)


def places_of_tensors(path: Path) -> list[int]:
    """Where a file's tensors lie: in torch's, the records; in safetensors', all behind the header."""
    whole = path.read_bytes()
    if path.suffix == ".safetensors":
        return [*range(8 + int.from_bytes(whole[:8], "little"), len(whole))]
    with zipfile.ZipFile(path) as archive:
        records = [archive.read(one) for one in archive.infolist() if "/data/" in one.filename]
    return [place for data in records for place in range(whole.index(data), whole.index(data) + len(data))]


def places_of_values(path: Path) -> list[int]:
    """Where names, shapes and plain values lie."""
    whole = path.read_bytes()
    if path.suffix == ".safetensors":
        return [*range(8 + int.from_bytes(whole[:8], "little"))]
    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(one for one in archive.infolist() if one.filename.endswith("/data.pkl")))
    return [*range(whole.index(data), whole.index(data) + len(data))]


def read_and_copied(kept: Kept, path: Path) -> Any:
    """Readers may map the file into memory."""
    return copy.deepcopy(plain(kept.read(path)))


def refused_or_the_same(kept: Kept, path: Path, before: Any) -> None:
    said = refusal(lambda: kept.read(path))
    assert path.name in said if said is not None else same(kept.read(path), before)


OWN = tuple(kind for kind in BINARY if kind != "start .safetensors")
"""Those whose format could say that a bit was flipped."""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", OWN)
def test_a_bit_flipped_in_a_tensor_is_noticed(tmp_path: Path, kind: str, seed: int) -> None:
    path = KEPT[kind].made_in(tmp_path)
    before, draws = read_and_copied(KEPT[kind], path), random.Random(seed)
    flipped(path, draws.choice(places_of_tensors(path)), draws.randrange(8))
    refused_or_the_same(KEPT[kind], path, before)


@pytest.mark.parametrize("kind", OWN)
def test_bits_flipped_in_names_and_plain_values_are_noticed(tmp_path: Path, kind: str) -> None:
    path = KEPT[kind].made_in(tmp_path)
    before, whole, draws = read_and_copied(KEPT[kind], path), path.read_bytes(), random.Random(0)
    for place in draws.choices(places_of_values(path), k=300):
        path.unlink()
        path.write_bytes(whole)
        flipped(path, place, draws.randrange(8))
        refused_or_the_same(KEPT[kind], path, before)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_is_not_resumed_from_weights_with_a_flipped_bit(tmp_path: Path, seed: int) -> None:
    train(network(), tmp_path, epochs=1)
    path, draws = tmp_path / "checkpoint.pt", random.Random(seed)
    flipped(path, draws.choice(places_of_tensors(path)), draws.randrange(8))
    model = network()
    before = flat(model)
    with pytest.raises(ResumeError, match=r"checkpoint\.pt"):
        train(model, tmp_path, epochs=1, resume=True)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_is_not_resumed_from_a_truncated_checkpoint(tmp_path: Path, seed: int) -> None:
    train(network(), tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: random.Random(seed).randrange(path.stat().st_size)])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = network()
    weights = flat(model)
    with pytest.raises(ResumeError, match=r"checkpoint\.pt"):
        train(model, tmp_path, epochs=1, resume=True)
    assert torch.equal(flat(model), weights)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("seed", range(8))
def test_a_bit_flipped_in_a_foreign_start_is_refused_or_moves_one_number(tmp_path: Path, seed: int) -> None:
    """A safetensors file has no checksum: what its numbers were, nobody knows."""
    kept, draws = KEPT["start .safetensors"], random.Random(seed)
    path = kept.made_in(tmp_path)
    before, whole = read_and_copied(kept, path), path.read_bytes()
    for _ in range(40):
        path.unlink()
        path.write_bytes(whole)
        flipped(path, draws.randrange(len(whole)), draws.randrange(8))
        named = [(name, Parameter(torch.zeros_like(tensor))) for name, tensor in before.items()]
        said = refusal(lambda named=named: pytl.SGD(named, sp_decay=0.1, start=path))  # type: ignore[misc]
        if said is None:
            found = kept.read(path)
            others = [found[name].view(torch.int32) != before[name].view(torch.int32) for name, _ in named]
            assert sum(int(other.sum()) for other in others) <= 1
        else:
            assert "start" in said


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_state_dict_is_refused_or_steps_and_never_crashes(tmp_path: Path, seed: int) -> None:
    """torch.load is the caller's; what it returns is taken for what it is."""
    shapes, draws = ((3, 5), (7,)), random.Random(seed)

    def stepped() -> Any:
        optimizer = pytl.AdamW(parameters(0, shapes, torch.float32), sp_decay=0.1)
        give(optimizer.param_groups[0]["params"], draw(1, shapes))
        optimizer.step()
        return optimizer

    path = tmp_path / "optimizer.pt"
    torch.save(stepped().state_dict(), path)
    whole = path.read_bytes()

    def load() -> None:
        for place in draws.choices(range(len(whole)), k=60):
            path.write_bytes(whole)
            flipped(path, place, draws.randrange(8))
            try:
                state = torch.load(path, weights_only=True)
            except Exception:  # torch's own, of any kind
                continue
            optimizer = stepped()
            try:
                optimizer.load_state_dict(state)
                optimizer.step()
            except Exception:
                traceback.print_exc()

    assert in_child(load) == 0


ENTRIES: dict[str, Any] = {
    "a number": 3,
    "text for a moment": {"exp_avg": "x"},
    "a list for a step": {"step": [1, 2]},
    "a moment on meta": {"exp_avg": torch.zeros(3, 5, device="meta")},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_state_dict_whose_entry_is_nonsense_is_refused_and_changes_nothing(entry: str) -> None:
    optimizer = pytl.AdamW(parameters(0, ((3, 5),), torch.float32), sp_decay=0.1)
    give(optimizer.param_groups[0]["params"], draw(1, ((3, 5),)))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0] = {**saved["state"][0], **ENTRIES[entry]} if isinstance(ENTRIES[entry], dict) else ENTRIES[entry]
    before = copy_of(optimizer)
    with pytest.raises((ValueError, TypeError)):
        optimizer.load_state_dict(saved)
    assert_same(copy_of(optimizer), before)


# Code in files.


class Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def zipped(mark: Path, path: Path) -> None:
    torch.save({"a.weight": torch.ones(2), "a.bias": Bomb(mark)}, path)


def legacy(mark: Path, path: Path) -> None:
    torch.save({"a.bias": Bomb(mark)}, path, _use_new_zipfile_serialization=False)


def bare(mark: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps({"a.bias": Bomb(mark)}))


def tagged(mark: Path, path: Path) -> None:
    path.write_text(f"!!python/object/apply:os.mkdir ['{mark}']")


BOMBS: dict[str, Callable[[Path, Path], None]] = {"zip": zipped, "legacy": legacy, "pickle": bare, "tag": tagged}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kept", KEPT, indirect=True)
def test_code_in_a_file_is_never_executed(tmp_path: Path, kept: Kept, bomb: str) -> None:
    path = kept.made_in(tmp_path)
    path.unlink()
    BOMBS[bomb](tmp_path / "exploded", path)
    said = refusal(lambda: kept.read(path), (*REFUSALS, KeyError))
    assert said or kept is KEPT["metrics"]  # one line that is not whole
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "one.bin", "one.safetensors"])
def test_code_in_a_folder_of_weights_is_never_executed(tmp_path: Path, name: str, bomb: str) -> None:
    if name.startswith("one"):
        index = {"weight_map": {"a.bias": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    BOMBS[bomb](tmp_path / "exploded", tmp_path / name)
    with pytest.raises(ValueError, match=name):
        pytl.SGD([("a.bias", Parameter(torch.ones(2)))], sp_decay=0.1, start=tmp_path)
    assert not (tmp_path / "exploded").exists()


# A rank that is lost.


def lose_a_rank(rank: int, port: int, folder: str, apart: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=5)
    )
    steps = iter(range(1, 100))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if next(steps) == 5 and rank == 1:
            os._exit(0)
        return cross_entropy(logits, labels)

    model = network()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    method = "distillation+dtnh" if apart else "l2sp"
    wrapped: nn.Module = model if apart else DistributedDataParallel(model)
    options = {"method": method, "loss": loss, "checkpoint_every": 1}
    try:
        train(wrapped, Path(folder) if rank == 0 else None, **options)
    except Exception as error:
        Path(folder, "error.txt").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)


@pytest.mark.parametrize("apart", [False, True], ids=["task", "penalty"])
def test_a_lost_rank_is_an_error_of_the_other_whose_checkpoint_is_whole(tmp_path: Path, apart: bool) -> None:
    context = torch.multiprocessing.get_context("spawn")
    arguments = (free_port(), str(tmp_path), apart)
    ranks = [context.Process(target=lose_a_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    hangs = [process.is_alive() for process in ranks]
    for process in ranks:
        process.kill()
    assert not any(hangs)
    assert (tmp_path / "error.txt").exists()
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state["scheduler"]["last_epoch"] in (3, 4)
    assert all(value.isfinite().all() for value in state["model"].values())


# Gradients that are not finite.


def poisoned(seed: int) -> tuple[list[Tensor], list[int]]:
    """Gradients, some with one infinity or NaN, and the places of those."""
    draws, gradients = random.Random(seed), draw(seed)
    places = sorted(draws.sample([i for i, g in enumerate(gradients) if g.numel()], 1 + seed % 2))
    for place in places:
        flat_gradient = gradients[place].view(-1)
        flat_gradient[draws.randrange(len(flat_gradient))] = draws.choice([float("inf"), -float("inf"), float("nan")])
    return gradients, places


CELLS = [*product(PATHS, GRANULARITIES, DIRECTIONS)]


@pytest.mark.parametrize(("name", "summed", "rule"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_a_gradient_that_is_not_finite_spoils_its_own_tensor_and_is_counted(
    name: str, summed: str, rule: str, method: Any
) -> None:
    seed = CELLS.index((name, summed, rule))
    params = parameters()
    optimizer = method(params, lr=0.1, sp_decay=0.1, direction=rule, granularity=summed, **PATHS[name])
    for step in range(2):
        give(params, draw(step + 1))
        optimizer.step()
    gradients, places = poisoned(seed)
    give(params, gradients)
    optimizer.step()
    assert optimizer.report().nonfinite == len(places)
    assert [i for i, p in enumerate(params) if not p.isfinite().all()] == places
    for i, state in enumerate(optimizer.state.values()):
        assert i in places or all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize(("name", "summed", "rule"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_an_overflow_under_a_scaler_changes_nothing(name: str, summed: str, rule: str, method: Any) -> None:
    seed = CELLS.index((name, summed, rule))
    params = parameters()
    optimizer = method(params, lr=0.1, sp_decay=0.1, direction=rule, granularity=summed, **PATHS[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    for step in range(seed % 2):
        give(params, draw(step + 1))
        optimizer.step()
    gradients, _ = poisoned(seed)
    before = copy_of(optimizer)
    give(params, gradients)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert_same(copy_of(optimizer), before)


# Tensors swapped behind the optimizer's back.

SHAPES = ((3, 5), (7,), (9, 13))
FIRST, LAST = 0, 2  # of the first parameter's state all tensors are looked at in each step


class Training:
    """An optimizer after two steps, with the gradients of a third, and the tensors that nothing may write to."""

    def __init__(self, method: Any, options: dict[str, Any]) -> None:
        self.params = parameters(0, SHAPES, torch.float32)
        own = {"momentum": 0.9} if method is pytl.SGD else {}
        named = [(f"p{i}", p) for i, p in enumerate(self.params)]
        self.optimizer = method(named, lr=0.1, sp_decay=0.1, **own, **options)
        self.moment = "momentum_buffer" if method is pytl.SGD else "exp_avg"
        self.old: list[tuple[Tensor, Tensor]] = []
        for step in range(2):
            give(self.params, draw(step + 1, SHAPES))
            self.optimizer.step()
        self.give()

    def give(self) -> None:
        give(self.params, draw(3, SHAPES))

    def state(self, place: int, name: str) -> Tensor:
        if name == "weight":
            return self.params[place].detach()
        if name == "gradient":
            return self.params[place].grad  # type: ignore[return-value]
        return self.optimizer.state[self.params[place]][self.moment if name == "moment" else name]

    def keep(self, tensor: Tensor) -> None:
        """Notes memory that the optimizer no longer owns."""
        alias = torch.empty(0, dtype=tensor.dtype).set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        self.old.append((alias, alias.clone()))


Change = Callable[[Training], object]


def other_weight(place: int, make: Callable[[Tensor], Tensor]) -> Change:
    def change(training: Training) -> None:
        p = training.params[place]
        training.keep(p.detach())
        p.grad = None
        p.data = make(p.detach())
        gradient = draw(4, (tuple(p.shape),), p.dtype)[0]
        p.grad = torch.empty_like(p).copy_(gradient) if p.is_contiguous() or 0 not in p.stride() else gradient

    return change


def other_state(place: int, name: str, make: Callable[[Tensor], Tensor | None]) -> Change:
    def change(training: Training) -> None:
        training.keep(training.state(place, name))
        key = training.moment if name == "moment" else name
        training.optimizer.state[training.params[place]][key] = make(training.state(place, name))

    return change


def other_memory(place: int, name: str) -> Change:
    def change(training: Training) -> None:
        tensor = training.state(place, name)
        training.keep(tensor)
        with torch.no_grad():
            (training.params[place] if name == "weight" else tensor).set_(torch.ones_like(tensor))  # type: ignore[call-overload]

    return change


def freed(place: int, name: str) -> Change:
    return lambda training: training.state(place, name).untyped_storage().resize_(0)


def other_gradient(place: int, make: Callable[[Tensor], Tensor]) -> Change:
    def change(training: Training) -> None:
        gradient = training.state(place, "gradient")
        gradient.data = make(gradient)

    return change


def replaced_parameter(training: Training) -> None:
    training.keep(training.params[0].detach())
    training.params[0] = Parameter(torch.ones(3, 5))
    training.optimizer.param_groups[0]["params"][0] = training.params[0]
    training.give()


def tied(training: Training) -> None:
    training.params[1].data = training.params[2].data.view(-1)[:7]


def twice(training: Training) -> None:
    training.optimizer.param_groups[0]["params"].append(training.params[0])


def exchanged_states(training: Training) -> None:
    state, a, b = training.optimizer.state, training.params[0], training.params[2]
    state[a], state[b] = state[b], state[a]


WORKS: dict[str, Change] = {
    **{f"weight {i}": other_weight(i, torch.ones_like) for i in (FIRST, LAST)},
    **{f"weight {i} in float64": other_weight(i, torch.Tensor.double) for i in (FIRST, LAST)},
    **{f"weight {i} in bfloat16": other_weight(i, torch.Tensor.bfloat16) for i in (FIRST, LAST)},
    "weight transposed": other_weight(0, lambda w: torch.ones(5, 3).t()),
    "weight with gaps": other_weight(0, lambda w: torch.ones(3, 10)[:, ::2]),
    **{f"{name} {i}": other_state(i, name, torch.ones_like) for name in ("moment", "start", "step") for i in (0, 2)},
    **{f"moment {i} in float64": other_state(i, "moment", torch.Tensor.double) for i in (FIRST, LAST)},
    **{f"moment {i} taken away": other_state(i, "moment", lambda moment: None) for i in (FIRST, LAST)},
    **{f"memory of {n} {i}": other_memory(i, n) for n in ("weight", "moment", "start", "step") for i in (0, 2)},
    "state forgotten": lambda training: training.optimizer.state.clear(),
    "state of the last forgotten": lambda training: training.optimizer.state.pop(training.params[2]),
    "parameter replaced": replaced_parameter,
    "gradient transposed": other_gradient(0, lambda g: g.t().contiguous().t()),
    "gradient with gaps": other_gradient(1, lambda g: torch.ones(14)[::2]),
    "gradient expanded": other_gradient(0, lambda g: torch.ones(1).expand(3, 5)),
    "gradient that is the weight's copy": lambda training: other_gradient(1, lambda g: training.params[1].data.clone())(
        training
    ),
}
"""What the next step takes as it is: it does what an optimizer does that sees these tensors for the first time."""

REFUSED: dict[str, Change] = {
    **{f"{name} {i} freed": freed(i, name) for name in ("weight", "moment", "start", "step") for i in (0, 2)},
    "gradient freed": freed(0, "gradient"),
    "weight of another shape": other_weight(0, lambda w: torch.ones(4, 4)),
    "last weight of another shape": other_weight(2, lambda w: torch.ones(2)),
    "weight expanded": other_weight(0, lambda w: torch.ones(1).expand(3, 5)),
    "weights tied": tied,
    **{f"moment {i} of another shape": other_state(i, "moment", lambda m: torch.zeros(2)) for i in (FIRST, LAST)},
    **{f"moment {i} on meta": other_state(i, "moment", lambda m: m.to("meta")) for i in (FIRST, LAST)},
    **{f"start {i} of another shape": other_state(i, "start", lambda s: torch.zeros(2)) for i in (FIRST, LAST)},
    "states exchanged": exchanged_states,
    "parameter twice": twice,
    "gradient shorter": other_gradient(1, lambda g: torch.ones(3)),
    "gradient longer": other_gradient(1, lambda g: torch.ones(700)),
    "gradient of one row": other_gradient(2, lambda g: torch.ones(1, 13)),
    "gradient in float64": other_gradient(0, torch.Tensor.double),
    "gradient in integers": other_gradient(0, torch.Tensor.long),
}
"""What no step can take."""


def swaps(changes: dict[str, Change]) -> list[Any]:
    """A case for each path, the two optimizers and all directions in turn."""
    cells = []
    for number, (name, path_name) in enumerate(product(changes, PATHS)):
        for kind in (pytl.SGD, pytl.AdamW):
            rule = DIRECTIONS[(number // 2) % len(DIRECTIONS)]
            cell = (changes[name], kind, {"direction": rule, **PATHS[path_name]})
            cells.append(pytest.param(*cell, id=f"{name}-{path_name}-{kind.__name__}"))
    return cells


def outcome(optimizer: Any) -> str:
    try:
        optimizer.step()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "works"


def steps_as_anew(change: Change, kind: Any, options: dict[str, Any]) -> None:
    training = Training(kind, options)
    change(training)
    params, twin = copy.deepcopy((training.params, training.optimizer))
    for p, q in zip(params, training.params, strict=True):
        p.data = torch.empty_strided(q.shape, q.stride(), dtype=q.dtype).copy_(q.detach())
        p.grad = None if q.grad is None else q.grad.detach().clone()
    assert outcome(training.optimizer) == outcome(twin)
    assert_same(copy_of(training.optimizer), copy_of(twin))
    for memory, before in training.old:
        assert torch.equal(memory, before)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What torch imports at the first step is there before a child is made."""
    Training(pytl.SGD, {})


@pytest.mark.filterwarnings("ignore:.*another order")
@pytest.mark.parametrize(("change", "kind", "options"), swaps(WORKS))
def test_a_swapped_tensor_is_stepped_on_and_its_old_memory_left_alone(
    change: Change, kind: Any, options: dict[str, Any]
) -> None:
    assert in_child(lambda: steps_as_anew(change, kind, options)) == 0


def is_refused(change: Change, kind: Any, options: dict[str, Any]) -> None:
    training = Training(kind, options)
    change(training)
    held = [p.detach() for p in training.params]
    held += [tensor for state in training.optimizer.state.values() for tensor in state.values()]
    before = [tensor.clone() if is_there(tensor) else None for tensor in held]
    with pytest.raises((ValueError, TypeError, RuntimeError)) as refused:
        training.optimizer.step()
    text = str(refused.value)
    assert any(word in text for word in ("p0", "p1", "p2", "parameter", "weight", "state", "gradient", "start")), text
    for tensor, its in zip(held, before, strict=True):
        assert its is None or torch.equal(tensor, its)
    for memory, its_before in training.old:
        assert torch.equal(memory, its_before)


def is_there(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and tensor.untyped_storage().nbytes() > 0


@pytest.mark.parametrize(("change", "kind", "options"), swaps(REFUSED))
def test_a_tensor_that_no_step_can_take_is_refused_and_nothing_changed(
    change: Change, kind: Any, options: dict[str, Any]
) -> None:
    assert in_child(lambda: is_refused(change, kind, options)) == 0
