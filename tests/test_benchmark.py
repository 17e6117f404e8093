import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytl import benchmark
from pytl.benchmark import chart, comparison, cuda_cases, devices, gpu, kernels, rivals, shapes, summary
from pytl.benchmark.allocations import allocations
from pytl.benchmark.cases import CASES, OptimizerCase
from pytl.benchmark.comparison import Limits, compare, disagreement
from pytl.benchmark.contenders import CONTENDERS, OPTIMIZERS
from pytl.benchmark.cuda import Cuda
from pytl.benchmark.deadline import Deadline
from pytl.benchmark.pairing import Pairing, Target
from pytl.benchmark.parameters import CPU, random_set, sets_to_rotate
from pytl.benchmark.records import Comparison, DeviceMeasurement, NotTimed
from pytl.benchmark.timing import Spread, spread
from pytl.benchmark.verdicts import judge
from pytl.ops import core

SHAPES: list[shapes.Shape] = [(7, 5), (64,), (1,), (33, 3, 2)]
BRIEF = Limits(pairs=2, seconds=0.1)


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("timing", "cuda"):
        monkeypatch.setattr(f"pytl.benchmark.{module}._COPIED", 1 << 20)


def case(*pairings: Pairing, dtype: torch.dtype = torch.float32) -> OptimizerCase:
    return OptimizerCase("small", "small tensors", pairings, lambda: SHAPES, dtype=dtype, in_cache=True)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(arguments)


def test_networks_have_their_published_sizes() -> None:
    assert (len(shapes.resnet50()), shapes.elements(shapes.resnet50())) == (161, 25_557_032)
    assert (len(shapes.vit_large()), shapes.elements(shapes.vit_large())) == (296, 304_326_632)
    assert (len(shapes.llama_8b()), shapes.elements(shapes.llama_8b())) == (291, 8_030_261_248)
    assert (len(shapes.tiny()), len(shapes.ones()), shapes.elements(shapes.huge())) == (10_000, 161, 134_217_728)


def test_llama_fits_what_it_is_given() -> None:
    assert shapes.elements(shapes.llama_within(1e8)) <= 1e8
    assert shapes.llama_within(1e8) != shapes.llama_within(2e8)
    assert shapes.llama_within(0) == shapes.llama(1)
    assert shapes.llama_within(1e12) == shapes.llama()
    assert shapes.elements(shapes.llama_8b_within(5e9)) <= 5e9
    assert shapes.llama_8b_within(1e10) == shapes.llama_8b()


SAME = {(p.ours, p.rival) for one in CASES.values() for p in one.pairings if p.same_results and p.rival != "compiled"}


@pytest.mark.parametrize(("ours", "rival"), sorted(SAME))
def test_rivals_compute_the_same_weights(ours: str, rival: str) -> None:
    one, other = random_set(SHAPES, torch.float32, 3), random_set(SHAPES, torch.float32, 3)
    before = [w.detach().clone() for w in one.weights]
    for name, parameters in ((ours, one), (rival, other)):
        step = CONTENDERS[name].build(parameters)
        for _ in range(5):
            step()
    assert disagreement(one.weights, other.weights, before) < 1e-5


@pytest.mark.parametrize("rival", ["eager", "foreach"])
def test_forms_that_never_wait_compute_the_same_weights(rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_is_on_gpu", lambda tensors: True)
    found = compare(case(), Pairing("pytl-dtnh", rival), BRIEF)
    assert isinstance(found, Comparison)
    assert found.disagreement is not None
    assert found.disagreement < 1e-5


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
    monkeypatch.setattr(devices.Cpu, "available_bytes", lambda self: 1)
    found = compare(case(), Pairing("pytl", "torch"), BRIEF)
    assert isinstance(found, NotTimed)
    assert not found.is_failure
    assert "GiB are available" in found.reason


OURS = [one.name for one in OPTIMIZERS if one.is_ours and one.name != "pytl-dtnh-graph"]


@pytest.mark.parametrize("name", OURS)
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
        ("pytl-gram", torch.float32, 12),
        ("pytl-update", torch.float32, 32),
    ],
)
def test_bytes_are_those_of_the_formula(name: str, dtype: torch.dtype, expected: int) -> None:
    assert CONTENDERS[name].bytes_per_element(dtype) == expected


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
    assert sets_to_rotate(shapes.tiny(), torch.float32, 4 * 60 << 20) == 10
    assert (CASES["ones"].sets(4 << 20), CASES["ones-cold"].sets(4 << 20)) == (1, 16)


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
        (Target("floor ratio", 1.0, 44), 1.01, False),
        (Target("share of copy rate", 0.93), 0.94, True),
        (Target("host microseconds", 60), 61, False),
    ],
)
def test_target_is_met_or_missed(target: Target, value: float, met: bool) -> None:
    assert target.is_met(value) is met


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pairings = (
        Pairing("pytl-dtnh", "torch", Target("time ratio", 1e-9), same_results=False),
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
    pairings = (Pairing("pytl-dtnh", "torch", same_results=False), Pairing("pytl-dtnh", "eager"))
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
    for one in [*CASES.values(), *cuda_cases.CASES.values()]:
        for pairing in one.pairings:
            assert {pairing.ours, pairing.rival} <= CONTENDERS.keys()


# On a GPU. There is none in the tests: torch's calls are answered here, and tensors lie on the CPU.


class Event:
    """A CUDA event on a device that runs each step at once."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.seconds = time.perf_counter()
        CALLS.append("record")

    def synchronize(self) -> None:
        CALLS.append("wait")

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.seconds - self.seconds)


CALLS: list[str] = []
CHIP = SimpleNamespace(name="NVIDIA H200", L2_cache_size=1 << 10, multi_processor_count=132, total_memory=140 << 30)
TOOLKIT = SimpleNamespace(toolkit_version=lambda: 13000, architectures=lambda: "90", driver_version=lambda: 13000)


@pytest.fixture
def gpu_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    CALLS.clear()
    counters = {"allocation.all.allocated": 7, "allocated_bytes.all.allocated": 700}
    answers: dict[str, Any] = {
        "Event": Event,
        "synchronize": lambda place: CALLS.append("synchronize"),
        "_sleep": lambda cycles: CALLS.append("head start"),
        "empty_cache": lambda: None,
        "mem_get_info": lambda place: (1 << 32, 1 << 33),
        "memory_stats": lambda place: dict(counters),
        "memory_allocated": lambda place: 300,
        "reset_peak_memory_stats": lambda place: CALLS.append("reset"),
        "max_memory_allocated": lambda place: 1000,
        "get_device_properties": lambda place: CHIP,
        "is_available": lambda: True,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    instruction_set = SimpleNamespace(instruction_set=lambda: "avx512")
    monkeypatch.setattr(gpu, "core", SimpleNamespace(module=SimpleNamespace(cuda=TOOLKIT, **vars(instruction_set))))
    served = core.why_not
    monkeypatch.setattr(core, "why_not", lambda place, dtype: "" if place.type == "cuda" else served(place, dtype))
    monkeypatch.setattr(devices, "Cuda", lambda place: Cuda(CPU))
    return Cuda(CPU)


def test_cuda_without_a_device_is_refused_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="must have a GPU that torch sees"):
        benchmark.run(parsed("--device", "cuda", "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_cuda_that_the_core_does_not_serve_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(core, "why_not", lambda place, dtype: f"no kernels for {place}")
    with pytest.raises(ValueError, match="it is not: no kernels for cuda:0"):
        benchmark.run(parsed("--device", "cuda", "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_shapes_of_another_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got llama-8b"):
        benchmark.run(parsed("--shapes", "llama-8b", "--out", str(tmp_path)))


def test_device_is_busy_before_each_step_that_events_time(gpu_of_the_tests: Cuda) -> None:
    steps: list[Callable[[], None]] = [lambda: CALLS.append("step")]
    (sample,) = gpu_of_the_tests.timed([iter(2 * steps)])
    by_the_host, by_events = ["synchronize", "step"], ["synchronize", "head start", "record", "step", "record", "wait"]
    assert by_the_host + by_events == CALLS
    assert sample.host is not None
    assert min(sample.host, sample.wall) > 0


def test_gpu_timing_takes_both_in_turn(gpu_of_the_tests: Cuda) -> None:
    taken: list[str] = []
    a, b = (iter([lambda name=name: taken.append(name)] * 2) for name in "ab")  # type: ignore[misc]
    assert len(gpu_of_the_tests.timed([a, b])) == 2
    assert taken == ["a", "b", "a", "b"]


def test_allocations_on_a_gpu_are_its_allocators(gpu_of_the_tests: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([(1, 512), (4, 2048)])
    keys = ("allocation.all.allocated", "allocated_bytes.all.allocated")
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda place: dict(zip(keys, next(taken), strict=True)))
    found = gpu_of_the_tests.allocations(lambda: None)
    assert (found.count, found.bytes) == (3, 1536)


def test_peak_on_a_gpu_is_its_allocators(gpu_of_the_tests: Cuda) -> None:
    assert gpu_of_the_tests.peak_bytes(lambda: CALLS.append("step")) == 700
    assert CALLS == ["reset", "step"]


def test_kernels_alone_do_their_part_of_a_step() -> None:
    p = random_set(SHAPES, torch.float32, 0)
    before = [w.detach().clone() for w in p.weights]
    kernels.gram_alone(p)()
    assert all(map(torch.equal, p.weights, before))
    whole = random_set(SHAPES, torch.float32, 0)
    kernels.update_alone(p)()
    CONTENDERS["pytl-dtnh"].build(whole)()
    assert disagreement(p.weights, whole.weights, before) < 1e-6


def test_captured_step_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    class Graph:
        def replay(self) -> None:
            taken.append("replay")

    def capturing(graph: Graph) -> AbstractContextManager[None]:
        taken.append("capture")
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    step = kernels.Captured(lambda: taken.append("step"))
    for _ in range(3):
        step()
    assert taken == ["step", "capture", "step", "replay", "replay"]


def test_floor_ratio_tells_both_floors() -> None:
    found = compare(case(), Pairing("pytl-dtnh", "torch", same_results=False), BRIEF)
    assert isinstance(found, Comparison)
    ours = replace(found.ours, bytes_per_element=32, share_of_copy_rate=0.8)
    verdict = judge(Target("floor ratio", 1.0, 44), found.ratio, ours, found.rival)
    assert (verdict.target, verdict.found) == ("<= 1.00 of the 44 B floor", "0.91 (1.25 of the 32 B floor)")
    assert verdict.met


def test_what_fills_the_memory_is_timed_one_after_the_other(gpu_of_the_tests: Cuda) -> None:
    alone = replace(case(), in_cache=False, fills_memory=True)
    found = compare(alone, Pairing("pytl", "torch"), BRIEF, gpu_of_the_tests)
    assert isinstance(found, Comparison)
    assert found.words == "small tensors, 0.00e9 parameters"
    assert (found.sets, found.pairs, found.disagreement) == (1, 2, None)
    assert isinstance(found.ours, DeviceMeasurement)


def test_endless_step_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = replace(CONTENDERS["pytl"], build=lambda p: lambda: time.sleep(60))
    monkeypatch.setitem(CONTENDERS, "pytl", endless)
    found = compare(case(), Pairing("pytl", "torch"), BRIEF, deadline=Deadline(0.2))
    assert isinstance(found, NotTimed)
    assert (found.reason, found.is_failure) == ("out of time", False)


def test_nothing_begins_after_the_deadline() -> None:
    late = Deadline(1e-9)
    found = compare(case(), Pairing("pytl", "torch"), BRIEF, deadline=late)
    assert isinstance(found, NotTimed)
    assert found.reason == "out of time"


@pytest.mark.parametrize(
    ("error", "is_failure"), [(TypeError, True), (torch.AcceleratorError, True), (RuntimeError, False)]
)
def test_faults_fail_the_run(error: type[Exception], is_failure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(p: object) -> Any:
        raise error("broken")

    monkeypatch.setitem(CONTENDERS, "pytl", replace(CONTENDERS["pytl"], build=broken))
    found = compare(case(), Pairing("pytl", "torch"), BRIEF)
    assert isinstance(found, NotTimed)
    assert found.is_failure is is_failure


@pytest.fixture
def small_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pairings = (
        Pairing("pytl-dtnh", "torch", Target("floor ratio", 1e-9, 44), same_results=False),
        Pairing("pytl", "torch", Target("host microseconds", 1e9)),
        Pairing("pytl-dtnh", "eager", Target("speed-up", 1e-9)),
        Pairing("pytl-dtnh", "torch-sgd", Target("speed-up", 1)),
    )
    monkeypatch.setitem(cuda_cases.CASES, "ones", replace(case(*pairings), name="ones"))


@pytest.mark.usefixtures("small_on_gpu", "gpu_of_the_tests")
@pytest.mark.parametrize("missing", [(), ("rich", "matplotlib")])
def test_run_on_a_gpu_ends_with_its_targets(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    arguments = ("--device", "cuda", "--shapes", "ones", "--pairs", "3", "--out", str(tmp_path))
    assert benchmark.run(parsed(*arguments)) == 1, "torch-sgd computes other weights"
    text = capsys.readouterr().out
    head, *lines = text.strip().splitlines()[-5:]
    assert head == "targets, of 3 timed pairings; not timed: 1, 1 by a fault"
    assert [line[:9].strip() for line in lines] == ["MISSED", "met", "met", "NOT TIMED"]
    assert "of the 32 B floor) MISSED" in lines[0]
    assert "on the host" in lines[2]
    assert "host's part, us" in text
    written = tmp_path / "gpu-nvidia-h200-ones.json"
    found: dict[str, Any] = json.loads(written.read_text())
    assert (found["machine"]["gpu"], found["machine"]["core_toolkit"]) == ("NVIDIA H200", "13.0")
    assert all(one["ours"]["host_microseconds"]["p50"] > 0 for one in found["comparisons"])
    assert written.with_suffix(".png").exists() is not bool(missing)
    assert ("no chart: matplotlib is needed" in text) is bool(missing)


def test_summary_of_every_target_is_short() -> None:
    selected = [(one, pairing) for one in cuda_cases.CASES.values() for pairing in one.pairings]
    lines = summary.lines(selected, [], [])
    asked = {(str(p.target), p.ours, p.rival) for _, p in selected if p.target}
    assert len(lines) == 1 + len(asked) <= summary.MOST_LINES
    assert all(line.startswith("NOT TIMED") for line in lines[1:])


def test_plain_adamw_has_a_target_on_every_list_in_float32() -> None:
    for one in cuda_cases.CASES.values():
        if one.dtype == torch.float32:
            assert any((p.ours, p.rival) == ("pytl", "torch") and p.target for p in one.pairings)


def test_lists_are_sized_to_the_gpu(gpu_of_the_tests: Cuda) -> None:
    for name in ("llama", "llama-8b"):
        cuda_cases.CASES[name].shapes.cache_clear()  # type: ignore[attr-defined]
        assert cuda_cases.CASES[name].shapes()[0][0] in (32000, 128256)
        cuda_cases.CASES[name].shapes.cache_clear()  # type: ignore[attr-defined]
    assert gpu_of_the_tests.rotated_bytes() == 4096
