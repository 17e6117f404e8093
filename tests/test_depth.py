"""pytl.depth: which blocks a network has, in which order they lie, and the rates that follow."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import pytl
from pytl.architecture import head_names
from pytl.depth import Block, depth_blocks, depths
from pytl.study.networks import DigitsNet

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]

SMALL: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


# Networks of transformers


def hf_resnet(width: int = 8) -> Any:
    sizes = [width, width, 2 * width, 2 * width]
    return ResNetForImageClassification(
        ResNetConfig(depths=[1, 2, 1, 1], hidden_sizes=sizes, embedding_size=width, num_labels=3)
    )


def vit(layers: int = 3, **options: Any) -> Any:
    sizes = {**SMALL, "num_hidden_layers": layers, "image_size": 8, "patch_size": 4, "num_labels": 3}
    return ViTForImageClassification(ViTConfig(**{**sizes, **options}))


def bert(**options: Any) -> Any:
    sizes = {**SMALL, "num_hidden_layers": 3, "vocab_size": 50, "max_position_embeddings": 16, "num_labels": 3}
    return BertForSequenceClassification(BertConfig(**{**sizes, **options}))


def llama(tied: bool = False) -> Any:
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(
        LlamaConfig(**SMALL, num_hidden_layers=3, vocab_size=50, tie_word_embeddings=tied, **tokens)
    )


def gpt2(kind: type[nn.Module] = GPT2ForSequenceClassification) -> Any:
    return kind(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2))


def convnext() -> Any:
    return ConvNextForImageClassification(ConvNextConfig(depths=[1, 2, 1, 1], hidden_sizes=[8, 8, 16, 16]))


def swin() -> Any:
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2]}
    return SwinForImageClassification(SwinConfig(**sizes, window_size=4))


def t5(layers: int = 6) -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(**sizes, num_layers=layers))


# Imitations: what matters are the names and which modules are inside


def named(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def basic_block(down: bool) -> nn.Sequential:
    own = named(conv1=conv(), bn1=norm(), relu=nn.ReLU(), conv2=conv(), bn2=norm())
    if down:
        own.add_module("downsample", nn.Sequential(conv(), norm()))
    return own


def residual_stages(counts: tuple[int, ...] = (2, 2, 1, 2)) -> dict[str, nn.Module]:
    return {
        f"layer{stage}": nn.Sequential(*(basic_block(down=stage > 1 and block == 0) for block in range(count)))
        for stage, count in enumerate(counts, 1)
    }


def torchvision_resnet() -> nn.Module:
    return named(conv1=conv(), bn1=norm(), relu=nn.ReLU(), **residual_stages(), fc=nn.Linear(4, 2))


class TimmResNet(nn.Module):
    """timm says which module classifies, whatever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(), norm(), nn.ReLU()
        for name, stage in residual_stages().items():
            self.add_module(name, stage)
        self.global_pool, self.last_linear = nn.Flatten(), nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.last_linear


def regnet() -> nn.Module:
    """As timm's: stages of one block and more, whose convolutions are numbered and have layers inside."""

    def block() -> nn.Module:
        return named(**{f"conv{i}": named(conv=conv(), bn=norm()) for i in (1, 2, 3)})

    counts = {"s1": 1, "s2": 2, "s3": 3, "s4": 1}
    stages = {stage: named(**{f"b{i + 1}": block() for i in range(count)}) for stage, count in counts.items()}
    return named(stem=named(conv=conv(), bn=norm()), **stages, head=named(flatten=nn.Flatten(), fc=nn.Linear(4, 2)))


def densenet(stages: int, normalisation: Make = norm) -> nn.Module:
    def layer() -> nn.Module:
        return named(norm1=norm(), relu1=nn.ReLU(), conv1=conv(), norm2=norm(), relu2=nn.ReLU(), conv2=conv())

    features = named(conv0=conv(), norm0=normalisation(), relu0=nn.ReLU())
    for stage in range(1, stages + 1):
        features.add_module(f"denseblock{stage}", nn.ModuleDict({f"denselayer{i}": layer() for i in (1, 2)}))
        if stage < stages:
            features.add_module(f"transition{stage}", named(norm=norm(), relu=nn.ReLU(), conv=conv(), pool=nn.ReLU()))
    features.add_module(f"norm{stages + 1}", normalisation())
    return named(features=features, classifier=nn.Linear(4, 2))


def norm_and_activation() -> nn.Module:
    """As timm's BatchNormAct2d: a normalisation with an activation inside."""
    layer = norm()
    layer.add_module("act", nn.ReLU())
    return layer


def inception() -> nn.Module:
    def basic() -> nn.Module:
        return named(conv=conv(), bn=norm())

    def mixed() -> nn.Module:
        return nn.ModuleDict({name: basic() for name in ("branch1x1", "branch5x5_1", "branch5x5_2", "branch_pool")})

    convolutions = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1"]
    mixtures = ["Mixed_5b", "Mixed_5c", "Mixed_6a"]
    return named(
        **{name: basic() for name in convolutions},
        **{name: mixed() for name in mixtures},
        avgpool=nn.Flatten(),
        fc=nn.Linear(4, 2),
    )


def vgg() -> nn.Module:
    layers = [layer for _ in range(3) for layer in (conv(), norm(), nn.ReLU())]
    classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    return named(features=nn.Sequential(*layers), avgpool=nn.Flatten(), classifier=classifier)


def transformer_layer() -> nn.Module:
    attention = named(qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4))
    return named(norm1=nn.LayerNorm(4), attn=attention, norm2=nn.LayerNorm(4), mlp=named(fc1=nn.Linear(4, 4)))


class TimmViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = named(proj=conv())
        self.blocks = nn.Sequential(*(transformer_layer() for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)


def mixture(layers: int, inside: str = "") -> nn.Module:
    """Layers with experts, in a module of the layer's or in the layer itself."""

    def layer() -> nn.Module:
        experts = nn.ModuleList(named(up=nn.Linear(4, 8), down=nn.Linear(8, 4)) for _ in range(4))
        routed = nn.ModuleDict({"gate": nn.Linear(4, 4), "experts": experts})
        return nn.ModuleDict({"attention": nn.Linear(4, 12), **({inside: routed} if inside else routed)})

    return nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "layers": nn.ModuleList(layer() for _ in range(layers)), "head": nn.Linear(4, 2)}
    )


class Plain(nn.Module):
    """Without a row of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.conv1, self.bn1, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)


def twice() -> nn.Module:
    """One layer at two places of one module."""
    layer = nn.Linear(4, 4)
    return named(first=layer, act=nn.ReLU(), again=layer, fc=nn.Linear(4, 2))


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{i}" for i in range(count)]


RESIDUAL = ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3", "layer4.0", "layer4.1", "head"]
NETWORKS: dict[str, tuple[Make, list[str]]] = {
    "digits": (
        lambda: DigitsNet(5),
        ["layer1.0", "layer1.2", "layer2.0", "layer2.2", "layer3.0", "layer3.2", "head"],
    ),
    "ResNet": (
        hf_resnet,
        [
            "stem",
            "resnet.encoder.stages.0",
            "resnet.encoder.stages.1.layers.0",
            "resnet.encoder.stages.1.layers.1",
            "resnet.encoder.stages.2",
            "resnet.encoder.stages.3",
            "head",
        ],
    ),
    "ViT": (vit, ["stem", *numbered("vit.layers", 3), "head"]),
    "ViT of more layers than stages": (lambda: vit(6), ["stem", *numbered("vit.layers", 6), "head"]),
    "BERT": (bert, ["stem", *numbered("bert.encoder.layer", 3), "head"]),
    "Llama": (llama, ["stem", *numbered("model.layers", 3)]),
    "Llama, tied": (lambda: llama(tied=True), ["stem", *numbered("model.layers", 3)]),
    "GPT-2": (gpt2, ["stem", *numbered("transformer.h", 3), "head"]),
    "GPT-2, tied": (lambda: gpt2(GPT2LMHeadModel), ["stem", *numbered("transformer.h", 3)]),
    "ConvNeXt": (
        convnext,
        [
            "stem",
            "convnext.encoder.stages.0",
            "convnext.encoder.stages.1.layers.0",
            "convnext.encoder.stages.1.layers.1",
            "convnext.encoder.stages.2",
            "convnext.encoder.stages.3",
            "head",
        ],
    ),
    "Swin": (
        swin,
        [
            "stem",
            "swin.encoder.layers.0",
            "swin.encoder.layers.1.blocks.0",
            "swin.encoder.layers.1.blocks.1",
            "swin.encoder.layers.2",
            "head",
        ],
    ),
    "T5": (t5, ["stem", *numbered("encoder.block", 6), *numbered("decoder.block", 6)]),
    "torchvision ResNet": (torchvision_resnet, RESIDUAL),
    "timm ResNet": (TimmResNet, RESIDUAL),
    "timm RegNet": (regnet, ["stem", "s1", "s2.b1", "s2.b2", "s3.b1", "s3.b2", "s3.b3", "s4", "head"]),
    "DenseNet, few stages": (
        lambda: densenet(2),
        [
            "stem",
            "features.denseblock1.denselayer1",
            "features.denseblock1.denselayer2",
            "features.transition1",
            "features.denseblock2.denselayer1",
            "features.denseblock2.denselayer2",
            "head",
        ],
    ),
    "DenseNet": (
        lambda: densenet(4),
        [
            "stem",
            "features.denseblock1.denselayer1",
            "features.denseblock1.denselayer2",
            "features.transition1",
            "features.denseblock2.denselayer1",
            "features.denseblock2.denselayer2",
            "features.transition2",
            "features.denseblock3.denselayer1",
            "features.denseblock3.denselayer2",
            "features.transition3",
            "features.denseblock4.denselayer1",
            "features.denseblock4.denselayer2",
            "head",
        ],
    ),
    "timm DenseNet": (
        lambda: densenet(2, norm_and_activation),
        [
            "stem",
            "features.denseblock1.denselayer1",
            "features.denseblock1.denselayer2",
            "features.transition1",
            "features.denseblock2.denselayer1",
            "features.denseblock2.denselayer2",
            "head",
        ],
    ),
    "Inception": (
        inception,
        [
            "Conv2d_1a_3x3",
            "Conv2d_2a_3x3",
            "Conv2d_2b_3x3",
            "Conv2d_3b_1x1",
            "Mixed_5b",
            "Mixed_5c",
            "Mixed_6a",
            "head",
        ],
    ),
    "VGG": (vgg, ["features.0", "features.3", "features.6", "head"]),
    "timm ViT": (TimmViT, ["stem", *numbered("blocks", 3), "head"]),
    "experts within": (lambda: mixture(3, inside="mlp"), ["stem", *numbered("layers", 3), "head"]),
    "experts": (lambda: mixture(6), ["stem", *numbered("layers", 6), "head"]),
    "without a row": (Plain, ["stem", "conv1", "bn1", "head"]),
    "one layer twice": (twice, ["first", "head"]),
    "one layer": (lambda: nn.Linear(2, 2), ["stem"]),
    "nothing": (nn.Module, []),
}
EVERY = pytest.mark.parametrize("case", NETWORKS)


def titles(blocks: list[Block]) -> list[str]:
    return [block.name for block in blocks]


def block_of(blocks: list[Block]) -> dict[str, str]:
    return {name: block.name for block in blocks for name in block.parameters}


@EVERY
def test_blocks_are_those_of_the_table(case: str) -> None:
    make, expected = NETWORKS[case]
    assert titles(depth_blocks(make())) == expected


@EVERY
def test_every_parameter_is_in_one_block(case: str) -> None:
    model = NETWORKS[case][0]()
    blocks = depth_blocks(model)
    found = [name for block in blocks for name in block.parameters]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    assert len({*titles(blocks)}) == len(blocks)
    assert all(block.parameters for block in blocks)


@EVERY
def test_the_last_block_is_the_head_and_nothing_but_the_head(case: str) -> None:
    model = NETWORKS[case][0]()
    new = head_names(model, None)
    blocks = depth_blocks(model)
    assert {*blocks[-1].parameters} == new if new else "head" not in titles(blocks)


@EVERY
def test_a_block_holds_what_is_called_after_it_and_what_lies_in_no_other(case: str) -> None:
    blocks = depth_blocks(NETWORKS[case][0]())
    own = {block.name: block.name + "." for block in blocks if block.name not in ("stem", "head")}
    for block in blocks[:-1]:
        for name in block.parameters:
            around = [title for title, prefix in own.items() if name.startswith(prefix)]
            assert around in ([], [block.name])


@EVERY
def test_depths_number_the_blocks(case: str) -> None:
    blocks = depth_blocks(NETWORKS[case][0]())
    expected = [(name, depth) for depth, block in enumerate(blocks) for name in block.parameters]
    assert [*depths(blocks).items()] == expected


BEHIND = {  # what lies in no row -> the block that it joins
    "BERT": {"bert.embeddings.LayerNorm.weight": "stem", "bert.pooler.dense.weight": "bert.encoder.layer.2"},
    "ViT": {"vit.embeddings.cls_token": "stem", "vit.layernorm.weight": "vit.layers.2"},
    "Llama": {"model.norm.weight": "model.layers.2", "lm_head.weight": "model.layers.2"},
    "Llama, tied": {"model.embed_tokens.weight": "stem"},
    "T5": {
        "encoder.final_layer_norm.weight": "encoder.block.5",
        "decoder.final_layer_norm.weight": "decoder.block.5",
    },
    "ConvNeXt": {
        "convnext.encoder.stages.1.downsampling_layer.1.weight": "convnext.encoder.stages.1.layers.0",
        "convnext.layernorm.weight": "convnext.encoder.stages.3",
    },
    "Swin": {"swin.encoder.layers.1.downsample.norm.weight": "swin.encoder.layers.1.blocks.1"},
    "torchvision ResNet": {"bn1.weight": "stem", "layer2.0.downsample.0.weight": "layer2.0"},
    "DenseNet": {"features.norm0.weight": "stem", "features.norm5.weight": "features.denseblock4.denselayer2"},
    "VGG": {"features.1.weight": "features.0", "features.7.weight": "features.6", "classifier.0.weight": "head"},
    "timm ViT": {"cls_token": "stem", "patch_embed.proj.weight": "stem", "norm.weight": "blocks.2"},
    "experts within": {"layers.1.mlp.experts.3.up.weight": "layers.1"},
    "without a row": {"scale": "stem"},
}


@pytest.mark.parametrize("case", BEHIND)
def test_what_lies_in_no_row_joins_the_block_before_it(case: str) -> None:
    blocks = block_of(depth_blocks(NETWORKS[case][0]()))
    assert {name: blocks[name] for name in BEHIND[case]} == BEHIND[case]


def test_a_tied_weight_is_under_its_first_name_alone() -> None:
    found = block_of(depth_blocks(gpt2(GPT2LMHeadModel)))
    assert found["transformer.wte.weight"] == "stem"
    assert "lm_head.weight" not in found


@pytest.mark.parametrize(
    ("head", "expected"),
    [("lm_head", {"lm_head.weight"}), ((), None), ("model.norm", {"model.norm.weight"})],
)
def test_the_head_is_what_is_asked_for(head: Any, expected: set[str] | None) -> None:
    blocks = depth_blocks(llama(), head)
    assert titles(blocks)[:4] == ["stem", *numbered("model.layers", 3)]
    assert ({*blocks[-1].parameters} if len(blocks) > 4 else None) == expected


def test_a_head_that_is_not_there_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"head.*got 'clasifier'; did you mean classifier"):
        depth_blocks(bert(), "clasifier")


# Wrappers

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "checkpointing": checkpoint_wrapper,
    "all": lambda model: torch.compile(nn.DataParallel(checkpoint_wrapper(model)), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", ["digits", "BERT", "torchvision ResNet", "VGG", "without a row"])
def test_outer_wrappers_do_not_count(case: str, wrapper: str) -> None:
    model = NETWORKS[case][0]()
    assert depth_blocks(WRAPPERS[wrapper](model)) == depth_blocks(model)


def wrap_inside(module: nn.Module, paths: list[str], wrapper: str) -> None:
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, WRAPPERS[wrapper](module.get_submodule(path)))


INSIDE = {
    "digits": ["layer1.0", "layer2", "layer3.2.branch"],
    "BERT": ["bert.encoder.layer.0", "bert.encoder.layer.2.attention", "bert.encoder", "bert.pooler"],
    "ResNet": ["resnet.encoder.stages.1.layers.0", "resnet.encoder.stages.1", "resnet.encoder.stages.3"],
    "VGG": ["features.3", "features"],
    "without a row": ["conv1"],
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", INSIDE)
def test_inner_wrappers_change_no_block_and_stay_in_the_parameters_names(case: str, wrapper: str) -> None:
    model = NETWORKS[case][0]()
    before = {p: name for name, p in model.named_parameters()}
    blocks = block_of(depth_blocks(model))
    wrap_inside(model, INSIDE[case], wrapper)
    after = block_of(depth_blocks(model))
    assert after == {name: blocks[before[p]] for name, p in model.named_parameters()}
    assert after.keys() != blocks.keys()


# Order of execution


class Backwards(nn.Module):
    """Registered from the head to the input, and so are its layers: the last of them runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.last_norm = nn.Linear(4, 2), nn.LayerNorm(4)
        self.layers = nn.ModuleList(named(fc=nn.Linear(4, 4), act=nn.ReLU()) for _ in range(3))
        self.embed = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in reversed(self.layers):
            x = layer(x)
        return self.head(self.last_norm(x))


def test_blocks_are_in_order_of_execution_where_an_example_is_given() -> None:
    blocks = depth_blocks(Backwards(), example=torch.ones(2, 4))
    assert titles(blocks) == ["stem", "layers.2", "layers.1", "layers.0", "head"]
    assert blocks[0].parameters == ("embed.weight", "embed.bias")
    assert blocks[3].parameters == ("layers.0.fc.weight", "layers.0.fc.bias", "last_norm.weight", "last_norm.bias")


def test_blocks_are_as_registered_without_an_example() -> None:
    blocks = depth_blocks(Backwards())
    assert titles(blocks) == ["stem", "layers.0", "layers.1", "layers.2", "head"]
    assert blocks[0].parameters == ("last_norm.weight", "last_norm.bias")
    assert blocks[3].parameters[-1] == "embed.bias"


def test_children_without_a_row_are_in_order_of_execution_too() -> None:
    model = named(second=nn.Linear(4, 4), first=nn.Linear(4, 4), fc=nn.Linear(4, 2))
    model.forward = lambda x: model.fc(model.second(model.first(x)))  # type: ignore[method-assign]
    assert titles(depth_blocks(model, example=torch.ones(1, 4))) == ["first", "second", "head"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_do_not_count_in_order_of_execution(wrapper: str) -> None:
    plain = Backwards()
    expected = depth_blocks(plain, example=torch.ones(2, 4))
    assert depth_blocks(WRAPPERS[wrapper](plain), example=torch.ones(2, 4)) == expected
    inside = Backwards()
    for name in ("layers.1", "embed", "last_norm"):
        wrap_inside(inside, [name], "checkpointing")
    assert titles(depth_blocks(inside, example=torch.ones(2, 4))) == titles(expected)


IMAGES = torch.zeros(1, 3, 32, 32)
IDS = torch.ones(1, 4, dtype=torch.long)
EXAMPLES: dict[str, Any] = {  # a tensor, a tuple of arguments, a mapping of keywords
    "digits": torch.zeros(2, 1, 8, 8),
    "ResNet": IMAGES,
    "ViT": {"pixel_values": torch.zeros(1, 3, 8, 8)},
    "BERT": (IDS, torch.ones_like(IDS)),
    "Llama": {"input_ids": IDS},
    "GPT-2": {"input_ids": IDS},
    "ConvNeXt": (IMAGES,),
    "Swin": [IMAGES],
    "T5": {"input_ids": IDS, "decoder_input_ids": IDS},
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_an_example_changes_no_block_of_a_network_registered_as_it_runs(case: str) -> None:
    model = NETWORKS[case][0]()
    with_example, without = depth_blocks(model, example=EXAMPLES[case]), depth_blocks(model)
    assert titles(with_example) == titles(without)
    assert [{*block.parameters} for block in with_example] == [{*block.parameters} for block in without]


class Unused(nn.Module):
    """A row, and things that never run, registered before it."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.ModuleList(named(fc=nn.Linear(4, 4)) for _ in range(2))
        self.layers = nn.ModuleList(named(fc=nn.Linear(4, 4), unused=nn.Linear(4, 4)) for _ in range(2))
        self.fc, self.embed = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer.fc(x)
        return x


def test_what_never_runs_comes_last_before_the_head() -> None:
    blocks = depth_blocks(Unused(), example=torch.ones(1, 4))
    assert titles(blocks) == ["stem", "layers.0", "layers.1", "spare.0", "spare.1", "head"]
    assert blocks[0].parameters == ("embed.weight", "embed.bias")
    kinds = ("weight", "bias")
    assert {*blocks[1].parameters} == {f"layers.0.{name}.{kind}" for name in ("fc", "unused") for kind in kinds}


class Attending(nn.Module):
    """Attention in no row, before and between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layers = nn.ModuleList(nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2))
        self.embed, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x, x, x)[0]
        x = self.layers[0](x, x, x)[0]
        x = self.between(x, x, x)[0]
        return self.head(self.layers[1](x, x, x)[0])


def test_what_is_never_called_itself_stays_with_the_module_around_it() -> None:
    model = Attending()
    called: list[nn.Module] = []
    model.embed.out_proj.register_forward_hook(lambda module, *_: called.append(module))
    found = block_of(depth_blocks(model, example=torch.ones(1, 3, 4)))
    assert not called  # MultiheadAttention reads its projection's weights
    expected = {"embed": "stem", "layers.0": "layers.0", "between": "layers.0", "layers.1": "layers.1"}
    for module, block in expected.items():
        assert {found[name] for name in found if name.startswith(f"{module}.")} == {block}


class Watched(nn.Module):
    """With all that a forward could change, and notes of how it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()) for _ in range(2))
        self.head = nn.Linear(4, 2)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor, broken: bool = False, noise: bool = False) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        for layer in self.layers:
            x = layer(x)
        if broken:
            raise ArithmeticError("broken")
        return self.head(x + torch.randn_like(x) if noise else x)


def situation(model: nn.Module) -> SimpleNamespace:
    hooks = [[len(value) for name, value in vars(m).items() if name.endswith("_hooks")] for m in model.modules()]
    return SimpleNamespace(
        state={name: value.clone() for name, value in model.state_dict().items()},
        modes=[module.training for module in model.modules()],
        grads=[p.grad for p in model.parameters()],
        requires=[p.requires_grad for p in model.parameters()],
        random=torch.get_rng_state(),
        hooks=hooks,
    )


def assert_same_situation(before: SimpleNamespace, after: SimpleNamespace) -> None:
    assert after.state.keys() == before.state.keys()
    assert all(torch.equal(value, before.state[name]) for name, value in after.state.items())
    assert torch.equal(after.random, before.random)
    assert after.modes == before.modes
    assert after.hooks == before.hooks
    assert after.grads == before.grads
    assert after.requires == before.requires


@pytest.mark.parametrize("broken", [False, True])
def test_the_example_run_changes_nothing_even_where_it_fails(broken: bool) -> None:
    model = Watched()
    model.layers[1].eval()
    model.head.requires_grad_(False)
    before = situation(model)
    if broken:
        with pytest.raises(ArithmeticError, match="broken"):
            depth_blocks(model, example={"x": torch.randn(3, 4, generator=torch.Generator()), "broken": True})
    else:
        depth_blocks(model, example=torch.randn(3, 4, generator=torch.Generator()))
    assert_same_situation(before, situation(model))
    assert model.seen == [(False, False)]


def test_a_network_that_draws_in_evaluation_leaves_random_numbers_as_they_were() -> None:
    model = Watched()
    before = situation(model)
    depth_blocks(model, example={"x": torch.zeros(3, 4), "noise": True})
    assert_same_situation(before, situation(model))


def test_nothing_is_run_without_an_example() -> None:
    model = Watched()
    depth_blocks(model)
    assert model.seen == []


# Layer decay


def rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name, _ in group["params"]}


def by_param_groups(model: nn.Module) -> dict[str, float]:
    return rates(pytl.param_groups(model, lr=1.0, layer_decay=0.7, verbose=False))


def by_plan(model: nn.Module) -> dict[str, float]:
    return rates(pytl.TransferPlan.from_rules(model, lr=1.0, layer_decay=0.7).apply(model, verbose=False))


SCALES = {  # 0.7 ** (L - 1 - i)
    "ViT": {
        "vit.embeddings.": 0.2401,
        "vit.layers.0.": 0.343,
        "vit.layers.1.": 0.49,
        "vit.layers.2.": 0.7,
        "vit.layernorm.": 0.7,
        "classifier.": 1.0,
    },
    "ResNet": {
        "resnet.embedder.": 0.117649,
        "resnet.encoder.stages.0.": 0.16807,
        "resnet.encoder.stages.1.layers.0.": 0.2401,
        "resnet.encoder.stages.1.layers.1.": 0.343,
        "resnet.encoder.stages.2.": 0.49,
        "resnet.encoder.stages.3.": 0.7,
        "classifier.": 1.0,
    },
}


@pytest.mark.parametrize("rates_of", [by_param_groups, by_plan])
@pytest.mark.parametrize("case", SCALES)
def test_layer_decay_is_timms_rule(case: str, rates_of: Callable[[nn.Module], dict[str, float]]) -> None:
    found = rates_of(NETWORKS[case][0]())
    for name, rate in found.items():
        assert rate == pytest.approx(next(s for prefix, s in SCALES[case].items() if name.startswith(prefix)))
    assert {re.match("|".join(SCALES[case]), name).group() for name in found} == SCALES[case].keys()  # type: ignore[union-attr]


@pytest.mark.parametrize("case", [case for case in NETWORKS if case != "nothing"])
def test_plans_and_groups_give_each_parameter_the_same_rate(case: str) -> None:
    model = NETWORKS[case][0]()
    assert by_plan(model) == by_param_groups(model)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_rates_are_those_of_timm(name: str) -> None:
    timm, optim = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    model = timm.create_model(name, pretrained=False)
    names = {p: name for name, p in model.named_parameters()}
    groups = optim.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    theirs = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    assert by_param_groups(model) == pytest.approx(theirs)
    assert by_plan(model) == pytest.approx(theirs)
