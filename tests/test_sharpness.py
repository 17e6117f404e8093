"""The loss as a function of weights, its Hessian against dense float64 ones; and that to measure changes nothing."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

from pytl.analysis import (
    Objective,
    distance,
    forgetting,
    gradient_energy,
    gradient_norms,
    linear_transfer,
    loss_landscape,
    sharpness,
    smoothness,
    stage_sweep,
)
from pytl.files import json_ready
from pytl.intervals import interval

pytestmark = pytest.mark.usefixtures("one_thread")

Data = list[tuple[Tensor, Tensor]]


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.stem(x))).mean((2, 3))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).unflatten(-1, (2, 9)).transpose(1, 2).split(3, -1)
        return self.head(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


class Answering(nn.Module):
    """Called by keywords, answers with an object."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, *, values: Tensor, scale: float) -> Any:
        return SimpleNamespace(logits=self.head(torch.tanh(scale * self.inner(values))))


class Quadratic(nn.Module):
    """Its every output is ``w' A w / 2``."""

    def __init__(self, matrix: Tensor, at: Tensor | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(matrix)) if at is None else at)
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return (self.w @ self.matrix @ self.w / 2).expand(len(x))


def mean(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.mean()


ANYTHING = [(torch.zeros(4, 1), torch.zeros(4))]


def perceptron(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths[:-1])]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def samples(*shape: int, sizes: tuple[int, ...] = (8, 5), classes: int = 3) -> Data:
    return [(torch.randn(n, *shape), torch.randint(0, classes, (n,))) for n in sizes]


def symmetric(eigenvalues: Tensor) -> Tensor:
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))[0]
    return (basis @ torch.diag(eigenvalues.double()) @ basis.T).float()


def function(model: nn.Module, data: Data, loss: Any = cross_entropy) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The mean loss as a function of all trained weights in one vector, float64, and where they are."""
    network = copy.deepcopy(model).double().eval()
    named = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def of(w: Tensor) -> Tensor:
        pieces = w.split([p.numel() for p in named.values()])
        weights = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return loss(functional_call(network, weights, (x.double(),)), y)

    return of, torch.cat([p.flatten() for p in named.values()])


def dense(model: nn.Module, data: Data) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(*function(model, data))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten().double() for t in tensors])


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: perceptron(8, 9, 3), (8,)), (Convolutional, (1, 6, 6)), (Tied, (6,)), (Attention, (4, 6))],
    ids=["perceptron", "convolutional", "tied", "attention"],
)
def test_eigenvalues_are_those_of_the_dense_hessian(make: Any, shape: tuple[int, ...], top: int) -> None:
    model, data = make(), samples(*shape)
    wanted = torch.linalg.eigvalsh(dense(model, data)).flip(0)[:top].tolist()
    found = sharpness(model, data, top=top, trace=None)
    assert found.eigenvalues == pytest.approx(wanted, rel=1e-4)
    assert found.trace is None
    assert found.weights == sum(p.numel() for p in model.parameters())
    assert len(found.residuals) == top
    assert max(found.residuals) < 1e-3 * max(map(abs, wanted))


def test_eigenvalues_of_a_larger_network_are_those_of_an_independent_iteration() -> None:
    model, data = perceptron(64, 64, 64, 10), samples(64, sizes=(32,), classes=10)
    of, at = function(model, data)

    def apply(v: np.ndarray) -> np.ndarray:
        return jvp(grad(of), (at,), (torch.from_numpy(v.ravel().copy()),))[1].detach().numpy()

    operator = scipy.sparse.linalg.LinearOperator((len(at), len(at)), matvec=apply, dtype=np.float64)
    wanted = scipy.sparse.linalg.eigsh(operator, 3, which="LA", tol=1e-9, return_eigenvectors=False)
    found = sharpness(model, data, top=3, trace=None)
    assert found.weights > 8000
    assert found.eigenvalues == pytest.approx(sorted(wanted, reverse=True), rel=1e-3)


def test_trace_lies_in_its_interval_in_most_seeds() -> None:
    matrix = symmetric(torch.cat([torch.linspace(-0.5, 1.5, 76), torch.tensor([4.0, 8.0, 16.0, -3.0])]))
    wanted, found = float(matrix.trace()), []
    for seed in range(200):
        one = sharpness(Quadratic(matrix), ANYTHING, mean, trace=18, seed=seed).trace
        assert one is not None
        found.append(one)
    assert 180 <= sum(one.low <= wanted <= one.high for one in found) <= 200
    means = interval([one.mean for one in found])
    assert abs(means.mean - wanted) < 2 * means.half_width


def test_traces_interval_narrows_with_products_around_the_dense_trace() -> None:
    model, data = perceptron(8, 9, 3), samples(8)
    wanted = float(dense(model, data).trace())
    few, many = (sharpness(model, data, trace=count, seed=1).trace for count in (12, 3 * 111))
    assert few is not None
    assert many is not None
    assert many.half_width < few.half_width
    assert many.mean == pytest.approx(wanted, rel=1e-3)  # the sketch spans the space


@pytest.mark.parametrize("model", [perceptron(4, 5, 3), nn.Linear(15, 4), nn.Linear(1, 1)], ids=["43", "64", "2"])
def test_of_tiny_networks_all_is_exact(model: nn.Module) -> None:
    width = next(model.parameters()).shape[1]
    data = samples(width) if width > 1 else [(torch.randn(6, 1), torch.zeros(6, dtype=torch.int64))]
    whole = dense(model, data)
    found = sharpness(model, data, top=2)
    assert found.eigenvalues == pytest.approx(torch.linalg.eigvalsh(whole).flip(0)[:2].tolist(), rel=1e-4, abs=1e-6)
    assert found.trace is not None
    assert found.trace.low == found.trace.mean == found.trace.high
    assert found.trace.mean == pytest.approx(float(whole.trace()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [10, 100])
@pytest.mark.parametrize("sign", [1, -1])
def test_of_a_quadratic_they_are_its_own(size: int, sign: int) -> None:
    eigenvalues = sign * torch.arange(1.0, size + 1)
    eigenvalues[0] *= -1
    found = sharpness(Quadratic(symmetric(eigenvalues)), ANYTHING, mean, top=3, trace=3 * size)
    assert found.eigenvalues == pytest.approx(eigenvalues.sort(descending=True)[0][:3].tolist(), rel=1e-4)
    assert found.trace is not None
    assert found.trace.mean == pytest.approx(float(eigenvalues.sum()), rel=1e-4)


def test_of_linear_networks_they_are_those_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0], [1.0, -2.0]])
    one = nn.Linear(2, 1, bias=False)
    found = sharpness(one, [(x, torch.zeros(4, 1))], lambda f, y: (f - y).square().mean() / 2, top=2)
    assert found.eigenvalues == pytest.approx((3.0, 0.75))  # of X'X / 4 = diag(3, 12) / 4

    two = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer, value in zip(two, (2.0, 3.0), strict=True):
        nn.init.constant_(layer.weight, value)
    data = [(torch.ones(1, 1), torch.full((1, 1), 5.0))]
    found = sharpness(two, data, lambda f, y: (f - y).square().mean() / 2, top=2)
    root = math.sqrt(5**2 + 4 * 7**2)  # the Hessian is [[b^2, 2 a b - y], [2 a b - y, a^2]] = [[9, 7], [7, 4]]
    assert found.eigenvalues == pytest.approx(((13 + root) / 2, (13 - root) / 2), rel=1e-5)
    assert found.trace is not None
    assert found.trace.mean == pytest.approx(13)
    assert found.loss == pytest.approx(0.5)


@pytest.mark.parametrize("top", [64, 65])
def test_all_eigenvalues_may_be_asked_for(top: int) -> None:
    eigenvalues = torch.arange(1.0, 66.0)
    found = sharpness(Quadratic(torch.diag(eigenvalues)), ANYTHING, mean, top=top, trace=None)
    assert found.eigenvalues == pytest.approx(eigenvalues.flip(0)[:top].tolist(), rel=1e-4)


def test_a_hessian_of_zeros_has_eigenvalues_0_and_trace_0() -> None:
    found = sharpness(nn.Linear(40, 3), samples(40), mean, trace=12)
    assert found.eigenvalues == (0.0,)
    assert found.trace is not None
    assert found.trace.mean == 0


def test_seeds_reproduce_and_differ() -> None:
    model, data = perceptron(8, 9, 3), samples(8)
    first, again, other = (sharpness(model, data, seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == again
    assert first["trace"] != other["trace"]


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            num_labels=3,
        )
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=8,
            num_labels=3,
            pad_token_id=0,
        )
    )


def tokens() -> list[dict[str, Any]]:
    found = []
    for count in (4, 3):
        mask = torch.ones(count, 5, dtype=torch.int64)
        mask[0, 3:] = 0
        ids = torch.randint(1, 20, (count, 5)) * mask
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (count,))})
    return found


def frozen() -> nn.Module:
    model = perceptron(6, 5, 3)
    model[0].requires_grad_(False)
    return model


def keywords() -> list[dict[str, Any]]:
    return [{"values": x, "scale": 0.5, "labels": y} for x, y in samples(6)]


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "perceptron": (lambda: perceptron(6, 5, 3), lambda: samples(6)),
    "convolutional": (Convolutional, lambda: samples(1, 6, 6)),
    "frozen": (frozen, lambda: samples(6)),
    "tied": (Tied, lambda: samples(6)),
    "attention": (Attention, lambda: samples(4, 6)),
    "keywords and an object": (Answering, keywords),
    "bfloat16": (lambda: perceptron(6, 5, 3).bfloat16(), lambda: [(x.bfloat16(), y) for x, y in samples(6)]),
    "BERT": (bert, tokens),
    "Llama": (llama, tokens),
}


def by_hand(model: nn.Module, data: Any, steps: list[Tensor] | None = None) -> tuple[float, list[Tensor]]:
    """Loss and gradient of all samples in float64, at the trained weights plus these steps."""
    network = copy.deepcopy(model).double().eval()
    trained = [p for p in network.parameters() if p.requires_grad]
    total = 0.0
    count = sum(len(one["labels"] if isinstance(one, dict) else one[1]) for one in data)
    with torch.no_grad():
        for p, step in zip(trained, steps or (), strict=bool(steps)):
            p.add_(step)
    for p in trained:
        p.grad = None
    for one in data:
        keywords = dict(one) if isinstance(one, dict) else {}
        labels = keywords.pop("labels") if keywords else one[1]
        floating = {name: x.double() for name, x in keywords.items() if torch.is_tensor(x) and x.is_floating_point()}
        output = network(**(keywords | floating)) if keywords else network(one[0].double())
        value = cross_entropy(getattr(output, "logits", output), labels, reduction="sum") / count
        value.backward()
        total += value.item()
    return total, [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]


@pytest.mark.parametrize("kind", KINDS)
def test_value_gradient_and_product_are_those_by_hand(kind: str) -> None:
    make, gather = KINDS[kind]
    model, data = make(), gather()
    objective = Objective(model, data, dtype=torch.float64)
    value, gradient = objective.gradient()
    wanted, slopes = by_hand(model, data)
    assert all(w.dtype == torch.float64 for w in objective.start)
    assert value == objective.value() == pytest.approx(wanted, rel=1e-6)
    scale = flat(slopes).norm()
    assert (flat(gradient) - flat(slopes)).norm() < 1e-5 * scale
    vector = [torch.randn_like(w) for w in objective.start]
    h = 1e-3
    ends = [by_hand(model, data, [sign * h * v for v in vector])[1] for sign in (1, -1)]
    difference = (flat(ends[0]) - flat(ends[1])) / (2 * h)
    # Llama's norms compute in float32, whatever their inputs are
    assert (flat(objective.hessian_product(vector)) - difference).norm() < 1e-2 * difference.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_the_whole_batch(kind: str) -> None:
    make, gather = KINDS[kind]
    model, data = make(), gather()
    whole, parts = Objective(model, data), Objective(model, data, batch=3)
    assert parts.protocol.at_a_time == 3
    assert whole.protocol.at_a_time > 3
    assert all(w.dtype == torch.float32 for w in parts.start)
    assert parts.value() == pytest.approx(whole.value(), rel=1e-5)
    assert parts.gradient()[0] == pytest.approx(parts.value(), rel=1e-5)
    vector = [torch.randn_like(w) for w in whole.start]
    for found, wanted in (
        (parts.gradient()[1], whole.gradient()[1]),
        (parts.hessian_product(vector), whole.hessian_product(vector)),
    ):
        assert (flat(found) - flat(wanted)).norm() <= 1e-4 * flat(wanted).norm()


def test_batches_of_other_sizes_are_one_batch() -> None:
    model, data = perceptron(6, 5, 3), samples(6, sizes=(8, 5, 1))
    together = [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]
    assert Objective(model, data).value() == pytest.approx(Objective(model, together).value(), rel=1e-6)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 13, 100])
def test_the_first_samples_are_taken(count: int) -> None:
    model, data = perceptron(6, 5, 3), samples(6)
    x, y = (torch.cat(parts)[:count] for parts in zip(*data, strict=True))
    objective = Objective(model, data, samples=count)
    assert objective.protocol.samples == min(count, 13)
    assert objective.value() == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-6)


def test_no_more_batches_are_read_than_samples_are_taken() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        yield from samples(6, sizes=(4, 4))
        raise AssertionError("read too far")

    assert Objective(perceptron(6, 5, 3), endless(), samples=8).protocol.samples == 8


def test_other_weights_are_taken_as_they_are() -> None:
    model, data = perceptron(6, 5, 3), samples(6)
    objective, there = Objective(model, data), perceptron(6, 5, 3)
    weights = [p.detach() for p in there.parameters()]
    assert objective.value(weights) == Objective(there, data).value()
    assert objective.gradient(weights)[0] == Objective(there, data).gradient()[0]
    assert torch.equal(
        flat(objective.hessian_product(weights, weights)), flat(Objective(there, data).hessian_product(weights))
    )


@pytest.mark.parametrize("train", [True, False])
def test_fixed_statistics_are_the_mean_over_batches(train: bool) -> None:
    model, data = Convolutional().train(train), samples(1, 6, 6)
    by_batch = [model.stem(x).transpose(0, 1).flatten(1).detach() for x, _ in data]
    hand = copy.deepcopy(model).eval()
    hand.norm.running_mean = torch.stack([of.mean(1) for of in by_batch]).mean(0)
    hand.norm.running_var = torch.stack([of.var(1) for of in by_batch]).mean(0)
    wanted = Objective(hand, data)
    found = Objective(model, data, mode="fixed-bn")
    assert found.protocol.mode == "fixed-bn"
    assert found.value() == pytest.approx(wanted.value(), rel=1e-5)
    torch.testing.assert_close(flat(found.gradient()[1]), flat(wanted.gradient()[1]), rtol=1e-4, atol=1e-6)
    assert abs(found.value() - Objective(model, data).value()) > 1e-4
    elsewhere = [w + 0.1 for w in found.start]
    assert found.value(elsewhere) == pytest.approx(wanted.value(elsewhere), rel=1e-5)
    assert model.norm.momentum == 0.1


def test_noise_of_the_networks_own_is_the_same_in_each_pass() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(x, 0.5, training=True))

    objective = Objective(Noisy(), samples(6))
    state = torch.get_rng_state()
    assert len({objective.value() for _ in range(3)} | {objective.gradient()[0]}) == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_losses_on_numbers_are_taken(dtype: torch.dtype | None) -> None:
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    found = sharpness(model, [(x, torch.randn(8, 1))], mse_loss, top=4, dtype=dtype)
    ones = torch.cat([x, torch.ones(8, 1)], 1)
    wanted = torch.linalg.eigvalsh(2 * ones.T @ ones / 8).flip(0)
    assert found.eigenvalues == pytest.approx(wanted.tolist(), rel=1e-4)


def test_recurrent_networks_have_a_hessian() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x)[0][:, -1])

    model, data = Recurrent(), samples(5, 3)
    objective = Objective(model, data, dtype=torch.float64)
    vector = [torch.randn_like(w) for w in objective.start]
    ends = [by_hand(model, data, [sign * 1e-4 * v for v in vector])[1] for sign in (1, -1)]
    difference = (flat(ends[0]) - flat(ends[1])) / 2e-4
    assert (flat(objective.hessian_product(vector)) - difference).norm() < 1e-5 * difference.norm()


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off_they_are_the_same(guard: Any) -> None:
    model, data = perceptron(6, 5, 3), samples(6)
    wanted = Objective(model, data).gradient()
    with guard():
        found = Objective(model, data).gradient()
    assert found[0] == wanted[0]
    assert torch.equal(flat(found[1]), flat(wanted[1]))


def state_of(model: nn.Module, loader: DataLoader[Any]) -> dict[str, Any]:
    """All that a measure must leave, as bytes and plain values."""
    numpy = np.random.get_state(legacy=True)
    return {
        "tensors": {name: (t.data_ptr(), t.numpy().tobytes()) for name, t in model.state_dict().items()},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for n, p in model.named_parameters()
        },
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "momenta": {name: getattr(module, "momentum", None) for name, module in model.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (numpy[1].tobytes(), numpy[2:]),  # type: ignore[union-attr, index]
        "python": random.getstate(),
        "loader": None if loader.generator is None else loader.generator.get_state().numpy().tobytes(),
        "enabled": torch.is_grad_enabled(),
    }


def _sweep(model: nn.Module, loader: DataLoader[Any], folder: Path) -> None:
    for name in ("start.pt", "step-000002.pt"):
        torch.save(model.state_dict(), folder / name)
    stage_sweep(folder, lambda: copy.deepcopy(model), linear_transfer(loader, loader))


MEASURES: dict[str, Callable[[nn.Module, DataLoader[Any], Path], Any]] = {
    "sharpness": lambda model, loader, _: sharpness(model, loader, trace=6),
    "sharpness, fixed-bn": lambda model, loader, _: sharpness(model, loader, trace=None, mode="fixed-bn", batch=3),
    "landscape": lambda model, loader, folder: loss_landscape(model, loader, points=3, cache=folder / "cache.json"),
    "line": lambda model, loader, _: loss_landscape(model, loader, to=copy.deepcopy(model), points=5, dimensions=1),
    "smoothness": lambda model, loader, _: smoothness(model, loader),
    "gradient_energy": lambda model, loader, _: gradient_energy(model, loader),
    "distance": lambda model, loader, _: distance(model, copy.deepcopy(model)),
    "forgetting, before": lambda model, loader, _: forgetting(model, copy.deepcopy(model), loader),
    "forgetting, after": lambda model, loader, _: forgetting(copy.deepcopy(model), model, loader, batch=2),
    "gradient_norms": lambda model, loader, _: gradient_norms(model, loader),
    "stage_sweep": _sweep,
}


@pytest.mark.parametrize("own", [True, False], ids=["generator", "no generator"])
@pytest.mark.parametrize("measure", MEASURES)
def test_to_measure_changes_nothing(measure: str, own: bool, tmp_path: Path) -> None:
    model = Convolutional().train()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.head(torch.randn(2, 3)).sum().backward()
    assert model.head.weight.grad is not None
    assert model.stem.weight.grad is None
    x, y = samples(1, 6, 6, sizes=(10,))[0]
    generator = torch.Generator().manual_seed(3) if own else None
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=generator)
    before = state_of(model, loader)
    MEASURES[measure](model, loader, tmp_path)
    after = state_of(model, loader)
    assert [key for key in before if before[key] != after[key]] == []


class Greedy(nn.Module):
    """Runs out of memory above so many samples."""

    def __init__(self, most: int, error: BaseException) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.most, self.error = most, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error
        return self.head(torch.tanh(self.norm(self.inner(x))))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "CPU", "Python"])
@pytest.mark.parametrize(("most", "halvings", "left"), [(3, 2, 2), (2, 2, 2), (1, 3, 1), (7, 1, 4)])
def test_where_memory_runs_out_fewer_samples_give_the_same(
    error: BaseException, most: int, halvings: int, left: int
) -> None:
    model, data = Greedy(100, error), samples(6)
    wanted = sharpness(model, data, top=2)
    model.most = most
    with pytest.warns(RuntimeWarning, match="memory ran out with 8 samples at a time: going on with 4"):
        found = sharpness(model, data, top=2)
    assert (found.protocol.halvings, found.protocol.at_a_time) == (halvings, left)
    assert (wanted.protocol.halvings, wanted.protocol.at_a_time) == (0, 8)
    assert found.eigenvalues == pytest.approx(wanted.eigenvalues, rel=1e-4)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert found.trace is not None
    assert wanted.trace is not None
    assert found.trace.mean == pytest.approx(wanted.trace.mean, rel=1e-4)
    assert f"halved {halvings} times" in str(found.protocol)


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_a_loss_that_runs_out_of_memory_is_halved_as_well() -> None:
    model, data = perceptron(6, 5, 3), samples(6)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cross_entropy(logits, labels)

    assert Objective(model, data, loss).value() == pytest.approx(Objective(model, data).value(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_forgetting_is_halved_as_well() -> None:
    model, data = Greedy(3, MemoryError()), samples(6)
    assert forgetting(model, model, data).samples == 13


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_memory_may_run_out_while_statistics_are_taken() -> None:
    assert math.isfinite(Objective(Greedy(4, MemoryError()), samples(6), mode="fixed-bn").value())


def test_so_many_at_a_time_is_kept_while_statistics_are_taken() -> None:
    assert math.isfinite(Objective(Greedy(4, MemoryError()), samples(6), mode="fixed-bn", batch=4).value())


@pytest.mark.filterwarnings("ignore:memory ran out")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "CPU", "Python"])
def test_one_sample_too_many_is_a_memory_error(error: BaseException) -> None:
    with pytest.raises(MemoryError, match="memory must hold one sample at a time"):
        Objective(Greedy(0, error), samples(6)).value()


def test_other_errors_pass_through_and_modes_come_back() -> None:
    model = Greedy(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")).train()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sharpness(model, samples(6))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sharpness(model, samples(6), mode="fixed-bn")
    assert all(module.training for module in model.modules())
    assert model.norm.momentum == 0.1


def exhausted() -> Iterator[tuple[Tensor, Tensor]]:
    found = iter(samples(6))
    list(found)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "batches must give at least one batch; got none: a generator gives its own only once"),
        ({"batches": exhausted()}, "batches must give at least one batch; got none"),
        ({"model": perceptron(6, 5, 3).requires_grad_(False)}, "model must have a parameter with requires_grad=True"),
        ({"mode": "train"}, "mode must be one of eval, fixed-bn; got 'train'"),
        ({"loss": lambda f, y: f.mean() * math.nan}, "loss must be finite on the 13 samples; got nan"),
        ({"loss": lambda f, y: f.mean() + math.inf}, "loss must be finite on the 13 samples; got inf"),
        ({"top": 0}, "top must be between 1 and the number of weights, 53; got 0"),
        ({"top": 54}, "top must be between 1 and the number of weights, 53; got 54"),
        ({"trace": 5}, "trace must be None or >= 6 products; got 5"),
        ({"trace": 0}, "trace must be None or >= 6 products; got 0"),
        ({"samples": 0}, "samples must be None or >= 1; got 0"),
        ({"batch": 0}, "batch must be None or >= 1; got 0"),
        ({"batches": [(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))]}, "batches must"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharpness(**({"model": perceptron(6, 5, 3), "batches": samples(6)} | arguments))


def test_what_lanczos_found_before_its_end_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = perceptron(8, 9, 3), samples(8)
    wanted = sharpness(model, data, top=3, trace=None).eigenvalues
    library = scipy.sparse.linalg
    real = library.eigsh

    def partial(operator: Any, k: int, **options: Any) -> Any:
        values, vectors = real(operator, k, **options)
        order = np.argsort(values)[1:]  # two of three, ascending
        raise library.ArpackNoConvergence("No convergence", values[order], vectors[:, order])

    monkeypatch.setattr(library, "eigsh", partial)
    found = sharpness(model, data, top=3, trace=12)
    assert found.eigenvalues == pytest.approx(wanted[:2], rel=1e-4)
    assert len(found.residuals) == 2
    assert max(found.residuals) < 1e-3
    assert found.trace is not None


def test_where_lanczos_finds_none_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    library = scipy.sparse.linalg
    real = library.eigsh
    monkeypatch.setattr(library, "eigsh", lambda *a, **k: real(*a, **(k | {"maxiter": 1, "tol": 0, "ncv": 2})))
    model = Quadratic(torch.diag(1 + 1e-3 * torch.rand(100)))
    with pytest.raises(ValueError, match=r"eigenvalues are not found after \d+ products"):
        sharpness(model, ANYTHING, mean)


def test_results_are_json_and_pictures(tmp_path: Path) -> None:
    model, data = perceptron(8, 9, 3), samples(8)
    for number, trace in enumerate((None, 6)):
        found = sharpness(model, data, top=3, trace=trace)
        found.plot(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes()[:4] == b"\x89PNG"
        loaded = json.loads(json.dumps(json_ready(found.to_dict()), allow_nan=False))
        assert loaded["eigenvalues"] == [*found.eigenvalues]
        assert loaded["protocol"] == {"samples": 13, "mode": "eval", "at_a_time": 8, "halvings": 0}
        assert (loaded["trace"] is None) == (trace is None)
