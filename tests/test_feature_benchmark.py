"""``pytl bench features``: rivals compute the same, figures are whole, and a GPU's run ends with its targets."""

import argparse
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmark import BRIEF, _small_copies, gpu_of_the_tests, parsed  # noqa: F401 - two of them are fixtures

from pytl import benchmark
from pytl.benchmark import summary
from pytl.benchmark.allocations import peak_bytes
from pytl.benchmark.comparison import compare
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.cuda import Cuda
from pytl.benchmark.features import chart
from pytl.benchmark.features.case import FeatureCase, TrainingCase
from pytl.benchmark.features.cases import CASES, CUDA_CASES
from pytl.benchmark.features.network import Network, activations
from pytl.benchmark.pairing import Pairing, Target
from pytl.benchmark.parameters import CPU
from pytl.benchmark.records import Comparison, Memory, NotTimed
from pytl.features import last_convolutions

pytestmark = pytest.mark.usefixtures("one_thread")
MAPS, TOKENS, ROWS = (3, 5, 4, 6), (3, 7, 5), (6, 33)
NETWORK = TrainingCase("network", "small network", (), (4, 3, 16, 16), 4)
OPERATIONS = ("distance", "tap", "attention")


def pairs(*dimensions: int) -> list[Pairing]:
    """All that should compute the same on features of so many dimensions, each once."""
    cases = [one for one in CASES.values() if isinstance(one, FeatureCase) and len(one.shape) in dimensions]
    found = [(p.ours, p.rival) for one in cases for p in one.pairings if p.same_results]
    return [Pairing(*names) for names in dict.fromkeys(found)]


def of_shape(shape: tuple[int, ...], *pairings: Pairing, **options: Any) -> FeatureCase:
    return FeatureCase("small", "small features", pairings, shape, **options)


def compared(case: FeatureCase | TrainingCase, pairing: Pairing) -> Comparison:
    found = compare(case, pairing, BRIEF)
    assert isinstance(found, Comparison), found
    return found


@pytest.fixture
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda formula, dynamic: formula)


ON_SHAPES = [
    *((of_shape(MAPS), pairing) for pairing in pairs(4)),
    *((of_shape(MAPS, order=torch.channels_last), pairing) for pairing in pairs(4)),
    *((of_shape(TOKENS), pairing) for pairing in pairs(3)),
    *((of_shape(ROWS), pairing) for pairing in pairs(2)),
]


@pytest.mark.usefixtures("_without_compiler")
@pytest.mark.parametrize(("case", "pairing"), ON_SHAPES, ids=lambda one: getattr(one, "rival", None))
def test_rivals_compute_the_same_value_and_gradient(case: FeatureCase, pairing: Pairing) -> None:
    found = compared(case, pairing)
    assert found.disagreement is not None
    assert found.disagreement < 5e-5  # torch.svd's, in float32


def test_delta_as_people_write_it_computes_the_same_weights() -> None:
    found = compared(NETWORK, Pairing("pytl-delta", "eager-delta"))
    assert found.disagreement is not None
    assert found.disagreement < 1e-5


def test_every_operation_is_compared_on_every_layout_it_has() -> None:
    dimensions = {p.rival for p in pairs(4)}, {p.rival for p in pairs(3)}
    assert dimensions[0] == dimensions[1] == {f"{who}-{op}" for who in ("eager", "compiled") for op in OPERATIONS}
    orders = {one.order for one in CASES.values() if isinstance(one, FeatureCase)}
    assert orders == {torch.contiguous_format, torch.channels_last}


def test_features_are_random_repeatable_and_in_their_order() -> None:
    case = of_shape(MAPS, order=torch.channels_last)
    one, again, other = (case.draw(seed, CPU) for seed in (0, 0, 1))
    for drawn in (one.x, one.source, one.task):
        assert drawn.is_contiguous(memory_format=torch.channels_last)
        assert not drawn.is_contiguous()
    assert torch.equal(one.source, again.source)
    assert not torch.equal(one.x, other.x)
    assert not torch.equal(one.x, one.source)
    assert one.weights.shape == (5,)
    assert of_shape(TOKENS).draw(0, CPU).weights.shape == (5,)


def test_gradient_beside_the_tasks_is_their_sum() -> None:
    drawn = of_shape(MAPS).draw(0, CPU)
    value, gradient = CONTENDERS["pytl-distance"].build(drawn)()
    value_beside, both = CONTENDERS["pytl-tap"].build(drawn)()
    assert torch.equal(value, value_beside)
    torch.testing.assert_close(both, gradient + drawn.task)


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
@pytest.mark.parametrize("part", [0, 1], ids=["value", "gradient"])
def test_what_computes_another_value_or_gradient_is_not_timed(
    part: int, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CONTENDERS["eager-distance"]

    def build(drawn: Any) -> Any:
        step = right.build(drawn)
        return lambda: tuple(result * (wrong if k == part else 1) for k, result in enumerate(step()))

    monkeypatch.setitem(CONTENDERS, "eager-distance", replace(right, build=build))
    found = compare(of_shape(MAPS), Pairing("pytl-distance", "eager-distance"), BRIEF)
    assert isinstance(found, NotTimed)
    assert found.is_failure
    assert "differ by" in found.reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [("distance", 20), ("tap", 24), ("attention", 16), ("distillation", 12)],
)
def test_bytes_are_those_of_the_formula(name: str, expected: int) -> None:
    targets = {p.target for case in CUDA_CASES.values() for p in case.pairings if p.ours == f"pytl-{name}" and p.target}
    assert targets == {Target("floor ratio", 1.25, expected)}
    for who in ("pytl", "eager", "compiled"):
        assert CONTENDERS[f"{who}-{name}"].bytes_per_element(torch.float32) == expected


def test_training_steps_have_no_bytes() -> None:
    found = compared(NETWORK, Pairing("pytl-delta", "plain-step", same_results=False))
    assert (found.ours.bytes_per_element, found.ours.gigabytes_per_second, found.ours.share_of_copy_rate) == 3 * (None,)
    assert found.size == "46,592 elements, float32"


def test_network_has_stages_and_counts_its_activations() -> None:
    layers = last_convolutions(Network(4))
    assert layers == [f"layer{k}.0.conv2" for k in (1, 2, 3, 4)]
    side, width = 16 * 16, 4
    outside, blocks = 2 * width * side, [5 * width * side // 2**k for k in range(4)]
    assert activations((4, 3, 16, 16), 4) == 4 * (outside + sum(blocks))


def test_peak_counts_what_is_held_at_once() -> None:
    def step() -> torch.Tensor:
        first = torch.ones(1000)
        del first
        second, third = torch.ones(500), torch.ones(700)
        return second[0] + third[0]

    assert 4800 <= peak_bytes(step) < 4900
    assert peak_bytes(lambda: None) == 0


def test_delta_holds_the_sources_features_and_nothing_else_where_they_are_ready() -> None:
    found = NETWORK.memory(benchmark.find_device("cpu"))
    features = sum(4 * 4 * (4 * 2**k) * (16 // 2**k) ** 2 for k in range(4))
    assert found.source_features_bytes == features
    assert found.source_weights_bytes == found.weights_bytes > 0
    for peak in found.peaks:
        assert peak.excess == peak.bytes - found.plain_bytes - features
    (ready,) = (peak for peak in found.peaks if peak.name == "pytl-delta-ready")
    assert abs(ready.excess) < 0.1 * features


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data, under the names of a few cases."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # else most of a run's time
    kept = {"tokens": TOKENS, "logits": ROWS, "samples": ROWS, "batch-64": ROWS}
    for cases in (CASES, CUDA_CASES):
        for name, case in [*cases.items()]:
            if isinstance(case, TrainingCase):
                monkeypatch.setitem(cases, name, replace(case, batch=NETWORK.batch, width=NETWORK.width))
            elif isinstance(case, FeatureCase) and name in kept:
                monkeypatch.setitem(cases, name, replace(case, shape=kept[name]))
            else:
                monkeypatch.delitem(cases, name)


@pytest.mark.usefixtures("_small", "_without_compiler")
def test_run_writes_all_figures_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.run(parsed("features", "--pairs", "2", "--seconds", "0.001", "--out", str(tmp_path))) == 0
    text = capsys.readouterr().out
    assert "Memory of a training step" in text
    assert "the source's features" in text
    (written,) = tmp_path.glob("cpu-*-features.json")
    found: dict[str, Any] = json.loads(written.read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert (found["not_timed"], len(found["comparisons"])) == ([], sum(len(case.pairings) for case in CASES.values()))
    for one in found["comparisons"]:
        assert one["ratio"]["p20"] <= one["ratio"]["p50"] <= one["ratio"]["p80"]
        assert one["copy_gigabytes_per_second"]["p50"] > 0
        assert one["pairs"] == 2
        assert one["elements"] > 0
        if one["case"] != "network":
            assert one["ours"]["share_of_copy_rate"] > 0
            assert one["disagreement"] is not None
    targets = {one["ours"]["name"]: one["verdict"]["target"] for one in found["comparisons"] if one["verdict"]}
    assert targets["pytl-distance"] == targets["pytl-tap"] == ">= 2.5x faster"
    assert targets["pytl-distillation"] == ">= 4.0x faster"
    assert targets["pytl-mmd"] == ">= 50.0x faster"
    assert targets["pytl-bss"] == ">= 1.8x faster"
    (memory,) = found["memory"]
    assert {peak["name"] for peak in memory["peaks"]} >= {"pytl-delta", "pytl-delta-apart", "eager-delta"}
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_small")
def test_run_of_some_shapes_is_named_by_them(tmp_path: Path) -> None:
    arguments = ("features", "--quick", "--shapes", "logits", "--out", str(tmp_path))
    assert benchmark.run(parsed(*arguments)) == 0
    (written,) = tmp_path.glob("cpu-*-features-logits-quick.json")
    assert json.loads(written.read_text())["memory"] == []


@pytest.mark.usefixtures("_without_compiler")
def test_chart_relates_the_compiled_form_to_the_eager_one() -> None:
    pairings = pairs(4)[:2]
    assert [pairing.rival for pairing in pairings] == ["eager-distance", "compiled-distance"]
    found = [compared(of_shape(MAPS), pairing) for pairing in pairings]
    (panel,) = chart.panels(found)
    ours, compiled = panel.bars
    assert (panel.title, panel.size) == ("Feature distance", "eager formula = 1")
    assert ours.ratio == found[0].ratio
    assert compiled.ratio.p50 == pytest.approx(found[0].ratio.p50 / found[1].ratio.p50)


def test_every_pairing_names_contenders_and_has_a_panel() -> None:
    for one in [*CASES.values(), *CUDA_CASES.values()]:
        baselines = {p.ours for p in one.pairings if p.rival in chart.TITLES}
        for pairing in one.pairings:
            assert {pairing.ours, pairing.rival} <= CONTENDERS.keys()
            assert pairing.ours in baselines


@pytest.mark.parametrize("arguments", [("features", "--quick"), ("--quick", "features"), ("--pairs", "3", "features")])
def test_features_are_named_before_or_after_options(arguments: tuple[str, ...]) -> None:
    assert parsed(*arguments).what == "features"
    assert parsed("--quick").what == "optimizers"


def test_what_cannot_be_timed_gets_a_clear_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parsed("kernels")
    assert "invalid choice: 'kernels'" in capsys.readouterr().err
    for arguments in (
        ("features", "--shapes", "resnet50"),
        ("--shapes", "maps"),
        ("features", "--shapes", "large-maps"),
    ):
        with pytest.raises(ValueError, match=f"--shapes must be of .*; got {arguments[-1]}"):
            benchmark.run(parsed(*arguments, "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_help_lists_what_can_be_timed() -> None:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    text = parser.format_help()
    for case in [*CASES.values(), *benchmark.CASES.values()]:
        assert f"  {case.name:12}{case.words}" in text
    assert "large-maps  256x256x56x56, cuda only" in text


def test_memory_that_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(case: TrainingCase, device: object) -> Memory:
        raise MemoryError("full")

    small = replace(NETWORK, pairings=(Pairing("pytl-delta", "eager-delta"),))
    monkeypatch.setitem(CASES, "network", small)
    monkeypatch.setattr(TrainingCase, "memory", full)
    arguments = ("features", "--shapes", "network", "--pairs", "2", "--out", str(tmp_path))
    assert benchmark.run(parsed(*arguments)) == 0
    (written,) = tmp_path.glob("*.json")
    (told,) = json.loads(written.read_text())["not_timed"]
    assert (told["reason"], told["is_failure"]) == ("MemoryError: full", False)


# On a GPU, which is that of test_benchmark.py: torch's calls are answered, and tensors lie on the CPU.


@pytest.mark.usefixtures("_small", "_without_compiler", "gpu_of_the_tests")
@pytest.mark.parametrize("missing", [(), ("rich", "matplotlib")])
def test_run_on_a_gpu_ends_with_its_targets(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    arguments = ("features", "--device", "cuda", "--pairs", "2", "--seconds", "0.001", "--out", str(tmp_path))
    assert benchmark.run(parsed(*arguments)) == 0
    text = capsys.readouterr().out
    head, *lines = text.strip().splitlines()[-5:]
    timed = sum(len(case.pairings) for case in CUDA_CASES.values())
    assert head == f"targets, of {timed} timed pairings; not timed: 0, 0 by a fault"
    for floor, line in zip((20, 24, 16, 12), lines, strict=True):
        assert f"<= 1.25 of the {floor} B floor" in line
    assert "host's part, us" in text
    found: dict[str, Any] = json.loads((tmp_path / "gpu-nvidia-h200-features.json").read_text())
    assert found["memory"][0]["plain_bytes"] == 700
    assert all(one["ours"]["host_microseconds"]["p50"] > 0 for one in found["comparisons"])
    assert {one["case"] for one in found["comparisons"]} == CUDA_CASES.keys()


def test_summary_of_every_target_is_short() -> None:
    selected = [(one, pairing) for one in CUDA_CASES.values() for pairing in one.pairings]
    assert len(summary.lines(selected, [], [])) == 5 <= summary.MOST_LINES


def test_stages_of_make_gpu_fit_into_its_time() -> None:
    stages = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gpu.py"))
    always = [stage for stage in stages["STAGES"] if not stage.tool]
    assert sum(stage.seconds for stage in always) <= stages["SECONDS_IN_ALL"]
    for stage in always:
        if "--time-limit" in stage.command:
            assert float(stage.command[stage.command.index("--time-limit") + 1]) <= stage.seconds - 15
    assert any("features" in stage.command for stage in always)


def test_floor_is_told_once_where_it_is_all_that_is_moved(gpu_of_the_tests: Cuda) -> None:  # noqa: F811
    pairing = Pairing("pytl-distance", "eager-distance", Target("floor ratio", 1.25, 20))
    found = compare(of_shape(MAPS), pairing, BRIEF, gpu_of_the_tests)
    assert isinstance(found, Comparison)
    assert found.verdict is not None
    assert found.ours.share_of_copy_rate is not None
    assert found.verdict.found == f"{1 / found.ours.share_of_copy_rate:.2f}"
