"""`pytl analyze`: which runs it finds, what it measures of them, what it says of the claims, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pytl
from pytl.cli import main
from pytl.intervals import Interval
from pytl.study.comparison import Study
from pytl.study.comparison import run as run_study
from pytl.transferability import Asked, analyse, claims, measuring, report
from pytl.transferability.claims import CONTRADICTED, OPEN, SUPPORTED, verdict
from pytl.transferability.measuring import Protocol
from pytl.transferability.runs import find

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = Protocol(samples=24, trace=6, points=3)
METHODS = ("scratch", "plain", "dtnh")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of three methods on one task, recorded, with a snapshot."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("study")
    run_study(Study(data="digits:mirrored", methods=METHODS, out=out, seeds=2, epochs=2, snapshots=1, record=2))
    return out


@pytest.fixture(scope="module")
def kept(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole analysis of the study."""
    out = tmp_path_factory.mktemp("analysis")
    analyse([study], out, asked(1, 2, 3, 4))
    return out


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "copy"))


def asked(*numbers: int, **options: Any) -> Asked:
    return Asked(numbers, QUICK, stage_count=1, stage_measure="linear", **options)


def seed_folder(study: Path, method: str, seed: int = 0) -> Path:
    return study / "runs" / "digits-mirrored" / method / f"seed-{seed}"


def measured(distance: float = 1.0, eigenvalue: float = 1.0, beta: float = 1.0, energy: float = 1.0) -> dict[str, Any]:
    """As `measuring.of_run` gives it."""
    return {
        "distance": {"total_relative": distance},
        "sharpness": {"eigenvalues": [eigenvalue], "trace": {"mean": eigenvalue}},
        "rise": eigenvalue,
        "path": [{"beta": beta, "loss_range": [0.0, beta]}],
        "energy": {"top_tenth": {"layer": energy}},
    }


class Named:
    """A run by what claims know it by."""

    def __init__(self, method: str, seed: int, task: str = "task") -> None:
        self.method, self.seed, self.task = method, seed, task


def results(**by_method: list[dict[str, Any]]) -> Any:
    return {Named(method, seed): one for method, of in by_method.items() for seed, one in enumerate(of)}


def test_runs_are_found_with_their_task_method_and_seed(study: Path) -> None:
    found = find([study])
    assert not found.left_out
    assert {(run.task, run.method, run.seed) for run in found.runs} == {
        ("digits:mirrored", method, seed) for method in METHODS for seed in (0, 1)
    }
    assert [name for name, _ in found.runs[0].path] == ["start", "step-000006", "checkpoint"]


def test_a_run_is_found_once_however_often_it_is_named(study: Path) -> None:
    one = seed_folder(study, "plain")
    assert len(find([study, one, one.parent]).runs) == 6
    assert [run.method for run in find([one]).runs] == ["plain"]


def test_weights_of_start_and_end_are_those_of_the_run(study: Path) -> None:
    run = find([seed_folder(study, "plain")]).runs[0]
    start, end = run.network(run.start), run.network(run.end)
    pretrained = run.study.network(run.data, 0, study / "sources")
    for a, b in zip(start.state_dict().values(), pretrained.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))


def test_folders_that_lack_something_are_left_out_and_named(copied: Path) -> None:
    (seed_folder(copied, "plain") / "checkpoint.pt").unlink()
    (seed_folder(copied, "dtnh") / "start.pt").unlink()
    history = seed_folder(copied, "scratch") / "metrics.jsonl"
    history.write_text("".join(line for line in history.read_text().splitlines(True) if '"epoch": 2' not in line))
    found = find([copied])
    assert len(found.runs) == 3
    assert found.left_out == {
        str(seed_folder(copied, "plain")): "has no checkpoint",
        str(seed_folder(copied, "dtnh")): "has no start.pt: resume it once",
        str(seed_folder(copied, "scratch")): "has 1 of 2 epochs: resume it",
    }


def test_nothing_to_analyse_is_refused_with_the_reasons(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folders that can be analysed.*has no checkpoint"):
        find([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="run must be a folder"):
        find([tmp_path / "nowhere"])
    (copied / "study.json").unlink()
    with pytest.raises(ValueError, match="say --data and --model"):
        find([copied])
    (copied / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json cannot be read"):
        find([copied])


def test_runs_of_two_architectures_are_refused_by_name(copied: Path) -> None:
    path = seed_folder(copied, "plain", 1) / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["layer1.0.weight"] = torch.zeros(8, 1, 3, 3)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"one architecture.*seed-1.*differ in 1 tensors: layer1\.0\.weight"):
        find([copied])


def test_two_runs_of_one_name_are_refused(study: Path, copied: Path) -> None:
    with pytest.raises(
        ValueError, match=r"differ in task, method or seed; .* are both digits:mirrored scratch, seed 0"
    ):
        find([study, copied])


def test_a_run_of_python_is_analysed_with_data_and_model_given(tmp_path: Path) -> None:
    about = Study(data="digits:noisy", methods=("plain",), out=tmp_path)
    task = about.task("noisy", 0)
    network = about.network(task, 0, tmp_path / "sources")
    loader = pytl.data.batches(task.train, 32, shuffle=True)
    pytl.finetune(network, loader, epochs=1, head="head", seed=0, out=tmp_path / "mine", progress=False)
    run = find([tmp_path / "mine"], about).runs[0]
    assert (run.task, run.method, run.seed) == ("digits:noisy", "mine", 0)
    assert measuring.of_run(run, QUICK)["distance"]["total"] > 0


def test_every_measure_is_taken_and_kept(study: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "of_run", lambda *of: pytest.fail("measured again"))
    found = analyse([study], kept, asked(1, 2))
    assert not found.failures
    for run, one in found.measured.items():
        assert one["distance"]["total_relative"] > 0
        assert len(one["path"]) == 3
        assert one["sharpness"]["protocol"]["samples"] == 24
        assert ("forgetting" in one) == (run.method != "scratch")
    assert len(found.landscapes) == len(found.traces) == 3


def test_other_samples_are_measured_anew(study: Path, tmp_path: Path) -> None:
    one = [seed_folder(study, "plain")]
    analyse(one, tmp_path, asked(1))
    more = analyse(one, tmp_path, Asked((1,), Protocol(samples=12, trace=6, points=5)))
    assert next(iter(more.measured.values()))["sharpness"]["protocol"]["samples"] == 12
    assert len(next(iter(more.landscapes.values())).first) == 5


def test_a_stopped_analysis_keeps_what_was_measured(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = measuring.of_run, []

    def stopping(run: Any, protocol: Any) -> Any:
        seen.append(run)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(run, protocol)

    monkeypatch.setattr(measuring, "of_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        analyse([study], tmp_path, Asked((1,), Protocol(samples=12, trace=6, points=0)))
    analyse([study], tmp_path, Asked((1,), Protocol(samples=12, trace=6, points=0)))
    assert len(seen) == 3 + 4  # two were kept, the third was stopped


def test_what_cannot_be_measured_is_told_and_the_rest_kept(copied: Path, tmp_path: Path) -> None:
    path = seed_folder(copied, "plain") / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["head.bias"][0] = math.nan
    torch.save(state, path)
    with pytest.warns(RuntimeWarning, match="digits-mirrored-plain-0-weights not measured: loss must be finite"):
        result = analyse([copied / "runs" / "digits-mirrored" / "plain"], tmp_path / "out", asked(1, 2))
    assert [*result.failures] == ["digits:mirrored plain, seed 0"]
    assert sum("failed" not in one for one in result.measured.values()) == 1
    page = report.write(result, tmp_path / "out").read_text()
    assert "not measured: loss must be finite on the 24 samples; got nan" in page


def test_memory_that_runs_out_is_told_and_counted(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nn.Linear.forward

    def small(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, x)

    monkeypatch.setattr(nn.Linear, "forward", small)
    with pytest.warns(RuntimeWarning, match="memory ran out with 24 samples"):
        result = analyse([seed_folder(study, "scratch")], tmp_path, Asked((1,), Protocol(24, trace=6, points=0)))
    protocol = next(iter(result.measured.values()))["sharpness"]["protocol"]
    assert protocol["halvings"] == 2
    assert protocol["at_a_time"] == 6


@pytest.mark.parametrize(
    ("low", "high", "wanted", "expected"),
    [
        (0.2, 0.9, -1, SUPPORTED),
        (1.1, 3.0, -1, CONTRADICTED),
        (0.5, 1.5, -1, OPEN),
        (1.1, 3.0, 1, SUPPORTED),
        (0.2, 0.9, 1, CONTRADICTED),
        (math.nan, math.nan, 1, OPEN),
    ],
)
def test_verdicts_need_the_whole_interval_on_one_side(low: float, high: float, wanted: int, expected: str) -> None:
    assert verdict(Interval(1.0, low, high), 1.0, wanted) == expected


def test_ratios_to_a_random_start_are_paired_by_seed() -> None:
    claim = claims.flatness(
        results(
            scratch=[measured(4, 8), measured(40, 80), measured(0.4, 0.8)],
            plain=[measured(1, 16), measured(11, 150), measured(0.09, 1.7)],
        )
    )
    near, sharp, trace, rise = claim.findings
    logs = [math.log(1 / 4), math.log(11 / 40), math.log(0.09 / 0.4)]
    assert near.estimate.mean == pytest.approx(math.exp(sum(logs) / 3))
    assert near.verdict == SUPPORTED
    assert {one.verdict for one in (sharp, trace, rise)} == {CONTRADICTED}
    assert near.seeds == 3
    assert claim.summary[0] == "distance from the start, over that from a random start: 1 supported"


def test_a_seed_without_its_pair_does_not_count() -> None:
    claim = claims.smoothness(results(scratch=[measured(beta=2)], plain=[measured(beta=1), measured(beta=1)]))
    assert {one.seeds for one in claim.findings} == {1}
    assert {one.verdict for one in claim.findings} == {OPEN}


def test_failed_measures_count_nowhere() -> None:
    claim = claims.flatness(results(scratch=[measured(), {"failed": "nan"}], plain=[{"failed": "nan"}, measured()]))
    assert claim.findings == []
    assert claim.lacking


def test_without_a_random_start_the_first_three_claims_say_what_they_need() -> None:
    for claim in (claims.flatness(results(plain=[measured()])), claims.smoothness(results(plain=[measured()]))):
        assert claim.summary == ["not measured: it needs runs from a random start to compare with: the method scratch"]
    assert "it needs 3 tasks" in claims.similarity({"a": {0: 0.1}}, {"a": {0: {}}}).summary[0]


def similar(mmd: float, explained: float) -> dict[str, Any]:
    return {"inputs": {"mmd": mmd, "emd": mmd}, "labels": {"explained": explained}}


def test_gains_that_fall_with_distance_support_the_third_claim() -> None:
    gains = {task: dict.fromkeys(range(3), 0.3 - 0.1 * place) for place, task in enumerate("abc")}
    likeness = {task: {seed: similar(place, -place) for seed in range(3)} for place, task in enumerate("abc")}
    claim = claims.similarity(gains, likeness)
    assert [one.estimate.mean for one in claim.findings] == pytest.approx([-1, -1, 1])
    assert {one.verdict for one in claim.findings} == {SUPPORTED}


def test_a_peak_that_differs_from_seed_to_seed_is_no_fall() -> None:
    values = [[0, 5, 4, 4], [0, 4, 5, 4], [0, 4, 4, 5]]
    claim = claims.stages({"a": {seed: {"values": one} for seed, one in enumerate(values)}}, "accuracy")
    rise, fall = claim.findings
    assert rise.verdict == SUPPORTED
    assert fall.verdict == OPEN


def test_rise_and_fall_are_seen_where_all_seeds_have_them() -> None:
    values = [[0.1, 0.8, 0.5], [0.2, 0.9, 0.7], [0.1, 0.7, 0.4]]
    claim = claims.stages({"a": {seed: {"values": one} for seed, one in enumerate(values)}}, "accuracy")
    assert [one.verdict for one in claim.findings] == [SUPPORTED, SUPPORTED]
    assert claim.findings[1].estimate.mean == pytest.approx(-(0.3 + 0.2 + 0.3) / 3)


def test_all_is_written_as_one_page_json_and_pictures(study: Path, kept: Path, tmp_path: Path) -> None:
    result = analyse([study], kept, asked(1, 2, 3, 4))
    page = report.write(result, tmp_path)
    text = page.read_text()
    assert "<img" in text
    assert "http" not in text.replace("data:image", "").split("<main>")[0]
    found = json.loads((tmp_path / "analysis.json").read_text(), parse_constant=pytest.fail)
    assert len(found["runs"]) == 6
    assert [claim["number"] for claim in found["claims"]] == [1, 2, 3, 4]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"claim-1.png", "landscape-digits-mirrored.png", "cosine-digits-mirrored-dtnh.png"} <= names
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_stages_begin_at_new_weights_and_end_at_the_source(study: Path) -> None:
    run = find([seed_folder(study, "plain")]).runs[0]
    folder = pytl.study.networks.source_stages(run.data, 0, study / "sources", 1)
    last = pytl.weight_files.read_weights(folder / "checkpoint.pt")
    for name, tensor in measuring.source_network(run).state_dict().items():
        assert torch.equal(last[name], tensor)


def test_the_command_says_each_claim_and_where_the_report_is(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--claims", "1", "3", "--samples", "12", "--trace", "6", "--points", "0", "--out", str(tmp_path / "out")]
    assert main(["analyze", str(seed_folder(study, "plain")), *options]) == 0
    printed = capsys.readouterr()
    assert "1. Transferred weights stay near their start" in printed.out
    assert "not measured: it needs runs from a random start" in printed.out
    assert "not measured: it needs 3 tasks" in printed.out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed.out
    assert "1 runs: " in printed.err
    assert "products with the Hessian" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "1"], "samples must be >= 4; got 1"),
        (["--batch", "0"], "batch must be >= 1; got 0"),
        (["--trace", "2"], "trace must be >= 6; got 2"),
        (["--points", "4"], "points must be 0, or odd and >= 3; got 4"),
        (["--stages", "/nowhere"], "stages must be a folder of checkpoints; got '/nowhere'"),
    ],
)
def test_bad_options_are_refused_in_a_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["analyze", str(seed_folder(study, "plain")), "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(tmp_path / "nowhere")]) == 1
    assert "run must be a folder of a run or a comparison" in capsys.readouterr().err


def test_a_folder_of_images_is_analysed_with_the_users_own_network_and_stages(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(photos), "--model", "tiny_models:Net", "--head", "head", "--image-size", "8"]
    training = ["--method", "scratch", "plain", "--seeds", "2", "--epochs", "2", "--snapshots", "1"]
    assert main(["finetune", *data, *training, "--out", "out"]) == 0
    stages = Path("out", "runs", "photos", "plain", "seed-0")
    quick = ["--trace", "6", "--points", "3", "--stages", str(stages), "--stage-measure", "linear"]
    with pytest.warns(RuntimeWarning, match="the source's data and head are not known for a folder of images"):
        assert main(["analyze", "out", *quick]) == 0
    printed = capsys.readouterr().out
    assert "distance from the start, over that from a random start: 1" in printed
    assert "accuracy of a linear probe at the best stage minus that at the first: 1" in printed
    assert Path("out", "analysis", "report.html").exists()


def test_ctrl_c_says_how_to_go_on(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(run: Any, protocol: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "of_run", stopped)
    command = ["analyze", str(study), "--out", str(tmp_path)]
    assert main(command) == 130
    assert f"stopped; to go on:\n  pytl {' '.join(command)}" in capsys.readouterr().err
