"""pytl.advise: what it measures, what it recommends and why, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import pytl
from pytl.advice import Evidence, Gain, Recommendation, default_rules
from pytl.analysis.scores import logme, nce
from pytl.cli import main
from pytl.data import batches, digits
from pytl.depth import depth_blocks
from pytl.features.extraction import extract, layers_of, pooled
from pytl.study.networks import pretrained_digits, source_digits

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, CLASSES = 12, 3


class Network(nn.Module):
    """Four blocks of one width; of the source's, so many hand the class on, the next one loses it."""

    def __init__(self, telling: int = 4) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4)))
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            for depth, block in enumerate(self.blocks):
                block[0].bias.zero_()
                block[0].weight.copy_(torch.eye(WIDTH) * (torch.arange(WIDTH) < CLASSES))
                if depth == telling:
                    block[0].weight.zero_()  # what follows knows nothing of the class

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def data(samples: int = 60, seed: int = 1) -> TensorDataset:
    """Classes in the first features, noise as large in all others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    x = torch.randn(samples, WIDTH, generator=generator)
    x[:, :CLASSES] = 1.5 * nn.functional.one_hot(labels, CLASSES) + 0.5 * x[:, :CLASSES]
    return TensorDataset(x, labels)


def loader(samples: int = 60) -> Iterable[Any]:
    return batches(data(samples), 16, shuffle=False)


def advised(model: nn.Module, found: Iterable[Any] | None = None, **options: Any) -> pytl.Advice:
    return pytl.advise(model, loader() if found is None else found, **{"bootstrap": 10, "progress": False, **options})


@pytest.mark.parametrize(("telling", "transferred"), [(4, 4), (3, 3), (2, 2), (1, 2), (0, 2)])
def test_blocks_are_kept_up_to_the_deepest_that_helps_and_half_at_least(telling: int, transferred: int) -> None:
    found = advised(Network(telling))
    assert found.plan.transferred == transferred
    assert [block.transferred for block in found.plan.blocks] == [depth < transferred for depth in range(5)]


def test_verdict_and_reasons_say_what_was_decided_in_figures() -> None:
    whole, some, none = (advised(Network(telling)) for telling in (4, 3, 0))
    assert whole.recommendation.verdict == "Transfer all blocks: the source helps up to the head."
    assert some.recommendation.verdict == "Transfer less: the deepest 1 of 4 blocks bring nothing."
    assert "the source is unsuitable" in none.recommendation.verdict
    for found in (whole, some, none):
        assert {reason.choice for reason in found.recommendation.reasons} == {"blocks", "pulls", "rates"}
        assert str(found.evidence.layers[found.plan.transferred - 1].gain) in str(found)
        assert str(found.plan) in str(found)


def test_gain_is_logme_over_that_of_new_weights() -> None:
    model, found = Network(), advised(Network(), references=2)
    x, y = data().tensors
    values = []
    for seed in range(2):
        other = copy.deepcopy(model)
        pytl.plan.renew(other, [b for b in depth_blocks(other) if b.name != "head"], seed=seed)
        values.append(float(logme(other.blocks(x).detach(), y)))
    top = found.evidence.layers[-1]
    assert top.layer == "head:input"
    assert top.scores["logme"].value == pytest.approx(float(logme(model.blocks(x).detach(), y)), rel=1e-6)
    assert top.gain.value == pytest.approx(top.scores["logme"].value - fmean(values), rel=1e-6)
    assert top.reference == pytest.approx(fmean(values), rel=1e-6)


def test_error_of_the_gain_falls_with_the_samples() -> None:
    few, many = (advised(Network(), loader(n), bootstrap=25).evidence.layers[-1].gain.error for n in (60, 600))
    assert 1.5 < few / many < 7


@pytest.mark.parametrize(("value", "error", "clear", "harmful"), [(0.2, 0.1, True, False), (0.1, 0.2, False, False)])
def test_a_gain_is_clear_beyond_its_error(value: float, error: float, clear: bool, harmful: bool) -> None:
    assert (Gain(value, error).clear, Gain(value, error).harmful) == (clear, harmful)
    assert (Gain(-value, error).clear, Gain(-value, error).harmful) == (harmful, clear)


def test_nothing_is_changed() -> None:
    config = ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8, num_labels=CLASSES, num_channels=1)
    model = ResNetForImageClassification(config)
    model.train()
    model.resnet.embedder.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    images = TensorDataset(torch.randn(24, 1, 16, 16), torch.arange(24) % CLASSES)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    advised(model, DataLoader(images, 8, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_same_seed_same_advice() -> None:
    assert advised(Network()).to_dict() == advised(Network()).to_dict()
    assert advised(Network(), seed=1).evidence.layers[-1].reference != advised(Network()).evidence.layers[-1].reference


def test_source_head_tells_how_near_the_source_is() -> None:
    x, y = data().tensors
    near, far = (
        advised(Network(), source_model=lambda x: 9 * x[:, :CLASSES]),
        advised(Network(), source_model=lambda x: x[:, CLASSES : 2 * CLASSES]),
    )
    assert near.evidence.label_information is not None
    assert far.evidence.label_information is not None
    assert 1 >= near.evidence.label_information > 0.5 > far.evidence.label_information >= 0
    assert float(near.evidence.source_head["nce"]) == float(nce(x[:, :CLASSES].argmax(1), y))
    assert [block.sp_decay > 0 for block in near.plan.blocks] == [True, True, False, False, False]
    assert not any(block.sp_decay for block in far.plan.blocks)
    assert all(block.weight_decay > 0 for block in far.plan.blocks)


def test_source_samples_tell_how_far_the_domains_lie_apart() -> None:
    same = advised(Network(), source_data=loader()).evidence.domain
    x, y = data().tensors
    apart = advised(Network(), source_data=batches(TensorDataset(x + 1, y), 16, shuffle=False)).evidence.domain
    assert float(same["domain_similarity"]) == pytest.approx(1)
    assert float(apart["domain_similarity"]) < 1
    for name in ("centroid_distance", "mmd"):
        assert float(same[name]) == pytest.approx(0, abs=1e-6)
        assert float(apart[name]) > 0.01


def test_rules_may_be_ones_own() -> None:
    def mine(evidence: Evidence) -> Recommendation:
        assert len(evidence.layers) == 4
        return Recommendation(pytl.Rules(2, 1, sp_decay=0.5, weight_decay=0.25), "Mine.", ())

    found = advised(Network(), rules=mine, lr=0.1)
    assert found.recommendation.verdict == "Mine."
    assert [(b.sp_decay, b.weight_decay, b.lr) for b in found.plan.blocks] == [(0.5, 0.0, 0.1)] + [(0.0, 0.25, 0.1)] * 4


def test_advice_is_saved_whole_and_its_plan_can_be_trained(tmp_path: Path) -> None:
    found = advised(Network(3), source_model=nn.Tanh(), source_data=loader())
    path = found.save(tmp_path / "advice")
    assert {file.name for file in path.parent.iterdir()} == {"plan.yaml", "advice.json", "advice.txt", "advice.png"}
    assert pytl.TransferPlan.load(path) == found.plan
    kept = json.loads((path.parent / "advice.json").read_text())
    assert pytl.Rules(**kept["recommendation"]["rules"]) == found.recommendation.rules
    assert (path.parent / "advice.txt").read_text() == f"{found}\n"
    assert (path.parent / "advice.png").read_bytes()[:4] == b"\x89PNG"
    result = pytl.finetune(Network(3), loader(), loader(), plan=path, lr=0.1, epochs=3, progress=False)
    assert result.accuracy is not None


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=3, num_labels=CLASSES, **sizes))


def vit() -> nn.Module:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
    return ViTForImageClassification(ViTConfig(num_hidden_layers=2, num_labels=CLASSES, num_channels=1, **sizes))


def sentences() -> list[dict[str, Tensor]]:
    tokens = torch.randint(1, 50, (24, 6))
    mask = (torch.arange(6) < torch.randint(2, 7, (24, 1))).long()
    whole = {"input_ids": tokens, "attention_mask": mask, "labels": torch.arange(24) % CLASSES}
    return [{name: of[rows] for name, of in whole.items()} for rows in (slice(0, 16), slice(16, 24))]


def images() -> list[dict[str, Tensor]]:
    return [{"pixel_values": torch.randn(24, 1, 8, 8), "labels": torch.arange(24) % CLASSES}]


@pytest.mark.parametrize(("make", "found"), [(bert, sentences), (vit, images)])
def test_transformers_are_measured_block_by_block(make: Any, found: Any) -> None:
    model = make()
    advice = advised(model, found(), references=1)
    assert [layer.block for layer in advice.evidence.layers] == [b.block for b in advice.plan.blocks][:-1]
    assert all(layer.width == 16 for layer in advice.evidence.layers)
    advice.plan.apply(model, verbose=False)


def test_tokens_that_a_mask_hides_do_not_count() -> None:
    x = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.allclose(pooled(x, mask), torch.stack([x[0, :2].mean(0), x[1].mean(0)]))
    assert torch.equal(pooled(torch.ones(2, 3, 4, 5)), torch.ones(2, 3))
    assert pooled(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_order_of_batches_and_shuffling_change_no_value() -> None:
    plain = advised(Network()).evidence.layers[-1]
    shuffled = advised(Network(), DataLoader(data(), 7, shuffle=True)).evidence.layers[-1]
    assert shuffled.gain.value == pytest.approx(plain.gain.value, rel=1e-5)


def test_features_are_taken_in_one_pass() -> None:
    class Counted(Network):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counted.calls += 1
            return super().forward(x)

    model = Counted()
    layers = list(layers_of(model, depth_blocks(model), None).values())
    found = extract(model, layers, loader(), torch.device("cpu"))
    assert Counted.calls == 4
    assert [tuple(rows.shape) for rows in found.layers.values()] == [(60, WIDTH)] * 4


def bad_labels(change: Any) -> list[tuple[Tensor, Tensor]]:
    x, y = data().tensors
    return [(x, change(y))]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "data must give at least one batch"),
        (bad_labels(lambda y: y + 1), "labels must be < 3, the classes that the model answers with; got 3"),
        (bad_labels(lambda y: y - 1), "labels must be >= 0; got -1"),
        (bad_labels(lambda y: y.clamp(max=1)), "data must have samples of each of the model's 3 classes; none of 2"),
        (bad_labels(lambda y: y * 0), "labels must name >= 2 classes; got 1"),
        (bad_labels(lambda y: y.float()), "labels must be integers"),
        ([(data().tensors[0] / 0, data().tensors[1])], "features must be finite; those of layer 'blocks.0' are not"),
    ],
)
def test_bad_data_are_refused(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advised(Network(), found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"references": 0}, "references must be >= 1; got 0"),
        ({"bootstrap": 1}, "bootstrap must be >= 2; got 1"),
        ({"head": "haed"}, "head must name layers of the model.*did you mean head"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advised(Network(), **options)


def test_a_loader_that_shuffles_by_itself_is_refused() -> None:
    own = DataLoader(data(), 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="data must come in the same order in each pass"):
        advised(Network(), own)


def test_a_network_that_nothing_initialises_needs_fresh() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    def make() -> nn.Module:
        network = Network()
        network.blocks[1] = nn.Sequential(Scaled(), nn.Linear(WIDTH, WIDTH))
        return network

    with pytest.raises(ValueError, match=r"nothing does blocks\.1\.0\.scale: give fresh="):
        advised(make())
    assert advised(make(), fresh=make).evidence.layers[0].gain.value == pytest.approx(0)


def test_recommendations_on_the_digits(tmp_path: Path) -> None:
    """Least is transferred from digits 0-4 to 5-9, all of it to noisy digits; an unsuitable source is told."""
    found = {}
    for name in digits.TASKS:
        task = digits.load(name, 0)
        network, source = pretrained_digits(task, 0, tmp_path), source_digits(task, 0, tmp_path)
        data = batches(task.train, 64, shuffle=False)
        found[name] = advised(network, data, source_model=source)
    kept = {name: advice.plan.transferred for name, advice in found.items()}
    assert kept["classes"] < min(kept["noisy"], kept["inverted"], kept["mirrored"])
    assert kept["classes"] + kept["mirrored"] < kept["noisy"] + kept["inverted"]
    assert kept["noisy"] == 6
    assert kept["unsuitable"] == 3
    assert "unsuitable" in found["unsuitable"].recommendation.verdict


def test_three_commands_lead_from_data_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pytl.study.networks._SOURCE_STEPS", 60)
    on = ["--data", "digits:classes"]
    assert main(["advise", *on, "--bootstrap", "5", "--out", "runs/advice"]) == 0
    small = ["--trials", "3", "--splits", "1", "--epochs", "2"]
    assert main(["search", *on, "--advice", "runs/advice", *small, "--out", "runs/search"]) == 0
    compared = ["--method", "plain", "scratch", "plan", "--seeds", "2", "--epochs", "2"]
    assert main(["finetune", *on, *compared, "--plan", "runs/search", "--out", "runs/planned"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in ("Transfer", "best of 3 trials", "than the best of the others", "against the worst"):
        assert expected in text
    page = Path("runs/planned/report.html").read_text()
    assert "layer3.2  " in page
    assert "against the worst" in page
    assert json.loads(Path("runs/planned/results.json").read_text())["margins"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["finetune", "--data", "digits:classes", "--method", "plan"],
            "plan must be given with a method that takes it",
        ),
        (["finetune", "--data", "digits:classes", "--method", "plain", "--plan", "."], "none of the methods takes one"),
        (["finetune", "--data", "digits:classes", "--plan", "no"], "plan must be a file; no is none"),
        (["finetune", "--data", "digits:classes", "--plan", "."], "a folder with digits-classes/plan.yaml"),
        (["search", "--data", "digits:classes", "--advice", "."], "advice must be a folder with digits-classes"),
        (["search", "--data", "digits:classes", "--trials", "0"], "trials must be >= 1; got 0"),
        (["search", "--data", "digits:classes", "--splits", "0"], "splits must be >= 1; got 0"),
        (["advise", "--data", "nowhere", "--model", "torch.nn:Linear"], "nowhere"),
        (["advise", "--data", "digits:mirorred"], "digits task must be one of"),
        (["advise", "--data", "digits:classes", "--bootstrap", "1"], "bootstrap must be >= 2; got 1"),
    ],
)
def test_commands_refuse_bad_arguments_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pytl.study.networks._SOURCE_STEPS", 20)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("pytl: ")


def test_a_plan_of_another_architecture_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pytl.study.networks._SOURCE_STEPS", 20)
    pytl.TransferPlan.from_rules(bert(), new_blocks=2).save(tmp_path / "plan.yaml")
    plan = str(tmp_path / "plan.yaml")
    assert main(["finetune", "--data", "digits:classes", "--plan", plan, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "the plan has bert.encoder.layer.0, the model has not" in error
    assert "the model has layer1.0, the plan has not" in error


def test_default_rules_know_networks_of_one_block() -> None:
    found = advised(nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES)), head="1")
    assert len(found.evidence.layers) == 1
    assert found.plan.transferred == 1
    assert default_rules(replace(found.evidence, label_information=0.1)).rules.boundary == 0
