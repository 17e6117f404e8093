"""The examples run as they stand, and learn something in a few steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
    assert {path.stem for path in FOLDER.glob("*.py")} == {"hf_trainer", "plain_loop"}


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("plain_loop").main(epochs=4) > 0.3  # of ten classes
    assert "20 tensors: conflict" in capsys.readouterr().out


def test_hf_trainer() -> None:
    found = example("hf_trainer").main(steps=40)
    assert found["eval_accuracy"] > 0.85  # 0.77 of the lines are code
    assert found["eval_loss"] < 0.6
