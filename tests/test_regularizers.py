"""The regularisers of features: formulas, starting point, layers, sources, and every way a model may be run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle import array
from test_feature_ops import attention_and_gradient, close, distance_and_gradient, divergence_and_gradient
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pytl
from pytl.features import Capture, Source, head_input, last_convolutions, layer_names, remove_hooks, stages
from pytl.regularizers.base import Penalty

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """Overwrites its convolutions' outputs, as ResNets do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Network(nn.Module):
    reentrant: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layer1 = nn.Sequential(Block(6), Block(6))
        self.layer2 = nn.Sequential(Block(6), Block(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in (self.layer1, self.layer2):
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """A transformer whose blocks return tuples."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + self.linear(x).tanh(), None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([self.Layer() for _ in range(8)])
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)[0]
        return self.classifier(x.mean(1))


def network(dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(1)
    return Network().to(dtype)


def moved(model: nn.Module, by: float = 0.1) -> nn.Module:
    """The model, away from its start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator).to(p))
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, 8, 8, dtype=torch.float64)


MAKERS: dict[str, Callable[..., Any]] = {
    "delta": pytl.DELTA,
    "at": pytl.AttentionTransfer,
    "distillation": pytl.Distillation,
    "soft labels": lambda model, **options: pytl.Distillation(model, (), soft_labels=1.0, **options),
    "both": lambda model, **options: pytl.Distillation(model, soft_labels=0.5, temperature=3.0, **options),
    "bss": lambda model, source=None, **options: pytl.BSS(model, **options),
    "together": lambda model, source=None: pytl.DELTA(model, source=source) + pytl.AttentionTransfer(model),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Penalty]:
    return MAKERS[request.param]


def features_of(model: nn.Module, layers: list[str], x: Tensor) -> dict[str, np.ndarray]:
    """Copies of the layers' outputs, by hooks of the test's own."""
    found: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[layer].register_forward_hook(lambda m, a, out, layer=layer: found.update({layer: array(out).copy()}))
        for layer in layers
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    """Of all parameters, 0 where there is none."""
    found = torch.autograd.grad(value, [*model.parameters()], retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        close(a, array(b), tolerance)


# Formulas:


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_values_are_those_of_the_formulas(
    x: Tensor, dtype: torch.dtype, tolerance: float, memory: torch.memory_format
) -> None:
    start = network(dtype).eval()
    model = moved(copy.deepcopy(start))
    x = x.to(dtype, memory_format=memory)
    layers = {"delta": ["layer1.1.conv2", "layer2.1.conv2"], "at": ["layer1", "layer2"]}
    with torch.no_grad():
        theirs_logits, mine_logits = (array(net.double()(x.double())) for net in (start, model))
    expected = {"delta": 0.0, "at": 0.0, "distillation": 0.0}
    for name, of in layers.items():
        mine, theirs = (features_of(net, of, x.double()) for net in (model, start))
        for layer in of:
            a, b = mine[layer], theirs[layer]
            places = a.shape[2] * a.shape[3]
            if name == "delta":
                expected["delta"] += 0.64 * distance_and_gradient(a, b, np.full(6, 1 / places))[0]
            else:
                expected["at"] += 1e3 * attention_and_gradient(a, b)[0]
                expected["distillation"] += distance_and_gradient(a, b, np.full(6, 2 / places))[0]
    start.to(dtype), model.to(dtype)
    for name, value in expected.items():
        with MAKERS[name](model, source=copy.deepcopy(start)) as reg:
            model(x)
            close(reg(x), value, tolerance)
    with MAKERS["soft labels"](model, source=start) as reg:
        model(x)
        close(reg(x), divergence_and_gradient(mine_logits, theirs_logits, 2.0)[0], tolerance)


def test_gradients_are_those_of_the_formula_in_pytorch(x: Tensor) -> None:
    """Through taps, copies and kernels, and through plain tensors."""
    start = network().eval()
    model = moved(copy.deepcopy(start))
    weights = {layer: torch.rand(6, dtype=torch.float64) for layer in ("layer1.1.conv2", "layer2.1.conv2")}
    reg = pytl.DELTA(model, weights=weights, source=copy.deepcopy(start))
    for _ in range(3):  # the first pass copies, the others know what is overwritten
        loss = model(x).square().mean()
        value = reg(x)
        found = gradients(model, value), gradients(model, loss + 3 * value), gradients(model, loss)
    reg.close()
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for layer in weights:
        modules[layer].register_forward_hook(lambda m, a, out, layer=layer: kept.update({layer: out.clone()}))
    theirs = features_of(start, [*weights], x)
    loss = model(x).square().mean()
    plain = sum(
        0.64 * 0.5 * (a[:, None, None] * 6 / 36 * (kept[layer] - torch.from_numpy(theirs[layer])) ** 2).sum() / len(x)
        for layer, a in weights.items()
    )
    for mine, expected in zip(found, (plain, loss + 3 * plain, loss), strict=True):
        assert_close(mine, gradients(model, expected))


def test_the_start_has_no_value_and_no_gradient(make: Callable[..., Penalty], x: Tensor) -> None:
    model = network().eval()
    with make(model) as reg:
        for _ in range(2):
            model(x)
            value = reg(x)
            assert all(g.isfinite().all() for g in gradients(model, value))
            if reg.name != "bss":
                assert value == 0
                assert all((g == 0).all() for g in gradients(model, value))


def test_the_mean_over_parts_of_a_batch_is_the_batchs(make: Callable[..., Penalty], x: Tensor) -> None:
    start = network().eval()
    model = moved(copy.deepcopy(start))
    with make(model, source=start) as reg:
        if reg.name == "bss":
            return
        values = []
        for part in (x[:4], x[:2], x[2:4]):
            model(part)
            values.append(array(reg(part)))
    np.testing.assert_allclose(values[0], np.mean(values[1:]), rtol=1e-10)


def test_bss_is_the_smallest_singular_value_of_the_pooled_features(x: Tensor) -> None:
    model = network().eval()
    pooled = model.layer2(model.layer1(model.stem(x))).mean((2, 3))
    expected = 0.064 * np.linalg.svd(array(pooled))[1][-1] ** 2 / len(x)
    for layers in ("auto", "layer2"):
        with pytl.BSS(model, layers) as reg:
            model(x)
            close(reg(x), expected, 1e-10)
            assert [*reg.terms] == ["fc:input" if layers == "auto" else "layer2"]


def test_terms_have_names_and_sum_to_the_value(x: Tensor) -> None:
    start = network().eval()
    model = moved(copy.deepcopy(start))
    source = Source(start)
    reg = pytl.DELTA(model, source=source) + pytl.Distillation(model, "layer2", soft_labels=1.0, source=source)
    model(x)
    value = reg(x)
    assert [*reg.terms] == [
        *("delta layer1.1.conv2", "delta layer2.1.conv2"),
        *("distillation soft labels", "distillation layer2"),
    ]
    close(torch.stack(list(reg.terms.values())).sum(), array(value), 1e-12)
    assert not any(term.requires_grad for term in reg.terms.values())


def test_strength_may_change_between_steps(x: Tensor) -> None:
    start = network().eval()
    model = moved(copy.deepcopy(start))
    with pytl.DELTA(model, source=start) as reg:
        values = []
        for strength in (0.5, 1.0):
            reg.strength = strength
            model(x)
            values.append(float(reg(x).detach()))
    assert values[1] == pytest.approx(2 * values[0], rel=1e-12)


# Ways to run a model:


def compare(
    model: nn.Module, called: nn.Module, x: Tensor, *makers: Callable[..., Any], tolerance: float = 1e-10
) -> None:
    """The penalty's and the loss's gradients, of the model called otherwise and of a plain copy."""
    plain = copy.deepcopy(model)
    plain.reentrant = None  # type: ignore[assignment]
    start = moved(copy.deepcopy(plain))
    for make in makers:
        found = []
        for network, run in ((plain, plain), (model, called)):
            with make(run, source=copy.deepcopy(start)) as reg:
                for _ in range(2):
                    loss = run(x).square().mean()
                    value = reg(x)
                    found.append(gradients(network, value) + gradients(network, loss + value))
        for one in found[1:]:
            assert_close(one, found[0], tolerance)


def test_checkpointing_changes_nothing(x: Tensor) -> None:
    model = network().eval()
    model.reentrant = False
    compare(model, model, x, pytl.DELTA, pytl.AttentionTransfer)


def test_reentrant_checkpointing_is_refused_by_name(x: Tensor) -> None:
    model = network()
    model.reentrant = True
    with pytl.DELTA(model) as reg:
        model(x)
        with pytest.raises(RuntimeError, match=r"layer 'layer1.1.conv2' ran without gradients.*use_reentrant=False"):
            reg(x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_model_changes_nothing(x: Tensor, backend: str) -> None:
    torch._dynamo.reset()
    small = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model = small.double() if backend == "inductor" else network().eval()
    compare(model, torch.compile(model, backend=backend), x, pytl.DELTA, tolerance=1e-9)


def test_a_compiled_model_that_has_run_before_is_refused(x: Tensor) -> None:
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    with pytl.DELTA(compiled) as reg:
        compiled(x)
        with pytest.raises(RuntimeError, match=r"has not run since .* placed before its first call"):
            reg(x)


def test_evaluation_between_steps_and_inference_mode(x: Tensor) -> None:
    model = network()
    with pytl.DELTA(model) as reg:
        for _ in range(2):
            model.train()
            model(x)
            reg(x).backward()
            model.eval()
            for context in (torch.no_grad(), torch.inference_mode()):
                with context:
                    model(x)
                    assert not reg(x).requires_grad
        assert not reg.source.network.training


def test_the_source_does_not_move(x: Tensor) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    opt = pytl.SGD(model.parameters(), lr=0.1)
    with pytl.DELTA(model) as reg:
        for _ in range(3):
            loss = model(x).square().mean() + reg(x)
            loss.backward()
            opt.step()
            opt.zero_grad()
        assert all(torch.equal(reg.source.network.state_dict()[name], value) for name, value in before.items())
        assert not any(p.requires_grad for p in reg.source.network.parameters())
    assert any(not torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_regularisers_share_one_pass_of_a_source(x: Tensor) -> None:
    model, start = network(), network()
    calls: list[int] = []
    start.register_forward_hook(lambda *_: calls.append(1))
    source = Source(start)
    reg = pytl.DELTA(model, source=source) + pytl.AttentionTransfer(model, source=source)
    for _ in range(3):
        x = x.clone()
        model(x)
        reg(x)
    assert len(calls) == 3
    x.add_(1)  # another batch in the same memory
    model(x)
    reg(x)
    assert len(calls) == 4


def test_two_regularisers_in_one_another(x: Tensor) -> None:
    start = network().eval()
    model = moved(copy.deepcopy(start))
    with pytl.DELTA(model, source=start) as alone:
        model(x)
        expected = alone(x)
    with pytl.DELTA(model, source=start) as outer, pytl.Distillation(model, "layer?.1.conv2") as inner:
        for _ in range(2):
            model(x)
            close(outer(x), array(expected), 1e-12)
            inner(x)
        inner.close()
        model(x)
        close(outer(x), array(expected), 1e-12)


def test_nothing_is_left_after_closing(make: Callable[..., Penalty], x: Tensor) -> None:
    model = network()
    before = copy.deepcopy(model.__dict__), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    reg = make(model)
    model(x)
    reg(x)
    reg.close()
    reg.close()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == before[1]
    with pytest.raises(RuntimeError, match="is closed: its hooks are gone"):
        reg(x)
    make(model).close()


def test_a_copy_of_a_model_with_a_regulariser_runs_and_keeps_nothing(x: Tensor) -> None:
    model = network()
    with pytl.DELTA(model) as reg:
        twin = copy.deepcopy(model)
        twin(x)
        with pytest.raises(RuntimeError, match="has not run since"):
            reg(x)
    with pytest.raises(ValueError, match=r"hooks of a closed regulariser.*layer1.1.conv2.*remove_hooks"):
        pytl.DELTA(twin)
    remove_hooks(twin)
    pytl.DELTA(twin).close()


def test_features_are_not_kept_after_they_are_used(x: Tensor) -> None:
    import weakref

    model = network()
    with pytl.DELTA(model) as reg:
        for _ in range(2):
            loss = model(x).sum()
            taken = [weakref.ref(f.tensor) for f in reg._capture._features.values()]
            (loss + reg(x)).backward()
            del loss
        assert taken
        assert all(one() is None for one in taken)
        with pytest.raises(RuntimeError, match="has not run since"):
            reg(x)


def test_tokens_and_tuples() -> None:
    torch.manual_seed(1)
    start = Tokens().double()
    model = moved(copy.deepcopy(start))
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert stages(model) == ["layer.1", "layer.3", "layer.5", "layer.7"]
    outputs = [start, model]
    mine, theirs = ([], [])
    for net, found in zip(outputs, (theirs, mine), strict=True):
        y = x
        for layer in net.layer:
            y = layer(y)[0]
            found.append(array(y))
    expected = {
        "delta": sum(0.64 * distance_and_gradient(mine[i], theirs[i], np.full(8, 1 / 5))[0] for i in (1, 3, 5, 7)),
        "at": sum(1e3 * attention_and_gradient(mine[i], theirs[i])[0] for i in (1, 3, 5, 7)),
        "distillation": sum(distance_and_gradient(mine[i], theirs[i], np.full(8, 2 / 5))[0] for i in (1, 3, 5, 7)),
    }
    for name, value in expected.items():
        with MAKERS[name](model, source=copy.deepcopy(start)) as reg:
            for _ in range(2):
                model(x)
                close(reg(x), value, 1e-10)


def test_a_hugging_face_model_by_keywords() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], num_labels=3)
    torch.manual_seed(1)
    model = transformers.ResNetForImageClassification(config).eval()
    batch = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 2])}
    for make in (MAKERS["delta"], MAKERS["both"], MAKERS["bss"]):
        with make(model) as reg:
            output = model(**batch)
            (output.loss + reg(**batch)).backward()
            assert reg.name == "bss" or all(term == 0 for term in reg.terms.values())


# Which layers:


def test_layers_by_name_pattern_and_stage() -> None:
    model = network()
    assert layer_names(model, ["fc", "layer?"]) == ["layer1", "layer2", "fc"]
    assert layer_names(model, ["layer2.*.conv?", "fc:input"]) == [
        *("layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1", "layer2.1.conv2", "fc:input")
    ]
    assert stages(model) == ["layer1", "layer2"]
    assert last_convolutions(model) == ["layer1.1.conv2", "layer2.1.conv2"]
    assert head_input(model) == "fc:input"


def plain_cnn() -> nn.Module:
    features = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()),
    )
    return nn.Sequential(features, nn.Flatten(), nn.Linear(8, 3))


def named(tree: dict[str, Any] | nn.Module) -> nn.Module:
    """A module whose children have these names, as a library's network has them."""
    if isinstance(tree, nn.Module):
        return tree
    module = nn.Module()
    for name, inner in tree.items():
        module.add_module(name, named(inner))
    return module


def conv() -> nn.Module:
    return nn.Conv2d(2, 2, 3)


def blocks(count: int, stem: str = "", first: int = 0) -> dict[str, Any]:
    """Numbered blocks of a convolution and a norm."""
    return {f"{stem}{first + i}": {"conv": conv(), "norm": nn.BatchNorm2d(2)} for i in range(count)}


LIBRARIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "torchvision resnet": ({"conv1": conv(), **blocks(4, "layer", 1), "fc": nn.Linear(2, 2)}, ["layer1", "layer4"]),
    "torchvision densenet": (
        {
            "features": {"conv0": conv(), **blocks(4, "denseblock", 1), **blocks(3, "transition", 1)},
            "classifier": nn.Linear(2, 2),
        },
        ["features.denseblock1", "features.denseblock4"],
    ),
    "torchvision convnext, swin": ({"features": blocks(8), "head": nn.Linear(2, 2)}, ["features.1", "features.7"]),
    "torchvision efficientnet": ({"features": blocks(9), "classifier": nn.Linear(2, 2)}, ["features.1", "features.8"]),
    "torchvision vit": (
        {"encoder": {"layers": blocks(12, "encoder_layer_")}, "heads": {"head": nn.Linear(2, 2)}},
        ["encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_11"],
    ),
    "torchvision regnet": ({"trunk_output": blocks(4, "block", 1)}, ["trunk_output.block1", "trunk_output.block4"]),
    "timm convnext": ({"stem": conv(), "stages": blocks(4), "head": nn.Linear(2, 2)}, ["stages.0", "stages.3"]),
    "timm vit": ({"patch_embed": {"proj": conv()}, "blocks": blocks(12)}, ["blocks.2", "blocks.11"]),
    "timm swin": ({"layers": blocks(4), "head": {"fc": nn.Linear(2, 2)}}, ["layers.0", "layers.3"]),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_stages_of_the_names_that_libraries_give(name: str) -> None:
    tree, (first, last) = LIBRARIES[name]
    found = stages(named(tree))
    assert (found[0], found[-1]) == (first, last)
    assert len(found) == 4
    assert last_convolutions(named(tree)) == [f"{stage}.conv" for stage in found]


def families() -> Iterator[tuple[str, Callable[[], nn.Module], list[str], str]]:
    from pytl.study.networks import DigitsNet

    yield "digits", lambda: DigitsNet(10), ["layer1", "layer2", "layer3"], "head:input"
    yield "plain", plain_cnn, ["0.2", "0.5", "0.7"], ""
    yield "mlp", lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)), ["0", "2"], ""
    try:
        import transformers as hf
    except ImportError:
        return
    vit = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 16}
    images = {"image_size": 16, "patch_size": 8}
    quarter = [2, 5, 8, 11]
    yield (
        "vit",
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**vit, **images)),
        [f"vit.layers.{i}" for i in quarter],
        "classifier:input",
    )
    yield (
        "bert",
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**vit, vocab_size=20)),
        [f"bert.encoder.layer.{i}" for i in quarter],
        "classifier:input",
    )
    yield (
        "swin",
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1])
        ),
        ["swin.encoder.layers.0", "swin.encoder.layers.1"],
        "classifier:input",
    )


FAMILIES = {name: rest for name, *rest in families()}


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_and_heads_of_families(name: str) -> None:
    make, expected, head = FAMILIES[name]
    model = make()  # type: ignore[operator]
    assert [re_named(s) for s in stages(model)] == [re_named(s) for s in expected]  # type: ignore[union-attr]
    if head:
        assert head_input(model) == head
    else:
        with pytest.raises(ValueError, match="no head is found"):
            head_input(model)


def re_named(layer: str) -> str:
    """transformers moves its blocks between ``vit.encoder.layer`` and ``vit.layers``."""
    return layer.replace("vit.encoder.layer.", "vit.layers.")


def test_names_do_not_count_wrappers(x: Tensor) -> None:
    model = network()
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert stages(wrapped) == ["layer1", "layer2"]
        with Capture(wrapped, "layer1.1.bn2") as capture:
            assert capture.layers == ["layer1.1.bn2"]
    model.layer1[1] = torch.compile(model.layer1[1], backend="eager")  # type: ignore[assignment]
    assert layer_names(model, "layer1.1.conv2") == ["layer1.1.conv2"]


# Bad input:


def frozen() -> nn.Module:
    return network().requires_grad_(False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pytl.DELTA(m, "layer3"), "layers must name layers of the model; got 'layer3'; did you mean layer"),
        (lambda m: pytl.DELTA(m, ()), "layers must name >= 1 layer; got none"),
        (lambda m: pytl.DELTA(m, strength=-1.0), "strength must be finite and >= 0; got -1.0"),
        (lambda m: pytl.DELTA(m, strength=float("nan")), "strength must be finite and >= 0; got nan"),
        (lambda m: pytl.DELTA(m, source=m), "source must be another network than the model"),
        (lambda m: pytl.DELTA(frozen()), "model must have a parameter with requires_grad=True; got a frozen network"),
        (lambda m: pytl.BSS(frozen()), "got a frozen network"),
        (lambda m: pytl.DELTA(m, "stem", weights={"fc": torch.ones(4)}), "weights must hold those of each layer; stem"),
        (lambda m: pytl.BSS(m, k=0), "k must be >= 1; got 0"),
        (lambda m: pytl.Distillation(m, ()), "layers must name >= 1 layer; got none"),
        (lambda m: pytl.Distillation(m, soft_labels=-1), "soft_labels must be finite and >= 0; got -1"),
        (lambda m: pytl.Distillation(m, temperature=0), "temperature must be finite and > 0; got 0"),
        (lambda m: pytl.BSS(m) + pytl.BSS(m), "regularisers that are added must differ in name; got two of bss"),
        (lambda m: pytl.BSS(nn.Sequential(nn.Linear(2, 2))), "no head is found in this model: name it"),
        (lambda m: pytl.DELTA(m, source=nn.Linear(2, 2)), "layers must name layers of the model"),
    ],
)
def test_what_is_wrong_is_said_before_training(call: Callable[[nn.Module], Any], message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        call(model)


def test_a_failed_regulariser_leaves_no_hooks() -> None:
    model = network()
    for options in ({"source": nn.Linear(2, 2)}, {"weights": {"fc": torch.ones(4)}, "layers": "stem"}):
        with pytest.raises(ValueError, match=r"layers must name|weights must hold"):
            pytl.DELTA(model, **options)  # type: ignore[arg-type]
    assert not any(m._forward_hooks for m in model.modules())


def test_the_first_call_checks_shapes_batches_and_numbers(x: Tensor) -> None:
    model = network()
    with pytl.DELTA(model, "layer1") as reg:
        model(x)
        with pytest.raises(ValueError, match="layer 'layer1' must have features of one shape in the model and in its"):
            reg(x[:2])
    with pytl.DELTA(model, "layer1", weights={"layer1": torch.ones(5)}) as reg:
        model(x)
        with pytest.raises(ValueError, match=r"weights of layer 'layer1' must be of shape .6.; got .5."):
            reg(x)
    with pytl.BSS(model) as bss:
        model(x[:1])
        with pytest.raises(ValueError, match="features must be of >= 2 samples"):
            bss(x[:1])
    with pytl.AttentionTransfer(model, "fc") as at:
        model(x)
        with pytest.raises(ValueError, match="layer 'fc' must be maps"):
            at(x)
    with pytl.DELTA(model, "layer1") as reg:
        spoilt = x.clone()
        spoilt[0, 0, 3, 3] = torch.nan
        model(spoilt)
        with pytest.raises(ValueError, match="layer 'layer1' must have finite features; those of the model are not"):
            reg(spoilt)


def test_a_layer_that_returns_no_tensor_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> int:
            return 1

    model = nn.Sequential(nn.Linear(2, 2), Odd())
    with Capture(model, "1"), pytest.raises(TypeError, match=r"layer '1' must return a tensor.*got int"):
        model(torch.ones(2, 2))


def test_gradcheck_of_a_penalty_through_its_tap() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    start = moved(copy.deepcopy(model))
    x = torch.randn(3, 3, dtype=torch.float64)
    with pytl.DELTA(model, "0", source=start) as reg:

        def both(x: Tensor) -> Tensor:
            loss = model(x).square().sum()
            return loss + reg(x.detach())

        model(x)
        reg(x)
        x.requires_grad_()
        expected = both(x)
        found = torch.autograd.grad(expected, x)[0]
        difference = torch.empty_like(x)
        with torch.no_grad():
            theirs = start[0](x)
            for i in range(x.numel()):
                step = torch.zeros(x.numel(), dtype=torch.float64)
                step[i] = 1e-6
                up, down = (
                    (model(x + s).square().sum() + 0.64 * 0.5 * ((model[0](x + s) - theirs) ** 2).sum() / 3)
                    for s in (step.view_as(x), -step.view_as(x))
                )
                difference.view(-1)[i] = (up - down) / 2e-6
    close(found, array(difference), 1e-6)


def test_a_source_is_asked_again_where_anything_it_is_called_with_differs() -> None:
    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor, a: Tensor | None = None, b: Tensor | None = None, flag: bool = False) -> Tensor:
            return self.layer(x + (0 if a is None else a) - (0 if b is None else b) + flag)

    x, other = torch.zeros(2), torch.ones(2)
    with Source(Asked()) as source:
        with pytest.raises(RuntimeError, match="the source must watch layers before it is called"):
            source(x)
        source.watch("layer")
        assert source(x, flag=False)["layer"].eq(0).all()
        assert source(x, flag=True)["layer"].eq(1).all()
        assert source(x, a=other)["layer"].eq(1).all()
        assert source(x, b=other)["layer"].eq(-1).all()
        with torch.inference_mode():
            assert source(torch.ones(2))["layer"].eq(1).all()


def test_inference_mode_sees_what_is_overwritten(x: Tensor) -> None:
    model = moved(network()).eval()
    start = network().eval()
    with pytl.DELTA(model, "layer1.0.bn1", source=start) as reg:
        values = []
        for context in (torch.no_grad(), torch.inference_mode(), torch.inference_mode(), torch.no_grad()):
            with context:
                model(x)
                values.append(float(reg(x)))
        model(x)
        values.append(float(reg(x).detach()))
    assert values == pytest.approx([values[0]] * 5, rel=1e-12)


def test_a_source_asked_in_inference_mode_is_asked_again_in_training(x: Tensor) -> None:
    model = network().eval()
    with pytl.Distillation(model, (), soft_labels=1.0) as reg:
        with torch.inference_mode():
            model(x)
            reg(x)
        model(x)
        reg(x).backward()


def test_the_model_within_a_wrapper_is_no_source(x: Tensor) -> None:
    model = network()
    for given in (model, Source(network())):
        if isinstance(given, Source):
            given.network = model
        with pytest.raises(ValueError, match="source must be another network"):
            pytl.DELTA(nn.DataParallel(model), source=given)
    assert all(p.requires_grad for p in model.parameters())


def test_layers_below_all_that_is_trained_are_refused(x: Tensor) -> None:
    model = network().requires_grad_(False)
    model.fc.requires_grad_(True)
    for make in (pytl.DELTA, pytl.BSS):
        with make(model) as reg:
            model(x)
            with pytest.raises(ValueError, match=f"{reg.name} must have a layer above a parameter that is trained"):
                reg(x)
            with torch.no_grad():
                model(x)
                reg(x)


def test_stages_of_a_network_with_compiled_parts() -> None:
    model = network()
    model.layer1 = torch.compile(model.layer1, backend="eager")  # type: ignore[assignment]
    assert stages(model) == ["layer1", "layer2"]
    whole = nn.Module()
    whole.features = torch.compile(nn.Sequential(Block(2), Block(2)), backend="eager")
    assert stages(whole) == ["features.0", "features.1"]
    with Capture(whole, stages(whole)) as capture:
        assert capture.layers == ["features.0", "features.1"]


def test_an_input_by_keyword_alone_is_refused() -> None:
    model = nn.ReLU()
    with Capture(nn.Sequential(model), "0:input"), pytest.raises(TypeError, match="must be called with a positional"):
        model(input=torch.ones(1))


def test_a_source_that_was_prepared_passes_once(x: Tensor) -> None:
    model, start = network(), network()
    calls: list[int] = []
    start.register_forward_hook(lambda *_: calls.append(1))
    source = Source(start)
    with pytl.DELTA(model, source=source) + pytl.BSS(model) as reg:
        reg.prepare(x)
        assert len(calls) == 1
        model(x)
        reg(x)
    assert len(calls) == 1
