"""The examples run as they stand, and learn something in a few steps."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import timm_stand_in

FOLDER = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.usefixtures("one_thread")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here() -> None:
    trainers = {"accelerate_loop", "hf_trainer", "lightning_trainer", "plain_loop", "timm_registry"}
    assert {path.stem for path in FOLDER.glob("*.py")} == {*trainers, "language_model", "lora"}


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("plain_loop").main(epochs=4) > 0.3  # of ten classes
    assert "20 tensors: conflict" in capsys.readouterr().out


def test_hf_trainer() -> None:
    found = example("hf_trainer").main(steps=40)
    assert found["eval_accuracy"] > 0.85  # 0.77 of the lines are code
    assert found["eval_loss"] < 0.6


def test_accelerate_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("accelerate_loop").main(epochs=4) > 0.45  # of ten classes
    assert "56 tensors: conflict" in capsys.readouterr().out


def test_lightning_trainer() -> None:
    found = example("lightning_trainer").main(steps=40)
    assert found["plain"]["prose"] < 0.8 * found["before"]["prose"]
    assert found["L2-SP"]["prose"] < 0.8 * found["before"]["prose"]
    assert 0 < found["L2-SP"]["distance"] < found["plain"]["distance"]


def test_timm_registry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    timm_stand_in.install(monkeypatch)
    assert example("timm_registry").main(epochs=5) > 0.3  # of ten classes
    assert "8 tensors: conflict" in capsys.readouterr().out


def test_lora() -> None:
    pytest.importorskip("peft")
    found = example("lora").main(epochs=4)
    assert min(row["accuracy"] for row in found.values()) > 0.3  # of ten classes
    assert 0 < found["L2-SP"]["|B A|"] < found["none"]["|B A|"]
    assert found["L2-SP"]["|A - A0|"] < found["weight decay"]["|A - A0|"]


def test_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--size", "100k", "--steps", "8", "--pretrain-steps", "20", "--length", "64", "--lr", "1e-3"]
    arguments = [*sizes, "--strengths", "30", "--seeds", "1", "--out", str(tmp_path)]
    found = example("language_model").main(arguments)
    ends = {(run["method"], run["lr"]): run["points"][-1]["target"] for run in found["runs"].values()}
    assert ends.keys() == {("adamw", 1e-3), ("l2sp", 1e-3), ("dtnh", 1e-3)}
    assert max(ends.values()) < 0.98 * found["before"]["target"]
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {"results.json", "tradeoff.png"} <= files.keys()
    capsys.readouterr()
    assert example("language_model").main(arguments)["runs"] == found["runs"]
    with pytest.raises(SystemExit, match="was made with length 64, not 32"):
        example("language_model").main([*arguments, "--length", "32"])


def test_moments_of_8_bits_reach_the_loss_of_32_on_the_language_model(tmp_path: Path) -> None:
    sizes = ["--size", "100k", "--steps", "60", "--pretrain-steps", "40", "--length", "64", "--lr", "3e-3"]
    arguments = [*sizes, "--methods", "l2sp", "--strengths", "3", "--seeds", "1", "--out", str(tmp_path), "--moments"]
    found = [example("language_model").main([*arguments, moments])["runs"] for moments in ("float32", "8bit")]
    whole, coarse = (math.log(run["points"][-1]["target"]) for run in found[1].values())
    assert abs(coarse - whole) < 0.01 * whole
