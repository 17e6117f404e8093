import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pytl import files, seeding
from pytl.training import checkpoint


def full_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "checkpoint.pt", {"weights": torch.arange(3)})
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_previous_checkpoint_whole(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match=r"previous one is whole.*No space left") as caught:
        checkpoint.save(path, {"weights": torch.zeros(3)})
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.load(path)["weights"].tolist() == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_full_disk_is_named_although_torch_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
        checkpoint._write({"weights": torch.zeros(100_000)}, file)


def test_error_in_the_middle_of_writing_leaves_the_previous_file(path: Path) -> None:
    before = path.read_bytes()

    def write_half() -> None:
        with files.replacing(path) as file:
            file.write(b"half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert path.read_bytes() == before


def test_truncated_checkpoint_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(checkpoint.ResumeError, match=str(path)):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_executed(path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.parent / "executed"),)

    torch.save({"weights": Malicious()}, path)
    with pytest.raises(checkpoint.ResumeError):
        checkpoint.load(path)
    assert not (path.parent / "executed").exists()


def test_each_difference_between_runs_is_listed() -> None:
    saved = {"epochs": 3, "groups": {"0": {"sp_decay": 0.1}}, "method": "l2sp"}
    current = {"epochs": 4, "groups": {"0": {"sp_decay": 0.2}}, "method": "l2sp", "amp": "bf16"}
    with pytest.raises(checkpoint.ResumeError) as caught:
        checkpoint.refuse_other_run(saved, current, "here")
    assert "epochs: saved 3, now 4" in str(caught.value)
    assert "groups.0.sp_decay: saved 0.1, now 0.2" in str(caught.value)
    assert "amp: saved nothing, now bf16" in str(caught.value)
    assert "method" not in str(caught.value)


def test_many_differences_are_counted() -> None:
    with pytest.raises(checkpoint.ResumeError, match="and 88 more"):
        checkpoint.refuse_other_run({str(i): i for i in range(100)}, {}, "here")


def draws(loader: DataLoader[Any]) -> list[float]:
    order = [float(batch[0].sum()) for batch in loader]
    return [*order, float(torch.rand(())), float(np.random.rand()), float(np.random.randn()), random.random()]


def test_restored_random_state_repeats_every_draw(tmp_path: Path) -> None:
    data = TensorDataset(torch.arange(8.0))
    own = torch.Generator().manual_seed(1)
    loader = DataLoader(data, 3, sampler=RandomSampler(data, generator=own), generator=torch.Generator())
    np.random.randn()  # leaves a second Gaussian behind, which is part of NumPy's state
    checkpoint.save(tmp_path / "random.pt", seeding.random_state(loader))
    first = draws(loader)
    seeding.restore_random_state(checkpoint.load(tmp_path / "random.pt"), loader)
    assert draws(loader) == first


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out must be a folder that can be written.*file/runs"):
        files.writable_folder(tmp_path / "file" / "runs")
