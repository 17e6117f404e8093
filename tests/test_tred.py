"""TRED: stage one on sources that are made of two parts, and stage two beside the task."""

from __future__ import annotations

import copy
import errno
import functools
import importlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracle import DIRECTIONS, Oracle, array, assert_same, relative_error
from safetensors.torch import save_file
from sklearn.linear_model import Ridge, RidgeClassifier
from test_club import club_of, normal
from test_feature_ops import close, mmd_of
from test_regularizers import Tokens, assert_close, gradients, moved, network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pytl
from pytl import ops
from pytl.features import CachedSource, Source, linear_probe
from pytl.files import read_tensors, write_tensors
from pytl.regularizers.tred import CRITERIA, Disentangler, FeatureSplit, Guards, Recipe, tred
from pytl.regularizers.tred.objective import Objective

pytestmark = pytest.mark.usefixtures("one_thread")

STAGE_ONE = importlib.import_module("pytl.regularizers.tred.stage_one")
DISENTANGLE = importlib.import_module("pytl.regularizers.tred.disentangle")  # the package has the function by this name
QUICK: dict[str, Any] = {"steps": 30, "batch_size": 64}


# A source that is made of two parts:


class Given(nn.Module):
    """Features are its input: [N, C], [N, T, C] or [N, C, h, w]."""

    def __init__(self, channels: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.layer, self.other, self.head = nn.Identity(), nn.Identity(), nn.Linear(channels, classes)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        x = self.other(self.layer(x))
        return self.head((x.mean(1) if x.dim() == 3 else x.flatten(2).mean(2) if x.dim() == 4 else x).float())


class Made(NamedTuple):
    features: Tensor
    labels: Tensor
    relevant: Tensor
    irrelevant: Tensor


def made(seed: int, n: int, classes: int = 5, d: int = 16) -> Made:
    """Relevant: the classes' means and noise. Irrelevant: clusters that have nothing to do with them, and noise."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    cluster = torch.randint(4, (n,), generator=generator)
    relevant = 1.5 * draw(classes, d)[labels] + draw(n, d)
    irrelevant = 1.5 * draw(4, d)[cluster] + draw(n, d)
    rotation = torch.linalg.qr(draw(2 * d, 2 * d))[0]
    return Made(torch.cat([relevant, irrelevant], 1) @ rotation, labels, relevant, irrelevant)


def batches(x: Tensor, y: Tensor, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return [*zip(x.split(size), y.split(size), strict=True)]


def disentangled(x: Tensor, y: Tensor, *, quiet: bool = True, **options: Any) -> FeatureSplit:
    options = {"layers": ["layer"], "recipe": Recipe("both", **QUICK), "progress": False} | options
    source = options.pop("source", None) or Given(x.shape[-1] if x.dim() == 3 else x.shape[1])
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore", UserWarning)
        return pytl.disentangle(source, options.pop("loader", batches(x, y)), **options)


def parts_of(split: FeatureSplit, x: Tensor, layer: str = "layer") -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return split.disentanglers[layer](x)


SEEN = 2_000
"""Samples that stage one is given; the others are for the probes, enough of them that 0.01 is not by chance."""


@functools.lru_cache(maxsize=15)
def found_by(criterion: str, seed: int) -> tuple[Made, FeatureSplit]:
    source = made(seed, 2 * SEEN)
    x, y = source.features[:SEEN], source.labels[:SEEN]
    return source, disentangled(x, y, recipe=criterion, seed=seed)


def probes_of(criterion: str, seed: int) -> tuple[float, float, float]:
    """On F_p, on F_n, and chance; of samples that stage one has not seen."""
    source, split = found_by(criterion, seed)
    old, new = source.labels[:SEEN], source.labels[SEEN:]
    on = [linear_probe(part[:SEEN], old, part[SEEN:], new) for part in parts_of(split, source.features)]
    return on[0], on[1], float(new.bincount().max() / len(new))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_part_knows_the_classes_and_the_rest_does_not(criterion: str, record_property: Any) -> None:
    for seed in range(5):
        part, rest, chance = probes_of(criterion, seed)
        record_property(f"seed {seed}", (part, rest, chance))
        print(f"{criterion}, seed {seed}: F_p {part:.3f}, F_n {rest:.3f}, chance {chance:.3f}")
        assert part >= 0.95
        if criterion != "max-mmd":  # which does not promise it
            assert abs(rest - chance) <= 0.1


def explained(part: Tensor, by: Tensor) -> float:
    """The share of the part's variance that a linear function of coordinates explains."""
    x, y = array(by - by.mean(0)), array(part - part.mean(0))
    return float(1 - ((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum() / (y**2).sum())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_part_lies_in_the_relevant_subspace_rather_than_the_other(criterion: str) -> None:
    for seed in range(5):
        source, split = found_by(criterion, seed)
        part, rest = parts_of(split, source.features)
        rows = [[explained(which, by) for by in (source.relevant, source.irrelevant)] for which in (part, rest)]
        assert rows[0][0] > 0.85
        assert rows[0][1] < 0.05
        if criterion != "max-mmd":
            assert rows[1][1] > 2 * rows[1][0]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_parts_sum_to_the_whole_without_cancelling(criterion: str) -> None:
    for seed in range(5):
        found = found_by(criterion, seed)[1].guards["layer"]
        assert found.reconstruction_error < 0.02
        assert found.relevant_share**2 + found.rest_share**2 < 1.2
        assert min(found.relevant_share, found.rest_share) > 0.2


# Features of every kind:

KINDS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "maps": ((8, 3, 2), lambda x: x),
    "channels_last": ((8, 3, 2), lambda x: x.contiguous(memory_format=torch.channels_last)),
    "tokens": ((5, 8), lambda x: x),
    "pooled": ((8,), lambda x: x),
    "with gaps": ((8, 3, 2), lambda x: torch.stack([x, x], -1)[..., 0]),
    "bfloat16": ((5, 8), lambda x: x.bfloat16()),
    "float64": ((8,), lambda x: x.double()),
}


def sample_of(kind: str, n: int = 150, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Half of the channels have the classes' means, at all positions."""
    shape, change = KINDS[kind]
    labels = torch.arange(n) % classes
    means = normal(classes, 8, seed=1, dtype=torch.float32) * 2 * (torch.arange(8) < 4)
    at = means[labels]
    x = 0.5 * normal(n, *shape, seed=2, dtype=torch.float32)
    x = x + (at[:, None] if kind in ("tokens", "bfloat16") else at.view(n, 8, *[1] * (len(shape) - 1))) + 3
    return change(x), labels


def positions_of(x: Tensor) -> Tensor:
    """[N, positions, C]."""
    x = x if x.dim() == 3 else x.movedim(1, -1)
    return x.reshape(len(x), -1, x.shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_have_the_features_shape_and_sum_to_them(kind: str) -> None:
    x, y = sample_of(kind)
    split = disentangled(x, y, recipe=Recipe("both", steps=150, batch_size=64, width=8))
    part, rest = parts_of(split, x)
    assert (part.shape, part.dtype, rest.shape, rest.dtype) == (x.shape, x.dtype) * 2
    assert_same(split.relevant("layer", x), part)
    error = float((x - part - rest).double().square().sum() / (x - x.mean(0)).double().square().sum())
    assert error < 0.1
    assert split.guards["layer"].relevant_probe > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_treated_alike(kind: str) -> None:
    x, y = sample_of(kind)
    split = disentangled(x, y)
    for part in range(2):
        whole = positions_of(parts_of(split, x)[part])
        for place, alone in enumerate(positions_of(x).unbind(1)):
            close(parts_of(split, alone)[part], array(whole[:, place]), 1e-2 if kind == "bfloat16" else 1e-5)


def test_the_disentangler_is_its_formula() -> None:
    torch.manual_seed(3)
    net = Disentangler(6, 4)
    for buffer in net.buffers():
        buffer.uniform_(0.5, 2)
    state = {name: array(t) for name, t in net.state_dict().items()}
    x = normal(5, 6, seed=7)
    z = (array(x) - state["centre"]) / state["scale"]
    code, taken = (
        np.maximum(z @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"], 0) for name in ("code", "taken")
    )
    part = code @ state["relevant.weight"].T - state["relevant_mean"]
    rest = z - taken @ state["taken.2.weight"].T - state["rest_mean"]
    with torch.no_grad():
        found = net(x)
    close(found[0], state["centre"] + state["scale"] * part, 1e-5)
    close(found[1], state["scale"] * rest, 1e-5)
    assert net.channels == 6


def test_no_part_has_a_mean_of_its_own() -> None:
    x, y = sample_of("maps")
    split = disentangled(x, y, seed=4)
    kept, _ = indices(y, 4)
    part, rest = (positions_of(t[kept]) for t in parts_of(split, x))
    whole = positions_of(x[kept])
    assert (part.mean((0, 1)) - whole.mean((0, 1))).abs().max() < 1e-4
    assert rest.mean((0, 1)).abs().max() < 1e-4
    assert (whole.mean((0, 1)) - positions_of(x).mean((0, 1))).abs().max() > 1e-3  # others would have another mean


def test_layers_are_split_one_by_one() -> None:
    x, y = sample_of("maps")
    both = disentangled(x, y, layers=["layer", "other"])
    assert both.layers == ["layer", "other"]
    assert_same(dict(both.disentanglers["layer"].state_dict()), dict(state_of(disentangled(x, y))))


# The objective:


def indices(labels: Tensor, seed: int = 0, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Of the samples that `disentangle` trains on, and of the others."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DISENTANGLE._held_out(labels.unique(return_inverse=True)[1], share)


def state_of(split: FeatureSplit, layer: str = "layer") -> dict[str, Tensor]:
    return dict(split.disentanglers[layer].state_dict())


def objective(criterion: str = "both", **options: Any) -> Objective:
    torch.manual_seed(5)
    return Objective(Disentangler(6, 4), 3, Recipe(criterion, **options)).double()


def test_terms_equal_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pytl.regularizers.tred.objective"), "_PAIRED", 9)
    made = objective()
    z, labels = normal(12, 2, 6), torch.arange(12) % 3
    found = made.terms(z, labels)
    with torch.no_grad():
        part, rest = made.disentangler.parts(z)
        part, rest = array(part - part.mean((0, 1))), array(rest - rest.mean((0, 1)))
        logits = made.classifier(torch.from_numpy(part).mean(1))
    energy, p, n = (array(z) ** 2).mean(), part.mean(1), rest.mean(1)
    said = array(logits.softmax(1))
    alpha = 12 * said.var(0).mean() * 3 / 12
    mean = Ridge(alpha=alpha).fit(said, n).predict(said)
    variance = ((n - mean) ** 2).mean(0)
    expected = {
        "cross entropy": -np.log(said[np.arange(12), array(labels).astype(int)]).mean(),
        "reconstruction error": ((array(z) - part - rest) ** 2).mean() / energy,
        "cancelling": max(0.0, -2 * (part * rest).mean() / energy),
        "MMD^2": mmd_of(p[:9], n[:9], ops.mmd.__globals__["WIDTHS"]),
        "mutual information": club_of(n, mean, variance + 1e-3 * variance.mean()),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, 1e-9)


def test_parts_that_cancel_are_counted_and_others_are_not() -> None:
    made = objective()
    z, labels = normal(12, 2, 6), torch.arange(12) % 3
    found = []
    for sign in (1, -1):
        made.disentangler.relevant.weight.data.mul_(sign)
        part, rest = (t.detach() - t.detach().mean((0, 1)) for t in made.disentangler.parts(z))
        found.append((float((part * rest).mean()), float(made.terms(z, labels)["cancelling"].detach())))
    (agree, nothing), (oppose, something) = sorted(found, reverse=True)
    assert agree > 0 > oppose
    assert nothing == 0
    assert something == pytest.approx(-2 * oppose / float(z.square().mean()))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_the_weighted_sum_of_the_criterions_terms(criterion: str, share: float) -> None:
    names = ("cross entropy", "reconstruction error", "cancelling", "MMD^2", "mutual information")
    terms = {name: torch.tensor(float(10**i)) for i, name in enumerate(names)}
    found = objective(criterion, reconstruction=2.0, mmd=3.0, mutual_information=5.0).loss(terms, share)
    expected = 1 + 2 * (10 + 100)
    expected -= share * 3 * 1000 * (criterion != "min-mi")
    expected += share * 5 * 10000 * (criterion != "max-mmd")
    assert float(found) == pytest.approx(expected)


def test_the_information_pulls_at_the_rest_alone() -> None:
    made = objective()
    terms = made.terms(normal(12, 2, 6), torch.arange(12) % 3)
    net = made.disentangler
    part, rest = [*net.code.parameters(), net.relevant.weight], [*net.taken.parameters()]
    for name, moves in (
        ("mutual information", (False, True)),
        ("MMD^2", (True, True)),
        ("cross entropy", (True, False)),
    ):
        for weights, expected in zip((part, rest), moves, strict=True):
            found = torch.autograd.grad(terms[name], weights, retain_graph=True, allow_unused=True)
            assert any(g is not None and bool((g != 0).any()) for g in found) == expected, name


def test_the_conditional_is_fitted_in_training_and_kept_in_evaluation() -> None:
    made = objective()
    z, labels = normal(24, 1, 6), torch.arange(24) % 3
    made.terms(z[:12], labels[:12])
    fitted = made.conditional
    made.eval()
    made.terms(z[12:], labels[12:])
    assert made.conditional is fitted
    made.train()
    made.terms(z[12:], labels[12:])
    assert made.conditional is not fitted


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_is_its_terms_alone(criterion: str) -> None:
    """What it does not weigh changes no bit; what it does weigh changes some."""
    x, y = sample_of("pooled")
    for name, used in (("mmd", criterion != "min-mi"), ("mutual_information", criterion != "max-mmd")):
        one, two = (
            state_of(disentangled(x, y, recipe=Recipe(criterion, **QUICK, **{name: value}))) for value in (0.5, 5.0)
        )
        assert all(torch.equal(one[key], two[key]) for key in one) != used


def test_the_criterion_comes_in_over_a_third_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    loss = Objective.loss

    def watched(self: Objective, terms: dict[str, Tensor], share: float = 1.0) -> Tensor:
        if self.training:
            shares.append(share)
        return loss(self, terms, share)

    monkeypatch.setattr(Objective, "loss", watched)
    disentangled(*sample_of("pooled"))
    np.testing.assert_allclose(shares, np.minimum(1, np.arange(30) / 10))


@pytest.mark.parametrize(
    ("channels", "classes", "width", "expected"),
    [(8, 2, 3, 3), (8, 2, None, 2), (8, 5, None, 5), (64, 3, None, 16), (400, 3, None, 64)],
)
def test_the_width_is_a_quarter_of_the_channels(channels: int, classes: int, width: int | None, expected: int) -> None:
    y = torch.arange(20) % classes
    split = disentangled(normal(20, channels, dtype=torch.float32), y, recipe=Recipe(width=width, steps=1))
    assert (
        [*state_of(split)["code.0.weight"].shape] == [*state_of(split)["taken.0.weight"].shape] == [expected, channels]
    )


# Training, stopping, and what is held out:


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_share_of_each_class_is_held_out(share: float) -> None:
    y = torch.cat([torch.zeros(40), torch.ones(20), torch.full((10,), 2), torch.full((1,), 3)]).long()
    y = y[torch.randperm(71)]
    kept, held = indices(y, 0, share)
    assert sorted([*kept.tolist(), *held.tolist()]) == [*range(71)]
    assert y[held].bincount(minlength=4).tolist() == [round(share * n) for n in (40, 20, 10)] + [0]


def test_held_out_samples_are_not_trained_on() -> None:
    x, y = sample_of("pooled")
    _, held = indices(y)
    changed = x.clone()
    changed[held] = changed[held].flip(0) + 1
    one, two = (disentangled(t, y, recipe=Recipe(**QUICK, patience=100)) for t in (x, changed))
    assert_same(state_of(one)["centre"], state_of(two)["centre"])
    assert_same(state_of(one)["scale"], state_of(two)["scale"])
    assert one.guards["layer"].curves["cross entropy"] != two.guards["layer"].curves["cross entropy"]


def test_early_stopping_stops_and_keeps_the_best() -> None:
    x, y = sample_of("pooled", 60)
    y = y[torch.randperm(60)]  # nothing to learn: the held-out loss rises
    recipe = Recipe("both", steps=300, batch_size=32, patience=3, lr=0.05)
    split = disentangled(x, y, recipe=recipe)
    found = split.guards["layer"]
    steps, losses = found.curves["step"], found.curves["loss"]
    assert steps == [10.0 * (i + 1) for i in range(len(steps))]
    settled = [i for i, step in enumerate(steps) if step > 100]
    best = min(settled, key=losses.__getitem__)
    assert found.steps == steps[best]
    assert best == len(steps) - 1 - recipe.patience < 29 - recipe.patience
    _, held = indices(y)
    net = split.disentanglers["layer"]
    net.relevant_mean.zero_(), net.rest_mean.zero_()
    with torch.no_grad():
        z = net.rows(x[held])
        part, rest = (t - t.mean((0, 1)) for t in net.parts(z))
    error = float((z - part - rest).square().mean() / z.square().mean())
    errors = found.curves["reconstruction error"]
    assert error == pytest.approx(errors[best], rel=1e-4)
    assert error != pytest.approx(errors[-1], rel=1e-3)


def test_without_a_settled_look_the_last_step_still_counts() -> None:
    split = disentangled(*sample_of("pooled"), recipe=Recipe(steps=7, batch_size=64))
    assert split.guards["layer"].steps == 7
    assert split.guards["layer"].curves["step"] == [7.0]


@pytest.mark.parametrize("kind", ["maps", "tokens", "pooled"])
def test_guards_equal_what_is_computed_apart(kind: str) -> None:
    x, y = sample_of(kind)
    split = disentangled(x, y, recipe=Recipe("both", steps=60, batch_size=64))
    found, (kept, held) = split.guards["layer"], indices(y)
    centre = positions_of(x[kept]).double().mean((0, 1))
    part = positions_of(split.relevant("layer", x)).double() - centre
    rest = positions_of(parts_of(split, x)[1]).double()
    whole = positions_of(x).double() - centre

    def size(t: Tensor) -> float:
        return float(t[held].square().sum())

    assert found.relevant_share == pytest.approx(math.sqrt(size(part) / size(whole)), rel=1e-4)
    assert found.rest_share == pytest.approx(math.sqrt(size(rest) / size(whole)), rel=1e-4)
    assert found.reconstruction_error == pytest.approx(size(whole - part - rest) / size(whole), rel=1e-3)
    for name, features in (("source_probe", whole), ("relevant_probe", part), ("rest_probe", rest)):
        pooled = array(features.mean(1))
        alpha = 1e-2 * len(kept) * pooled[kept].var(0).mean()
        theirs = RidgeClassifier(alpha=alpha).fit(pooled[kept], y[kept]).predict(pooled[held])
        assert getattr(found, name) == pytest.approx((theirs == array(y[held])).mean(), abs=1e-12)
    assert found.chance == pytest.approx(float(y[held].bincount().max()) / len(held))
    assert (found.samples, found.held_out) == (len(kept), len(held)) == (120, 30)
    names = {"step", "cross entropy", "reconstruction error", "cancelling", "MMD^2", "mutual information", "loss"}
    assert found.curves.keys() == names
    assert {len(curve) for curve in found.curves.values()} == {6}
    assert all(math.isfinite(value) for curve in found.curves.values() for value in curve)


# Bits, and what is left as it was:


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    x, y = sample_of("maps")
    one, two, other = (disentangled(x, y, seed=seed) for seed in (1, 1, 2))
    assert_same(state_of(one), state_of(two))
    assert one.guards == two.guards
    assert not torch.equal(state_of(one)["relevant.weight"], state_of(other)["relevant.weight"])


def test_labels_may_be_called_anything_and_batches_have_any_size() -> None:
    x, y = sample_of("pooled")
    expected = state_of(disentangled(x, y))
    assert_same(state_of(disentangled(x, 7 * y - 100)), expected)
    assert_same(state_of(disentangled(x, y, loader=batches(x, y, 7))), expected)
    with torch.no_grad():
        assert_same(state_of(disentangled(x, y)), expected)


def everything(model: nn.Module) -> Any:
    return copy.deepcopy(
        [
            dict(model.state_dict()),
            [module.training for module in model.modules()],
            [[p.grad if p.grad is not None else "none", p.requires_grad] for p in model.parameters()],
            [[len(module._forward_hooks), len(module._forward_pre_hooks)] for module in model.modules()],
            torch.get_rng_state(),
        ]
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_random_numbers_are_left_as_they_were(fails: bool) -> None:
    x, y = sample_of("pooled")
    model = Given().train()
    model.other.eval()
    model.head.bias.requires_grad_(False)
    model(x).sum().backward()
    model.layer.register_forward_hook(lambda *_: None)
    before = everything(model)
    if fails:
        with pytest.raises(ValueError, match="must have features that differ"):
            disentangled(x, y, source=model, loader=batches(torch.ones_like(x), y))
    else:
        disentangled(x, y, source=model)
    assert_same(everything(model), before)


def with_ids(x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    ids = torch.arange(len(x))
    return [{"x": a, "labels": b, "ids": c} for a, b, c in zip(x.split(64), y.split(64), ids.split(64), strict=True)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_stage_one_on_cached_features_runs_no_backbone(on_disk: bool, tmp_path: Path) -> None:
    x, y = sample_of("maps")
    expected = state_of(disentangled(x, y))
    with CachedSource(Given(), folder=tmp_path if on_disk else None) as source:
        source.watch(["layer"])
        for batch in with_ids(x, y):
            source(x=batch["x"], ids=batch["ids"])
        source.network.calls.clear()
        found = disentangled(x, y, source=source, loader=with_ids(x, y))
        assert source.network.calls == []
        assert_same(state_of(found), expected)
        source(x=x[:5], ids=range(5))  # still open


def test_a_given_source_is_looked_at_and_stays_open() -> None:
    x, y = sample_of("pooled")
    source = Source(Given())
    assert_same(state_of(disentangled(x, y, source=source)), state_of(disentangled(x, y)))
    assert source.network.calls == [64, 64, 22]
    assert [*source(x)] == ["layer"]
    source.close()


def test_auto_is_the_end_of_the_last_stage() -> None:
    split = disentangled(normal(20, 3, 8, 8), torch.arange(20) % 2, source=network(), layers="auto")
    assert split.layers == ["layer2"]
    blocks = disentangled(normal(20, 5, 8), torch.arange(20) % 2, source=Tokens().double(), layers="auto")
    assert len(blocks.layers) == 1


def test_a_bar_for_each_layer_goes_on_once_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    @contextmanager
    def bar(label: str, total: int, done: int, shown: bool) -> Iterator[Callable[[], None]]:
        seen.append([label, total, done, shown, 0])
        yield lambda: seen[-1].__setitem__(4, seen[-1][4] + 1)

    x, y = sample_of("pooled")
    disentangled(x, y, progress=True)
    monkeypatch.setattr(DISENTANGLE, "bar", bar)
    disentangled(x, y, layers=["layer", "other"], progress=True)
    disentangled(x, y)
    assert seen == [
        [f"splitting {name}", 30, 0, shown, 30] for name, shown in (("layer", 1), ("other", 1), ("layer", 0))
    ]
    assert capsys.readouterr() == ("", "")


# Trivial splits:

SOUND = Guards(
    0.6,
    0.75,
    0.02,
    0.9,
    0.9,
    0.3,
    0.25,
    80,
    20,
    100,
    {name: [3.0, 1.0] for name in ("step", "loss", *objective().terms(normal(9, 1, 6), torch.arange(9) % 3))},
)
TRIVIAL = {
    "F_p is next to nothing (|F_p| / |F_o| = 0.09)": {"relevant_share": 0.09},
    "F_p is the whole: F_n is next to nothing (|F_n| / |F_o| = 0.09)": {"rest_share": 0.09},
    "the parts are large and cancel (|F_p| / |F_o| = 1.20, |F_n| / |F_o| = 0.75)": {"relevant_share": 1.2},
    "F_p + F_n is not F_o (error 51%)": {"reconstruction_error": 0.51},
    "the layer tells next to nothing of the classes (probe 29%)": {"source_probe": 0.29, "rest_probe": 0.9},
    "F_n tells as much of the classes as F_p (probes 86% and 90%)": {"rest_probe": 0.86},
}


def guards(**changes: Any) -> Guards:
    return Guards(**(SOUND.to_dict() | changes))


def split_of(**layers: Guards) -> FeatureSplit:
    torch.manual_seed(2)
    return FeatureSplit({name: Disentangler(6, 4) for name in layers}, layers, "both")


@pytest.mark.parametrize("reason", TRIVIAL)
def test_each_trivial_split_is_named(reason: str) -> None:
    assert [*guards(**TRIVIAL[reason]).warnings()] == [reason]
    split = split_of(sound=SOUND, poor=guards(**TRIVIAL[reason]))
    assert split.warnings() == [f"poor: {reason}"]
    assert split.report().endswith(f"warning: poor: {reason}")


def test_a_sound_split_is_not_warned_of() -> None:
    assert [*SOUND.warnings()] == split_of(layer=SOUND).warnings() == []
    assert [*guards(relevant_share=0.11, rest_share=0.11, reconstruction_error=0.5).warnings()] == []
    assert [*guards(rest_probe=0.84).warnings()] == []
    x, y = sample_of("pooled")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disentangled(x, y, quiet=False, recipe=Recipe("min-mi", steps=120, batch_size=64))


def test_splits_that_are_trivial_are_warned_of_where_they_are_made() -> None:
    x, y = sample_of("pooled", 1500)
    random = torch.randint(3, (1500,))
    with pytest.warns(UserWarning, match=r"by both is trivial: layer: .*the layer tells next to nothing") as told:
        pytl.disentangle(Given(), batches(x, random), ["layer"], recipe=Recipe(**QUICK), progress=False)
    assert told[0].filename == __file__
    whole = Recipe("max-mmd", mmd=0.0, **QUICK)
    with pytest.warns(UserWarning, match=r"by max-mmd is trivial: layer: .*F_n tells as much of the classes as F_p"):
        disentangled(x, y, quiet=False, recipe=whole)


def test_the_report_has_a_line_for_each_layer() -> None:
    lines = split_of(**{"a": SOUND, "blocks.11.mlp": guards(relevant_share=0.05)}).report().splitlines()
    assert lines == [
        "split by both",
        "layer          |F_p|/|F_o|  |F_n|/|F_o|   error  probe F_o     F_p     F_n  chance  at step",
        "a                     0.60         0.75    2.0%      90.0%   90.0%   30.0%   25.0%      100",
        "blocks.11.mlp         0.05         0.75    2.0%      90.0%   90.0%   30.0%   25.0%      100",
        "warning: blocks.11.mlp: F_p is next to nothing (|F_p| / |F_o| = 0.05)",
    ]


@pytest.mark.parametrize("layers", [1, 3])
def test_the_plot_is_a_png(layers: int, tmp_path: Path) -> None:
    split = split_of(**{f"layer{i}": SOUND for i in range(layers)})
    split.plot(tmp_path / "split.png")
    assert (tmp_path / "split.png").read_bytes().startswith(b"\x89PNG")
    assert [*tmp_path.iterdir()] == [tmp_path / "split.png"]


# Files:


@pytest.fixture(scope="module")
def some_split() -> FeatureSplit:
    torch.set_num_threads(1)
    return disentangled(*sample_of("maps"), layers=["layer", "other"])


def test_a_saved_split_comes_back_bit_for_bit(some_split: FeatureSplit, tmp_path: Path) -> None:
    some_split.save(tmp_path / "split")
    found = FeatureSplit.load(tmp_path / "split")
    assert found.layers == some_split.layers
    assert (found.guards, found.criterion, found.report()) == (
        some_split.guards,
        some_split.criterion,
        some_split.report(),
    )
    x, _ = sample_of("maps", 10)
    for layer, net in found.disentanglers.items():
        assert_same(state_of(found, layer), state_of(some_split, layer))
        assert_same(found.relevant(layer, x), some_split.relevant(layer, x))
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for net in some_split.disentanglers.values() for p in net.parameters())


def test_broken_and_foreign_files_are_named(some_split: FeatureSplit, tmp_path: Path) -> None:
    path = tmp_path / "split"
    with pytest.raises(FileNotFoundError, match="split"):
        FeatureSplit.load(path)
    some_split.save(path)
    whole = path.read_bytes()
    tensors = {name: t.clone() for name, t in read_tensors(path, "a feature split")[0].items()}  # they lie in the file
    for data in (whole[: len(whole) // 2], whole[:-1], b""):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path} must be a whole safetensors file"):
            FeatureSplit.load(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"{path} must hold a feature split; found tensors of something else"):
        FeatureSplit.load(path)
    write_tensors(path, "channel weights", tensors, {})
    with pytest.raises(ValueError, match=f"{path} must hold a feature split; found channel weights"):
        FeatureSplit.load(path)


def test_files_that_lack_something_are_named(some_split: FeatureSplit, tmp_path: Path) -> None:
    path = tmp_path / "split"
    some_split.save(path)
    tensors, about = read_tensors(path, "a feature split")
    tensors = {name: t.clone() for name, t in tensors.items()}  # they lie in the file, which is written again
    numbers = json.loads(about["guards"])
    fewer = {layer: {name: v for name, v in g.items() if name != "chance"} for layer, g in numbers.items()}
    for tensors_of, about_of in (
        ({name: t for name, t in tensors.items() if name != "1.centre"}, about),
        ({name: t for name, t in tensors.items() if name != "1.code.0.weight"}, about),
        (tensors | {"0.centre": torch.ones(3)}, about),
        (tensors, {"criterion": "both"}),
        (tensors, {"guards": about["guards"]}),
        (tensors, about | {"guards": "{"}),
        (tensors, about | {"guards": json.dumps(fewer)}),
    ):
        write_tensors(path, "a feature split", tensors_of, about_of)
        with pytest.raises(ValueError, match=f"{path} must hold a disentangler and its guards for each layer"):
            FeatureSplit.load(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    some_split: FeatureSplit, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "split"
    some_split.save(path)
    before = path.read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(os, call, full)
        for write in (split_of(a=SOUND).save, split_of(a=SOUND).plot):
            with pytest.raises(OSError, match="No space left"):
                write(path)
            assert path.read_bytes() == before
            assert [*tmp_path.iterdir()] == [path]


# Stage two:


def given_split(layers: tuple[str, ...] = ("layer1", "layer2"), channels: int = 6) -> FeatureSplit:
    """In float64, with means that are not 0."""
    torch.manual_seed(8)
    nets = {layer: Disentangler(channels, 4).double().requires_grad_(False) for layer in layers}
    for net in nets.values():
        for name in ("centre", "relevant_mean", "rest_mean"):
            getattr(net, name).normal_()
        net.scale.fill_(2.0)
    return FeatureSplit(nets, dict.fromkeys(layers, SOUND), "both")


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 7, 6), (4, 6)], ids=["maps", "tokens", "pooled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_term_is_half_the_mean_squared_distance(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(*shape, seed=1).to(dtype, memory_format=torch.preserve_format).requires_grad_()
    part = normal(*shape, seed=2).to(dtype)
    value = tred(x, part)
    difference, places = array(x) - array(part), positions_of(part).shape[1]
    close(value, 0.5 * (difference**2).sum() / places / 4, 1e-10 if dtype == torch.float64 else 1e-5)
    value.backward()
    close(x.grad, difference / places / 4, 1e-10 if dtype == torch.float64 else 1e-5)
    assert_same(tred(x, part), tred(x, part))


def penalised(x: Tensor, **options: Any) -> tuple[nn.Module, nn.Module, pytl.TRED]:
    start = network().eval()
    model = moved(copy.deepcopy(start), 0.05)
    return start, model, pytl.TRED(model, given_split(), source=copy.deepcopy(start), **options)


@pytest.fixture
def x() -> Tensor:
    return normal(4, 3, 8, 8, seed=11)


def plain_tred(model: nn.Module, start: nn.Module, x: Tensor, split: FeatureSplit, strength: float) -> Tensor:
    """In PyTorch, through every layer's output."""

    def outputs(net: nn.Module) -> dict[str, Tensor]:
        first = net.layer1(net.stem(x))
        return {"layer1": first.clone(), "layer2": net.layer2(first.clone())}

    mine, value = outputs(model), torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        theirs = outputs(start)
    for layer, features in mine.items():
        part = split.disentanglers[layer](theirs[layer])[0]
        value = value + strength * 0.5 * (features - part).square().mean((2, 3)).sum() / len(x)
    return value


def test_stage_two_is_its_formula_with_its_gradient(x: Tensor) -> None:
    start, model, reg = penalised(x, strength=0.3)
    with reg:
        for _ in range(2):
            model(x)
            value = reg(x)
            expected = plain_tred(model, start, x, reg.split, 0.3)
            close(value, array(expected), 1e-10)
            assert_close(gradients(model, value), gradients(model, expected), 1e-5)
        assert [*reg.terms] == ["layer1", "layer2"]
        assert value > 0
    assert pytl.TRED(model, given_split()).strength == 0.01


def test_the_start_is_not_without_a_value(x: Tensor) -> None:
    model = network().eval()
    with pytl.TRED(model, given_split()) as reg:
        model(x)
        value = reg(x)
        assert value > 0
        assert any((g != 0).any() for g in gradients(model, value))


def test_micro_batches_have_the_batchs_mean(x: Tensor) -> None:
    _, model, reg = penalised(x)
    with reg:
        values = []
        for part in (x, x[:2], x[2:]):
            model(part)
            values.append(array(reg(part)))
    np.testing.assert_allclose(values[0], np.mean(values[1:]), rtol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_stage_two_steps_as_the_oracle_does(x: Tensor, direction: str) -> None:
    start, model, reg = penalised(x, strength=0.3)
    params, labels = [*model.parameters()], torch.tensor([0, 1, 2, 3])
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "direction": direction}
    opt, oracle = pytl.SGD(params, **options), Oracle("sgd", params, options)
    with reg:
        for _ in range(2):
            loss = cross_entropy(model(x), labels)
            value = reg(x)
            task, penalty = gradients(model, loss), gradients(model, value)
            opt.take_penalty(value)
            loss.backward()
            opt.step()
            opt.zero_grad()
            oracle.step(task, penalty)
    found = [array(p) for p in params]
    assert relative_error(found, oracle.weights) < 1e-12
    alone = Oracle("sgd", [*moved(copy.deepcopy(start), 0.05).parameters()], options)
    alone.step(task)
    assert relative_error(found, alone.weights) > 1e-6


def test_each_direction_steps_its_own_way(x: Tensor) -> None:
    """Where the task agrees with the penalty in every other tensor, and opposes it in the others."""
    found = []
    for direction in DIRECTIONS:
        _, model, reg = penalised(x, strength=0.3)
        opt = pytl.SGD(model.parameters(), lr=0.05, direction=direction)
        with reg:
            model(x)
            pulls = gradients(model, reg(x))
            loss = cross_entropy(model(x), torch.tensor([0, 1, 2, 3]))
            for i, (p, pull) in enumerate(zip(model.parameters(), pulls, strict=True)):
                loss = loss + (-3) ** (i % 2) * (p * pull).sum()
            opt.take_penalty(reg(x))
            loss.backward()
            opt.step()
        found.append([array(p) for p in model.parameters()])
    for i, one in enumerate(found):
        for other in found[:i]:
            assert relative_error(one, other) > 1e-6


def test_stage_two_goes_through_a_cached_source(x: Tensor) -> None:
    start, model, reg = penalised(x)
    model(x)
    expected = reg(x)
    reg.close()
    with CachedSource(copy.deepcopy(start)) as source, pytl.TRED(model, given_split(), source=source) as cached:
        for _ in range(2):
            model(x)
            close(cached(x, ids=range(4)), array(expected), 1e-12)
        assert source.kept == 4


def test_the_disentangler_does_not_learn_in_stage_two(x: Tensor) -> None:
    _, model, reg = penalised(x)
    before = copy.deepcopy({layer: state_of(reg.split, layer) for layer in reg.layers})
    with reg:
        model(x)
        reg(x).backward()
    assert_same({layer: state_of(reg.split, layer) for layer in reg.layers}, before)


def test_closing_leaves_no_hooks(x: Tensor) -> None:
    _, model, reg = penalised(x)
    model(x)
    reg(x)
    reg.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="TRED is closed: its hooks are gone"):
        reg(x)


def test_a_split_of_other_layers_or_channels_is_refused(x: Tensor) -> None:
    model = network().eval()
    with pytest.raises(ValueError, match=r"layers must name layers of the model; got 'layer9'"):
        pytl.TRED(model, given_split(("layer9",)))
    with pytl.TRED(model, given_split(channels=5)) as reg:
        model(x)
        with pytest.raises(
            ValueError, match=r"layer 'layer1' must have the split's 5 channels; got shape \[4, 6, 6, 6\]"
        ):
            reg(x)
    with pytest.raises(ValueError, match="strength must be finite and >= 0; got -1"):
        pytl.TRED(model, given_split(), strength=-1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_real_split_holds_a_model_to_its_part() -> None:
    x, y = sample_of("maps", 60)
    net = nn.Sequential(nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    split = disentangled(x, y, source=net, layers=["0"])
    with torch.no_grad():
        part = split.relevant("0", net[0](x))
        before = float(tred(net[0](x), part))
    opt = pytl.SGD(net.parameters(), lr=0.005)
    with pytl.TRED(net, split, strength=1.0) as reg:
        for _ in range(20):
            loss = 0 * net(x).sum()
            (loss + reg(x)).backward()
            opt.step()
            opt.zero_grad()
    with torch.no_grad():
        assert float(tred(net[0](x), part)) < 0.9 * before


# Errors:

X, Y = sample_of("pooled", 24)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one class": ({"loader": [(X, 0 * Y + 5)]}, ValueError, "loader must give >= 2 classes; got 24 samples of class 5"),
    "too few": (
        {"loader": [(X[:5], Y[:5])]},
        ValueError,
        "loader must give enough samples to train on 4 and hold out 2; got 5, of which 5 and 0",
    ),
    "too few held out": ({"held_out": 0.01}, ValueError, "hold out 2; got 24, of which 24 and 0"),
    "too few to train on": ({"loader": [(X[:6], Y[:6] // 2)], "held_out": 0.9}, ValueError, "got 6, of which 2 and 4"),
    "constant": (
        {"loader": [(X[:1].expand(24, -1), Y)]},
        ValueError,
        "layer 'layer' must have features that differ; those of all 1[0-9] samples agree",
    ),
    "NaN": ({"loader": [(X * math.nan, Y)]}, ValueError, "layer 'layer' must have finite features; some are not"),
    "infinite": ({"loader": [(X / 0, Y)]}, ValueError, "layer 'layer' must have finite features; some are not"),
    "float labels": (
        {"loader": [(X, Y.float())]},
        TypeError,
        r"labels must be integers, one a sample.*got torch.float32 of shape \[24\]",
    ),
    "many labels": ({"loader": [(X, torch.ones(24, 2).long())]}, TypeError, r"one a sample.*int64 of shape \[24, 2\]"),
    "no batch": ({"loader": []}, ValueError, "loader must give at least one batch; got none"),
    "no labels": ({"loader": [X]}, TypeError, "loader must give .inputs, labels.*got a Tensor"),
    "layer": ({"layers": ["layr"]}, ValueError, "layers must name layers of the model; got 'layr'; did you mean layer"),
    "criterion": ({"recipe": "min-mmd"}, ValueError, "criterion must be one of max-mmd, min-mi, both; got 'min-mmd'"),
    **{
        f"held_out {share}": ({"held_out": share}, ValueError, rf"held_out must be in \(0, 1\); got {share}")
        for share in (0, 1, -0.1, 1.5, math.nan)
    },
}


@pytest.mark.parametrize("bad", BAD)
def test_errors_name_what_was_found_before_training(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*arguments: Any) -> None:
        raise AssertionError("it has been trained")

    options, error, message = BAD[bad]
    monkeypatch.setattr(DISENTANGLE, "split", trained)
    model = Given()
    before = everything(model)
    with pytest.raises(error, match=message):
        disentangled(X, Y, **({"source": model} | options))
    assert_same(everything(model), before)


def test_a_later_layer_is_looked_at_before_the_first_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DISENTANGLE, "split", lambda *_: pytest.fail("it has been trained"))
    model = Given()
    model.other.register_forward_hook(lambda module, inputs, output: 0 * output)
    with pytest.raises(ValueError, match="layer 'other' must have features that differ"):
        disentangled(X, Y, source=model, layers=["layer", "other"])


def test_features_that_differ_where_nothing_is_trained_are_refused() -> None:
    _, held = indices(Y)
    x = torch.ones(24, 8)
    x[held[0]] = 2
    with pytest.raises(ValueError, match="must have features that differ"):
        disentangled(x, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruction": -1}, "reconstruction must be finite and >= 0; got -1"),
        ({"mmd": math.nan}, "mmd must be finite and >= 0; got nan"),
        ({"mutual_information": math.inf}, "mutual_information must be finite and >= 0; got inf"),
        ({"lr": -0.1}, "lr must be finite and >= 0; got -0.1"),
        ({"width": 0}, "width must be >= 1; got 0"),
        ({"steps": 0}, "steps must be >= 1; got 0"),
        ({"batch_size": 3}, "batch_size must be >= 4; got 3"),
        ({"patience": 0}, "patience must be >= 1; got 0"),
    ],
)
def test_a_recipe_is_checked_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_the_smallest_set_of_samples_is_enough() -> None:
    split = disentangled(X[:6], Y[:6] % 2, held_out=0.34, recipe=Recipe(steps=4))
    assert (split.guards["layer"].samples, split.guards["layer"].held_out) == (4, 2)
    assert all(t.isfinite().all() for t in state_of(split).values())
