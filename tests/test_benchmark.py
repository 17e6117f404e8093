import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytl import benchmark
from pytl.benchmark import cases, chart, comparison, shapes
from pytl.benchmark.allocations import allocations
from pytl.benchmark.cases import CASES, Case, Pairing, Target
from pytl.benchmark.comparison import Limits, compare, disagreement
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.parameters import random_set, sets_to_rotate
from pytl.benchmark.records import Comparison, NotTimed
from pytl.benchmark.timing import Spread, spread

SHAPES: list[shapes.Shape] = [(7, 5), (64,), (1,), (33, 3, 2)]
BRIEF = Limits(pairs=2, seconds=0.1)


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytl.benchmark.timing._COPIED", 1 << 20)


def case(*pairings: Pairing, dtype: torch.dtype = torch.float32) -> Case:
    return Case("small", "small tensors", lambda: SHAPES, pairings, dtype, in_cache=True)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(arguments)


def test_networks_have_their_published_sizes() -> None:
    assert (len(shapes.resnet50()), shapes.elements(shapes.resnet50())) == (161, 25_557_032)
    assert (len(shapes.vit_large()), shapes.elements(shapes.vit_large())) == (296, 304_326_632)
    assert (len(shapes.tiny()), len(shapes.ones()), shapes.elements(shapes.huge())) == (10_000, 161, 134_217_728)


def test_llama_fits_what_it_is_given() -> None:
    assert shapes.elements(shapes.llama_within(1e8)) <= 1e8
    assert shapes.llama_within(1e8) != shapes.llama_within(2e8)
    assert shapes.llama_within(0) == shapes.llama(1)
    assert shapes.llama_within(1e12) == shapes.llama()


SAME = {(p.ours, p.rival) for one in CASES.values() for p in one.pairings if p.same_weights and p.rival != "compiled"}


@pytest.mark.parametrize(("ours", "rival"), sorted(SAME))
def test_rivals_compute_the_same_weights(ours: str, rival: str) -> None:
    one, other = random_set(SHAPES, torch.float32, 3), random_set(SHAPES, torch.float32, 3)
    before = [w.detach().clone() for w in one.weights]
    for name, parameters in ((ours, one), (rival, other)):
        step = CONTENDERS[name].build(parameters)
        for _ in range(5):
            step()
    assert disagreement(one.weights, other.weights, before) < 1e-5


def test_compiled_form_computes_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    found = compare(case(), Pairing("pytl-dtnh", "compiled"), BRIEF)
    assert isinstance(found, Comparison)
    assert found.disagreement is not None
    assert found.disagreement < 1e-5


def test_what_computes_other_weights_is_not_timed() -> None:
    found = compare(case(), Pairing("pytl-dtnh", "torch-sgd"), BRIEF)
    assert isinstance(found, NotTimed)
    assert found.is_failure
    assert "differ by" in found.reason


def test_what_does_not_fit_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1)
    found = compare(case(), Pairing("pytl", "torch"), BRIEF)
    assert isinstance(found, NotTimed)
    assert not found.is_failure
    assert "GiB are available" in found.reason


@pytest.mark.parametrize("name", [name for name, contender in CONTENDERS.items() if contender.is_ours])
def test_steady_step_is_profiled(name: str) -> None:
    step = CONTENDERS[name].build(random_set(SHAPES, torch.float32, 0))
    step()
    step()
    if name not in ("pytl-dtnh-clip", "pytl-reference"):
        assert allocations(step).count == 0
    assert allocations(lambda: torch.ones(1000)).bytes >= 4000


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("torch", torch.float32, 28),
        ("pytl-dtnh", torch.float32, 32),
        ("pytl-dtnh", torch.bfloat16, 24),
        ("pytl-dtnh-kahan", torch.bfloat16, 28),
        ("torch", torch.bfloat16, 14),
        ("torch-sgd", torch.float32, 20),
        ("pytl-sgd-dtnh", torch.float32, 24),
    ],
)
def test_bytes_are_those_of_the_formula(name: str, dtype: torch.dtype, expected: int) -> None:
    assert CONTENDERS[name].bytes_per_parameter(dtype) == expected


def test_data_are_random_and_repeatable() -> None:
    one, again, other = (random_set(SHAPES, torch.float32, seed) for seed in (0, 0, 1))
    for k, (w, w0, g) in enumerate(zip(one.weights, one.starts, one.gradients, strict=True)):
        assert torch.equal(w, again.weights[k])
        assert not torch.equal(w, other.weights[k])
        assert all(drawn.count_nonzero() for drawn in (w, g, w - w0))


def test_sets_leave_the_caches() -> None:
    assert sets_to_rotate(shapes.resnet50(), torch.float32) == 1
    assert sets_to_rotate(shapes.tiny(), torch.float32) > 2
    assert sets_to_rotate(shapes.ones(), torch.float32) == 16


def test_spread_is_in_order() -> None:
    assert spread([3.0]) == Spread(3.0, 3.0, 3.0)
    assert spread([*range(11)]) == Spread(2, 5, 8)


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target("time ratio", 1.45), 1.45, True),
        (Target("time ratio", 1.45), 1.46, False),
        (Target("speed-up", 8), 7.9, False),
        (Target("share of cores", 0.9), 0.95, True),
    ],
)
def test_target_is_met_or_missed(target: Target, value: float, met: bool) -> None:
    assert target.is_met(value) is met


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pairings = (
        Pairing("pytl-dtnh", "torch", Target("time ratio", 1e-9), same_weights=False),
        Pairing("pytl", "torch", Target("microseconds", 1e9)),
        Pairing("pytl-dtnh", "eager"),
        Pairing("pytl-sgd", "torch-sgd"),
    )
    monkeypatch.setitem(benchmark.CASES, "ones", replace(case(*pairings), name="ones"))


@pytest.mark.usefixtures("small")
def test_run_writes_valid_figures_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.run(parsed("--shapes", "ones", "--pairs", "3", "--out", str(tmp_path))) == 0
    text = capsys.readouterr().out
    assert "missed by" in text
    assert ": met, " in text
    (written,) = tmp_path.glob("cpu-*-ones.json")
    found: dict[str, Any] = json.loads(written.read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert [one["pairs"] for one in found["comparisons"]] == [3, 3, 3, 3]
    for one in found["comparisons"]:
        assert one["ratio"]["p20"] <= one["ratio"]["p50"] <= one["ratio"]["p80"]
        assert one["ours"]["gigabytes_per_second"] > 0
    assert [one["verdict"] and one["verdict"]["met"] for one in found["comparisons"]] == [False, True, None, None]
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_disagreement_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(comparison.ALLOWED_DISAGREEMENT, torch.float32, -1.0)
    assert benchmark.run(parsed("--shapes", "ones", "--pairs", "2", "--out", str(tmp_path))) == 1
    assert "not timed" in capsys.readouterr().out


def test_chart_relates_rivals_to_the_baseline() -> None:
    pairings = (Pairing("pytl-dtnh", "torch", same_weights=False), Pairing("pytl-dtnh", "eager"))
    found = [compare(case(), pairing, BRIEF) for pairing in pairings]
    compared = [one for one in found if isinstance(one, Comparison)]
    (panel,) = chart.panels(compared)
    by_words = {bar.words: bar.ratio.p50 for bar in panel.bars}
    price, paired = (one.ratio.p50 for one in compared)
    assert by_words[CONTENDERS["eager"].words] == pytest.approx(price / paired)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "alexnet"], "alexnet"),
        (["--pairs", "0"], "must be a whole number >= 1; got 0"),
        (["--pairs", "many"], "must be a whole number >= 1; got many"),
        (["--seconds", "-1"], "must be a number of seconds > 0; got -1"),
        (["--seconds", "nan"], "must be a number of seconds > 0; got nan"),
        (["--threads", "0"], "must be a whole number >= 1; got 0"),
    ],
)
def test_wrong_arguments_get_a_clear_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("module", "extra"), [("rich", "cli"), ("matplotlib", "plots")])
def test_missing_package_is_named_before_anything_is_timed(
    module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pytl\[{extra}\]"):
        benchmark.run(parsed("--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_every_pairing_names_contenders() -> None:
    for one in cases.CASES.values():
        for pairing in one.pairings:
            assert {pairing.ours, pairing.rival} <= CONTENDERS.keys()
