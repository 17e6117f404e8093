import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from pytl.data import Task, digits
from pytl.intervals import interval, paired
from pytl.study import comparison as study
from pytl.study import report, resets
from pytl.study.comparison import Study
from pytl.study.evidence import Outcome, rows, verdict
from pytl.study.networks import pretrained_digits
from pytl.study.table import accuracy, difference, summary
from pytl.training.checkpoint import ResumeError
from pytl.training.methods import METHODS, parse

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"data": "digits:classes", "methods": ("plain", "dtnh"), "seeds": 2, "epochs": 2}


def outcomes(accuracies: dict[str, list[float]]) -> list[Outcome]:
    task = Task("digits:mirrored", "digits, then mirrored digits", 10, torch.empty(0), torch.empty(0))
    return [
        Outcome(task, method, seed, [{"epoch": 1, "accuracy": value}])
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_interval_is_students() -> None:
    values = [0.81, 0.84, 0.79, 0.88, 0.83]
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.half_width == pytest.approx((high - low) / 2)


def test_interval_of_one_run_is_unknown_and_shown_as_such() -> None:
    assert accuracy(interval([0.9])) == "90.0"
    assert difference(interval([0.01])) == "+1.0"
    assert verdict(interval([0.01])) == "needs more seeds"
    with pytest.raises(ValueError, match="values must hold >= 1 number; got none"):
        interval([])


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    plain = {0: 0.5, 1: 0.7, 2: 0.9}
    method = {seed: value + 0.01 for seed, value in plain.items()} | {7: 0.0}
    found = paired(method, plain)
    assert found.mean == pytest.approx(0.01)
    assert found.half_width == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.01, 0.02, 0.015], "helps"),
        ([-0.01, -0.02, -0.015], "hurts"),
        ([0.05, -0.01, 0.02], "no difference seen"),
        ([0.0, 0.0, 0.0], "no difference seen"),
    ],
)
def test_verdict_is_given_only_where_the_interval_leaves_out_zero(differences: list[float], expected: str) -> None:
    assert verdict(interval(differences)) == expected


def test_rows_compare_each_method_with_plain_by_seed() -> None:
    table = rows(outcomes({"plain": [0.5, 0.7], "dtnh": [0.6, 0.8]}))
    assert [(row.method, row.difference and round(row.difference.mean, 6)) for row in table] == [
        ("plain", None),
        ("dtnh", 0.1),
    ]
    assert summary(table) == "Against plain fine-tuning, 1 task. dtnh: helps on 1."


def test_without_plain_nothing_is_claimed() -> None:
    table = rows(outcomes({"l2sp": [0.5, 0.7], "dtnh": [0.6, 0.8]}))
    assert all(row.difference is None and row.verdict == "" for row in table)
    assert summary(table) == "Nothing was compared: that needs plain and another method."


def test_methods_are_joined_left_to_right() -> None:
    joined = parse("l2sp+dtnh")
    assert joined.name == "l2sp+dtnh"
    assert joined.direction == "dtnh"
    assert joined.sp_decay == METHODS["l2sp"].sp_decay
    assert parse("l2+dtnh").weight_decay == METHODS["l2"].weight_decay


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Outcome], Path]:
    plan = Study(**SMALL, out=tmp_path_factory.mktemp("study"))
    found = study.run(plan)
    return plan, found, report.write(plan, found)


def test_every_method_meets_the_same_seeds(finished: tuple[Study, list[Outcome], Path]) -> None:
    _, found, _ = finished
    assert {(one.method, one.seed) for one in found} == {(m, s) for m in SMALL["methods"] for s in range(2)}
    assert all(len(one.history) == 2 for one in found)


def test_results_are_plain_json(finished: tuple[Study, list[Outcome], Path]) -> None:
    plan, found, _ = finished
    text = (plan.out / "results.json").read_text()
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [run["accuracy"] for run in results["runs"]] == [one.accuracy for one in found]
    assert results["rows"][1]["method"] == "dtnh"


def test_the_report_shows_resets_and_the_split(tmp_path: Path) -> None:
    plan = Study(**SMALL | {"methods": ("plain", "rifle", "tred"), "seeds": 1, "epochs": 4}, out=tmp_path)
    found = study.run(plan)
    text = report.write(plan, found).read_text()
    assert (tmp_path / "figures" / "gradients-digits-classes.png").exists()
    assert "Dotted lines: a method's head is re-initialised there" in text
    assert re.search(r"tred, means over seeds: \|F_p\|/\|F_o\| of layer3 \d\.\d\d", text)
    rifle = [one for one in found if one.method == "rifle"]
    assert resets.epochs(rifle[0].history) == [2.0]
    norms = resets.norms(rifle)
    assert [*norms] == [1]
    assert norms[1]["after"]["head"] == rifle[0].history[1]["gradient/1 after/head"]
    assert resets.epochs(found[0].history) == []


def test_norms_over_seeds_are_geometric_means() -> None:
    runs = outcomes({"rifle": [0.5, 0.7]})
    for one, norm in zip(runs, (1.0, 4.0), strict=True):
        one.history[0].update({"reset/1": 0.5, "gradient/1 before/a": norm, "gradient/1 after/a": 0.0})
    assert resets.norms(runs) == {1: {"before": {"a": pytest.approx(2.0)}, "after": {"a": 0.0}}}


def test_report_is_one_file_that_needs_no_network(finished: tuple[Study, list[Outcome], Path]) -> None:
    plan, _, page = finished
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)  # by chance among a picture's letters
    assert {path.name for path in (plan.out / "figures").iterdir()} == {
        "accuracy-digits-classes.png",
        "conflict-digits-classes.png",
        "differences.png",
    }


def test_finished_study_is_read_and_not_trained_again(
    finished: tuple[Study, list[Outcome], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, found, _ = finished
    monkeypatch.setattr("pytl.training.run.Run._step", lambda *arguments: pytest.fail("trained again"))
    again = study.run(replace(plan, resume=True))
    assert [one.history for one in again] == [one.history for one in found]


def test_more_seeds_may_be_added(finished: tuple[Study, list[Outcome], Path]) -> None:
    plan, found, _ = finished
    more = study.run(replace(plan, resume=True, seeds=3))
    assert [one.history for one in more if one.seed < 2] == [one.history for one in found]
    assert len(more) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "epochs: saved 2, now 3"),
        ({"methods": ("plain", "grod")}, r"methods: saved \['plain', 'dtnh'\], now \['plain', 'grod'\]"),
        ({"data": "digits:noisy"}, "data: saved digits:classes, now digits:noisy"),
    ],
)
def test_another_study_is_refused(
    finished: tuple[Study, list[Outcome], Path], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResumeError, match=message):
        study.run(replace(finished[0], resume=True, **change))


def test_second_study_does_not_overwrite_the_first(finished: tuple[Study, list[Outcome], Path]) -> None:
    with pytest.raises(FileExistsError, match="go on with it by --resume, or choose another --out"):
        study.run(finished[0])


def test_source_network_is_the_same_read_or_trained(tmp_path: Path) -> None:
    task = digits.load("classes", 4)
    trained, read = (pretrained_digits(task, 4, tmp_path).state_dict() for _ in range(2))
    assert all(torch.equal(trained[name], read[name]) for name in trained)


@pytest.mark.parametrize("name", ["classes", "mirrored"])
def test_source_network_has_learnt_its_source(tmp_path: Path, name: str) -> None:
    task = digits.load(name, 0)
    network = pretrained_digits(task, 0, tmp_path)
    saved = torch.load(tmp_path / f"{task.source_name}-0.pt", weights_only=True)
    network.head = nn.Linear(64, len(saved["head.bias"]))
    network.load_state_dict(saved)
    images, labels = task.source[:]
    assert (network(images).argmax(-1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds must be >= 1; got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1; got 0"),
        ({"epochs": 0}, "epochs must be >= 1; got 0"),
        ({"methods": ("plain", "sgdr")}, "method must be one of .*; got 'sgdr'"),
        ({"model": "a:b"}, "model must be left out for digits"),
        ({"data": "photos"}, "model must be given for a folder of images"),
    ],
)
def test_bad_study_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study(**{**SMALL, "out": tmp_path, **change})
