"""The noise that RIFLE is compared with: what is dropped, how often, its gradients, and what it leaves."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pytl.noise import DropConnect, Dropout, Noise, StochasticDepth, disturb_label, disturbed
from pytl.study.networks import DigitsNet

pytestmark = pytest.mark.usefixtures("one_thread")

MAKERS: dict[str, Callable[..., Noise]] = {
    "dropout": Dropout,
    "dropconnect": DropConnect,
    "stochasticdepth": StochasticDepth,
}
IMAGES = (6, 1, 8, 8)


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Noise]:
    return MAKERS[request.param]


@pytest.fixture
def model() -> DigitsNet:
    return DigitsNet(5).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(IMAGES, dtype=torch.float64)


def seeded(model: Callable[..., Any], *inputs: Any, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return model(*inputs)


def assert_binomial(successes: float, trials: int, chance: float) -> None:
    """Within five standard deviations: one in two million of true programs fails, and seeds are fixed."""
    assert abs(successes - trials * chance) <= 5 * math.sqrt(trials * chance * (1 - chance))


def hooks_in(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# What all share:


def test_evaluation_is_unchanged_to_the_bit(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    model.eval()
    plain, before = model(x), torch.get_rng_state()
    with make(model, 0.7):
        assert torch.equal(model(x), plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_changed_and_a_seed_reproduces_it(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    plain = model(x)
    with make(model, 0.5):
        first = seeded(model, x)
        assert not torch.equal(first, plain)
        assert torch.equal(seeded(model, x), first)
        assert not torch.equal(seeded(model, x, seed=4), first)


def test_a_restored_state_of_random_numbers_continues_to_the_same_bits(
    make: Callable[..., Noise], model: DigitsNet, x: Tensor
) -> None:
    with make(model, 0.5):
        model(x)
        state = torch.get_rng_state()
        first = [model(x), model(x)]
        torch.set_rng_state(state)
        assert all(torch.equal(model(x), one) for one in first)


def test_p_0_changes_no_bit_and_draws_nothing(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    plain, before = model(x), torch.get_rng_state()
    with make(model, 0.0):
        assert torch.equal(model(x), plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_p_0_does_no_work(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    with make(model, 0.0) as noise:
        for hook in noise._hooks:
            hook.act = fail
        model(x)


def test_p_may_be_changed_between_steps(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    plain = model(x)
    with make(model, 0.5):
        expected = seeded(model, x)
    with make(model, 0.0) as noise:
        assert torch.equal(seeded(model, x), plain)
        noise.p = 0.5
        assert torch.equal(seeded(model, x), expected)


def test_close_removes_the_hooks_and_twice_is_no_error(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    plain = model(x)
    noise = make(model, 0.5)
    assert hooks_in(model) > 0
    assert not noise.closed
    noise.close()
    noise.close()
    assert noise.closed
    assert hooks_in(model) == 0
    assert torch.equal(model(x), plain)


def test_leaving_the_context_closes_also_after_an_error(make: Callable[..., Noise], model: DigitsNet) -> None:
    with pytest.raises(KeyError), make(model, 0.5) as noise:
        raise KeyError
    assert noise.closed
    assert hooks_in(model) == 0


def test_parameters_stay_the_same_objects_under_the_same_names(
    make: Callable[..., Noise], model: DigitsNet, x: Tensor
) -> None:
    named, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    with make(model, 0.5):
        model(x).sum().backward()
        assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in named.items()]
        assert all(p.grad is not None for p in model.parameters())
        assert model.head.weight is named["head.weight"]
        assert all(torch.equal(now, state[name]) for name, now in model.state_dict().items())
        assert model.state_dict().keys() == state.keys()
        model.load_state_dict(state)


def test_an_optimizer_made_before_steps_the_noisy_model(
    make: Callable[..., Noise], model: DigitsNet, x: Tensor
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.head.weight.detach().clone()
    with make(model, 0.5):
        model(x).square().sum().backward()
        grad = model.head.weight.grad
        optimizer.step()
    assert grad is not None
    assert torch.allclose(model.head.weight, before - 0.1 * grad)


def test_reset_parameters_takes_effect(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    expected = nn.Linear(64, 5).double()
    with make(model, 0.5):
        model(x)
        seeded(model.head.reset_parameters)
        seeded(expected.reset_parameters)
        assert torch.equal(model.head.weight, expected.weight)
    assert torch.equal(model.head.weight, expected.weight)


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_of_the_model_has_no_noise_and_the_model_keeps_its_own(
    make: Callable[..., Noise], model: DigitsNet, x: Tensor, copied: Callable[[nn.Module], nn.Module]
) -> None:
    plain = model(x)
    with make(model, 0.5):
        model(x)
        other = copied(model)
        assert torch.equal(other(x), plain)
        assert not torch.equal(model(x), plain)
    with make(other, 0.5):
        assert not torch.equal(other(x), plain)


def test_checkpointing_drops_the_same_again(make: Callable[..., Noise], model: DigitsNet, x: Tensor) -> None:
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        with make(model, 0.5):
            seeded(run, x).square().sum().backward()
            assert "weight" not in model.head.__dict__
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_gives_the_low_precision_and_whole_gradients(make: Callable[..., Noise]) -> None:
    model, x = DigitsNet(5), torch.randn(IMAGES)
    with make(model, 0.5), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_compiled_models_drop_as_others_do_until_it_is_closed(
    make: Callable[..., Noise], model: DigitsNet, x: Tensor
) -> None:
    torch._dynamo.reset()
    plain = model(x)
    with make(model, 0.5):
        compiled = torch.compile(model, backend="eager")
        first = seeded(compiled, x)
        assert torch.equal(first, seeded(model, x))
        assert not torch.equal(compiled(x), first)
        assert model.head.weight is model.head._parameters["weight"]
    assert torch.equal(compiled(x), plain)
    with make(compiled, 0.5):
        assert not torch.equal(model(x), plain)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.inf, math.nan])
def test_p_out_of_range_is_refused_before_anything_is_placed(
    make: Callable[..., Noise], model: DigitsNet, p: float
) -> None:
    for refused in (lambda: make(model, p), lambda: disturbed(F.cross_entropy, p)):
        with pytest.raises(ValueError, match=rf"^p must be in \[0, 1\); got {p}$"):
            refused()
    with pytest.raises(ValueError, match=r"^p must be in \[0, 1\)"):
        disturb_label(torch.zeros(3, dtype=torch.long), 4, p)
    assert hooks_in(model) == 0


# Which head:


class Mlp(nn.Module):
    """A head as transformers has it, in a model that calls it by keyword if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.out_proj = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, features: Tensor, scale: float = 1.0) -> Tensor:
        return self.out_proj(self.dense(features)) * scale


class WithMlp(nn.Module):
    def __init__(self, by_keyword: bool = False) -> None:
        super().__init__()
        self.body, self.classifier, self.by_keyword = nn.Linear(4, 6), Mlp(), by_keyword

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.classifier(scale=2.0, features=y) if self.by_keyword else self.classifier(y, 2.0)


def hooked(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_pre_hooks]


def test_dropout_is_placed_on_the_outermost_module_of_the_head() -> None:
    model = WithMlp()
    with Dropout(model):
        assert hooked(model) == ["classifier"]
    with DropConnect(model):
        assert hooked(model) == ["classifier.dense", "classifier.out_proj"]
    alone = nn.Sequential()
    alone.add_module("head", nn.Linear(4, 2))
    with Dropout(alone):
        assert hooked(alone) == ["head"]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_do_not_count(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = WithMlp()
    with Dropout(wrap(model)):
        assert hooked(model) == ["classifier"]


def test_the_head_may_be_named_or_given(model: DigitsNet) -> None:
    wanted: dict[Any, list[str]] = {
        "layer3.2.branch": ["layer3.2.branch"],
        "head.weight": ["head"],
        model.head: ["head"],
        ("head", model.layer1): ["layer1", "head"],
    }
    for head, expected in wanted.items():
        with Dropout(model, head=head):
            assert hooked(model) == expected
    with DropConnect(model, head="layer3"):
        assert hooked(model) == ["layer3.0", "layer3.2.branch"]


@pytest.mark.parametrize("make", [Dropout, DropConnect])
def test_a_head_that_is_not_there_is_named_in_the_error(make: Callable[..., Noise], model: DigitsNet) -> None:
    with pytest.raises(ValueError, match=r"^head must name layers .* got 'haed'; did you mean head"):
        make(model, head="haed")
    with pytest.raises(ValueError, match=r"^head must name a module of the model; got None, and none is found$"):
        make(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"^head must name a module of the model; got \[\]"):
        make(model, head=[])


# Dropout:


@pytest.mark.parametrize("by_keyword", [False, True])
def test_dropout_gives_the_head_what_autograd_of_a_hand_made_mask_gives(by_keyword: bool) -> None:
    model, x = WithMlp(by_keyword).double(), torch.randn(5, 4, dtype=torch.float64)
    with Dropout(model, 0.3):
        found = seeded(model, x)
    y = model.body(x)
    mask = seeded(F.dropout, torch.ones_like(y), 0.3) != 0
    expected = model.classifier(y * mask / 0.7, 2.0)
    assert torch.allclose(found, expected, atol=1e-14)
    found, expected = (torch.autograd.grad(one.square().sum(), [*model.parameters()]) for one in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_each_number_with_probability_1_minus_p_and_scales_it(p: float) -> None:
    x = torch.rand(100, 200, dtype=torch.float64) + 1
    with Dropout(nn.Sequential(nn.Linear(1, 1), head := nn.Linear(200, 200, bias=False).double()), p, head="1"):
        with torch.no_grad():
            head.weight.copy_(torch.eye(200))
        y = head(x)
    kept = y != 0
    assert_binomial(float(kept.sum()), kept.numel(), 1 - p)
    assert torch.allclose(y[kept], x[kept] / (1 - p))
    assert len(torch.unique(kept, dim=0)) == 100


def test_only_the_training_module_counts(x: Tensor, model: DigitsNet) -> None:
    plain = model(x)
    with Dropout(model, 0.5):
        model.head.eval()
        assert torch.equal(model(x), plain)


def test_dropout_refuses_a_head_that_is_called_without_a_tensor(model: DigitsNet) -> None:
    with Dropout(model), pytest.raises(TypeError, match="called with a tensor for dropout; Linear was called without"):
        model.head()


# DropConnect:


def test_dropconnect_is_autograd_of_a_hand_made_mask() -> None:
    model, x = WithMlp().double(), torch.randn(5, 4, dtype=torch.float64)
    head = model.classifier
    with DropConnect(model, 0.3):
        found = seeded(model, x)
    torch.manual_seed(3)
    dense, out = ((F.dropout(torch.ones_like(m.weight), 0.3) != 0) / 0.7 for m in (head.dense, head.out_proj))
    y = F.linear(model.body(x), head.dense.weight * dense, head.dense.bias)
    expected = 2 * F.linear(y, head.out_proj.weight * out, head.out_proj.bias)
    assert torch.allclose(found, expected, atol=1e-14)
    found, expected = (torch.autograd.grad(one.square().sum(), [*model.parameters()]) for one in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))
    assert (found[2][dense == 0] == 0).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropconnect_keeps_each_weight_with_probability_1_minus_p_scales_it_and_keeps_biases(p: float) -> None:
    model = DigitsNet(300)
    weight = model.head.weight.detach().clone()
    with DropConnect(model, p), torch.no_grad():
        y = model.head(torch.eye(64))  # one mask a batch: rows are columns of the weight
    masked = (y - model.head.bias).T
    seen = masked.abs() > 1e-6
    assert_binomial(float(seen.sum()), weight.numel(), 1 - p)
    assert torch.allclose(masked[seen], weight[seen] / (1 - p), rtol=1e-3, atol=1e-6)
    with DropConnect(model, p), torch.no_grad():
        assert torch.equal(model.head(torch.zeros(2, 64)), model.head.bias.expand(2, -1))


def test_dropconnect_masks_convolutions_and_no_normalisation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    with DropConnect(model, head=model):
        assert hooked(model) == ["0"]


class Failing(nn.Linear):
    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.error:
            raise self.error
        return y


@pytest.mark.parametrize("error", [ValueError("nested"), KeyboardInterrupt()])
def test_dropconnect_leaves_no_mask_after_an_exception(error: BaseException) -> None:
    inner, x = Failing(4, 4), torch.randn(3, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), inner))
    plain = model.eval()(x)
    model.train()
    noise = DropConnect(model, 0.5, head="1")
    inner.error = error
    with pytest.raises(type(error)):
        model(x)
    if isinstance(error, Exception):
        assert "weight" not in inner.__dict__
        copy.deepcopy(model)
    inner.error = None
    assert torch.equal(model.eval()(x), plain)
    assert "weight" not in inner.__dict__
    noise.close()
    assert inner.weight is inner._parameters["weight"]


def test_close_takes_away_what_an_interrupted_pass_has_left() -> None:
    inner = Failing(4, 4)
    inner.error = KeyboardInterrupt()
    noise = DropConnect(model := nn.Sequential(inner), 0.5, head="0")
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 4))
    noise.close()
    assert inner.weight is inner._parameters["weight"]


def test_a_later_hook_that_fails_leaves_no_mask() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("later")

    model = nn.Sequential(nn.Linear(4, 4))
    with DropConnect(model, 0.5, head="0"):
        handle = model[0].register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="later"):
            model(torch.randn(3, 4))
        assert "weight" not in model[0].__dict__
        handle.remove()


def test_replicas_of_data_parallel_evaluate_and_are_refused_in_training() -> None:
    head, x = nn.Linear(3, 2), torch.randn(4, 3)
    with DropConnect(nn.Sequential(head), head=head):
        replica = head._replicate_for_data_parallel()
        replica.__dict__.update(weight=head.weight * 1, bias=head.bias * 1)
        with pytest.raises(KeyError, match="weight"):
            replica(x)
        assert torch.equal(replica.eval()(x), F.linear(x, head.weight, head.bias))


def test_functional_call_drops_the_given_weights(model: DigitsNet, x: Tensor) -> None:
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name.startswith("head")}
    with DropConnect(model, 0.5):
        assert (torch.func.functional_call(model, zeros, x) == 0).all()
        assert model.head.weight is model.head._parameters["weight"]


def test_dropconnect_refuses_heads_without_plain_matrices(model: DigitsNet) -> None:
    with pytest.raises(ValueError, match=r"^head must have a weight of >= 2 dimensions for DropConnect; got none$"):
        DropConnect(model := nn.Sequential(nn.BatchNorm1d(3)), head=model[0])
    nn.utils.parametrizations.weight_norm(linear := nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"^head must have plain weights for DropConnect; got a parametrized one$"):
        DropConnect(nn.Sequential(linear), head=linear)


# Stochastic depth:


def test_rates_follow_the_linear_rule(model: DigitsNet) -> None:
    with StochasticDepth(model, 0.6) as noise:
        names = ["layer1.2.branch", "layer2.2.branch", "layer3.2.branch"]
        assert list(noise.rates) == names
        assert list(noise.rates.values()) == pytest.approx([0.2, 0.4, 0.6])
        noise.p = 0.3
        assert list(noise.rates.values()) == pytest.approx([0.1, 0.2, 0.3])


class Branches(nn.Module):
    """Branches that return 1 each, stacked."""

    class Branch(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.value * torch.ones_like(x)

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.Branch(1.0) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([block(x) for block in self.blocks])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_each_branch_is_dropped_by_sample_at_its_rate_and_scaled(p: float) -> None:
    model, samples = Branches(4), 4000
    with StochasticDepth(model, p, branches="blocks.*"):
        y = model(torch.zeros(samples, 3, 2, dtype=torch.float64)).detach()
    assert (y == y[:, :, :1, :1]).all()  # a sample's branch is dropped as a whole
    kept = y[:, :, 0, 0] != 0
    for depth, row in enumerate(kept, 1):
        rate = p * depth / 4
        assert_binomial(float(row.sum()), samples, 1 - rate)
        assert torch.allclose(y[depth - 1, row], torch.tensor(1 / (1 - rate), dtype=torch.float64))
    for one, two in ((0, 1), (2, 3)):  # branches are independent of one another
        chance = (1 - p * (one + 1) / 4) * (1 - p * (two + 1) / 4)
        assert_binomial(float((kept[one] & kept[two]).sum()), samples, chance)
    chance = (1 - p) ** 2  # and so are rows
    assert_binomial(float((kept[3, ::2] & kept[3, 1::2]).sum()), samples // 2, chance)


def test_the_expectation_is_the_plain_branch() -> None:
    model, samples = Branches(3), 40_000
    with StochasticDepth(model, 0.5, branches="blocks.*"):
        means = model(torch.zeros(samples, 1, dtype=torch.float64)).detach().mean((1, 2))
    for depth, mean in enumerate(means, 1):
        rate = 0.5 * depth / 3
        assert abs(float(mean) - 1) <= 5 * math.sqrt(rate / (1 - rate) / samples)


def test_stochastic_depth_is_autograd_of_a_hand_made_mask(model: DigitsNet, x: Tensor) -> None:
    with StochasticDepth(model, 0.6):
        found = seeded(model, x)
    torch.manual_seed(3)
    y = x
    for layer, rate in zip((model.layer1, model.layer2, model.layer3), (0.2, 0.4, 0.6), strict=True):
        y = layer[1](layer[0](y))
        mask = F.dropout(torch.ones(len(x), 1, 1, 1, dtype=torch.float64), rate) != 0
        y = torch.relu(y + layer[2].branch(y) * mask / (1 - rate))
    expected = model.head(model.pool(y))
    assert torch.allclose(found, expected, atol=1e-14)
    found, expected = (torch.autograd.grad(one.square().sum(), [*model.parameters()]) for one in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


def named(class_name: str, **children: nn.Module) -> nn.Module:
    """A module of a class that is called so, as torchvision's and timm's are."""
    module = type(class_name, (nn.Module,), {})()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def block(class_name: str, *children: str) -> nn.Module:
    return named(class_name, **{child: nn.Identity() for child in children})


FOREIGN: dict[str, tuple[nn.Module, list[str]]] = {
    "torchvision resnet18": (
        named("ResNet", bn1=nn.Identity(), layer1=nn.Sequential(block("BasicBlock", "bn1", "bn2"))),
        ["layer1.0.bn2"],
    ),
    "torchvision resnet50": (
        named("ResNet", layer1=nn.Sequential(*(block("Bottleneck", "bn1", "bn2", "bn3") for _ in range(2)))),
        ["layer1.0.bn3", "layer1.1.bn3"],
    ),
    "timm resnet with rates: the first block has none": (
        named(
            "ResNet",
            layer1=nn.Sequential(
                block("BasicBlock", "bn1", "bn2"),
                named("BasicBlock", bn2=nn.Identity(), drop_path=block("DropPath")),
            ),
        ),
        ["layer1.0.bn2", "layer1.1.drop_path"],
    ),
    "timm vit": (
        named("ViT", blocks=nn.Sequential(block("Block", "drop_path1", "ls1", "drop_path2"))),
        ["blocks.0.drop_path1", "blocks.0.drop_path2"],
    ),
    "torchvision convnext": (
        named("ConvNeXt", features=nn.Sequential(named("CNBlock", stochastic_depth=block("StochasticDepth")))),
        ["features.0.stochastic_depth"],
    ),
    "a class's name, and names that only look alike": (
        named("Net", a=block("MyDropPath"), branch1=nn.Identity(), my_branch=nn.Identity(), drop=nn.Identity()),
        ["a"],
    ),
    "the model is a block": (block("Bottleneck", "bn3"), ["bn3"]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_branches_are_found_by_names(kind: str) -> None:
    model, expected = FOREIGN[kind]
    for run in (model, nn.DataParallel(model)):
        with StochasticDepth(run) as noise:
            assert list(noise.rates) == expected


def test_blocks_in_wrappers_are_found() -> None:
    layer = torch.compile(block("BasicBlock", "bn2"))
    with StochasticDepth(named("ResNet", layer1=nn.Sequential(layer))) as noise:
        assert list(noise.rates) == ["layer1.0.bn2"]


def test_a_branch_that_stands_in_two_places_is_dropped_once() -> None:
    shared = Branches.Branch(1.0)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    with StochasticDepth(model, 0.5, branches=["0.0", "1.0"]) as noise:
        assert noise.rates == {"0.0": 0.5}
        assert len(shared._forward_hooks) == 1


def hugging_face(kind: str) -> tuple[nn.Module, str, int]:
    """A tiny model, the pattern of its branches, and how many there are."""
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, dict[str, Any]] = {
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic"},
        "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "groups_width": 4},
        "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
        "Swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32},
        "Beit": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16},
        "ViT": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16},
    }
    options = sizes[kind] | ({"image_size": 32, "patch_size": 8} if kind in ("Beit", "ViT") else {})
    config = getattr(transformers, f"{kind}Config")(**options, num_labels=3)
    pattern = {"ResNet": "layer", "RegNet": "layer", "ViT": "mlp"}.get(kind, "drop_path")
    return getattr(transformers, f"{kind}ForImageClassification")(config).train(), pattern, 3


@pytest.mark.parametrize("kind", ["ResNet", "RegNet", "ConvNext", "Swin", "Beit"])
def test_transformers_families_are_found_and_drop(kind: str) -> None:
    model, child, count = hugging_face(kind)
    x = torch.randn(4, 3, 32, 32)
    with StochasticDepth(model, 0.5) as noise:
        assert [name.rpartition(".")[2] for name in noise.rates] == [child] * count
        assert not torch.equal(seeded(model, x).logits, seeded(model, x, seed=4).logits)
        model(x).logits.sum().backward()
        model.eval()
        dropping = model(x).logits
    assert torch.equal(model(x).logits, dropping)


@pytest.mark.parametrize("make", [Dropout, DropConnect])
@pytest.mark.parametrize("kind", ["ResNet", "ViT"])
def test_transformers_heads_are_found_and_drop(make: Callable[..., Noise], kind: str) -> None:
    model, _, _ = hugging_face(kind)
    x = torch.randn(4, 3, 32, 32)
    with make(model):
        assert len(hooked(model)) == 1
        assert hooked(model)[0].startswith("classifier")
        assert not torch.equal(seeded(model, x).logits, seeded(model, x, seed=4).logits)


def test_branches_of_a_model_without_names_for_them_must_be_named() -> None:
    model, child, count = hugging_face("ViT")
    with pytest.raises(ValueError, match=r"^stochastic depth needs residual branches, .* name them, branches="):
        StochasticDepth(model)
    x = torch.randn(4, 3, 32, 32)
    with StochasticDepth(model, branches=f"*.{child}") as noise:
        assert len(noise.rates) == count
        assert not torch.equal(seeded(model, x).logits, seeded(model, x, seed=4).logits)
    assert hooks_in(model) == 0


def test_bad_branches_are_refused(model: DigitsNet) -> None:
    with pytest.raises(ValueError, match="must name layers of the model; got 'layer9'"):
        StochasticDepth(model, branches="layer9")
    with pytest.raises(
        ValueError, match=r"^branches must name what returns a residual branch, no inputs; got head:inpu"
    ):
        StochasticDepth(model, branches="head:input")
    with pytest.raises(ValueError, match="got none"):
        StochasticDepth(model, branches=[])
    assert hooks_in(model) == 0


def test_a_branch_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    model = nn.Sequential(Pair(2, 2))
    with (
        StochasticDepth(model, branches="0"),
        pytest.raises(TypeError, match=r"^a residual branch must return a tensor; Pair returned a tuple$"),
    ):
        model(torch.randn(3, 2))


# DisturbLabel:


@pytest.mark.parametrize(("classes", "p"), [(2, 0.3), (5, 0.1), (10, 0.9)])
def test_labels_stay_and_change_as_often_as_the_paper_says(classes: int, p: float) -> None:
    labels = torch.full((200, 150), 1)
    new = disturb_label(labels, classes, p)
    assert new.dtype == labels.dtype
    assert (labels == 1).all()  # it was not changed in place
    assert_binomial(float((new == 1).sum()), labels.numel(), 1 - p * (classes - 1) / classes)
    for other in {*range(classes)} - {1}:
        assert_binomial(float((new == other).sum()), labels.numel(), p / classes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_out_of_range_stay(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 7, 100, 4, 3], dtype=dtype).repeat(100, 1)
    if dtype != torch.uint8:
        labels[:, 1] = -100
    new = disturb_label(labels, 4, 0.9)
    assert new.dtype == dtype
    assert torch.equal(new[:, 1:4], labels[:, 1:4])
    assert (new[:, 0] != 0).any()
    assert int(new[:, 0].max()) == 3


def test_labels_of_any_shape_and_none_at_all() -> None:
    for shape in ((), (0,), (2, 3, 4)):
        assert disturb_label(torch.zeros(shape, dtype=torch.long), 3, 0.5).shape == shape


def test_a_seed_reproduces_labels_and_p_0_returns_them_without_a_draw() -> None:
    labels = torch.randint(5, (50,))
    assert torch.equal(seeded(disturb_label, labels, 5, 0.5), seeded(disturb_label, labels, 5, 0.5))
    before = torch.get_rng_state()
    assert disturb_label(labels, 5, 0.0) is labels
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_labels_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"^labels must be integers; got {dtype}$"):
        disturb_label(torch.zeros(3, dtype=dtype), 2, 0.5)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^classes must be >= 2; got 1$"):
        disturb_label(torch.zeros(3, dtype=torch.long), 1, 0.5)


@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 7), (3,)])
def test_a_disturbed_loss_is_the_loss_of_disturbed_labels(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, requires_grad=True)
    labels = torch.randint(3, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    found = seeded(disturbed(F.cross_entropy, 0.8), logits, labels)
    assert torch.equal(found, F.cross_entropy(logits, seeded(disturb_label, labels, 3, 0.8)))


def test_a_disturbed_loss_draws_from_the_classes_of_the_logits() -> None:
    seen: list[Tensor] = []
    loss = disturbed(lambda logits, labels: seen.append(labels) or logits.sum(), 0.9)
    loss(torch.randn(500, 3, 20, requires_grad=True), torch.zeros(500, 20, dtype=torch.long))
    assert sorted(seen[0].unique().tolist()) == [0, 1, 2]


def test_a_disturbed_loss_is_the_loss_in_evaluation() -> None:
    logits, labels = torch.randn(40, 3, requires_grad=True), torch.randint(3, (40,))
    with torch.no_grad():
        assert torch.equal(disturbed(F.cross_entropy, 0.8)(logits * 1, labels), F.cross_entropy(logits, labels))
