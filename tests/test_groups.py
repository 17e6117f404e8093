"""pytl.param_groups: what is new, how deep it lies, what it is pulled to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

import pytl
from pytl.architecture import head_names
from pytl.depth import depth_blocks, depths


def of_role(groups: list[dict[str, Any]], role: str) -> set[str]:
    return {name for group in groups if group["role"] == role for name, _ in group["params"]}


def bert() -> nn.Module:
    config = BertConfig(num_hidden_layers=3, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    return BertForSequenceClassification(config)


def resnet() -> nn.Module:
    config = ResNetConfig(depths=[1, 2], hidden_sizes=[8, 16], embedding_size=8, num_labels=3)
    return ResNetForImageClassification(config)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)


@pytest.mark.parametrize("make", [bert, resnet, Plain])
def test_every_parameter_is_in_one_group(make: Any) -> None:
    model = make()
    groups = pytl.param_groups(model, sp_decay=0.1, weight_decay=0.01, lr=1.0, layer_decay=0.5, verbose=False)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("make", "head"), [(bert, "classifier"), (resnet, "classifier"), (Plain, "fc")])
def test_head_is_found_and_left_unanchored(make: Any, head: str) -> None:
    groups = pytl.param_groups(make(), sp_decay=0.1, head_weight_decay=0.02, verbose=False)
    new = of_role(groups, "new")
    assert new
    assert all(name.startswith(head) for name in new)
    assert all(group["sp_decay"] == 0 for group in groups if group["role"] == "new")
    assert {group["weight_decay"] for group in groups if group["role"] == "new"} == {0.02, 0.0}


def test_head_is_what_a_hugging_face_checkpoint_lacked(tmp_path: Any) -> None:
    bert().bert.save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert head_names(model, None) == {"classifier.weight", "classifier.bias"}


def test_head_may_be_a_name_a_module_several_or_none() -> None:
    model = Plain()
    assert head_names(model, "fc") == head_names(model, model.fc) == {"fc.weight", "fc.bias"}
    assert head_names(model, ["fc", model.bn1]) == {"fc.weight", "fc.bias", "bn1.weight", "bn1.bias"}
    assert head_names(model, ()) == set()


def test_head_that_is_not_there_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"head.*got 'clasifier'; did you mean classifier"):
        pytl.param_groups(bert(), head="clasifier")


def test_layer_decay_is_timms_rule() -> None:
    groups = pytl.param_groups(bert(), lr=1.0, layer_decay=0.5, verbose=False)
    rate = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert rate["classifier.weight"] == 1
    for i in range(3):
        assert rate[f"bert.encoder.layer.{i}.output.dense.weight"] == 0.5 ** (3 - i)
    assert rate["bert.embeddings.word_embeddings.weight"] == 0.5**4


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_transfer_keeps_the_lowest_blocks(share: float, kept: int) -> None:
    groups = pytl.param_groups(bert(), transfer=share, sp_decay=0.1, head_weight_decay=0.01, verbose=False)
    anchored = {name for group in groups if group["sp_decay"] for name, _ in group["params"]}
    blocks = {depths(depth_blocks(bert()))[name] for name in anchored}
    assert len(blocks) == kept
    assert len(of_role(groups, "not transferred")) == 0 if share == 1 else of_role(groups, "not transferred")


def test_norms_and_biases_are_pulled_only_when_asked() -> None:
    def pulled(**options: Any) -> set[int]:
        groups = pytl.param_groups(bert(), sp_decay=0.1, weight_decay=0.1, verbose=False, **options)
        return {p.dim() for group in groups if group["sp_decay"] or group["weight_decay"] for _, p in group["params"]}

    assert pulled() == {2}
    assert pulled(decay_norm_and_bias=True) == {1, 2}


def test_frozen_and_tied_parameters_are_left_out_or_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    names = [name for group in pytl.param_groups(model, head=(), verbose=False) for name, _ in group["params"]]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias"]


def test_summary_says_what_is_anchored(capsys: pytest.CaptureFixture[str]) -> None:
    pytl.param_groups(Plain(), sp_decay=0.1, head_weight_decay=0.01)
    printed = capsys.readouterr().out
    assert "transferred" in printed
    assert "0.1 to the start" in printed
    assert "0.01 to zero" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": 1.5}, r"transfer must be in \[0, 1\]; got 1.5"),
        ({"layer_decay": 0.5}, "layer_decay.*needs lr"),
        ({"layer_decay": -1.0, "lr": 1.0}, "layer_decay must be > 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pytl.param_groups(Plain(), **options)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="requires_grad"):
        pytl.param_groups(Plain().requires_grad_(False))


@pytest.mark.parametrize("optimizer", [pytl.SGD, pytl.AdamW, torch.optim.AdamW])
def test_groups_go_into_any_optimizer(optimizer: Any) -> None:
    made = optimizer(pytl.param_groups(Plain(), sp_decay=0.1, verbose=False), lr=0.1)
    assert made.param_groups[0]["param_names"]


def test_names_do_not_count_wrappers() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    model.add_module("fc", nn.Linear(3, 2))
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert head_names(wrapped, None) == head_names(wrapped, "fc") == {"fc.weight", "fc.bias"}
        named = [name for group in pytl.param_groups(wrapped, verbose=False) for name, _ in group["params"]]
        assert sorted(named) == ["0.bias", "0.weight", "fc.bias", "fc.weight"]
