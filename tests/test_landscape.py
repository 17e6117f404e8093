"""Losses around and between weights, along the gradient, and the gradient's energies, against evaluation by hand."""

from __future__ import annotations

import copy
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sharpness import ANYTHING, Quadratic, mean
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl.analysis import gradient_energy, loss_landscape, plot_gradient_energy, smoothness
from pytl.analysis.landscape import Landscape
from pytl.analysis.weight_space import dot, moved, norm, random_direction
from pytl.files import json_ready

pytestmark = pytest.mark.usefixtures("one_thread")

Data = list[tuple[Tensor, Tensor]]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def convolutional() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4, 3))


def samples(*shape: int, sizes: tuple[int, ...] = (8, 5)) -> Data:
    return [(torch.randn(n, *shape), torch.randint(0, 3, (n,))) for n in sizes]


def loss_of(model: nn.Module, data: Data) -> float:
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        return float(cross_entropy(model.eval()(x), y))


def with_weights(model: nn.Module, weights: list[Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p, w in zip(other.parameters(), weights, strict=True):
            p.copy_(w)
    return other


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def test_filters_of_a_direction_have_the_norms_of_the_weights() -> None:
    weights = [torch.randn(4, 3, 2, 2), torch.randn(4), torch.randn(5, 7), torch.zeros(2, 3), torch.tensor(1.0)]
    by_filter, by_layer, drawn = (random_direction(weights, 0, how) for how in ("filter", "layer", "none"))
    for d, w in zip(by_filter, weights, strict=True):
        if w.dim() > 1:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
        else:
            assert not d.any()
    for d, w in zip(by_layer, weights, strict=True):
        assert float(d.norm()) == pytest.approx(float(w.norm()) if w.dim() > 1 else 0, rel=1e-5)
    assert all(d.any() for d in drawn)
    cosine = dot(by_layer[:1], drawn[:1]) / norm(by_layer[:1]) / norm(drawn[:1])
    assert cosine == pytest.approx(1)


def test_directions_are_those_of_their_seed() -> None:
    weights = [torch.randn(4, 3), torch.randn(5, 4)]
    first, again, other = (random_direction(weights, seed) for seed in (3, 3, 4))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    with pytest.raises(ValueError, match="normalisation must be one of filter, layer, none; got 'batch'"):
        random_direction(weights, 0, "batch")


def test_norms_and_products_are_those_of_one_long_vector() -> None:
    a, b = ([torch.randn(3, 2).bfloat16(), torch.randn(4)] for _ in range(2))
    one, two = (torch.cat([t.double().flatten() for t in vectors]) for vectors in (a, b))
    assert norm(a) == pytest.approx(float(one.norm()), rel=1e-12)
    assert dot(a, b) == pytest.approx(float(one @ two), rel=1e-12)


def test_to_move_leaves_the_weights() -> None:
    weights, direction = [torch.ones(2)], [torch.tensor([1.0, 2.0])]
    assert torch.equal(moved(weights, (2.0, direction), (-1.0, direction))[0], torch.tensor([2.0, 3.0]))
    assert torch.equal(weights[0], torch.ones(2))


@pytest.mark.parametrize("normalisation", ["filter", "layer", "none"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_each_point_is_the_loss_there(dimensions: int, normalisation: str) -> None:
    model, data = perceptron(), samples(6)
    found = loss_landscape(
        model, data, dimensions=dimensions, points=3, reach=0.5, seed=7, normalisation=normalisation, batch=3
    )
    weights = weights_of(model)
    directions = [random_direction(weights, 7 + k, normalisation) for k in range(dimensions)]
    assert found.first == (-0.5, 0.0, 0.5)
    assert found.second == ((-0.5, 0.0, 0.5) if dimensions == 2 else (0.0,))
    for (i, a), (j, b) in product(enumerate(found.first), enumerate(found.second)):
        there = moved(weights, *zip((a, b), directions, strict=False))
        assert found.losses[i][j] == pytest.approx(loss_of(with_weights(model, there), data), rel=1e-5)
    assert found.losses[1][len(found.second) // 2] == pytest.approx(loss_of(model, data), rel=1e-6)
    assert found.nonfinite == 0
    assert len(found.directions) == dimensions


def test_the_centre_is_the_loss_itself_to_the_bit() -> None:
    model, data = perceptron(), samples(6, sizes=(8,))
    found = loss_landscape(model, data, points=5)
    assert found.losses[2][2] == loss_of(model, data)


def test_seeds_reproduce_and_differ() -> None:
    model, data = perceptron(), samples(6)
    first, again, other = (loss_landscape(model, data, points=3, seed=seed) for seed in (0, 0, 5))
    assert first == again
    assert first.losses != other.losses
    assert first.losses[1][1] == other.losses[1][1]


@pytest.mark.parametrize("as_state", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_line_leads_to_the_other_checkpoint(dimensions: int, as_state: bool) -> None:
    model, other, data = perceptron(), perceptron(), samples(6)
    to = other.state_dict() if as_state else other
    found = loss_landscape(model, data, to=to, dimensions=dimensions, points=9)
    zero = len(found.second) // 2
    assert found.first == (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    assert found.losses[2][zero] == pytest.approx(loss_of(model, data), rel=1e-6)
    assert found.losses[6][zero] == pytest.approx(loss_of(other, data), rel=1e-5)
    half = [(a + b) / 2 for a, b in zip(weights_of(model), weights_of(other), strict=True)]
    assert found.losses[4][zero] == pytest.approx(loss_of(with_weights(model, half), data), rel=1e-5)


def test_at_1_is_the_other_checkpoint_where_layers_are_frozen() -> None:
    model, other, data = perceptron(), perceptron(), samples(6)
    model[0].requires_grad_(False)
    found = loss_landscape(model, data, to=other, dimensions=1, points=5)
    assert found.losses[3][0] == pytest.approx(loss_of(other, data), rel=1e-5)


def test_at_1_is_the_other_checkpoint_where_there_are_statistics() -> None:
    model, other, data = convolutional(), convolutional(), samples(1, 6, 6)
    other.train()(10 * torch.randn(8, 1, 6, 6))
    found = loss_landscape(model, data, to=other, dimensions=1, points=5)
    assert found.losses[3][0] == pytest.approx(loss_of(other, data), rel=1e-5)


def test_another_architecture_is_refused() -> None:
    other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    message = r"same architecture; 4 differ: 2.weight \[4, 5\], there \[2, 5\]; .*4.weight \[3, 4\], there nothing"
    with pytest.raises(ValueError, match=message):
        loss_landscape(perceptron(), samples(6), to=other, points=5)


@pytest.mark.parametrize("factor", [4.0, 0.1])
def test_rescaled_layers_of_relu_networks_have_the_same_landscape(factor: float) -> None:
    model, data = perceptron(), samples(6)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight.mul_(factor)
        scaled[0].bias.mul_(factor)
        scaled[2].weight.div_(factor)
    one, two = (loss_landscape(m, data, points=5) for m in (model, scaled))
    assert np.array(two.losses) == pytest.approx(np.array(one.losses), rel=1e-5)
    raw = loss_landscape(scaled, data, points=5, normalisation="none")
    assert np.array(raw.losses) != pytest.approx(
        np.array(loss_landscape(model, data, points=5, normalisation="none").losses), rel=1e-2
    )


def test_rescaled_filters_in_front_of_a_normalisation_have_the_same_landscape() -> None:
    model, data = convolutional(), samples(1, 6, 6)
    model.train()(torch.randn(16, 1, 6, 6))
    scaled, factors = copy.deepcopy(model), torch.tensor([0.5, 2.0, 3.0, 0.25])
    with torch.no_grad():
        scaled[0].weight.mul_(factors[:, None, None, None])
        scaled[0].bias.mul_(factors)
        scaled[1].running_mean.mul_(factors)
        scaled[1].running_var.mul_(factors**2).add_((factors**2 - 1) * scaled[1].eps)
    one, two = (loss_landscape(m, data, points=5) for m in (model, scaled))
    assert np.array(two.losses) == pytest.approx(np.array(one.losses), rel=1e-5)


class Stopped(Exception):
    pass


class Counted:
    """cross_entropy that counts its calls, and stops at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls, self.stop = 0, stop

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.stop:
            raise Stopped
        return cross_entropy(logits, labels)


@pytest.mark.parametrize("stop", [2, 9, 20])
def test_a_stopped_landscape_goes_on_where_it_stood(tmp_path: Path, stop: int) -> None:
    model, data, cache = perceptron(), samples(6, sizes=(8,)), tmp_path / "cache.json"
    wanted = loss_landscape(model, data, Counted(), points=5)
    with pytest.raises(Stopped):
        loss_landscape(model, data, Counted(stop), points=5, cache=cache)
    resumed = Counted()
    assert loss_landscape(model, data, resumed, points=5, cache=cache) == wanted
    assert resumed.calls == 1 + 25 - (stop - 2)  # one more for the centre, which is asked first
    again = Counted()
    assert loss_landscape(model, data, again, points=5, cache=cache) == wanted
    assert again.calls == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"points": 5},
        {"reach": 0.5},
        {"normalisation": "layer"},
        {"dimensions": 1},
        {"mode": "fixed-bn"},
        {"samples": 7},
        {"loss": nn.functional.nll_loss},
        {"loss": lambda f, y: 2 * cross_entropy(f, y)},
        {"model": perceptron()},
        {"batches": samples(6)},
        {"to": perceptron(), "points": 5},
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"model": perceptron(), "batches": samples(6), "points": 3, "cache": tmp_path / "cache"}
    loss_landscape(**arguments)
    before = (tmp_path / "cache").read_bytes()
    with pytest.raises(ValueError, match=r"cache must be of these weights, samples and options; .* is of others"):
        loss_landscape(**(arguments | other))
    assert (tmp_path / "cache").read_bytes() == before


def test_a_cache_of_a_loss_of_the_same_name_is_refused(tmp_path: Path) -> None:
    model, data = perceptron(), samples(6)
    one, two = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.5)
    loss_landscape(model, data, one, points=3, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="cache must be of these weights, samples and options"):
        loss_landscape(model, data, two, points=3, cache=tmp_path / "cache")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"about": 1}', '{"about": "x", "losses": [[0]]}', "\xff"])
def test_a_broken_cache_is_refused_and_left(tmp_path: Path, content: str) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"cache must be a file of this function's; .* is not, or broken"):
        loss_landscape(perceptron(), samples(6), points=3, cache=cache)
    assert cache.read_bytes() == content.encode("latin-1")


def test_a_truncated_cache_is_refused(tmp_path: Path) -> None:
    model, data, cache = perceptron(), samples(6), tmp_path / "cache"
    loss_landscape(model, data, points=3, cache=cache)
    cache.write_bytes(cache.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not, or broken"):
        loss_landscape(model, data, points=3, cache=cache)


def test_points_far_off_may_be_infinite(tmp_path: Path) -> None:
    model, data = perceptron(), samples(6, sizes=(8,))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.exp(100 * logits.abs().mean())

    first, again = (
        loss_landscape(model, data, loss, points=5, reach=4, cache=tmp_path / "cache", progress=False) for _ in range(2)
    )
    values = [value for row in first.losses for value in row]
    assert 0 < first.nonfinite < 25
    assert first.nonfinite == sum(not math.isfinite(value) for value in values)
    assert first == again
    first.plot(tmp_path / "plane.png")
    assert (tmp_path / "plane.png").read_bytes()[:4] == b"\x89PNG"
    loaded = json.loads(json.dumps(json_ready(first.to_dict()), allow_nan=False))
    assert loaded["nonfinite"] == sum(value is None for row in loaded["losses"] for value in row)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimensions": 3}, "dimensions must be 1 or 2; got 3"),
        ({"points": 4}, "points must be odd and >= 3"),
        ({"points": 1}, "points must be odd and >= 3"),
        ({"points": 7, "to": perceptron()}, "points must be 5, 9, 13, ... between checkpoints"),
        ({"reach": 0}, "reach must be > 0 and finite; got 0"),
        ({"reach": math.inf}, "reach must be > 0 and finite; got inf"),
        ({"normalisation": "batch"}, "normalisation must be one of"),
        ({"loss": lambda f, y: f.mean() * math.nan}, "loss must be finite at the model's weights; got nan"),
        ({"batches": []}, "batches must give at least one batch"),
    ],
)
def test_bad_arguments_of_landscapes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_landscape(**({"model": perceptron(), "batches": samples(6), "points": 5} | arguments))


@pytest.mark.parametrize("losses", [(2.0, 1.0, 3.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-2.0, -1.0, -3.0)])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_landscapes_are_pictures_and_json(tmp_path: Path, dimensions: int, losses: tuple[float, ...]) -> None:
    rows = (torch.tensor([[1.0, 1.5, 2.0]]) if dimensions == 2 else torch.ones(1, 1)) * torch.tensor(losses)[:, None]
    protocol = loss_landscape(perceptron(), samples(6), points=3, dimensions=1).protocol
    second = (-1.0, 0.0, 1.0) if dimensions == 2 else (0.0,)
    found = Landscape((-1.0, 0.0, 1.0), second, tuple(map(tuple, rows.tolist())), ("one", "two")[:dimensions], protocol)
    found.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(json.dumps(json_ready(found.to_dict()), allow_nan=False))["losses"] == rows.tolist()


MATRIX = torch.tensor([[2.0, 1.0, 0.0], [1.0, -1.0, 0.5], [0.0, 0.5, 3.0]])
AT = torch.tensor([1.0, -2.0, 0.5])


def test_smoothness_of_a_quadratic_is_that_by_hand() -> None:
    steps = (0.3, 0.05, 0.1)
    found = smoothness(Quadratic(MATRIX, AT.clone()), ANYTHING, mean, steps=steps)
    g = MATRIX @ AT
    assert found.loss == pytest.approx(float(AT @ g / 2), rel=1e-6)
    assert found.gradient_norm == pytest.approx(float(g.norm()), rel=1e-6)
    assert found.steps == (0.05, 0.1, 0.3)
    losses = [found.loss]
    for s, value, change, cosine in zip(found.steps, found.losses, found.gradient_changes, found.cosines, strict=True):
        there = AT - s * g
        after = MATRIX @ there
        losses.append(float(there @ after / 2))
        assert value == pytest.approx(losses[-1], rel=1e-5)
        assert change == pytest.approx(float(s * (MATRIX @ g).norm()), rel=1e-5)
        assert cosine == pytest.approx(float(after @ g / after.norm() / g.norm()), rel=1e-5)
    assert found.beta == pytest.approx(float((MATRIX @ g).norm() / g.norm()), rel=1e-5)
    assert found.loss_range == pytest.approx((min(losses), max(losses)), rel=1e-5)
    assert found.gradient_range == pytest.approx(
        (float(0.05 * (MATRIX @ g).norm()), float(0.3 * (MATRIX @ g).norm())), rel=1e-5
    )


def test_smoothness_of_a_network_is_that_by_hand() -> None:
    model, data = perceptron(), samples(6)

    def at(network: nn.Module) -> tuple[float, list[Tensor]]:
        x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
        value = cross_entropy(network.eval()(x), y)
        return value.item(), [*torch.autograd.grad(value, [*network.parameters()])]

    found = smoothness(model, data, steps=[0.5], batch=4)
    loss, g = at(model)
    there, after = at(with_weights(model, [p - 0.5 * s for p, s in zip(weights_of(model), g, strict=True)]))
    change = norm([a - b for a, b in zip(after, g, strict=True)])
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.losses == pytest.approx((there,), rel=1e-5)
    assert found.gradient_changes == pytest.approx((change,), rel=1e-3)
    assert found.beta == pytest.approx(change / (0.5 * norm(g)), rel=1e-3)


def test_at_a_minimum_nothing_changes() -> None:
    found = smoothness(Quadratic(MATRIX, torch.zeros(3)), ANYTHING, mean)
    assert found.beta == found.loss == found.gradient_norm == 0
    assert set(found.losses) == set(found.gradient_changes) == {0.0}
    assert all(map(math.isnan, found.cosines))


def test_steps_too_long_for_a_finite_loss_are_left_out_of_ranges(tmp_path: Path) -> None:
    model = Quadratic(torch.eye(3), torch.ones(3))

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.exp(outputs.mean())

    found = smoothness(model, ANYTHING, loss, steps=(0.01, 1e3, 1e30))
    assert math.isfinite(found.losses[0])
    assert not any(map(math.isfinite, found.losses[1:]))
    assert all(map(math.isnan, (*found.gradient_changes[1:], *found.cosines[1:])))
    assert found.loss_range == (found.losses[0], found.loss)
    assert found.gradient_range == (found.gradient_changes[0],) * 2
    assert found.beta == pytest.approx(found.gradient_changes[0] / (0.01 * found.gradient_norm))
    never = smoothness(model, ANYTHING, loss, steps=(1e30,))
    assert math.isnan(never.beta)
    assert all(map(math.isnan, never.gradient_range))
    for number, one in enumerate((found, never)):
        one.plot(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes()[:4] == b"\x89PNG"
        loaded = json.loads(json.dumps(json_ready(one.to_dict()), allow_nan=False))
        assert loaded["beta"] == (None if number else found.beta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": ()}, "steps must be > 0 and finite, at least one; got"),
        ({"steps": (0.1, 0.0)}, "steps must be > 0 and finite"),
        ({"steps": (math.inf,)}, "steps must be > 0 and finite"),
        ({"steps": (math.nan,)}, "steps must be > 0 and finite"),
        ({"loss": lambda f, y: f.mean() * math.nan}, "loss must be finite on the 13 samples; got nan"),
    ],
)
def test_bad_arguments_of_smoothness_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smoothness(**({"model": perceptron(), "batches": samples(6)} | arguments))


class Matrices(nn.Module):
    """A wide, a tall, a convolution's and a rank-deficient matrix, one of one row, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 2)
        self.wide, self.tall, self.row = nn.Linear(12, 5), nn.Linear(5, 9), nn.Linear(9, 1)
        self.deficient, self.head = nn.Linear(9, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.deficient.weight.copy_(torch.randn(6, 2) @ torch.randn(2, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.convolution(x)).flatten(1)
        x = torch.tanh(self.tall(torch.tanh(self.wide(x))))
        return self.head(torch.tanh(self.deficient(x * self.row(x))))


NAMES = [f"{name}.weight" for name in ("convolution", "wide", "tall", "deficient")]


def shares(weight: Tensor, gradient: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """By the eigenvectors of W W'; what lies outside of the range of a tall W comes last, in one."""
    w, g = (t.detach().double().flatten(1).numpy() for t in (weight, gradient))
    squares, vectors = np.linalg.eigh(w @ w.T)
    energies = ((vectors.T @ g) ** 2).sum(1)[::-1] / (g**2).sum()
    known = min(w.shape)
    outside = [energies[known:].sum()] if len(w) > known else []
    return np.array([*energies[:known], *outside]), np.sqrt(squares.clip(min=0))[::-1][:known]


@pytest.mark.parametrize("other", [False, True], ids=["own", "of"])
def test_energies_are_the_gradients_on_singular_directions(other: bool) -> None:
    model, data = Matrices(), samples(1, 3, 3)
    weights = Matrices().state_dict() if other else model.state_dict()
    found = gradient_energy(model, data, of=weights if other else None)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    value = cross_entropy(model(x), y)
    value.backward()
    assert found.loss == pytest.approx(value.item(), rel=1e-5)
    assert [*found.energies] == [*found.norms] == [*found.singular_values] == NAMES
    for name, p in model.named_parameters():
        if name not in NAMES:
            continue
        energies, values = shares(weights[name], p.grad)
        assert sum(found.energies[name]) == pytest.approx(1, abs=1e-9)
        assert found.singular_values[name] == pytest.approx(values, rel=1e-4, abs=1e-5)
        assert found.norms[name] == pytest.approx(float(p.grad.norm()), rel=1e-4)
        place = (
            slice(0, 2) if name.startswith("deficient") else slice(None)
        )  # the others have no direction of their own
        assert np.array(found.energies[name])[place] == pytest.approx(energies[place], rel=1e-3, abs=1e-6)
        assert found.rows[name] == len(p)
        assert found.principal[name] == pytest.approx(found.energies[name][0] * len(p))
        assert found.top_tenth[name] == pytest.approx(found.principal[name])  # of few directions a tenth is one


def test_the_first_tenth_is_a_mean_of_shares() -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 3))
    found = gradient_energy(model, samples(30), head="1")
    assert [*found.energies] == ["0.weight"]
    assert len(found.energies["0.weight"]) == 30 + 1
    assert found.top_tenth["0.weight"] == pytest.approx(sum(found.energies["0.weight"][:3]) / 3 * 40)
    assert found.energies["0.weight"][-1] > 0


def test_a_gradient_along_the_first_direction_has_all_energy_there() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0]))[:3])
        model[1].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    found = gradient_energy(model, samples(4), lambda f, y: f.sum(1).mean(), head="1")
    assert found.energies["0.weight"] == pytest.approx((1.0, 0.0, 0.0), abs=1e-12)
    assert found.principal["0.weight"] == pytest.approx(3)


def test_frozen_matrices_have_no_energy_and_heads_may_be_named() -> None:
    model = Matrices()
    model.wide.requires_grad_(False)
    assert "wide.weight" not in gradient_energy(model, samples(1, 3, 3)).energies
    assert "deficient.weight" not in gradient_energy(model, samples(1, 3, 3), head="deficient").energies
    assert "deficient.weight" not in gradient_energy(model, samples(1, 3, 3), head=[model.deficient]).energies


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_do_not_count(wrap: Any) -> None:
    model, data = Matrices(), samples(1, 3, 3)
    assert gradient_energy(wrap(model), data) == gradient_energy(model, data)
    assert smoothness(wrap(model), data) == smoothness(model, data)
    assert loss_landscape(wrap(model), data, to=wrap(Matrices()), points=5, dimensions=1).first[1] == 0


def test_bad_arguments_of_energies_are_named() -> None:
    model, data = Matrices(), samples(1, 3, 3)
    with pytest.raises(ValueError, match=r"of must hold convolution.weight of shape \[3, 1, 2, 2\]; got nothing"):
        gradient_energy(model, data, of={})
    other = model.state_dict() | {"wide.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"of must hold wide.weight of shape \[5, 12\]; got \[2, 2\]"):
        gradient_energy(model, data, of=other)
    with pytest.raises(ValueError, match="model must have a weight matrix with a gradient outside of its head"):
        gradient_energy(nn.Sequential(nn.Linear(6, 3)), samples(6), head="0")


def test_energies_are_pictures_and_json(tmp_path: Path) -> None:
    found = gradient_energy(Matrices(), samples(1, 3, 3))
    found.plot(tmp_path / "one.png")
    some = {"one": found, "two": gradient_energy(Matrices(), samples(1, 3, 3), head="deficient")}
    plot_gradient_energy(some, tmp_path / "two.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("one.png", "two.png"))
    loaded = json.loads(json.dumps(json_ready(found.to_dict()), allow_nan=False))
    assert loaded["principal"] == found.principal
