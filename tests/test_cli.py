import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pytl import extras
from pytl.cli import main

SMALL = ["--data", "digits:classes", "--method", "plain", "dtnh", "--seeds", "1", "--epochs", "3"]
LONGER = [*SMALL, "--epochs", "20", "--checkpoint-every", "2"]


def finetune(*arguments: object) -> int:
    return main(["finetune", *map(str, arguments)])


def started(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pytl", "finetune", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)


def last_weights(out: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(out)): torch.load(path, weights_only=True)["model"]
        for path in sorted(out.glob("runs/**/checkpoint.pt"))
    }


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(weights[name], other[run][name]) for run, weights in one.items() for name in weights
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert finetune(*LONGER, "--out", out) == 0
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A folder that holds the pre-trained network already; its name has a space."""
    shutil.copytree(whole / "sources", tmp_path / "my runs" / "sources")
    return tmp_path / "my runs"


def test_comparison_writes_all_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(*SMALL, "--out", tmp_path) == 0
    text = capsys.readouterr().out
    for expected in ("classes", "plain", "dtnh", "baseline", "needs more seeds", f"report: {tmp_path}"):
        assert expected in text
    assert {path.name for path in tmp_path.iterdir()} >= {"report.html", "results.json", "study.json", "figures"}
    run = tmp_path / "runs" / "digits-classes" / "dtnh" / "seed-0"
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bits(whole: Path, out: Path, seed: int) -> None:
    moments = random.Random(seed)
    for run in ("plain", "dtnh"):
        process = started(*LONGER, "--out", out, "--resume")
        wait_for(out / "runs" / "digits-classes" / run / "seed-0" / "checkpoint.pt", process)
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert finetune(*LONGER, "--out", out, "--resume") == 0
    assert len(last_weights(whole)) == 2
    assert same(last_weights(out), last_weights(whole))


def test_killed_while_pretraining_and_resumed_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    process = started(*LONGER, "--out", tmp_path / "killed")
    wait_for(tmp_path / "killed" / "sources", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert finetune(*LONGER, "--out", tmp_path / "killed", "--resume") == 0
    assert same(last_weights(tmp_path / "killed"), last_weights(whole))


def test_ctrl_c_saves_and_says_how_to_go_on(whole: Path, out: Path) -> None:
    arguments = [*map(str, LONGER), "--out", str(out)]
    process = started(*arguments)
    wait_for(out / "runs" / "digits-classes" / "plain" / "seed-0" / "checkpoint.pt", process)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"saved to {out}" in text
    command = shlex.split(text.splitlines()[-1])
    assert command == ["pytl", "finetune", *arguments, "--resume"]
    assert main(command[1:]) == 0
    assert same(last_weights(out), last_weights(whole))


def test_finished_comparison_is_only_reported_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = (whole / "results.json").read_bytes()
    (whole / "report.html").unlink()
    monkeypatch.setattr("pytl.training.run.Run._step", lambda *arguments: pytest.fail("trained again"))
    assert finetune(*LONGER, "--out", whole, "--resume") == 0
    assert json.loads((whole / "results.json").read_text())["rows"] == json.loads(results)["rows"]
    assert (whole / "report.html").exists()


def test_full_disk_is_said_and_what_is_there_resumes(
    whole: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, count = os.replace, iter(range(1_000))

    def filling(source: Path, target: Path) -> None:
        if next(count) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", filling)
        assert finetune(*LONGER, "--out", out) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert finetune(*LONGER, "--out", out, "--resume") == 0
    assert same(last_weights(out), last_weights(whole))


def test_folder_and_function_are_compared_and_corrupt_images_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "tiny_models:Net", "--head", "head", "--image-size", "8", "--seeds", "2", "--epochs", "2"]
    assert finetune("--data", photos, *options, "--method", "plain", "l2sp", "--out", "out") == 0
    text = capsys.readouterr().out
    assert "left out, 1 not readable as images" in text
    assert "broken.png" in text
    assert "broken.png" in (Path("out") / "report.html").read_text()


def test_hugging_face_folder_is_fine_tuned(photos: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    options = ["--model", "vit", "--image-size", "8", "--seeds", "1", "--epochs", "1", "--optimizer", "adamw"]
    assert finetune("--data", photos, *options, "--method", "l2sp", "--out", "out") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digits", "--epochs", "0"], "epochs must be >= 1; got 0"),
        (["--data", "digits", "--method", "sgdr"], "method must be one of plain, l2, l2sp, dtnh, grod, pcgrad"),
        (["--data", "digits:upside-down"], "digits task must be one of classes, .*; got 'upside-down'"),
        (["--data", "digits", "--share", "2"], r"share must be in \(0, 1\]; got 2.0"),
        (["--data", "digits", "--device", "abacus"], "device must be one that torch finds here; got 'abacus'"),
        (["--data", "nowhere", "--model", "tiny_models:Net"], "data must be 'digits', .*; got 'nowhere'"),
        (["--data", "photos", "--model", "tiny_models"], "model must be module:function or a folder"),
        (["--data", "photos", "--model", "tiny_models:Missing"], "got 'tiny_models:Missing': .*no attribute"),
        (["--data", "photos", "--model", "tiny_models:nothing"], "must return a torch.nn.Module; .*NoneType"),
        (["--data", "photos", "--model", "tiny_models:Net", "--image-size", "0"], "image_size must be >= 1; got 0"),
        (["--data", "digits:classes", "--out", "tiny_models.py/x"], "out must be a folder that can be written"),
    ],
)
def test_bad_argument_is_one_clear_line(
    photos: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune("--seeds", "1", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("pytl: ")
    assert len(error.splitlines()) == 1

    assert re.search(message, error)


def test_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert finetune(*SMALL, "--out", tmp_path / "out") == 1
    assert 'pip install "pytl[cli]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ImportError, match=r'pip install "pytl\[hf\]"'):
        extras.require("no_such_package", "hf")


@pytest.mark.parametrize(("command", "expected"), [([], "doctor"), (["finetune"], "examples:")])
def test_help_names_what_there_is(command: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert expected in capsys.readouterr().out
