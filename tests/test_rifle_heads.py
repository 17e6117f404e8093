"""RIFLE on many kinds of head, on two ranks, and bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ranks import free_port, leave
from test_rifle import network, rates, trained
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import pytl

pytestmark = pytest.mark.usefixtures("one_thread")


def mlp() -> nn.Module:
    """With both kinds of normalisation; of one without parameters there is something to reset as well."""
    layers = [nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 3)]
    return nn.Sequential(*layers, nn.BatchNorm1d(3, affine=False))


def with_heads(**heads: nn.Module) -> Any:
    model = network()
    del model.head
    for name, head in heads.items():
        model.add_module(name, head)
    return model


def hugging_face(kind: str) -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    own = {"image_size": 8, "patch_size": 4} if kind == "ViT" else {"vocab_size": 20, "max_position_embeddings": 8}
    task = "ForImageClassification" if kind == "ViT" else "ForSequenceClassification"
    return getattr(transformers, kind + task)(getattr(transformers, kind + "Config")(**sizes, **own))


class Timm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last_linear = nn.Linear(3, 4), nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.last_linear


HEADS: dict[str, tuple[Callable[[], nn.Module], Any, set[str]]] = {  # model, head, the new parameters
    "found by name": (network, None, {"head.weight", "head.bias"}),
    "named": (network, "head", {"head.weight", "head.bias"}),
    "module": (network, lambda model: model.head, {"head.weight", "head.bias"}),
    "several names": (
        lambda: with_heads(first=nn.Linear(6, 2), second=nn.Linear(6, 3)),
        ["first", "second"],
        {"first.weight", "first.bias", "second.weight", "second.bias"},
    ),
    "a name and a module": (
        lambda: with_heads(first=nn.Linear(6, 2), second=nn.Linear(6, 3), third=nn.Linear(6, 3)),
        lambda model: ["first", model.third],
        {"first.weight", "first.bias", "third.weight", "third.bias"},
    ),
    "one within": (lambda: with_heads(head=mlp()), "head.4", {"head.4.weight", "head.4.bias"}),
    "compiled": (lambda: torch.compile(network(), backend="eager"), "head", {"head.weight", "head.bias"}),
    "compiled, found": (lambda: torch.compile(network(), backend="eager"), None, {"head.weight", "head.bias"}),
    "parallel": (lambda: nn.DataParallel(network()), "head", {"head.weight", "head.bias"}),
    "timm": (Timm, None, {"last_linear.weight", "last_linear.bias"}),
    "BERT": (lambda: hugging_face("Bert"), None, {"classifier.weight", "classifier.bias"}),
    "ViT": (lambda: hugging_face("ViT"), None, {"classifier.weight", "classifier.bias"}),
    "RoBERTa": (
        lambda: hugging_face("Roberta"),
        None,
        {f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")},
    ),
}


def grouped(model: nn.Module, head: Any, **options: Any) -> Any:
    return pytl.SGD(pytl.param_groups(model, head=head, verbose=False, **options), lr=0.1, momentum=0.9)


def values(model: nn.Module) -> dict[str, Tensor]:
    named = pytl.architecture.unwrapped(model).named_parameters()
    return {name: p.detach().clone() for name, p in named}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in values(model).items() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("case", HEADS)
def test_the_head_is_replaced_and_nothing_else(case: str) -> None:
    make, head, new = HEADS[case]
    model = make()
    head = head(model) if callable(head) and not isinstance(head, nn.Module) else head
    rifle = pytl.RIFLE(head, opt := grouped(model, head, sp_decay=0.1), 4, 2, model=model)
    for at in range(4):
        torch.stack([p.square().sum() for p in model.parameters()]).sum().backward()
        opt.step()
        opt.zero_grad()
        before = values(model)
        assert rifle.step() == (at == 1)
        assert changed(model, before) == (new if at == 1 else set())
    assert rates(opt)[-1] == 0
    assert rates(opt)[0] == 0.1


def test_several_modules_need_no_model() -> None:
    model = with_heads(first=nn.Linear(6, 2), second=nn.Linear(6, 3))
    opt = torch.optim.SGD(
        [{"params": [*part.parameters()]} for part in model.children() if [*part.parameters()]], lr=0.1
    )
    rifle = pytl.RIFLE((model.first, model.second), opt, 2, 2)
    before = values(model)
    assert rifle.step()
    assert changed(model, before) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert rates(opt) == [0.1, 0.1, 0.1]
    rifle.step()
    assert rates(opt) == [0.1, 0, 0]


# Initialisers


@pytest.mark.parametrize("init", ["reset_parameters", "normal", "kaiming"])
def test_normalisations_are_as_new_and_linear_layers_are_drawn(init: str) -> None:
    model = with_heads(head=mlp())
    rifle = pytl.RIFLE(model.head, grouped(model, "head"), 8, 2, init=init)
    assert trained(rifle, model, 4) == [4]
    first, norm, _, batch, last, bare = model.head
    for one in (norm, batch):
        assert (one.weight == 1).all()
        assert (one.bias == 0).all()
    for one in (batch, bare):
        assert (one.running_mean == 0).all()
        assert (one.running_var == 1).all()
        assert one.num_batches_tracked == 0
    for one in (first, last):
        assert (one.weight != 0).all()
        assert (one.bias == 0).all() == (init != "reset_parameters")


SPREADS = {"reset_parameters": (3 * 64) ** -0.5, "normal": 0.01, "kaiming": (2 / 64) ** 0.5}


@pytest.mark.parametrize("init", SPREADS)
def test_new_weights_are_spread_as_the_initialiser_says(init: str) -> None:
    """PyTorch draws uniformly in 1 / sqrt(64) for 64 inputs; Kaiming's variance is 2 / 64."""
    model = with_heads(head=nn.Linear(64, 512))
    rifle = pytl.RIFLE(model.head, grouped(model, "head"), 2, 2, init=init)
    assert rifle.step()
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    assert weight.std().item() == pytest.approx(SPREADS[init], rel=0.02)
    assert weight.mean().abs() < SPREADS[init] / 50
    assert (weight.abs().max() > 3 * SPREADS[init]) == (init != "reset_parameters")  # a normal draw has tails
    if init == "reset_parameters":
        assert 0 < bias.abs().max() <= 1 / 8
        assert weight.abs().max() <= 1 / 8
    else:
        assert (bias == 0).all()


def test_a_function_gets_each_head_without_gradients() -> None:
    def init(module: nn.Module) -> None:
        assert not torch.is_grad_enabled()
        seen.append(module)
        module.weight.fill_(3.0)

    model = with_heads(first=nn.Linear(6, 2), second=Scale(2))
    seen: list[nn.Module] = []
    rifle = pytl.RIFLE(["first", "second"], grouped(model, ["first", "second"]), 2, 2, init=init, model=model)
    assert rifle.step()
    assert seen == [model.first, model.second]
    assert (model.first.weight == 3).all()
    assert (model.second.weight == 3).all()


@pytest.mark.parametrize("init", ["normal", "kaiming"])
def test_drawn_matrices_need_no_reset_parameters(init: str) -> None:
    model = with_heads(head=Scale(3, 2))
    assert pytl.RIFLE(model.head, grouped(model, "head"), 2, 2, init=init).step()
    assert (model.head.weight != 1).all()


# Ranks

RANKED = [(init, reset_state) for init in ("reset_parameters", "normal", "kaiming") for reset_state in (False, True)]


def ranked(rank: int, init: str, reset_state: bool) -> dict[str, Any]:
    """The head's weights after each step, and where they were new."""
    torch.manual_seed(1)
    model = with_heads(head=nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)))
    wrapped = DistributedDataParallel(model)
    opt = grouped(wrapped, "head")
    rifle = pytl.RIFLE("head", opt, 6, 3, init=init, reset_state=reset_state, model=wrapped)
    torch.manual_seed(100 + rank)
    heads, resets = [], []
    for _ in range(6):
        wrapped(torch.randn(3, 4)).square().mean().backward()
        opt.step()
        opt.zero_grad()
        resets.append(rifle.step())
        heads.append([p.detach().clone() for p in model.head.parameters()])
    return {"heads": heads, "resets": resets, "random": torch.rand(4)}


def rank_main(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save([ranked(rank, *case) for case in RANKED], Path(folder, f"{rank}.pt"))
    leave()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(rank_main, (free_port(), str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", range(len(RANKED)), ids=str)
def test_two_ranks_hold_equal_heads_though_their_random_numbers_differ(two_ranks: list[Any], case: int) -> None:
    one, other = (rank[case] for rank in two_ranks)
    assert not torch.equal(one["random"], other["random"])
    assert one["resets"] == other["resets"] == [False, True, False, True, False, False]
    for ours, theirs in zip(one["heads"], other["heads"], strict=True):
        assert all(map(torch.equal, ours, theirs))


# Bad input


class Scale(nn.Module):
    """A layer that cannot initialise itself."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


def tied(bias: bool = True) -> Any:
    """As GPT's lm_head is tied to its word embeddings."""
    model = nn.Module()
    model.words, model.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias)
    model.head.weight = model.words.weight
    return model


TIED = "head must not share parameters{}: its weight is tied to another layer's, which would be re-initialised with it"
INITS = "init must be one of reset_parameters, normal, kaiming or a function; got "
LACKING = "head's modules must know reset_parameters, or init be a function; Scale do not"
BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {  # model, options -> the error
    "no period": (network, {"periods": 0}, "periods must be in [1, total_steps = 6]; got 0"),
    "too many periods": (network, {"periods": 7}, "periods must be in [1, total_steps = 6]; got 7"),
    "more periods than epochs": (network, {"steps_per_epoch": 3}, "periods must be in [1, epochs = 2]; got 3"),
    "no whole epochs": (network, {"steps_per_epoch": 4}, "total_steps must be whole epochs of 4 steps; got 6"),
    "negative rate": (network, {"lr": -1.0}, "lr must be >= 0; got -1.0"),
    "rate that is no number": (network, {"lr": float("nan")}, "lr must be >= 0; got nan"),
    "unknown init": (network, {"init": "zeros"}, f"{INITS}'zeros'"),
    "no init": (network, {"init": None}, f"{INITS}None"),
    "without parameters": (network, {"head": nn.ReLU()}, "head must have parameters; got ReLU without any"),
    "nothing": (network, {"head": []}, "head must have parameters; got no module without any"),
    "of another network": (
        network,
        {"head": nn.Linear(2, 2)},
        "head's parameters must be among the optimizer's; weight, bias are not",
    ),
    "custom layer": (network, {"head": nn.Sequential(Scale(2, 2))}, LACKING),
    "custom normalisation": (network, {"head": nn.Sequential(Scale(2)), "init": "normal"}, LACKING),
    "name without model": (
        network,
        {"head": "head"},
        "head must be a module, or several, where model is not given; got 'head'",
    ),
    "None without model": (
        network,
        {"head": None},
        "head must be a module, or several, where model is not given; got None",
    ),
    "tied to the rest": (tied, {"model": ...}, TIED.format(" with the rest of the model")),
    "tied to the rest by name": (tied, {"model": ..., "head": "head"}, TIED.format(" with the rest of the model")),
    "nothing of its own": (
        lambda: tied(bias=False),
        {"model": ..., "head": "head"},
        "head must have parameters of its own; head.weight are tied to another layer's",
    ),
    "tied to each other": (tied, {"head": lambda model: [model.words, model.head]}, TIED.format("")),
    "tied within": (tied, {"head": lambda model: model}, TIED.format("")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named_before_anything_is_changed(case: str) -> None:
    make, options, message = BAD[case]
    model = make()
    opt = torch.optim.SGD([{"params": [p], "lr": 0.5, "initial_lr": 0.9} for p in model.parameters()])
    given = {name: model if value is ... else value for name, value in options.items()}
    head = given.pop("head", model.head)
    head = head(model) if callable(head) and not isinstance(head, nn.Module) else head
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pytl.RIFLE(**{"head": head, "optimizer": opt, "total_steps": 6, **given})
    assert set(rates(opt)) == {0.5}


def test_a_head_that_is_pulled_to_its_starting_point_is_refused() -> None:
    model = network()
    opt = pytl.SGD([{"params": [*model[0].parameters()]}, {"params": [*model.head.parameters()]}], sp_decay=0.1)
    message = "head must not be pulled to a starting point that it leaves; got sp_decay=0.1 in its group: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}pytl.param_groups leaves the head out$"):
        pytl.RIFLE(model.head, opt, 6)


def test_a_cyclic_head_needs_a_group_of_its_own() -> None:
    model = network()
    opt = pytl.SGD(model.parameters(), lr=0.1)
    message = (
        "head must have parameter groups of its own for cyclic_lr, as pytl.param_groups makes them; it shares one "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}with others$"):
        pytl.RIFLE(model.head, opt, 6)
    assert trained(pytl.RIFLE(model.head, opt, 6, cyclic_lr=False), model, 6) == [2, 4]
