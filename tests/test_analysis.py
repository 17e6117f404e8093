"""Gradient norms by depth against autograd by hand, and that to look changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pytl
from pytl.analysis import GradientNorms, gradient_norms, plot_gradient_norms

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for _ in range(2))
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


BLOCKS = {"stem": ["stem"], "blocks.0": ["blocks.0.0", "blocks.0.1"], "blocks.1": ["blocks.1.0", "blocks.1.1"]}


def batches(sizes: tuple[int, ...] = (5, 2)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(n, 1, 6, 6), torch.randint(0, 3, (n,))) for n in sizes]


def expected(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Of the mean over all samples, in one pass and float64."""
    model = copy.deepcopy(model).double().eval()
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    cross_entropy(model(x.double()), y).backward()
    squares = {name: float(p.grad.square().sum()) for name, p in model.named_parameters() if p.grad is not None}
    return {
        block: sum(s for name, s in squares.items() if name.rpartition(".")[0] in modules) ** 0.5
        for block, modules in (BLOCKS | {"head": ["head"]}).items()
    }


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, torch.compile])
def test_norms_are_those_of_the_mean_loss_by_depth(wrap: Any) -> None:
    model, data = Network(), batches()
    found = gradient_norms(wrap(model), data)
    wanted = expected(model, data)
    assert [*found.norms] == [*wanted]
    assert found.norms == pytest.approx(wanted, rel=1e-5)
    assert found.samples == 7
    logits = torch.cat([model.eval()(x) for x, _ in data])
    assert found.loss == pytest.approx(float(cross_entropy(logits, torch.cat([y for _, y in data])).detach()), rel=1e-6)


def test_to_look_changes_nothing() -> None:
    model, data = Network().train(), batches()
    model.head(torch.randn(2, 4)).sum().backward()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradient = model.head.weight.grad.clone()
    with torch.no_grad():
        gradient_norms(model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.head.weight.grad, gradient)
    assert model.stem.weight.grad is None
    assert all(module.training for module in model.modules())


def test_frozen_blocks_have_no_norm_and_unused_ones_zero() -> None:
    model = Network()
    model.stem.requires_grad_(False)
    model.add_module("spare", nn.Linear(2, 2))
    norms = gradient_norms(model, batches(), head="spare").norms
    assert "stem" not in norms
    assert norms["head"] == 0


def test_mappings_other_losses_and_heads_are_taken() -> None:
    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.score = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, values: Tensor) -> Any:
            return type("Output", (), {"logits": self.score(self.inner(values))})()

    data = [{"values": torch.ones(4, 3), "labels": torch.zeros(4, dtype=torch.int64)}]
    found = gradient_norms(Answer(), data, lambda logits, labels: logits.square().mean())
    assert [*found.norms] == ["inner", "head"]
    assert min(found.norms.values()) > 0


def test_a_new_head_sends_gradients_deeper() -> None:
    """RIFLE's claim, where it must hold: a head that has learnt its batch by heart."""
    model, data = Network(), batches((8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rifle = pytl.RIFLE(model.head, optimizer, 400, 2, cyclic_lr=False)
    while not rifle.due:
        for x, y in data:
            cross_entropy(model.eval()(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        rifle.step()
    before = gradient_norms(model, data).norms
    rifle.step()
    after = gradient_norms(model, data).norms
    assert all(after[block] > before[block] for block in BLOCKS)


def test_plots_are_pictures(tmp_path: Path) -> None:
    found = GradientNorms({"stem": 0.1, "blocks.0": 0.0, "head": 2.0}, 1.5, 4)
    found.plot(tmp_path / "one.png")
    plot_gradient_norms({"before": found, "after": found}, tmp_path / "two.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("one.png", "two.png"))
    assert found.to_dict() == {"norms": found.norms, "loss": 1.5, "samples": 4}


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (Network().requires_grad_(False), batches(), "model must have a parameter with requires_grad=True; got none"),
        (Network(), [], "batches must give at least one batch; got none"),
        (Network(), [torch.ones(2)], "loader must give"),
    ],
)
def test_bad_arguments_are_named(model: nn.Module, data: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        gradient_norms(model, data)
