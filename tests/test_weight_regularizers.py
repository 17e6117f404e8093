"""The weight-space regularisers and the Fisher information, against float64 NumPy and explicit loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import WEIGHT_DTYPES, array, doubles, draw, relative_error
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy

from pytl.regularizers import fisher as fisher_module
from pytl.regularizers.fisher import fisher_diagonal
from pytl.regularizers.group_lasso_sp import GroupLassoSP, group_lasso_sp
from pytl.regularizers.l1_sp import L1SP, l1_sp
from pytl.regularizers.l2_sp_fisher import L2SPFisher, l2_sp_fisher
from pytl.regularizers.weights import WeightRegularizer

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = ((3, 5), (), (0, 4), (3, 0, 2), (0,), (7,), (1,), (1, 1), (4, 3, 5, 2), (9, 13))

Arrays = Sequence[np.ndarray]
Answer = tuple[float, list[np.ndarray]]


# What METHODS.md says, in float64: value and gradients.


def l1_oracle(w: Arrays, w0: Arrays, fisher: Arrays) -> Answer:
    changes = [a - b for a, b in zip(w, w0, strict=True)]
    return sum(np.abs(c).sum() for c in changes), [np.sign(c) for c in changes]


def group_lasso_oracle(w: Arrays, w0: Arrays, fisher: Arrays) -> Answer:
    value, gradients = 0.0, []
    for a, b in zip(w, w0, strict=True):
        change = a - b
        gradient = np.zeros_like(change)
        for k in range(len(change)) if change.ndim > 1 else [...]:
            norm = np.sqrt(np.sum(change[k] ** 2) + 1e-16)
            value += np.sqrt(change[k].size) * (norm - 1e-8)
            gradient[k] = np.sqrt(change[k].size) * change[k] / norm
        gradients.append(gradient)
    return value, gradients


def fisher_oracle(w: Arrays, w0: Arrays, fisher: Arrays) -> Answer:
    changes = [a - b for a, b in zip(w, w0, strict=True)]
    pairs = [*zip(fisher, changes, strict=True)]
    return sum((f * c**2).sum() for f, c in pairs) / 2, [f * c for f, c in pairs]


def without_fisher(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda weights, starts, fisher: formula(weights, starts)


FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[..., Answer]]] = {
    "l1_sp": (without_fisher(l1_sp), l1_oracle),
    "group_lasso_sp": (without_fisher(group_lasso_sp), group_lasso_oracle),
    "l2_sp_fisher": (l2_sp_fisher, fisher_oracle),
}


@pytest.fixture(params=FORMULAS)
def formula(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return FORMULAS[request.param][0]


@pytest.fixture
def oracle(request: pytest.FixtureRequest) -> Callable[..., Answer]:
    return FORMULAS[request.node.callspec.params["formula"]][1]


def operands(dtype: torch.dtype = torch.float64, shapes: Sequence[Sequence[int]] = SHAPES) -> list[list[Tensor]]:
    """Weights, starts and F."""
    weights, starts, fisher = (draw(seed, shapes, dtype) for seed in range(3))
    return [[w.requires_grad_() for w in weights], starts, [f.abs() for f in fisher]]


def assert_as(oracle: Callable[..., Answer], found: Tensor, lists: list[list[Tensor]], tolerance: float) -> None:
    value, gradients = oracle(*map(doubles, lists))
    assert found.shape == ()
    assert found.item() == pytest.approx(value, rel=tolerance)
    assert relative_error(doubles(torch.autograd.grad(found, lists[0])), gradients) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_value_and_gradient_equal_the_formula(formula: Any, oracle: Any, dtype: torch.dtype, tolerance: float) -> None:
    lists = operands(dtype)
    found = formula(*lists)
    assert found.dtype == dtype
    assert_as(oracle, found, lists, tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_shape_alone(formula: Any, oracle: Any, shape: tuple[int, ...]) -> None:
    lists = operands(shapes=[shape])
    value, [gradient] = oracle(*map(doubles, lists))
    found = formula(*lists)
    assert found.item() == pytest.approx(value, rel=1e-10, abs=0)
    np.testing.assert_allclose(array(torch.autograd.grad(found, lists[0])[0]), gradient, rtol=1e-10)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "with gaps": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_memory_changes_nothing(formula: Any, oracle: Any, layout: str) -> None:
    plain = operands(shapes=[(4, 3, 5, 2)])
    weights = [LAYOUTS[layout](w.detach()).requires_grad_() for w in plain[0]]
    assert_as(oracle, formula(weights, *plain[1:]), [weights, *plain[1:]], 1e-10)
    assert_as(oracle, formula(plain[0], *([LAYOUTS[layout](t) for t in ts] for ts in plain[1:])), plain, 1e-10)


@pytest.mark.parametrize("start_dtype", WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_weights_are_summed_in_float32(
    formula: Any, oracle: Any, dtype: torch.dtype, start_dtype: torch.dtype
) -> None:
    weights, _, fisher = operands(dtype)
    starts = [(w.detach().double() * 1.03 + 0.01).to(start_dtype) for w in weights]
    found = formula(weights, starts, fisher)
    value, gradients = oracle(*map(doubles, [weights, starts, fisher]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(value, rel=1e-5)
    assert relative_error(doubles(torch.autograd.grad(found, weights)), gradients) <= torch.finfo(dtype).eps


def test_mixed_dtypes_are_summed_in_the_widest(formula: Any, oracle: Any) -> None:
    shapes = [(5, 3)] * 4
    lists = [[t.to(d) for t, d in zip(ts, WEIGHT_DTYPES, strict=True)] for ts in operands(shapes=shapes)]
    found = formula(*lists)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(oracle(*map(doubles, lists))[0], rel=1e-6)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
def test_at_the_start_value_and_gradient_are_exactly_zero(formula: Any, dtype: torch.dtype) -> None:
    weights, _, fisher = operands(dtype)
    value = formula(weights, [w.detach().clone() for w in weights], fisher)
    gradients = torch.autograd.grad(value, weights, create_graph=True)
    assert value.item() == 0.0
    assert not any(g.count_nonzero() for g in gradients)
    used = [g for g in gradients if g.requires_grad]
    second = torch.autograd.grad([g.sum() for g in used], weights, allow_unused=True) if used else []
    assert not any(s.isnan().any() for s in second if s is not None)  # 1e8 is infinite in float16


@pytest.mark.parametrize("size", [1e-18, 1e-12, 1e-8, 1e-4, 1e4])
def test_group_lasso_keeps_its_digits_however_small_the_change(size: float) -> None:
    weights = [torch.full((2, 4), size, requires_grad=True)]
    found = group_lasso_sp(weights, [torch.zeros(2, 4)])
    square = 4 * np.float64(np.float32(size)) ** 2
    assert found.item() == pytest.approx(2 * 2 * square / (np.sqrt(square + 1e-16) + 1e-8), rel=1e-5, abs=0)
    assert torch.autograd.grad(found, weights)[0].isfinite().all()


def test_group_lasso_groups_output_channels() -> None:
    weight = torch.zeros(3, 2, 2)
    weight[1] = 2.0
    assert group_lasso_sp([weight], [torch.zeros(3, 2, 2)]).item() == pytest.approx(2 * 4.0, rel=1e-6)
    assert group_lasso_sp([weight.flatten()], [torch.zeros(12)]).item() == pytest.approx(12**0.5 * 4.0, rel=1e-6)


def test_gradients_to_second_order(formula: Any) -> None:
    weights, starts, fisher = operands(shapes=[(3, 2), (2,), ()])
    call = lambda *ws: formula(ws, starts, fisher)  # noqa: E731
    assert gradcheck(call, weights)
    assert gradgradcheck(call, weights)


def test_no_tensors_are_worth_nothing(formula: Any) -> None:
    value = formula([], [], [])
    assert value.shape == ()
    assert value.item() == 0.0


BAD_PAIRS: dict[str, tuple[Any, Any, str]] = {
    "fewer starts": (lambda w: ([w, w], [w], [w, w]), ValueError, "starts.*2 weights; got 1"),
    "shape that broadcasts": (lambda w: ([w], [w[:1]], [w]), ValueError, r"starts\[0\].*\[3\].*\[1\]"),
    "integers": (lambda w: ([w], [w.int()], [w]), TypeError, "starts.*int32"),
    "complex": (lambda w: ([w.to(torch.complex64)], [w], [w]), TypeError, "floating point.*complex64"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_operands_that_disagree_are_named(formula: Any, case: str) -> None:
    arguments, error, message = BAD_PAIRS[case]
    with pytest.raises(error, match=message.replace("starts", "(starts|fisher)")):
        formula(*arguments(torch.ones(3)))


@pytest.mark.parametrize("fisher", [[], [torch.ones(1)], [torch.ones(3, dtype=torch.int64)]], ids=str)
def test_fisher_must_be_as_the_weights(fisher: list[Tensor]) -> None:
    with pytest.raises((ValueError, TypeError), match="fisher"):
        l2_sp_fisher([torch.ones(3)], [torch.ones(3)], fisher)


# The regularisers:


class Network(nn.Module):
    """A convolution, a norm, a block and a head; from [B, 2, 4, 4] to [B, 3]."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5), nn.ReLU(inplace=True))
        self.fc = nn.Linear(5, 3)
        self.to(dtype)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(torch.relu_(self.norm(self.conv(x)))))


ANCHORED = ["conv.weight", "block.2.weight"]
SMALL = ["conv.bias", "norm.weight", "norm.bias", "block.2.bias"]


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """After a step of training, of a sort."""
    with torch.no_grad():
        for p, change in zip(model.parameters(), draw(seed, [p.shape for p in model.parameters()]), strict=True):
            p.add_(change, alpha=0.1)
    return model


def ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(p) for name, p in model.named_parameters()}


METHODS: dict[str, Callable[..., WeightRegularizer]] = {
    "l1sp": L1SP,
    "grouplassosp": GroupLassoSP,
    "l2spfisher": lambda model, strength, **options: L2SPFisher(
        model, options.pop("fisher", None) or ones(getattr(model, "module", model)), strength, **options
    ),
}


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Callable[..., WeightRegularizer]:
    return METHODS[request.param]


def gradients(reg: WeightRegularizer, model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    reg().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_value_is_strength_times_the_formula_of_the_transferred_weights(name: str) -> None:
    model = Network()
    starts = {n: p.detach().clone() for n, p in model.named_parameters()}
    reg = METHODS[name](model, 0.3)
    moved(model)
    _, oracle = FORMULAS[{"l1sp": "l1_sp", "grouplassosp": "group_lasso_sp", "l2spfisher": "l2_sp_fisher"}[name]]
    weights = [model.get_parameter(n) for n in ANCHORED]
    value, expected = oracle(
        doubles(weights), [array(starts[n]) for n in ANCHORED], [np.ones(w.shape) for w in weights]
    )
    assert reg.name == name
    assert reg("whatever", ids=None).item() == pytest.approx(0.3 * value, rel=1e-10)
    assert list(reg.terms) == ["weights"]
    assert reg.terms["weights"].item() == pytest.approx(0.3 * value, rel=1e-10)
    found = gradients(reg, model)
    assert relative_error([array(found[n]) for n in ANCHORED], [0.3 * g for g in expected]) <= 1e-10
    reg.strength = 0.6
    assert reg().item() == pytest.approx(0.6 * value, rel=1e-10)


def test_head_norms_and_biases_are_left_alone(make: Any) -> None:
    model = Network()
    reg = make(model, 1.0)
    assert list(reg.weights) == ANCHORED
    found = gradients(reg, moved(model))
    assert [name for name, g in found.items() if g is not None] == ANCHORED


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay_norm_and_bias": True}, [*ANCHORED, *SMALL]),
        ({"head": ()}, [*ANCHORED, "fc.weight"]),
        ({"head": "block"}, ["conv.weight", "fc.weight"]),
        ({"head": ["block.2", "fc"]}, ["conv.weight"]),
    ],
    ids=str,
)
def test_what_is_anchored(make: Any, options: dict[str, Any], expected: list[str]) -> None:
    assert sorted(make(Network(), 1.0, **options).weights) == sorted(expected)


def test_frozen_parameters_are_not_anchored(make: Any) -> None:
    model = Network()
    model.conv.requires_grad_(False)
    assert list(make(model, 1.0).weights) == ["block.2.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head": ["conv", "block", "fc"]}, "of its 8 parameters 1 are frozen, 5 are the head's, and 2 are norms")],
)
def test_nothing_to_anchor_is_an_error(make: Any, options: dict[str, Any], message: str) -> None:
    model = Network()
    model.fc.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=f"requires_grad=True; {message}"):
        make(model, 1.0, **options)


def test_given_start_is_copied(make: Any) -> None:
    model, other = Network(), moved(Network())
    reg = make(model, 1.0, start=other.state_dict())
    expected = make(other, 1.0)
    model.load_state_dict(other.state_dict())
    assert reg().item() == 0.0
    for network in (model, other):
        moved(network, 2)
    assert reg().item() == expected().item() > 0


def test_start_keeps_its_own_dtype() -> None:
    model = Network(torch.bfloat16)
    start = {name: p.detach().double() + 1e-3 for name, p in model.named_parameters()}
    size = sum(start[name].numel() for name in ANCHORED)
    assert L1SP(model, 1.0, start=start)().item() == pytest.approx(1e-3 * size, rel=1e-4)


def changed(model: nn.Module, **changes: Any) -> dict[str, Any]:
    """The model's tensors, some replaced, those given as None left out; __ stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {n: t for n, t in {**model.state_dict(), **named}.items() if t is not None}


BAD_SOURCES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "missing": ({"conv__weight": None}, ValueError, "missing: conv.weight$"),
    "both missing": (dict.fromkeys(["conv__weight", "block__2__weight"]), ValueError, "conv.weight, block.2.weight"),
    "extra": ({"cnov__weight": torch.ones(2)}, ValueError, "extra: cnov.weight"),
    "shape": ({"conv__weight": torch.ones(4, 2)}, ValueError, r"conv.weight: expected \[4, 2, 3, 3\], got \[4, 2\]"),
    "integers": ({"block__2__weight": torch.ones(5, 64).int()}, ValueError, "not floating point: block.2.weight"),
    "no tensor": ({"conv__weight": 3.0}, TypeError, "float for conv.weight"),
}


@pytest.mark.parametrize("argument", ["start", "fisher"])
@pytest.mark.parametrize("case", BAD_SOURCES)
def test_mappings_that_disagree_with_the_model_are_listed(case: str, argument: str) -> None:
    changes, error, message = BAD_SOURCES[case]
    model = Network()
    with pytest.raises(error, match=f"^{argument} must.*{message}"):
        METHODS["l2spfisher"](model, 1.0, **{argument: changed(model, **changes)})


@pytest.mark.parametrize("argument", ["start", "fisher"])
def test_mappings_must_be_mappings(argument: str) -> None:
    with pytest.raises(TypeError, match=f"{argument} must be a mapping.*list"):
        METHODS["l2spfisher"](Network(), 1.0, **{argument: [torch.ones(1)]})


def test_a_source_may_hold_a_head_of_another_shape_and_buffers(make: Any) -> None:
    model = Network()
    source = changed(model, fc__weight=torch.ones(1000, 5), fc__bias=None)
    assert make(model, 1.0, start=source)().item() == 0.0


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")], ids=str)
def test_fisher_must_be_finite_and_not_negative(value: float) -> None:
    fisher = ones(model := Network())
    fisher["fc.weight"][:] = value  # the head's does not matter
    L2SPFisher(model, fisher, 1.0)
    fisher["block.2.weight"][3, 5] = value
    with pytest.raises(ValueError, match=rf"fisher must be finite and >= 0; got {value} in block\.2\.weight"):
        L2SPFisher(model, fisher, 1.0)


def test_unit_fisher_is_l2_sp() -> None:
    model = Network()
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    reg = L2SPFisher(model, ones(model), 0.1)
    found = gradients(reg, moved(model))
    for name in ANCHORED:
        torch.testing.assert_close(found[name], 0.1 * (model.get_parameter(name).detach() - starts[name]))


def compiled_inside(model: Network) -> nn.Module:
    model.block = torch.compile(model.block, backend="eager")  # type: ignore[assignment]
    return model


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "a compiled layer": compiled_inside,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_are_seen_through(wrapper: str) -> None:
    plain = Network()
    wrapped = WRAPPERS[wrapper](copy.deepcopy(plain))
    batch = [(draw(0, [(4, 2, 4, 4)])[0], torch.tensor([0, 1, 2, 0]))]
    reg = L1SP(wrapped, 1.0, start=wrapped.state_dict())
    assert list(reg.weights) == ANCHORED
    assert list(L1SP(plain, 1.0, start=wrapped.state_dict()).weights) == ANCHORED
    assert list(L1SP(wrapped, 1.0, start=plain.state_dict()).weights) == ANCHORED
    assert list(fisher_diagonal(wrapped, batch)) == [name for name, _ in plain.named_parameters()]


def test_a_layer_that_is_called_module_keeps_its_name() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    assert list(L1SP(model, 1.0, start=model.state_dict()).weights) == ["module.weight", "other.weight"]
    with pytest.raises(ValueError, match=r"missing: module\.weight"):
        L1SP(model, 1.0, start={"other.weight": torch.ones(2, 2)})


def test_tied_weights_are_anchored_once_under_either_name() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "decoder": nn.Linear(3, 5, bias=False)})
    model["decoder"].weight = model["embedding"].weight
    assert list(L1SP(model, 1.0, start=model.state_dict()).weights) == ["embedding.weight"]


def test_closed_regularizers_say_so(make: Any) -> None:
    with make(Network(), 1.0) as reg:
        assert reg().item() == 0.0
    reg.close()
    with pytest.raises(RuntimeError, match="is closed"):
        reg()


def test_regularizers_add_up(make: Any) -> None:
    model = Network()

    class Other(L1SP):
        name = "other"

    parts = [make(model, 0.1), Other(model, 0.2)]
    both = parts[0] + parts[1]
    moved(model)
    assert both().item() == pytest.approx(sum(part().item() for part in parts))
    assert set(both.terms) == {f"{parts[0].name} weights", "other weights"}


# The Fisher information:


def samples(count: int, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([(7 * i + seed) % classes for i in range(count)])
    return draw(seed, [(count, 2, 4, 4)])[0], labels


def batched(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [*zip(x.split(size), y.split(size), strict=True)]


def looped(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The mean of the squared gradients, one backward pass a sample."""
    model = copy.deepcopy(model).eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one, label in zip(x, y, strict=True):
        model.zero_grad()
        cross_entropy(model(one[None]), label[None]).backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad**2
    return {name: total / len(x) for name, total in sums.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert list(found) == list(expected)
    assert relative_error(doubles([*found.values()]), doubles([*expected.values()])) <= tolerance


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
@pytest.mark.parametrize("size", [1, 5, 11])
def test_empirical_fisher_equals_a_loop_over_samples(size: int, chunk: int) -> None:
    model, (x, y) = Network(), samples(11)
    found = fisher_diagonal(model, batched(x, y, size), labels="data", chunk=chunk)
    assert_close(found, looped(model, x, y))


def test_fisher_in_float32_and_bfloat16() -> None:
    (x, y), model = samples(11), Network()
    for dtype, tolerance in [(torch.float32, 1e-5), (torch.bfloat16, 0.1)]:
        narrow = copy.deepcopy(model).to(dtype)
        found = fisher_diagonal(narrow, batched(x.to(dtype), y, 4), labels="data")
        assert {f.dtype for f in found.values()} == {torch.float32}
        assert_close(found, looped(narrow.double(), x, y), tolerance)


def test_squares_of_float16_gradients_do_not_underflow() -> None:
    model = nn.Linear(3, 2, bias=False).half()
    x, y = torch.full((4, 3), 1e-4).half(), torch.tensor([0, 1, 1, 0])
    found = fisher_diagonal(model, [(x, y)], labels="data")
    assert_close(found, looped(model.double(), x.double(), y), 1e-2)


def test_fisher_equals_that_of_softmax_regression() -> None:
    """F = p_c (1 - p_c) x_j^2 of a weight [c, j], and p_c (1 - p_c) of a bias; the draws' mean comes near it."""
    model, draws = nn.Linear(3, 4).double(), 20_000
    x = draw(0, [(5, 3)])[0]
    p = model(x).detach().softmax(dim=-1)
    spread = p * (1 - p)
    expected = {"weight": (spread[:, :, None] * x[:, None, :] ** 2).mean(dim=0), "bias": spread.mean(dim=0)}
    loader = [(row.expand(draws, 3), torch.zeros(draws, dtype=torch.int64)) for row in x]
    found = fisher_diagonal(model, loader, chunk=draws, generator=torch.Generator("cpu").manual_seed(0))
    for name, information in expected.items():
        torch.testing.assert_close(found[name], information, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_classes_are_drawn_as_often_as_the_model_says(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """With evenly spaced numbers for random ones the expectation over the classes comes out, to 1/draws."""
    draws = 2_000
    model = nn.Linear(3, 4).double()
    with torch.no_grad():
        model.weight *= scale
    x = draw(0, [(1, 3)])[0]
    p = model(x).detach().softmax(dim=-1)[0]
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.arange(size, device="cpu") / size)
    found = fisher_diagonal(model, [(x.expand(draws, 3), torch.zeros(draws).long())], chunk=draws)
    torch.testing.assert_close(found["bias"], p * (1 - p), rtol=0, atol=2 / draws)


def test_many_classes_are_drawn_evenly_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cumulated probability in bfloat16 would stand still at 1/4."""
    model = nn.Linear(1, 1000).bfloat16()
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.arange(size, device="cpu") / size)
    batch = (torch.zeros(1000, 1).bfloat16(), torch.zeros(1000).long())
    with torch.no_grad():
        model.bias.zero_()
    found = fisher_diagonal(model, [batch], chunk=500)["bias"]
    torch.testing.assert_close(found, torch.full((1000,), 1e-3 * (1 - 1e-3)), rtol=0, atol=1.1e-3)


def test_a_sure_model_has_no_fisher_information_but_an_empirical_one() -> None:
    model = nn.Linear(2, 3).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.0, 200.0, 0.0]))
    batch = [(torch.ones(4, 2).double(), torch.zeros(4).long())]
    assert fisher_diagonal(model, batch)["bias"].max().item() < 1e-80
    assert fisher_diagonal(model, batch, labels="data")["bias"].tolist() == pytest.approx([1, 1, 0])


def test_draws_depend_on_the_generator_alone() -> None:
    model, (x, y) = Network(), samples(11)
    first, *others = (
        fisher_diagonal(model, batched(x, y, 4), chunk=chunk, generator=torch.Generator("cpu").manual_seed(seed))
        for chunk, seed in [(32, 0), (3, 0), (1, 0), (32, 1)]
    )
    assert_close(others[0], first)
    assert_close(others[1], first)
    assert relative_error(doubles([*others[2].values()]), doubles([*first.values()])) > 1e-3
    torch.manual_seed(0)
    assert_close(fisher_diagonal(model, batched(x, y, 4)), first)


def test_labels_of_the_data_draw_nothing() -> None:
    model, state = Network(), torch.get_rng_state()
    fisher_diagonal(model, batched(*samples(4), 2), labels="data")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_no_more_samples_are_taken_than_asked_for(count: int, chunk: int) -> None:
    model, (x, y) = Network(), samples(11)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batched(x, y, 4)
        raise AssertionError("one batch too many")

    found = fisher_diagonal(model, endless(), labels="data", samples=count, chunk=chunk)
    assert_close(found, looped(model, x[:count], y[:count]))


@pytest.mark.parametrize("chunk", [1, 4])
def test_ids_are_passed_by(chunk: int) -> None:
    model, (x, y) = Network(), samples(6)
    loader = [(x, y, torch.arange(6))]
    assert_close(fisher_diagonal(model, loader, labels="data", chunk=chunk), looped(model, x, y))


def test_fewer_samples_than_asked_for_are_all_taken() -> None:
    model, (x, y) = Network(), samples(5)
    assert_close(fisher_diagonal(model, [(x, y)], labels="data", samples=100), looped(model, x, y))


def test_gradients_are_made_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def watched(function: Any, **options: Any) -> Any:
        mapped = torch.func.vmap(function, **options)
        return lambda *arguments: (sizes.append(len(arguments[-1])), mapped(*arguments))[1]

    monkeypatch.setattr(fisher_module, "vmap", watched)
    fisher_diagonal(Network(), batched(*samples(11), 8), chunk=3)
    assert sizes == [3, 3, 2, 3]


class Answering(nn.Module):
    """As Hugging Face's models: keywords in, an object out."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, *, pixels: Tensor, scale: Tensor, twice: bool = False) -> Any:
        return SimpleNamespace(logits=self.network((1 + twice) * pixels * scale[:, None, None, None]))


@pytest.mark.parametrize("chunk", [1, 4])
def test_mappings_are_the_models_keywords(chunk: int) -> None:
    model, (x, y) = Answering(), samples(6)
    scale = torch.arange(1.0, 7.0).double()
    loader = [
        {"pixels": x[:4], "labels": y[:4], "scale": scale[:4], "twice": False},
        {"labels": y[4:], "pixels": x[4:], "scale": scale[4:] / 2, "twice": True, "ids": torch.arange(2)},
    ]
    found = fisher_diagonal(model, loader, labels="data", chunk=chunk)
    expected = looped(model.network, x * scale[:, None, None, None], y)
    assert_close(found, {f"network.{name}": f for name, f in expected.items()})


def test_modes_statistics_and_gradients_stay_as_they_were() -> None:
    model = Network()
    model.norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    found = fisher_diagonal(model, batched(*samples(6), 3))
    assert not any(f.requires_grad for f in found.values())
    with pytest.raises(RuntimeError, match="stop"):
        fisher_diagonal(model, failing())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def failing() -> Iterator[tuple[Tensor, Tensor]]:
    yield samples(2)
    raise RuntimeError("stop")


def test_frozen_parameters_are_left_out() -> None:
    model, (x, y) = Network(), samples(3)
    expected = looped(model, x, y)
    model.conv.requires_grad_(False)
    found = fisher_diagonal(model, [(x, y)], labels="data")
    assert_close(found, {name: f for name, f in expected.items() if not name.startswith("conv")})


def test_shared_weights_have_the_square_of_their_sum() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    x, y = draw(0, [(5, 3)])[0], torch.tensor([0, 1, 2, 0, 1])
    assert_close(fisher_diagonal(model, [(x, y)], labels="data"), looped(model, x, y))


def test_result_can_be_saved_and_weighs_a_penalty(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = Network().to(memory_format=torch.channels_last)
    fisher = fisher_diagonal(model, batched(*samples(6), 3))
    safetensors.save_file(fisher, tmp_path / "fisher.safetensors")
    loaded = safetensors.load_file(tmp_path / "fisher.safetensors")
    regs = [L2SPFisher(model, f, 10.0) for f in (fisher, loaded)]
    moved(model)
    assert regs[0]().item() == regs[1]().item() > 0


class Branching(nn.Module):
    """Decides by its data: more than vmap can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(2 * x)


def test_models_that_vmap_cannot_batch_go_one_by_one() -> None:
    model, x, y = Branching(), draw(0, [(5, 3)])[0], torch.tensor([0, 1, 1, 0, 1])
    with pytest.raises(RuntimeError, match=r"vmap cannot batch.*chunk=1") as caught:
        fisher_diagonal(model, [(x, y)])
    assert caught.value.__cause__ is not None
    assert_close(fisher_diagonal(model, [(x, y)], labels="data", chunk=1), looped(model, x, y))


class Steep(nn.Module):
    """One parameter at the edge of a square root, where the slope is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.edge = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.edge.sqrt()


def test_fisher_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match="finite; got NaN or infinity for edge"):
        fisher_diagonal(Steep(), [(torch.ones(2, 3), torch.tensor([0, 1]))], labels="data")


X, Y = torch.ones(2, 3, device="cpu"), torch.tensor([0, 1], device="cpu")

BAD_CALLS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "labels": ([(X, Y)], {"labels": "true"}, ValueError, 'labels must be "model" or "data"; got \'true\''),
    "samples": ([(X, Y)], {"samples": 0}, ValueError, "samples must be >= 1 or None; got 0"),
    "chunk": ([(X, Y)], {"chunk": 0}, ValueError, "chunk must be >= 1; got 0"),
    "no batches": ([], {}, ValueError, "loader must give at least one sample"),
    "no samples": ([(X[:0], Y[:0])], {}, ValueError, "loader must give at least one sample"),
    "no labels": ([{"input": X}], {}, TypeError, "loader must give .*labels.*with input"),
    "no pair": ([X], {}, TypeError, r"loader must give \(inputs, labels\).*got a Tensor"),
    "labels that are no tensor": ([(X, [0, 1])], {}, TypeError, "loader must give .*labels"),
    "inputs that are no tensor": ([([X, X], Y)], {}, TypeError, "inputs that are a tensor; got a list"),
    "fewer labels": ([(X, Y[:1])], {}, ValueError, r"labels must be integers.*\[1\] for \[\[2, 3\]\]"),
    "labels of two dimensions": ([(X, Y[:, None])], {}, ValueError, r"labels must be integers.*\[2, 1\]"),
    "probabilities": ([(X, Y.float())], {}, ValueError, "labels must be integers.*float32"),
    "a label too high": ([(X, Y + 9)], {"labels": "data"}, (IndexError, RuntimeError), "out of bounds"),
    "tokens": ([(X[:, None].expand(2, 4, 3), Y)], {}, ValueError, r"logits \[batch, classes\]; got \[1, 4, 2\]"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_named_and_leave_the_mode(case: str) -> None:
    loader, options, error, message = BAD_CALLS[case]
    model = nn.Linear(3, 2)
    with pytest.raises(error, match=message):
        fisher_diagonal(model, loader, **options)
    assert model.training


def test_a_model_that_gives_no_logits_is_an_error() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    with pytest.raises(ValueError, match=r"logits \[batch, classes\]; got a tuple"):
        fisher_diagonal(Pair(3, 2), [(X, Y)])


def test_a_model_without_trained_parameters_is_an_error() -> None:
    with pytest.raises(ValueError, match="requires_grad=True; got none"):
        fisher_diagonal(nn.Linear(3, 2).requires_grad_(False), [(X, Y)])
