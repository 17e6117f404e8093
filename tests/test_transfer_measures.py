"""Distance, forgetting, similarity, stages and traces against formulas written out here."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import pytl
from pytl.analysis import (
    distance,
    earth_movers_distance,
    forgetting,
    input_similarity,
    label_similarity,
    linear_transfer,
    read_trace,
    scores,
    stage_files,
    stage_sweep,
)
from pytl.analysis.trace import QUANTITIES, Trace
from pytl.features import linear_probe
from pytl.files import json_ready

pytestmark = pytest.mark.usefixtures("one_thread")

Data = list[tuple[Tensor, Tensor]]


class Network(nn.Module):
    def __init__(self, classes: int = 3, width: int = 5, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(blocks))
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.tanh(self.stem(x))))


BLOCKS = ["stem", "blocks.0", "blocks.1", "head"]


def samples(sizes: tuple[int, ...] = (8, 5), classes: int = 3) -> Data:
    return [(torch.randn(n, 6), torch.randint(0, classes, (n,))) for n in sizes]


def shifted(model: nn.Module, scale: float = 0.3) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(scale * torch.randn(p.shape).to(p))
    return other


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.detach().double().flatten() for t in tensors]).norm())


def is_picture(path: Path) -> bool:
    return path.read_bytes()[:4] == b"\x89PNG"


def through_json(found: Any) -> Any:
    return json.loads(json.dumps(json_ready(found.to_dict()), allow_nan=False))


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile], ids=["plain", "parallel", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_distances_are_those_by_hand(wrap: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> None:
    start = Network().to(dtype)
    model = shifted(start)
    found = distance(wrap(model), wrap(start))
    before = dict(start.named_parameters())
    moved = {name: p.double() - before[name].double() for name, p in model.named_parameters()}
    assert found.tensors == pytest.approx({name: norm_of([m]) for name, m in moved.items()}, rel=1e-6)
    assert [*found.blocks] == [*found.start] == [*found.relative] == BLOCKS
    for block in BLOCKS:
        distances = norm_of([m for name, m in moved.items() if name.startswith(block)])
        norm = norm_of([p for name, p in before.items() if name.startswith(block)])
        assert found.blocks[block] == pytest.approx(distances, rel=1e-6)
        assert found.start[block] == pytest.approx(norm, rel=1e-6)
        assert found.relative[block] == pytest.approx(distances / norm, rel=1e-6)
    total = norm_of([m for name, m in moved.items() if not name.startswith("head")])
    norm = norm_of([p for name, p in before.items() if not name.startswith("head")])
    assert found.total == pytest.approx(total, rel=1e-6)
    assert found.total_relative == pytest.approx(total / norm, rel=1e-6)
    assert found.new == ()


def test_small_steps_of_16_bit_weights_are_measured_in_32() -> None:
    start = {"w": torch.full((1000,), 1.0, dtype=torch.bfloat16)}
    assert distance({"w": torch.full((1000,), 1.001)}, start).total == pytest.approx(0.001 * 1000**0.5, rel=1e-3)


def test_at_the_start_all_distances_are_0() -> None:
    model = Network()
    found = distance(model, copy.deepcopy(model))
    assert {*found.blocks.values(), *found.tensors.values(), *found.relative.values()} == {0.0}
    assert found.total == found.total_relative == 0


def test_a_start_of_zeros_has_no_relative_distance() -> None:
    model, start = Network(), Network()
    for p in start.parameters():
        nn.init.zeros_(p)
    found = distance(model, start)
    assert all(map(math.isnan, [*found.relative.values(), found.total_relative]))
    assert found.total > 0
    assert through_json(found)["total_relative"] is None


def test_a_new_head_counts_nowhere() -> None:
    start = Network(classes=7)
    model = shifted(Network(classes=3))
    found = distance(model, start)
    assert found.new == ("head",)
    assert [*found.blocks] == BLOCKS[:-1]
    assert not [name for name in found.tensors if name.startswith("head")]
    without = distance(model, {k: t for k, t in start.state_dict().items() if not k.startswith("head")})
    assert without.new == ("head",)
    assert without.total == found.total


def test_state_dicts_are_taken_on_both_sides() -> None:
    start = Network()
    model = shifted(start)
    model.train()(torch.randn(4, 6))
    modules = distance(model, start)
    assert distance(model, start.state_dict()).blocks == modules.blocks
    states = distance(model.state_dict(), start.state_dict())
    assert {name: states.blocks[name] for name in modules.tensors} == modules.tensors
    assert "blocks.0.1.num_batches_tracked" not in states.tensors
    with pytest.raises(ValueError, match=r"start must have the model's parameters; got none of one shape, stem.weight"):
        distance(model, {"stems.weight": torch.ones(2)})


def test_distances_are_pictures(tmp_path: Path) -> None:
    found = distance(shifted(Network()), Network())
    found.plot(tmp_path / "found.png")
    assert is_picture(tmp_path / "found.png")
    assert through_json(found)["total"] == found.total


def undecided() -> nn.Module:
    """A network that answers with many classes: statistics are those of its inputs, and no bias decides."""
    model = Network()
    for _ in range(50):
        model.train()(torch.randn(64, 6))
    nn.init.zeros_(model.head.bias)
    return model


def by_hand(before: nn.Module, after: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    """Whether the source, and its head on the other's body, are right, one by one."""
    joined = copy.deepcopy(after)
    joined.head = copy.deepcopy(before.head)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        return tuple((m.eval()(x).argmax(1) == y).double() for m in (copy.deepcopy(before), joined))  # type: ignore


@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("batch", [None, 2])
def test_forgetting_is_that_by_hand(classes: int, batch: int | None) -> None:
    before, data = undecided(), samples((40, 21))
    after = shifted(before)
    after.head = nn.Linear(5, classes)
    after.train()(3 * torch.randn(16, 6))  # statistics are the body's, too
    found = forgetting(before, after, data, batch=batch)
    old, new = by_hand(before, after, data)
    assert (found.before, found.after) == pytest.approx((float(old.mean()), float(new.mean())))
    difference = new - old
    assert found.backward_transfer.mean == pytest.approx(float(difference.mean()))
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    variance = (gained + lost - (gained - lost) ** 2 / 61) / 60
    assert found.backward_transfer.half_width == pytest.approx(1.959964 * math.sqrt(variance / 61))
    assert found.forgetting == pytest.approx(float(old.mean() - new.mean()))
    assert found.samples == 61
    assert found.kept == ("stem", "blocks.0", "blocks.1")
    assert gained + lost > 0


def test_agreement_is_the_share_of_like_answers() -> None:
    before, data = undecided(), samples((40,))
    after = shifted(before)
    joined = copy.deepcopy(after)
    joined.head = before.head
    same = before.eval()(data[0][0]).argmax(1) == joined.eval()(data[0][0]).argmax(1)
    assert 0 < int(same.sum()) < 40
    assert forgetting(before, after, data).agreement == pytest.approx(float(same.double().mean()))


def test_the_source_itself_has_forgotten_nothing(tmp_path: Path) -> None:
    model, data = Network(), samples()
    found = forgetting(model, nn.DataParallel(copy.deepcopy(model)), data)
    assert found.before == found.after
    assert found.agreement == 1
    assert (found.backward_transfer.mean, found.backward_transfer.low, found.backward_transfer.high) == (0, 0, 0)
    assert found.forgetting == 0
    found.plot(tmp_path / "found.png")
    assert is_picture(tmp_path / "found.png")
    assert through_json(found)["forgetting"] == 0


def test_of_one_sample_the_interval_is_unknown() -> None:
    found = forgetting(Network(), Network(), samples((1,)))
    assert math.isnan(found.backward_transfer.low)
    assert through_json(found)["backward_transfer"]["low"] is None


def test_the_first_samples_of_the_source_are_taken() -> None:
    before, after, data = Network(), Network(), samples()
    x, y = data[0]
    assert forgetting(before, after, data, samples=6) == forgetting(before, after, [(x[:6], y[:6])])


@pytest.mark.parametrize("other", [Network(width=4), Network(blocks=1), Network(blocks=3)], ids=["4", "less", "more"])
def test_another_body_is_refused(other: nn.Module) -> None:
    with pytest.raises(ValueError, match="after must have the body of before"):
        forgetting(Network(), other, samples())


def test_no_source_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="batches must give at least one batch"):
        forgetting(Network(), Network(), [])


@pytest.mark.parametrize(("n", "m", "d"), [(7, 7, 3), (5, 9, 2), (40, 13, 8), (1, 4, 2)])
def test_earth_movers_distance_is_pots(n: int, m: int, d: int) -> None:
    x, y = torch.randn(n, d), 0.5 + torch.randn(m, d)
    ground = np.linalg.norm(x.double().numpy()[:, None] - y.double().numpy()[None], axis=2)
    wanted = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), ground)
    assert earth_movers_distance(x, y) == pytest.approx(wanted, rel=1e-9)
    assert earth_movers_distance(y, x) == pytest.approx(wanted, rel=1e-9)
    if n == m:
        assert wanted == pytest.approx(ground[linear_sum_assignment(ground)].mean(), rel=1e-9)


def test_earth_movers_distance_of_a_shift_is_its_length() -> None:
    x, shift = torch.randn(20, 4), torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert earth_movers_distance(x, x[torch.randperm(20)]) == 0
    assert earth_movers_distance(x, x + shift) == pytest.approx(5, rel=1e-6)
    assert earth_movers_distance(x.bfloat16(), x.bfloat16() + 0) == 0


def test_input_similarity_is_its_parts_and_chance_is_two_halves(tmp_path: Path) -> None:
    x, y = torch.randn(41, 6), 2 + torch.randn(30, 6)
    found = input_similarity(x, y, seed=3)
    assert found.mmd == scores.mmd(x, y).value
    assert found.emd == earth_movers_distance(x, y)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(3))
    first, second = x[order[:20]], x[order[20:]]
    assert found.chance_mmd == pytest.approx(scores.mmd(first, second).value)
    assert found.chance_emd == pytest.approx(earth_movers_distance(first, second))
    assert found.mmd > 3 * found.chance_mmd
    assert found.emd > found.chance_emd
    assert found.samples == (41, 30)
    assert input_similarity(x, y, seed=3) == found
    alike = input_similarity(x, x)
    assert (alike.mmd, alike.emd) == pytest.approx((0, 0), abs=1e-12)
    found.plot(tmp_path / "found.png")
    assert is_picture(tmp_path / "found.png")
    assert through_json(found)["emd"] == found.emd


def test_of_many_samples_some_are_drawn() -> None:
    x = torch.randn(2100, 1)
    found = input_similarity(x, 100 + x[:50])
    assert found.samples == (2100, 50)
    assert found.emd == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), "features must have >= 4 samples, the source's >= 2; got 3, 4"),
        (torch.ones(4, 2), torch.ones(1, 2), "features must have >= 4 samples, the source's >= 2; got 4, 1"),
        (torch.ones(4, 2), torch.ones(4, 3), "features"),
        (torch.full((4, 2), math.nan), torch.ones(4, 2), "must be finite"),
    ],
)
def test_bad_features_are_named(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_similarity(x, y)


def entropy(of: list[Any]) -> float:
    return -sum(count / len(of) * math.log(count / len(of)) for count in Counter(of).values())


def test_label_similarity_is_of_entropies_by_hand(tmp_path: Path) -> None:
    z, y = torch.randint(0, 4, (50,)), torch.randint(0, 3, (50,))
    y[:25] = z[:25].clamp(max=2)
    found = label_similarity(z, y, permutations=30, seed=2)

    def conditional(labels: Tensor) -> float:
        return entropy([*zip(z.tolist(), labels.tolist(), strict=True)]) - entropy(z.tolist())

    assert found.nce == pytest.approx(-conditional(y))
    assert found.entropy == pytest.approx(entropy(y.tolist()))
    generator = torch.Generator().manual_seed(2)
    permuted = [-conditional(y[torch.randperm(50, generator=generator)]) for _ in range(30)]
    assert found.chance == pytest.approx(sum(permuted) / 30)
    assert found.p == pytest.approx((1 + sum(value >= -conditional(y) - 1e-9 for value in permuted)) / 31)
    assert found.explained == pytest.approx((found.nce - found.chance) / -found.chance)
    assert (found.samples, found.permutations) == (50, 30)
    assert label_similarity(z, y, permutations=30, seed=2) == found
    found.plot(tmp_path / "found.png")
    assert is_picture(tmp_path / "found.png")
    assert through_json(found)["p"] == found.p


def test_labels_that_settle_the_others_tell_all() -> None:
    z = torch.arange(60) % 6
    found = label_similarity(z, z // 2)
    assert found.nce == 0
    assert found.explained == pytest.approx(1)
    assert found.p == pytest.approx(1 / 101)


def test_independent_labels_tell_nothing_and_p_is_uniform() -> None:
    found = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        z, y = torch.randint(0, 4, (80,), generator=generator), torch.randint(0, 3, (80,), generator=generator)
        found.append(label_similarity(z, y, permutations=39, seed=seed))
    assert 0.4 < sum(one.p for one in found) / 60 < 0.6
    assert sum(one.p <= 0.1 for one in found) <= 14
    assert abs(sum(one.explained for one in found)) / 60 < 0.02


@pytest.mark.parametrize("classes", [3, 5, 7])
def test_permutations_that_tell_as_much_count(classes: int) -> None:
    """Source labels are one class, so that each permutation tells exactly as much."""
    y = torch.cat([torch.full((k + 1,), k) for k in range(classes)])
    assert label_similarity(torch.zeros_like(y), y, permutations=20).p == 1


def test_permutations_with_the_same_table_in_another_order_count() -> None:
    """As much is told, whatever the order of the sum does to its last bit."""
    z, y = torch.tensor([2, 0, 2, 1, 1, 2, 2, 2, 0, 2, 0]), torch.tensor([0, 3, 1, 0, 2, 1, 2, 0, 2, 1, 2])
    found = label_similarity(z, y, permutations=100)
    generator = torch.Generator().manual_seed(0)

    def told(labels: Tensor) -> float:
        """Rounded, so that equal tables are equal."""
        return round(entropy(z.tolist()) - entropy([*zip(z.tolist(), labels.tolist(), strict=True)]), 9)

    permuted = [told(y[torch.randperm(11, generator=generator)]) for _ in range(100)]
    assert found.p == pytest.approx((1 + sum(value >= told(y) for value in permuted)) / 101)


def test_bad_labels_are_named() -> None:
    z = torch.arange(6)
    with pytest.raises(ValueError, match="permutations must be >= 1; got 0"):
        label_similarity(z, z, permutations=0)
    with pytest.raises(ValueError, match="labels must name >= 2 classes; got 1"):
        label_similarity(z, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="source_labels must be integers"):
        label_similarity(z[:5], z)


def sweep(folder: Any, make: Callable[[], nn.Module] = Network, **options: Any) -> Any:
    return stage_sweep(folder, make, lambda network: float(network.stem.bias.detach()[0]), **options)


def numbered(value: float, **shape: int) -> nn.Module:
    network = Network(**shape)
    nn.init.constant_(network.stem.bias, value)
    return network


def test_stages_are_in_the_order_of_training(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    names = ["start.pt", "epoch=1.pth", "snapshots/step-000002.pt", "snapshots/step-000010.pt", "step-11.bin"]
    for number, name in enumerate([*names, "final.pt"]):
        torch.save(numbered(number, classes=7).state_dict(), tmp_path / name)
    for name in ("metrics.jsonl", "notes.txt", "optimizer.pt", ".step-000003.pt", ".step-4.pt.partial"):
        (tmp_path / name).write_text("{}")
    assert stage_files(tmp_path) == [tmp_path / name for name in [*names, "final.pt"]]
    found = sweep(tmp_path, name="bias", progress=False)
    assert found.stages == ("start", "epoch=1", "step-000002", "step-000010", "step-11", "final")
    assert found.values == (0, 1, 2, 3, 4, 5)
    assert found.measure == "bias"
    assert found.best == 5
    assert found.to_dict()["best"] == "final"
    assert sweep([tmp_path / names[1], tmp_path / names[0]]).values == (1, 0)


def test_stages_of_hugging_face_are_folders(tmp_path: Path) -> None:
    for step in (500, 1000, 50):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(numbered(step).state_dict(), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    (tmp_path / "runs").mkdir()
    found = sweep(tmp_path)
    assert found.stages == ("checkpoint-50", "checkpoint-500", "checkpoint-1000")
    assert found.values == (50, 500, 1000)


def test_snapshots_in_safetensors_are_stages_each_once(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    for step in (2, 10):
        save_file(numbered(step).state_dict(), tmp_path / "snapshots" / f"step-{step}.safetensors")
    assert [path.name for path in stage_files(tmp_path)] == ["step-2.safetensors", "step-10.safetensors"]
    assert sweep(tmp_path).values == (2, 10)


def test_stages_of_one_name_are_all_kept(tmp_path: Path) -> None:
    files = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        files.append(tmp_path / str(seed) / "step-2.pt")
        torch.save(numbered(seed).state_dict(), files[-1])
    assert sweep(files).values == (1, 2)


def test_a_body_is_loaded_and_the_head_is_the_targets(tmp_path: Path) -> None:
    source, target = shifted(Network(classes=7)), Network()
    source.train()(torch.randn(8, 6))
    torch.save(source.state_dict(), tmp_path / "start.pt")
    seen: list[nn.Module] = []
    stage_sweep(tmp_path, lambda: copy.deepcopy(target), lambda network: seen.append(network) or 0.0)
    for name, tensor in seen[0].state_dict().items():
        wanted = target if name.startswith("head") else source
        assert torch.equal(tensor, wanted.state_dict()[name])


@pytest.mark.parametrize("broken", ["step-3.pt", "start.pt", "step-3.safetensors", "checkpoint-3"])
def test_broken_stages_are_left_out_with_a_warning(tmp_path: Path, broken: str) -> None:
    torch.save(numbered(2).state_dict(), tmp_path / "step-2.pt")
    torch.save(numbered(5).state_dict(), tmp_path / "step-5.pt")
    if broken == "checkpoint-3":
        (tmp_path / broken).mkdir()
    path = tmp_path / broken / "model.safetensors" if broken == "checkpoint-3" else tmp_path / broken
    path.write_bytes((tmp_path / "step-2.pt").read_bytes()[:-200])
    with pytest.warns(RuntimeWarning, match="left out, not readable as a checkpoint"):
        found = sweep(tmp_path)
    assert found.values == (2, 5)


@pytest.mark.filterwarnings("ignore:left out")
def test_where_no_stage_can_be_read_that_is_said(tmp_path: Path) -> None:
    for name in ("step-1.pt", "step-2.pt"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="stages must"):
        sweep(tmp_path)


@pytest.mark.parametrize("other", [{"width": 4}, {"blocks": 1}])
def test_another_architecture_is_refused_before_anything_is_measured(tmp_path: Path, other: dict[str, int]) -> None:
    torch.save(Network(**other).state_dict(), tmp_path / "start.pt")
    torch.save(Network(**other).state_dict(), tmp_path / "step-2.pt")
    measured: list[nn.Module] = []
    with pytest.raises(ValueError, match=r"checkpoint .*start.pt is of another architecture; \d+ tensors differ: "):
        stage_sweep(tmp_path, Network, lambda network: measured.append(network) or 0.0)
    assert not measured


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p], ids=["missing", "empty"])
def test_no_stages_are_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(FileNotFoundError, match="stages must"):
        sweep(make(tmp_path))


def test_linear_transfer_is_the_probes_accuracy_on_pooled_features() -> None:
    network = Network()
    train, held_out = samples((30, 20)), samples((25,))
    measure = linear_transfer(train, held_out)
    (x, y), (u, v) = (tuple(map(torch.cat, zip(*data, strict=True))) for data in (train, held_out))

    def features(inputs: Tensor) -> Tensor:
        return network.eval().blocks(torch.tanh(network.stem(inputs))).detach()

    wanted = linear_probe(features(x), y, features(u), v)
    network.train()
    assert measure(network) == pytest.approx(wanted)
    assert measure(nn.DataParallel(network)) == pytest.approx(wanted)
    assert network.training
    assert measure.__name__ == "linear_accuracy"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, nn.Module]:
    """A run's folder, and the network at its start and at its end."""
    torch.manual_seed(0)
    model, folder = Network(), tmp_path_factory.mktemp("run")
    start = copy.deepcopy(model)
    data = samples((8, 8, 8, 8))
    pytl.finetune(model, data, method="dtnh", epochs=3, lr=0.05, out=folder, snapshots=3, record=2, progress=False)
    return folder, start, model


def test_a_runs_own_folder_has_stages(run: tuple[Path, nn.Module, nn.Module], tmp_path: Path) -> None:
    folder, start, end = run
    assert [path.relative_to(folder).as_posix() for path in stage_files(folder)] == [
        "start.pt",
        "snapshots/step-000003.pt",
        "snapshots/step-000006.pt",
        "snapshots/step-000009.pt",
        "checkpoint.pt",
    ]
    found = stage_sweep(folder, Network, lambda network: distance(network, start, head="head").total)
    assert found.stages == ("start", "step-000003", "step-000006", "step-000009", "checkpoint")
    assert found.values[0] == 0
    assert found.values[-1] == pytest.approx(distance(end, start).total, rel=1e-6)
    assert all(0 < value < 2 * found.values[-1] for value in found.values[1:])
    accuracies = stage_sweep(folder, Network, linear_transfer(samples((30,)), samples((20,))))
    assert accuracies.measure == "linear_accuracy"
    assert all(0 <= value <= 1 for value in accuracies.values)
    accuracies.plot(tmp_path / "found.png")
    assert is_picture(tmp_path / "found.png")
    assert through_json(accuracies)["values"] == [*accuracies.values]


def test_a_runs_trace_is_what_was_recorded(run: tuple[Path, nn.Module, nn.Module], tmp_path: Path) -> None:
    folder, start, end = run
    found = read_trace(folder)
    assert found == read_trace(folder / "metrics.jsonl")
    assert found.steps == (2, 4, 6, 8, 10, 12)
    assert all(map(math.isfinite, found.loss))
    assert {"distance", "gradient", "cosine"} <= {*found.values} <= {*QUANTITIES}
    assert all([*rows] == BLOCKS for rows in (found.values["distance"], found.values["gradient"]))
    last = {block: values[-1] for block, values in found.values["distance"].items()}
    assert last == pytest.approx(distance(end, start).blocks, rel=1e-5)
    assert found.total("distance")[-1] == pytest.approx(distance(end, start).total, rel=1e-5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert found.values["gradient"]["stem"] == tuple(line["gradient/stem"] for line in steps)
    assert found.values["cosine"]["stem"] == pytest.approx(
        tuple(line.get("cosine/stem", math.nan) for line in steps), nan_ok=True
    )
    for quantity in found.values:
        found.plot(tmp_path / f"{quantity}.png", quantity)
        assert is_picture(tmp_path / f"{quantity}.png")
    assert through_json(found)["steps"] == [*found.steps]


def test_conflict_is_the_share_of_steps_with_a_negative_cosine() -> None:
    nan = math.nan
    cosines = {"stem": (-0.5, 0.5, -0.1, nan), "blocks.0": (nan,) * 4, "head": (0.0, 0.1, 0.2, 0.3)}
    found = Trace((1, 2, 3, 4), (1.0,) * 4, {"cosine": cosines})
    assert found.conflict() == pytest.approx({"stem": 2 / 3, "blocks.0": nan, "head": 0}, nan_ok=True)
    assert Trace((1,), (1.0,), {}).conflict() == {}


def test_totals_leave_out_the_head() -> None:
    found = Trace((1, 2), (1.0, 1.0), {"distance": {"stem": (3.0, 0.0), "blocks.0": (4.0, 1.0), "head": (9.0, 9.0)}})
    assert found.total("distance") == pytest.approx((5.0, 1.0))


def test_a_broken_last_line_is_passed_over(run: tuple[Path, nn.Module, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    shutil.copy(run[0] / "metrics.jsonl", path)
    with open(path, "ab") as file:
        file.write(b'{"step": 14, "loss": 0.')
    assert read_trace(path) == read_trace(run[0])
    path.write_bytes(b'{"step": 14, "loss": 0.\n' + (run[0] / "metrics.jsonl").read_bytes())
    with pytest.raises(ValueError, match="must have a record on each line; line 1"):
        read_trace(path)


def test_values_that_were_not_recorded_are_nan(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 1.0, "cosine/stem": 0.5}, {"epoch": 1}, {"step": 2, "loss": None, "cosine/head": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_trace(tmp_path)
    assert found.steps == (1, 2)
    assert found.loss == pytest.approx((1.0, math.nan), nan_ok=True)
    assert found.values["cosine"]["stem"] == pytest.approx((0.5, math.nan), nan_ok=True)
    assert found.values["cosine"]["head"] == pytest.approx((math.nan, 1.0), nan_ok=True)
    found.plot(tmp_path / "found.png")
    assert is_picture(tmp_path / "found.png")
    with pytest.raises(ValueError, match="quantity must be one of those recorded, cosine; got 'gradient'"):
        found.plot(tmp_path / "other.png", "gradient")
    assert not (tmp_path / "other.png").exists()


def test_files_without_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run must be a folder with metrics.jsonl"):
        read_trace(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"run must be recorded, by finetune\(record=10\)"):
        read_trace(tmp_path)
