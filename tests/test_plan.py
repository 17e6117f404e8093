"""pytl.TransferPlan: what it refuses, what it does to a network, its file, and gradual unfreezing."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_depth import (
    WRAPPERS,
    TimmViT,
    assert_same_situation,
    bert,
    gpt2,
    hf_resnet,
    llama,
    named,
    situation,
    torchvision_resnet,
    vit,
    wrap_inside,
)
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import BertForSequenceClassification, GPT2LMHeadModel, ResNetForImageClassification

import pytl
from pytl import BlockPlan, Rules, TransferPlan, Unfreezing
from pytl.architecture import head_names
from pytl.depth import depth_blocks
from pytl.plan import PlanError, renew
from pytl.study.networks import DigitsNet

pytestmark = pytest.mark.usefixtures("one_thread")

Groups = list[dict[str, Any]]
NAN, INF = float("nan"), float("inf")
DIGITS = ["layer1.0", "layer1.2", "layer2.0", "layer2.2", "layer3.0", "layer3.2", "head"]


def digits() -> DigitsNet:
    return DigitsNet(5)


def plan_of(model: nn.Module, **options: Any) -> TransferPlan:
    return TransferPlan.from_rules(model, **options)


def members(groups: Groups) -> dict[str, dict[str, Any]]:
    """Each parameter's options."""
    return {
        name: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for name, _ in group["params"]
    }


# What a line, the rules and a plan refuse

BAD_NUMBERS = [-1, -0.1, NAN, INF, True, "0.1", "much", [0.1], 10**310]
BAD_STEPS = [-1, 1.5, NAN, True, "soon", None, [2]]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("name", ["lr", "sp_decay", "weight_decay"])
def test_a_line_refuses_bad_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"layer1: {name} must be a finite number >= 0; got {re.escape(repr(value))}"):
        BlockPlan("layer1", **{name: value})


@pytest.mark.parametrize("name", ["sp_decay", "weight_decay"])
def test_only_a_rate_may_be_left_to_the_optimizer(name: str) -> None:
    assert BlockPlan("layer1", lr=None).lr is None
    with pytest.raises(ValueError, match=rf"{name} must be a finite number >= 0; got None"):
        BlockPlan("layer1", **{name: None})


@pytest.mark.parametrize("value", BAD_STEPS, ids=str)
def test_a_line_refuses_steps_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match=r"layer1: frozen_until must be a step >= 0 or 'end'; got "):
        BlockPlan("layer1", frozen_until=value)


@pytest.mark.parametrize("value", ["", None, 3, ["layer1"]], ids=str)
def test_a_line_needs_a_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"block must be a name; got "):
        BlockPlan(value)


@pytest.mark.parametrize("value", [1, 0, None, "yes"], ids=str)
def test_transferred_is_true_or_false(value: Any) -> None:
    with pytest.raises(ValueError, match=r"layer1: transferred must be true or false; got "):
        BlockPlan("layer1", transferred=value)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "new and pulled to a start": ({"transferred": False, "sp_decay": 0.1}, "layer1: a new block.*sp_decay=0.1"),
    "new and never trained": ({"transferred": False, "frozen_until": "end"}, "layer1: a new block.*frozen_until='end'"),
    "frozen with a rate": ({"lr": 0.1, "frozen_until": "end"}, "layer1: .*never trained has no lr; got 0.1"),
    "frozen and pulled to a start": (
        {"sp_decay": 0.1, "frozen_until": "end"},
        "never trained has no sp_decay; got 0.1",
    ),
    "frozen and pulled to zero": ({"weight_decay": 0.1, "frozen_until": "end"}, "never trained has no weight_decay"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_line_refuses_contradictions(case: str) -> None:
    options, message = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=message):
        BlockPlan("layer1", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"transferred": False, "lr": 0.1, "weight_decay": 0.1, "frozen_until": 3},
        {"lr": 0.0, "sp_decay": 0, "weight_decay": 1, "frozen_until": 0},
        {"frozen_until": "end"},
        {"lr": 0.1, "sp_decay": 0.1, "weight_decay": 0.1, "frozen_until": 7},
    ],
    ids=str,
)
def test_a_line_takes_what_does_not_contradict_itself(options: dict[str, Any]) -> None:
    line = BlockPlan("layer1", **options)
    assert line.frozen_for_good == (options["frozen_until"] == "end")


BAD_RULES = {
    "new_blocks": [0, -1, 1.5, NAN, True, "two", None],
    "boundary": [-1, 1.5, NAN, True, "two"],
    "lr": [-1, NAN, INF, True, "fast"],
    "lr_ratio": [0, -2, NAN, INF, True, "five", None],
    "layer_decay": [0, -0.5, 1.1, NAN, INF, True, "half", None],
    "sp_decay": [-1, NAN, INF, True, "much", None],
    "weight_decay": [-1, NAN, INF, True, "much", None],
    "head_weight_decay": [-1, NAN, INF, True, "much"],
    "frozen_blocks": [-1, 0.5, NAN, True, "two", None],
    "frozen_until": [-1, 1.5, NAN, True, "soon", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_RULES for value in BAD_RULES[name]])
def test_rules_refuse_bad_values_when_they_are_made(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {re.escape(repr(value))}"):
        Rules(**{"lr": 0.1, name: value})


@pytest.mark.parametrize("options", [{"lr_ratio": 5.0}, {"layer_decay": 0.7}], ids=str)
def test_rates_that_differ_need_a_rate(options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"lr must be given.*{name}={value}"):
        Rules(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_blocks": 8}, "new_blocks must be <= 7.*got 8"),
        ({"frozen_blocks": 7}, "frozen_blocks must be <= 6.*got 7"),
        ({"frozen_blocks": 5, "new_blocks": 3}, "frozen_blocks must be <= 4.*got 5 with new_blocks=3"),
        ({"frozen_blocks": 1, "new_blocks": "all"}, "frozen_blocks must be <= 0.*got 1"),
    ],
)
def test_rules_refuse_more_blocks_than_there_are(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(digits(), **options)


def test_rules_may_speak_of_all_blocks() -> None:
    assert plan_of(digits(), new_blocks=7).transferred == 0
    assert all(line.frozen_for_good for line in plan_of(digits(), frozen_blocks=6).blocks[:-1])
    assert plan_of(digits(), boundary=99, sp_decay=0.1).blocks[5].sp_decay == 0.1


def test_unknown_options_and_rules_beside_options_are_refused() -> None:
    with pytest.raises(TypeError, match="new_block"):
        plan_of(digits(), new_block=2)
    with pytest.raises(TypeError, match=r"rules or options, not both; got rules and new_blocks, lr"):
        plan_of(digits(), rules=Rules(), new_blocks=2, lr=0.1)


def test_a_plan_names_each_block_once_and_one_at_least() -> None:
    with pytest.raises(ValueError, match="blocks must hold a line for each block; got none"):
        TransferPlan(())
    with pytest.raises(ValueError, match="blocks must name each block once; b, c stand twice"):
        TransferPlan(tuple(map(BlockPlan, "abcbcd")))


def test_a_plan_refuses_an_unknown_direction() -> None:
    with pytest.raises(ValueError, match=r"direction must be one of .*got 'down'"):
        plan_of(digits(), direction="down")


# Rules


def test_rules_make_the_table_that_they_say() -> None:
    strengths = {"sp_decay": 0.02, "weight_decay": 5e-4, "head_weight_decay": 1e-3}
    plan = plan_of(digits(), new_blocks=3, boundary=2, lr=0.03, lr_ratio=5.0, **strengths)
    low = {"lr": 0.03 / 5, "sp_decay": 0.02}
    assert plan.blocks == (
        BlockPlan("layer1.0", **low),
        BlockPlan("layer1.2", **low),
        BlockPlan("layer2.0", lr=0.03, weight_decay=5e-4),
        BlockPlan("layer2.2", lr=0.03, weight_decay=5e-4),
        BlockPlan("layer3.0", transferred=False, lr=0.03, weight_decay=5e-4),
        BlockPlan("layer3.2", transferred=False, lr=0.03, weight_decay=5e-4),
        BlockPlan("head", transferred=False, lr=0.03, weight_decay=1e-3),
    )
    assert not plan.decay_norm_and_bias


def test_rules_are_the_same_as_an_object_or_as_options() -> None:
    options: dict[str, Any] = {"new_blocks": 2, "boundary": 1, "lr": 0.1, "layer_decay": 0.5, "frozen_blocks": 1}
    plan = plan_of(digits(), rules=Rules(**options), decay_norm_and_bias=True)
    assert plan == plan_of(digits(), **options, decay_norm_and_bias=True)
    assert plan.decay_norm_and_bias
    assert Rules(**Rules(**options).to_dict()) == Rules(**options)


@pytest.mark.parametrize("new", range(1, 8))
def test_the_lowest_blocks_are_transferred(new: int) -> None:
    plan = plan_of(digits(), new_blocks=new)
    assert [line.transferred for line in plan.blocks] == [True] * (7 - new) + [False] * new
    assert [line.block for line in plan.blocks] == DIGITS
    assert plan.transferred == 7 - new


@pytest.mark.parametrize("head", [None, ()])
def test_all_blocks_may_be_new_with_and_without_a_head(head: Any) -> None:
    assert plan_of(digits(), head=head, new_blocks="all").transferred == 0
    assert plan_of(digits(), head=head).transferred == 6


@pytest.mark.parametrize("boundary", [None, 0, 1, 4, 6])
def test_the_boundary_parts_what_is_pulled_to_the_start_from_what_is_pulled_to_zero(boundary: int | None) -> None:
    plan = plan_of(digits(), new_blocks=3, boundary=boundary, sp_decay=0.1, weight_decay=0.01)
    low = 4 if boundary is None else min(boundary, 4)
    assert [line.sp_decay for line in plan.blocks] == [0.1] * low + [0.0] * (7 - low)
    assert [line.weight_decay for line in plan.blocks] == [0.0] * low + [0.01] * (7 - low)


def test_frozen_blocks_have_no_rate_for_good_and_their_own_until_a_step() -> None:
    options: dict[str, Any] = {"lr": 1.0, "layer_decay": 0.5, "sp_decay": 0.1, "frozen_blocks": 2}
    for_good, later = plan_of(digits(), **options), plan_of(digits(), frozen_until=3, **options)
    assert for_good.blocks[:2] == tuple(BlockPlan(name, frozen_until="end") for name in DIGITS[:2])
    assert later.blocks[1] == BlockPlan("layer1.2", lr=0.5**5, sp_decay=0.1, frozen_until=3)
    assert for_good.blocks[2:] == later.blocks[2:]
    assert [line.frozen_until for line in later.blocks] == [3, 3, 0, 0, 0, 0, 0]


def test_blocks_are_as_they_run_where_an_example_is_given() -> None:
    model = named(second=nn.Linear(4, 4), first=nn.Linear(4, 4), fc=nn.Linear(4, 2))
    model.forward = lambda x: model.fc(model.second(model.first(x)))  # type: ignore[method-assign]
    plan = plan_of(model, example=torch.ones(1, 4))
    assert [line.block for line in plan.blocks] == ["first", "second", "head"]
    with pytest.raises(PlanError, match="the order is first, second, head in the plan, and second, first, head in"):
        plan.apply(model)
    assert len(members(plan.apply(model, example=torch.ones(1, 4), verbose=False))) == 6


# Files

NUMBERS = st.floats(0, allow_nan=False, allow_infinity=False) | st.integers(0, 10**6)
STEPS = st.integers(0, 10**9)
OPTIONS = st.one_of(
    st.fixed_dictionaries(
        {"lr": st.none() | NUMBERS, "sp_decay": NUMBERS, "weight_decay": NUMBERS, "frozen_until": STEPS}
    ),
    st.fixed_dictionaries(
        {"transferred": st.just(False), "lr": st.none() | NUMBERS, "weight_decay": NUMBERS, "frozen_until": STEPS}
    ),
    st.just({"frozen_until": "end"}),
)
NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(["yes", "1e-4", "null", "0", "=", "<<", "- a: {", "~"])
PLANS = st.builds(
    TransferPlan,
    st.dictionaries(NAMES, OPTIONS, min_size=1, max_size=5).map(
        lambda lines: tuple(BlockPlan(name, **options) for name, options in lines.items())
    ),
    decay_norm_and_bias=st.booleans(),
    direction=st.none() | st.sampled_from(["sum", "dtnh", "grod", "pcgrad"]),
)


@pytest.mark.parametrize("suffix", ["json", "yaml", "txt"])
@given(plan=PLANS)
def test_a_file_keeps_all_of_a_plan(tmp_path_factory: pytest.TempPathFactory, suffix: str, plan: TransferPlan) -> None:
    path = tmp_path_factory.getbasetemp() / f"plan.{suffix}"
    plan.save(path)
    assert TransferPlan.load(path) == plan


@given(plan=PLANS)
def test_plain_values_keep_all_of_a_plan(plan: TransferPlan) -> None:
    assert TransferPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_plan_that_was_saved_makes_the_same_groups(tmp_path: Path, suffix: str) -> None:
    rules: dict[str, Any] = {"new_blocks": 3, "boundary": 2, "lr": 0.03, "lr_ratio": 3.0, "layer_decay": 0.7}
    plan = plan_of(digits(), **rules, sp_decay=1 / 3, weight_decay=1e-7, frozen_blocks=1, frozen_until=5)
    plan.save(tmp_path / f"plan.{suffix}")
    one, other = digits(), digits()
    groups = plan.apply(one, verbose=False)
    again = TransferPlan.load(tmp_path / f"plan.{suffix}").apply(other, verbose=False)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        [name for name, _ in group["params"]] for group in again
    ]
    assert members(groups) == members(again)


def test_a_file_by_hand_may_leave_out_what_is_usual_and_write_numbers_as_people_do(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "# mine\npytl: transfer plan\nblocks:\n- block: stem\n  sp_decay: 1e-4\n  lr: 3E-2\n  frozen_until: 10\n"
        "- {block: layer1, frozen_until: end}\n- {block: head, transferred: no, weight_decay: 5}\n"
    )
    assert TransferPlan.load(path) == TransferPlan(
        (
            BlockPlan("stem", lr=0.03, sp_decay=1e-4, frozen_until=10),
            BlockPlan("layer1", frozen_until="end"),
            BlockPlan("head", transferred=False, weight_decay=5),
        )
    )


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        TransferPlan((BlockPlan(name),)).save(tmp_path / "plan.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    assert TransferPlan.load(tmp_path / "plan.yaml").blocks == (BlockPlan("b"),)


def written(*lines: str, kind: str = "transfer plan") -> bytes:
    return "\n".join([f"pytl: {kind}", "blocks:", *(f"- {line}" for line in lines), ""]).encode()


def bomb(use: str, *, levels: int = 6) -> bytes:
    """A list of ten lists of ten lists ...: little to write and read, much to print."""
    steps = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(["a0: &a0 [x]", *steps, ""]).encode() + written(use)


def anchored(use: str) -> bytes:
    """The same within a line's own values."""
    value = "&a0 [x]"
    for i in range(1, 6):
        value = f"&a{i} [{value}, {', '.join([f'*a{i - 1}'] * 9)}]"
    return written(use.replace("BOMB", value))


HUGE = "1" * 400
BROKEN: dict[str, tuple[str, bytes]] = {
    "no bytes": ("yaml", b""),
    "no bytes of JSON": ("json", b""),
    "binary": ("yaml", bytes(range(256)) * 4),
    "binary JSON": ("json", bytes(range(256)) * 4),
    "no UTF-8": ("yaml", written("block: a") + b"# \xff"),
    "UTF-16": ("yaml", written("block: a").decode().encode("utf-16")),
    "null bytes": ("yaml", b"\0" * 100),
    "a list": ("json", b"[1, 2]"),
    "a number": ("json", b"3"),
    "a text": ("yaml", b"pytl"),
    "two documents": ("yaml", written("block: a") + b"---\n" + written("block: b")),
    "of another kind": ("yaml", written("block: a", kind="cache")),
    "of no kind": ("yaml", b"blocks:\n- block: a\n"),
    "no blocks": ("yaml", b"pytl: transfer plan\n"),
    "an empty list": ("yaml", b"pytl: transfer plan\nblocks: []\n"),
    "blocks by name": ("yaml", b"pytl: transfer plan\nblocks: {a: {lr: 1}}\n"),
    "blocks of text": ("yaml", written("a", "b")),
    "a block without a name": ("yaml", written("lr: 0.1")),
    "a name that is a number": ("yaml", written("block: 3")),
    "a name that is a list": ("yaml", written("block: [a]")),
    "one name twice": ("yaml", written("block: a", "block: a")),
    "a rate in words": ("yaml", written("{block: a, lr: fast}")),
    "a rate that is none": ("yaml", written("{block: a, lr: .nan}")),
    "an endless rate": ("yaml", written("{block: a, lr: 1e999}")),
    "an endless rate of JSON": ("json", b'{"pytl": "transfer plan", "blocks": [{"block": "a", "lr": Infinity}]}'),
    "a huge rate": ("yaml", written(f"{{block: a, lr: {HUGE}}}")),
    "a huge rate of JSON": (
        "json",
        f'{{"pytl": "transfer plan", "blocks": [{{"block": "a", "lr": {HUGE}}}]}}'.encode(),
    ),
    "more digits than Python reads": ("yaml", written(f"{{block: a, lr: {HUGE * 20}}}")),
    "a rate that is a list": ("yaml", written("{block: a, lr: [1]}")),
    "a rate that is true": ("yaml", written("{block: a, lr: yes}")),
    "a negative pull": ("yaml", written("{block: a, sp_decay: -1e-4}")),
    "a step in words": ("yaml", written("{block: a, frozen_until: soon}")),
    "a contradiction": ("yaml", written("{block: a, transferred: false, sp_decay: 1}")),
    "pulls in words": ("yaml", written("block: a") + b"decay_norm_and_bias: perhaps\n"),
    "an unknown direction": ("yaml", written("block: a") + b"direction: down\n"),
    "a direction that is a number": ("yaml", written("block: a") + b"direction: 3\n"),
    "a key that is a list": ("yaml", written("{block: a, ? [1] : 2}")),
    "a key that is a number": ("yaml", written("{block: a, 3: 2}")),
    "a date that is none": ("yaml", written("{block: a, lr: 2001-99-99}")),
    "a tagged number of nothing": ("yaml", written('{block: a, lr: !!int ""}')),
    "a tagged fraction of nothing": ("yaml", written('{block: a, lr: !!float ""}')),
    "a tagged truth of words": ("yaml", written('{block: a, transferred: !!bool "perhaps"}')),
    "a tagged date of words": ("yaml", written('{block: a, lr: !!timestamp "today"}')),
    "a tagged binary of words": ("yaml", written('{block: !!binary "a"}')),
    "an unknown tag": ("yaml", written("block: !mine a")),
    "an alias of nothing": ("yaml", written("block: *a")),
    "an alias of itself": ("yaml", b"pytl: transfer plan\nblocks: &a [*a]\n"),
    "a name of itself": ("yaml", written("&a {block: *a}")),
    "an open bracket": ("yaml", b"pytl: transfer plan\nblocks: [{block: a}"),
    "tabs": ("yaml", b"pytl: transfer plan\nblocks:\n\t- block: a\n"),
    "deep lists": ("yaml", b"pytl: transfer plan\nblocks: " + b"[" * 50_000),
    "deep lists of JSON": ("json", b'{"blocks": ' + b"[" * 50_000),
    "deep values": ("yaml", b"pytl: transfer plan\nblocks: " + b"{a: " * 20_000),
    "too long": ("yaml", written("block: a") + b"#" * (1 << 20)),
    "too long JSON": ("json", b"[" + b"1," * (1 << 20) + b"1]"),
    "a bomb beside the blocks": ("yaml", bomb("block: a")),
    "a bomb for a rate": ("yaml", anchored("{block: a, lr: BOMB}")),
    "a bomb for a name": ("yaml", anchored("{block: BOMB}")),
    "a bomb without a name": ("yaml", anchored("{lr: BOMB}")),
    "a bomb for a step": ("yaml", anchored("{block: a, frozen_until: BOMB}")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name_and_in_few_words(tmp_path: Path, case: str) -> None:
    suffix, content = BROKEN[case]
    path = tmp_path / f"plan.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is no plan: ") as error:
        TransferPlan.load(path)
    assert len(str(error.value)) < 10_000  # a file of a kilobyte must not become an error of megabytes


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"plan must be a file; {re.escape(str(tmp_path / name))} is none"):
        TransferPlan.load(tmp_path / name)


CALLS = [
    "!!python/object/apply:os.system ['touch {0}']",
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{0}']]",
    "!!python/object/new:os.system ['touch {0}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:builtins.open ['{0}', w]",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("line", ["block: {}", "{{block: a, lr: {}}}", "{}"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, call: str, line: str) -> None:
    path, trace = tmp_path / "plan.yaml", tmp_path / "trace"
    path.write_bytes(written(line.format(call.format(trace))))
    with pytest.raises(ValueError, match="is no YAML"):
        TransferPlan.load(path)
    assert not trace.exists()


ODD = [
    "null",
    "-1",
    "1e-4",
    ".nan",
    "[]",
    "{}",
    "'",
    '"',
    "*a",
    "&a",
    "!!int x",
    "!!python/none",
    "end",
    "~",
    "%",
    "\t",
]


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Cut, flipped, overwritten, repeated, or with a value of another type."""
    kind, at = generator.randrange(6), generator.randrange(len(content))
    end = min(len(content), at + generator.randrange(1, 30))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return bytes(byte ^ (1 << generator.randrange(8)) * (generator.random() < 0.02) for byte in content)
    if kind == 2:
        return content[:at] + generator.randbytes(end - at) + content[end:]
    if kind == 3:
        return content[:end] + content[at:]
    words = re.split(rb"([\s,:{}\[\]]+)", content)
    for _ in range(1 if kind == 4 else 5):
        words[generator.randrange(0, len(words), 2)] = generator.choice(ODD).encode()
    return b"".join(words)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_damaged_file_is_a_plan_still_or_refused(tmp_path: Path, suffix: str) -> None:
    path, refused = tmp_path / f"plan.{suffix}", 0
    plan_of(digits(), new_blocks=3, lr=0.1, sp_decay=0.1, frozen_blocks=1, frozen_until=4).save(path)
    whole = path.read_bytes()
    for seed in range(200):
        path.write_bytes(damaged(whole, random.Random(seed)))
        try:
            assert isinstance(TransferPlan.load(path), TransferPlan)
        except ValueError as error:
            assert str(error).startswith(f"{path} is no plan: ")  # noqa: PT017 - some are plans still
            refused += 1
    assert refused > 120
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block": []}, "plan must have keys among blocks.*got 'block'; did you mean blocks"),
        ({"blocks": [{"block": "a", "weigth_decay": 1}]}, "block a must.*'weigth_decay'; did you mean weight_decay"),
        ({"blocks": [{"block": "a", "frozen": 1}]}, "block a.*got 'frozen'; did you mean frozen_until"),
        ({"blocks": [{"blok": "a"}]}, "block must have keys.*got 'blok'; did you mean block"),
        ({"blocks": [{"lr": 0.1}]}, "must have a name under 'block'"),
        ({"blocks": "a"}, "blocks must be a list of blocks, each with its keys; got str"),
        ({}, "blocks must be a list"),
        ({"blocks": [{"block": "a"}], "decay_norm_and_bias": 1}, "decay_norm_and_bias must be true or false; got 1"),
    ],
)
def test_plain_values_are_refused_with_the_nearest_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransferPlan.from_dict(values)


# Equal to plain optimizers


def image_batches(steps: int, size: int = 8) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        yield {"images": torch.randn(size, 1, 8, 8, generator=generator)}, torch.arange(size) % 5


def text_batches(steps: int, size: int = 4) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        yield {"input_ids": torch.randint(0, 50, (size, 6), generator=generator)}, torch.arange(size) % 3


def logits(model: nn.Module, keywords: dict[str, Tensor]) -> Tensor:
    output = model(**keywords)
    return getattr(output, "logits", output)


def trained(model: nn.Module, opt: torch.optim.Optimizer, batches: Any) -> dict[str, Tensor]:
    model.train()
    torch.manual_seed(0)  # dropout
    for keywords, labels in batches:
        opt.zero_grad()
        cross_entropy(logits(model, keywords), labels).backward()
        opt.step()
    return model.state_dict()


LEARNERS = {"digits": (digits, image_batches), "BERT": (bert, text_batches)}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # rules -> the optimizer's own options
    "no pull": ({"lr": 0.01}, {"lr": 0.01, "weight_decay": 0}),
    "pull to zero": (
        {"lr": 0.01, "boundary": 0, "weight_decay": 0.01, "decay_norm_and_bias": True},
        {"lr": 0.01, "weight_decay": 0.01},
    ),
    "the optimizer's rate": ({}, {"weight_decay": 0}),
}


@pytest.mark.parametrize("optimizer", [pytl.AdamW, torch.optim.AdamW], ids=["pytl", "torch"])
@pytest.mark.parametrize("same", SAME)
@pytest.mark.parametrize("learner", LEARNERS)
def test_one_rate_and_all_transferred_is_a_plain_optimizer(learner: str, same: str, optimizer: Any) -> None:
    make, batches = LEARNERS[learner]
    rules, options = SAME[same]
    model = make()
    other = copy.deepcopy(model)
    plain = trained(other, optimizer(other.parameters(), **options), batches(5))
    unused = {"lr": 9.0} if "lr" in rules else {}
    planned = trained(model, optimizer(plan_of(model, **rules).apply(model, verbose=False), **unused), batches(5))
    assert all(torch.equal(value, plain[name]) for name, value in planned.items())


def test_everything_pulled_to_its_start_is_a_plain_optimizer_with_that_pull() -> None:
    model = digits()
    other = copy.deepcopy(model)
    plain = trained(other, pytl.SGD(other.parameters(), lr=0.05, momentum=0.9, sp_decay=0.3), image_batches(5))
    rules: dict[str, Any] = {"lr": 0.05, "sp_decay": 0.3, "decay_norm_and_bias": True, "head": ()}
    groups = plan_of(model, **rules).apply(model, head=(), verbose=False)
    planned = trained(model, pytl.SGD(groups, lr=9.0, momentum=0.9), image_batches(5))
    assert all(torch.equal(value, plain[name]) for name, value in planned.items())


def test_a_lower_rate_below_the_boundary_is_that_of_groups_by_hand() -> None:
    model = digits()
    other = copy.deepcopy(model)
    low = [*other.layer1.parameters(), *other.layer2.parameters()]
    high = [*other.layer3.parameters(), *other.head.parameters()]
    by_hand = torch.optim.SGD([{"params": low, "lr": 0.01}, {"params": high, "lr": 0.05}])
    plain = trained(other, by_hand, image_batches(5))
    groups = plan_of(model, lr=0.05, lr_ratio=5.0, boundary=4).apply(model, verbose=False)
    planned = trained(model, torch.optim.SGD(groups), image_batches(5))
    assert all(torch.equal(value, plain[name]) for name, value in planned.items())


# Groups


def test_groups_have_each_line_s_options_and_merge_what_is_equal() -> None:
    plan = plan_of(digits(), new_blocks=3, boundary=2, lr=0.04, lr_ratio=4.0, sp_decay=0.02, weight_decay=5e-4)
    groups = plan.apply(digits(), verbose=False)
    options = members(groups)
    usual = {"sp_decay": 0.0, "weight_decay": 0.0, "frozen_until": 0}
    assert options["layer1.0.weight"] == {**usual, "lr": 0.01, "role": "transferred", "sp_decay": 0.02}
    assert options["layer1.0.bias"] == {**usual, "lr": 0.01, "role": "transferred"}
    assert options["layer2.2.branch.weight"] == {**usual, "lr": 0.04, "role": "transferred", "weight_decay": 5e-4}
    assert options["layer3.0.weight"] == {**usual, "lr": 0.04, "role": "not transferred", "weight_decay": 5e-4}
    assert options["head.weight"] == {**usual, "lr": 0.04, "role": "new", "weight_decay": 5e-4}
    assert len({tuple(one.items()) for one in options.values()}) == len(groups) == 8
    assert len(options) == 14


@pytest.mark.parametrize(("rate", "found"), [(None, 0.5), (0.0, 0.0), (0.25, 0.25)])
def test_a_line_s_rate_holds_and_the_optimizer_s_where_it_has_none(rate: float | None, found: float) -> None:
    lines = (*(BlockPlan(name) for name in DIGITS[:-1]), BlockPlan("head", lr=rate))
    opt = pytl.SGD(TransferPlan(lines).apply(digits(), verbose=False), lr=0.5)
    assert {name: group["lr"] for group in opt.param_groups for name in group["param_names"]}["head.weight"] == found


@pytest.mark.parametrize("direction", [None, "dtnh"])
def test_a_direction_goes_into_each_group(direction: str | None) -> None:
    model = digits()
    groups = plan_of(model, lr=0.1, sp_decay=0.1, direction=direction).apply(model, verbose=False)
    assert [group.get("direction") for group in groups] == [direction] * len(groups)
    assert ("direction" in groups[0]) == (direction is not None)
    opt = pytl.SGD(groups, direction="grod")
    assert {group["direction"] for group in opt.param_groups} == {direction or "grod"}


def test_norms_and_biases_are_pulled_only_when_asked() -> None:
    def pulled(**options: Any) -> set[int]:
        plan = plan_of(bert(), new_blocks=2, boundary=1, sp_decay=0.1, weight_decay=0.1, **options)
        groups = plan.apply(bert(), verbose=False)
        return {p.dim() for group in groups if group["sp_decay"] or group["weight_decay"] for _, p in group["params"]}

    assert pulled() == {2}
    assert pulled(decay_norm_and_bias=True) == {1, 2}


def test_groups_hold_the_parameters_of_the_model_itself_under_their_names() -> None:
    model = bert()
    found = [pair for group in plan_of(model).apply(model, verbose=False) for pair in group["params"]]
    expected = dict(model.named_parameters())
    assert all(p is expected[name] for name, p in found)
    assert sorted(name for name, _ in found) == sorted(expected)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_do_not_count(wrapper: str) -> None:
    model = digits()
    wrapped = WRAPPERS[wrapper](model)
    plan = plan_of(wrapped, new_blocks=3, lr=0.1)
    assert plan == plan_of(model, new_blocks=3, lr=0.1)
    assert members(plan.apply(wrapped, verbose=False)) == members(plan.apply(model, verbose=False))


# New weights


class TimmLike(TimmViT):
    """Its own ``init_weights`` draws the whole network."""

    def init_weights(self) -> None:
        for p in (self.cls_token, self.pos_embed):
            nn.init.normal_(p, std=0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def disturbed(model: Any) -> Any:
    """As if trained: nothing is what an initialiser makes of it."""
    for p in model.state_dict().values():
        p.copy_(torch.rand_like(p) + 3 if p.is_floating_point() else torch.full_like(p, 7))
    return model


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def applied(model: nn.Module, plan: TransferPlan, **options: Any) -> set[str]:
    """The names in the state dict that a plan changed."""
    before = copy.deepcopy(model.state_dict())
    plan.apply(model, verbose=False, **options)
    return changed(model, before)


RENEWED: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...], dict[str, Any]]] = {
    "digits": (digits, 3, ("layer3.",), {}),
    "digits, all": (digits, 7, ("layer",), {}),
    "digits, the head alone": (digits, 1, (), {}),
    "digits and their head": (digits, 2, ("layer3.2.", "head."), {"renew_head": True}),
    "ResNet": (hf_resnet, 3, ("resnet.encoder.stages.2.", "resnet.encoder.stages.3."), {}),
    "ResNet, all": (hf_resnet, 7, ("resnet.",), {}),
    "ResNet and its head": (hf_resnet, 2, ("resnet.encoder.stages.3.", "classifier."), {"renew_head": True}),
    "ViT": (vit, 2, ("vit.layers.2.", "vit.layernorm."), {}),
    "ViT, all": (vit, 5, ("vit.",), {}),
    "BERT": (bert, 2, ("bert.encoder.layer.2.", "bert.pooler."), {}),
    "BERT, all": (bert, 5, ("bert.",), {}),
    "BERT's head": (bert, 1, ("classifier.",), {"renew_head": True}),
    "timm": (TimmLike, 2, ("blocks.2.", "norm."), {}),
    "timm, all": (TimmLike, 5, ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm."), {}),
    "torchvision": (torchvision_resnet, 3, ("layer4.",), {"fresh": torchvision_resnet}),
    "torchvision, all": (
        torchvision_resnet,
        9,
        ("conv1.", "bn1.", "layer", "fc."),
        {"fresh": torchvision_resnet, "renew_head": True},
    ),
}
ON_NEW = pytest.mark.parametrize("case", RENEWED)


@ON_NEW
def test_new_blocks_are_re_initialised_and_nothing_else(case: str) -> None:
    make, new, prefixes, options = RENEWED[case]
    model = disturbed(make())
    expected = {name for name in model.state_dict() if name.startswith(prefixes)}
    assert applied(model, plan_of(model, new_blocks=new), **options) == expected
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@ON_NEW
def test_statistics_of_new_blocks_are_as_new(case: str) -> None:
    make, new, prefixes, options = RENEWED[case]
    model = disturbed(make())
    plan_of(model, new_blocks=new).apply(model, verbose=False, **options)
    usual = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for name, value in model.state_dict().items():
        if (kind := name.rpartition(".")[2]) in usual:
            assert (value == usual[kind]).all() == name.startswith(prefixes)


@pytest.mark.parametrize("case", ["digits, all", "ResNet", "BERT and more", "ViT, all", "timm", "torchvision"])
def test_a_seed_decides_the_new_weights_and_other_random_numbers_stay(case: str) -> None:
    make, new, _, options = RENEWED[case.replace("BERT and more", "BERT")]
    model = disturbed(make())
    states = []
    for seed, draws in ((4, 0), (4, 1), (5, 0)):
        torch.manual_seed(draws)
        before = torch.get_rng_state()
        other = copy.deepcopy(model)
        plan_of(other, new_blocks=new).apply(other, seed=seed, verbose=False, **options)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(other.state_dict())
    one, same, another = states
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    drawn = {name for name in one if not torch.equal(one[name], another[name])}
    assert drawn
    assert drawn <= {name for name in one if not torch.equal(one[name], model.state_dict()[name])}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", ["digits", "ResNet", "BERT", "timm", "torchvision"])
def test_a_wrapped_network_gets_the_same_new_weights(case: str, wrapper: str) -> None:
    make, new, _, options = RENEWED[case]
    model = disturbed(make())
    other = copy.deepcopy(model)
    plan_of(model, new_blocks=new).apply(model, verbose=False, **options)
    plan_of(other, new_blocks=new).apply(WRAPPERS[wrapper](other), verbose=False, **options)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", ["digits", "ResNet", "BERT", "timm"])
def test_layers_wrapped_inside_are_re_initialised_as_well(case: str) -> None:
    make, new, prefixes, options = RENEWED[case]
    inside = {
        "digits": ["layer3.2", "layer3"],
        "ResNet": ["resnet.encoder.stages.3"],
        "BERT": ["bert.encoder.layer.2", "bert.encoder"],
        "timm": ["blocks.2"],
    }
    model = disturbed(make())
    wrap_inside(model, inside[case], "checkpointing")
    plan = plan_of(model, new_blocks=new)
    found = {name.replace("_checkpoint_wrapped_module.", "") for name in applied(model, plan, **options)}
    assert found == {name for name in make().state_dict() if name.startswith(prefixes)}


def test_hugging_face_convolutions_are_drawn_as_their_architecture_says() -> None:
    model = disturbed(hf_resnet(width=64))
    plan_of(model, new_blocks=3).apply(model, verbose=False)
    found = []
    for module in model.resnet.encoder.stages[2:].modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            found.append(module.weight.std().item() / math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert len(found) > 5
    assert found == pytest.approx([1.0] * len(found), rel=0.1)


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_hugging_face_linear_layers_are_drawn_as_their_configuration_says(spread: float) -> None:
    model = disturbed(vit(initializer_range=spread, hidden_size=48, intermediate_size=96))
    plan_of(model, new_blocks=3).apply(model, verbose=False)
    layers = [module for module in model.vit.layers[1:].modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 12
    assert [layer.weight.std().item() for layer in layers] == pytest.approx([spread] * 12, rel=0.1)
    assert all((layer.bias == 0).all() for layer in layers)
    assert all(layer.weight.mean().abs() < spread / 10 for layer in layers)
    assert (model.vit.layernorm.weight == 1).all()


def test_timms_networks_are_drawn_by_their_init_weights_and_their_norms_reset() -> None:
    model = disturbed(TimmLike())
    plan_of(model, new_blocks=2).apply(model, verbose=False)
    weight = model.blocks[2].attn.qkv.weight
    assert 0.01 < weight.std() < 0.03  # of 48 draws
    assert (model.blocks[2].attn.qkv.bias == 0).all()
    assert (model.norm.weight == 1).all()
    assert (model.norm.bias == 0).all()


def filled() -> nn.Module:
    model = torchvision_resnet()
    for p in model.state_dict().values():
        p.fill_(2)
    return model


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
def test_new_weights_and_statistics_are_those_of_a_fresh_network(wrapper: str | None) -> None:
    model = disturbed(torchvision_resnet())
    fresh = filled if wrapper is None else lambda: WRAPPERS[wrapper](filled())
    new = applied(model, plan_of(model, new_blocks=3), fresh=fresh)
    assert "layer4.1.bn1.running_var" in new
    assert all((value == 2).all() == (name in new) for name, value in model.state_dict().items())


def test_new_weights_do_not_share_memory_with_a_fresh_network() -> None:
    other = torchvision_resnet()
    model = disturbed(torchvision_resnet())
    applied(model, plan_of(model, new_blocks=3), fresh=lambda: other)
    before = copy.deepcopy(model.state_dict())
    disturbed(other)
    assert not changed(model, before)


def test_parameters_stay_the_same_objects() -> None:
    for make, new, _, options in RENEWED.values():
        model = make()
        before = [*model.parameters()]
        plan_of(model, new_blocks=new).apply(model, verbose=False, **options)
        assert all(one is other for one, other in zip(before, model.parameters(), strict=True))


def test_no_blocks_are_no_change() -> None:
    for make, _, _, options in RENEWED.values():
        model = disturbed(make())
        before = situation(model)
        renew(model, [], fresh=options.get("fresh"))
        assert_same_situation(before, situation(model))


def without_weights(count: int) -> list[nn.Module]:
    return [layer for _ in range(count) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))]


class Bare(nn.Module):
    """A normalisation without weights in the stem, in each block, and behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)
        self.layers = nn.ModuleList(nn.Sequential(*without_weights(1)) for _ in range(2))
        self.last, self.head = nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.embed(x))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last(x))


def flat() -> nn.Module:
    return named(features=nn.Sequential(*without_weights(3)), head=nn.Linear(4, 2))


def inside_a_wrapper(path: str) -> nn.Module:
    model = Bare()
    wrap_inside(model, [path], "checkpointing")
    return model


BARE: dict[str, tuple[Callable[[], nn.Module], int, set[str], set[str]]] = {  # statistics that are new, that stay
    "in a block": (Bare, 2, {"layers.1.1"}, {"first", "layers.0.1"}),
    "behind the last block": (Bare, 2, {"last"}, {"first", "layers.0.1"}),
    "in the stem": (Bare, 4, {"first"}, set()),
    "in a row of single layers": (flat, 2, {"features.5"}, {"features.1", "features.3"}),
    "in a wrapped block": (lambda: inside_a_wrapper("layers.1"), 2, {"layers.1.1"}, {"layers.0.1"}),
    "in a wrapped row": (lambda: inside_a_wrapper("layers"), 2, {"layers.1.1"}, {"layers.0.1"}),
}


@pytest.mark.parametrize("case", BARE)
def test_normalisations_without_weights_are_reset_with_their_block(case: str) -> None:
    make, new, reset, kept = BARE[case]
    model = disturbed(make())
    found = {name.rpartition(".")[0] for name in applied(model, plan_of(model, new_blocks=new)) if "running" in name}
    assert reset <= found
    assert not kept & found


def with_normalised_head(affine: bool) -> nn.Module:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
    return disturbed(named(layers=layers, top=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=affine))))


@pytest.mark.parametrize("affine", [True, False])
def test_the_head_s_statistics_are_reset_with_the_head_and_stay_with_it(affine: bool) -> None:
    model = with_normalised_head(affine)
    body = {name for name in model.state_dict() if name.startswith("layers.1.")}
    head = {name for name in model.state_dict() if name.startswith("top.")}
    for new, renew_head, expected in ((1, True, head), (2, False, body), (2, True, body | head)):
        model = with_normalised_head(affine)
        plan = plan_of(model, head="top", new_blocks=new)
        assert applied(model, plan, head="top", renew_head=renew_head) == expected


def test_normalisations_without_weights_are_of_the_block_that_runs_before_them_where_an_example_is_given() -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
    model = named(last=nn.BatchNorm1d(4, affine=False), layers=layers, head=nn.Linear(4, 2))
    model.forward = lambda x: model.head(model.last(layers[1](layers[0](x))))  # type: ignore[method-assign]
    example = torch.ones(2, 4)
    plan = plan_of(disturbed(model), example=example, new_blocks=2)
    expected = {name for name in model.state_dict() if name.startswith(("layers.1.", "last."))}
    assert applied(model, plan, example=example) == expected


# Hugging Face's marks and heads


def marks(model: nn.Module) -> list[Any]:
    holders = [*model.modules(), *model.parameters(), *model.buffers()]
    return [getattr(holder, "_is_hf_initialized", "none") for holder in holders]


@pytest.mark.parametrize(("make", "auto"), [(hf_resnet, ResNetForImageClassification), (bert, None)])
def test_what_was_loaded_is_known_still_and_the_head_is_found_afterwards(tmp_path: Path, make: Any, auto: Any) -> None:
    base = make()
    base.base_model.save_pretrained(tmp_path)
    model = (auto or BertForSequenceClassification).from_pretrained(tmp_path, num_labels=3)
    head, before = head_names(model, None), marks(model)
    assert head
    assert all(name.startswith("classifier.") for name in head)
    assert True in before
    plan = plan_of(model, new_blocks=3)
    expected = {name for block in depth_blocks(model)[-3:-1] for name in block.parameters}
    for renew_head in (False, True):
        disturbed(model)
        new = {name for name in applied(model, plan, renew_head=renew_head) if not re.search("running|batches", name)}
        assert new == expected | (head if renew_head else set())
        assert marks(model) == before
        assert head_names(model, None) == head
        assert plan_of(model, new_blocks=3) == plan


def test_marks_are_put_back_where_drawing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module) -> None:
        raise ArithmeticError("broken")

    model = bert()
    before = marks(model)
    monkeypatch.setattr(model, "_init_weights", broken)
    with pytest.raises(ArithmeticError, match="broken"):
        plan_of(model, new_blocks=3).apply(model)
    assert marks(model) == before


# New weights that reach too far, or not far enough


class Rooted(nn.Module):
    """Its own ``reset_parameters`` resets all that is in it, as those of graph networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


def test_a_module_that_resets_what_is_inside_resets_no_other_block() -> None:
    model = disturbed(Rooted())
    lines = [BlockPlan(block.name, transferred=block.name != "stem") for block in depth_blocks(model)]
    assert lines[0].block == "stem"
    assert applied(model, TransferPlan(tuple(lines))) == {"scale"}


@pytest.mark.parametrize(
    ("make", "head", "new"),
    [(digits, "head", ("layer3.2.",)), (bert, "classifier", ("bert.encoder.layer.2.", "bert.pooler."))],
)
def test_of_a_layer_in_two_blocks_the_new_part_alone_is_new(make: Any, head: str, new: tuple[str, ...]) -> None:
    model = disturbed(make())
    plan = plan_of(model, head=f"{head}.weight", new_blocks=2)
    expected = {name for name in model.state_dict() if name.startswith((*new, f"{head}.bias"))}
    assert applied(model, plan, head=f"{head}.weight") == expected


class Tied(nn.Module):
    """As a language model: the head's weights are the embedding's, its biases are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(named(fc=nn.Linear(4, 4), act=nn.ReLU()) for _ in range(3))
        self.lm_head = nn.Linear(4, 5)
        self.lm_head.weight = self.words.weight


@pytest.mark.parametrize(("head", "options"), [("lm_head", {"renew_head": True}), ((), {"new_blocks": 2})])
def test_a_layer_tied_to_another_block_does_not_change_it(head: Any, options: dict[str, Any]) -> None:
    model = disturbed(Tied())
    before = model.words.weight.clone()
    plan = plan_of(model, head=head, new_blocks=options.pop("new_blocks", 1))
    with suppress(ValueError):
        plan.apply(model, head=head, verbose=False, **options)
    assert torch.equal(model.words.weight, before)


@pytest.mark.parametrize("make", [Tied, lambda: gpt2(GPT2LMHeadModel), lambda: llama(tied=True)])
def test_a_tied_network_may_be_new_as_a_whole(make: Any) -> None:
    model = disturbed(make())
    assert applied(model, plan_of(model, new_blocks="all")) == model.state_dict().keys()


def test_weights_tied_within_a_block_are_new_together() -> None:
    model = digits()
    model.layer3[2].extra = nn.Conv2d(64, 64, 3)
    model.layer3[2].extra.weight = model.layer3[2].branch.weight
    new = applied(disturbed(model), plan_of(model, new_blocks=2))
    assert new == {f"layer3.2.{name}.{kind}" for name in ("branch", "extra") for kind in ("weight", "bias")}
    assert model.layer3[2].extra.weight is model.layer3[2].branch.weight


# Refusals change nothing


class Scale(nn.Module):
    """A layer that cannot initialise itself."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def scaled(model: Any, block: str) -> Any:
    model.get_submodule(block).add_module("scale", Scale())
    return model


def cross_tied() -> nn.Module:
    model = digits()
    model.layer2[2].branch.weight = nn.Parameter(torch.zeros(32, 32, 3, 3))
    model.layer3[2].twin = nn.Conv2d(32, 32, 3)
    model.layer3[2].twin.weight = model.layer2[2].branch.weight
    return model


def other_order() -> TransferPlan:
    return TransferPlan(tuple(BlockPlan(name) for name in [DIGITS[1], DIGITS[0], *DIGITS[2:]]))


def renamed() -> TransferPlan:
    return TransferPlan(tuple(BlockPlan(name.replace("layer1.2", "layer1.20")) for name in DIGITS))


def frozen(model: Any, *names: str) -> Any:
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return model


SCALED = {"plain": (digits, "layer3.2"), "timm": (TimmLike, "blocks.2"), "Hugging Face": (bert, "bert.encoder.layer.2")}
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {  # model, rules or plan, options, error
    **{
        f"{kind}: nothing initialises it": (
            lambda make=make, block=block: scaled(make(), block),
            {"new_blocks": 2},
            {},
            rf"{re.escape(block)}\.scale.*give fresh=",
        )
        for kind, (make, block) in SCALED.items()
    },
    "frozen for good beside it": (
        lambda: scaled(digits(), "layer3.2"),
        {"new_blocks": 2, "frozen_blocks": 2},
        {},
        r"layer3\.2\.scale",
    ),
    "fresh of other shapes": (
        digits,
        {"new_blocks": 7},
        {"fresh": lambda: DigitsNet(3), "renew_head": True},
        "head.weig",
    ),
    "fresh without the blocks": (digits, {"new_blocks": 3}, {"fresh": hf_resnet}, r"fresh must .*layer3\.0\.weight"),
    "fresh without statistics": (
        hf_resnet,
        {"new_blocks": 2},
        {"fresh": lambda: replaced_norms(hf_resnet())},
        "fresh must .*running_mean",
    ),
    "tied to a block that stays": (
        cross_tied,
        {"new_blocks": 2},
        {},
        r"must not share.*layer2\.2\.branch\.weight is tied to layer3\.2\.twin\.weight",
    ),
    "tied to the head": (
        lambda: llama(tied=True),
        ["stem"],
        {},
        r"share.*embed_tokens\.weight is tied to lm_head\.weight",
    ),
    "wholly frozen": (
        lambda: frozen(digits(), "layer1.2", "layer2"),
        {"new_blocks": 3},
        {},
        r"layer1\.2 is to be trained; all its parameters have requires_grad=False",
    ),
    "new and wholly frozen": (
        lambda: frozen(digits(), "layer3.2"),
        {"new_blocks": 2},
        {},
        r"layer3\.2 is to be trained",
    ),
    "frozen until a step already": (
        lambda: frozen(digits(), "layer1.0"),
        {"frozen_blocks": 1, "frozen_until": 3},
        {},
        r"layer1\.0 is to be trained",
    ),
    "another order": (digits, other_order, {}, "the order is layer1.2, layer1.0"),
    "another name": (digits, renamed, {}, r"plan has layer1\.20, the model has not; did you mean layer1\.2"),
    "another network": (digits, lambda: plan_of(bert()), {}, "another architecture"),
    "a head that is not there": (digits, {}, {"head": "haed"}, "head must name.*did you mean head"),
}


def replaced_norms(model: Any) -> Any:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return model


def plan_for(model: nn.Module, given: Any) -> TransferPlan:
    """From rules, from the names of the new blocks, or as made."""
    if isinstance(given, list):
        return TransferPlan(tuple(BlockPlan(b.name, transferred=b.name not in given) for b in depth_blocks(model)))
    return plan_of(model, **given) if isinstance(given, dict) else given()


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_is_changed_where_a_plan_is_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, given, options, message = REFUSED[case]
    model = disturbed(make())
    plan = plan_for(model, given)
    before, marked = situation(model), marks(model)
    with pytest.raises(ValueError, match=message):
        plan.apply(model, **options)
    assert_same_situation(before, situation(model))
    assert marks(model) == marked
    assert capsys.readouterr().out == ""


def test_another_architecture_is_refused_with_each_difference() -> None:
    lines = tuple(BlockPlan(name) for name in ["layer1.0", "layer1.3", "layer2.0", "layer3.0", "layer3.2", "head"])
    with pytest.raises(PlanError) as error:
        TransferPlan(lines).apply(digits())
    assert isinstance(error.value, ValueError)
    assert str(error.value).splitlines() == [
        "the plan is of another architecture:",
        "  the plan has layer1.3, the model has not; did you mean layer1.2 or layer1.0 or layer3.2?",
        "  the model has layer1.2, the plan has not",
        "  the model has layer2.2, the plan has not",
    ]


def test_of_hundreds_of_differences_some_are_shown_and_all_are_counted() -> None:
    lines = tuple(BlockPlan(f"block{i}") for i in range(300))
    with pytest.raises(PlanError) as error:
        TransferPlan(lines).apply(digits())
    shown = str(error.value).splitlines()
    assert len(shown) < 20
    assert shown[-1].split() == ["and", str(307 - (len(shown) - 2)), "more"]


# What is frozen


def test_frozen_parameters_of_a_block_that_is_trained_are_left_out() -> None:
    model = digits()
    model.layer1[0].bias.requires_grad_(False)
    model.layer3[2].branch.bias.requires_grad_(False)
    found = members(plan_of(model, new_blocks=2).apply(model, verbose=False))
    assert {name for name, _ in model.named_parameters()} - found.keys() == {"layer1.0.bias", "layer3.2.branch.bias"}
    assert not model.layer1[0].bias.requires_grad


@pytest.mark.parametrize("optimizer", [pytl.AdamW, torch.optim.AdamW, pytl.SGD], ids=["pytl", "torch", "sgd"])
@pytest.mark.parametrize("before", [(), ("layer1.2",)], ids=["trainable", "frozen already"])
def test_what_is_frozen_for_good_is_in_the_groups_and_stays(optimizer: Any, before: tuple[str, ...]) -> None:
    model = frozen(digits(), *before)
    rules: dict[str, Any] = {"frozen_blocks": 2, "boundary": 2, "weight_decay": 0.1, "decay_norm_and_bias": True}
    groups = plan_of(model, **rules).apply(model, verbose=False)
    still = {name for name, options in members(groups).items() if options["frozen_until"] == "end"}
    assert still == {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in model.named_parameters() if name.startswith("layer1.")}
    start = copy.deepcopy(model.state_dict())
    trained(model, optimizer(groups, lr=0.05), image_batches(3))
    assert changed(model, start) == start.keys() - still
    assert all(p.grad is None for p in model.layer1.parameters())


# Unfreezing


class Normed(nn.Module):
    """Four blocks with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2)) for _ in range(4)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


UNTIL: dict[str, int | str] = {"layers.0": "end", "layers.1": 4, "layers.2": 2, "layers.3": 0, "head": 0}
OPTIMIZERS: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {
    "pytl.SGD": lambda groups: pytl.SGD(groups, lr=0.05, momentum=0.9),
    "pytl.AdamW": lambda groups: pytl.AdamW(groups, lr=0.05),
    "torch.optim.AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.05),
}
EVERY_OPTIMIZER = pytest.mark.parametrize("name", OPTIMIZERS)


def gradual(until: dict[str, int | str] | None = None) -> TransferPlan:
    lines = [
        BlockPlan(block, frozen_until=step)
        if step == "end"
        else BlockPlan(block, lr=0.04, weight_decay=0.01, frozen_until=step)
        if block == "head"
        else BlockPlan(block, sp_decay=0.1, weight_decay=0.01, frozen_until=step)
        for block, step in (until or UNTIL).items()
    ]
    return TransferPlan(tuple(lines))


def start_of(name: str) -> tuple[Normed, torch.optim.Optimizer, Unfreezing]:
    torch.manual_seed(1)
    model = Normed()
    opt = OPTIMIZERS[name](gradual().apply(model, verbose=False))
    return model, opt, Unfreezing(opt, model)


def take_step(model: nn.Module, opt: torch.optim.Optimizer, unfreezing: Unfreezing, step: int) -> None:
    torch.manual_seed(step)
    opt.zero_grad()
    cross_entropy(model(torch.randn(6, 4) + 1), torch.arange(6) % 3).backward()
    opt.step()
    unfreezing.step()


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The blocks with changed weights, and with changed statistics."""
    return {
        ("statistics of " if "running" in name or "batches" in name else "")
        + name.rpartition(".")[0].rpartition(".")[0]
        for name in changed(model, before)
        if name.startswith("layers.")
    }


@EVERY_OPTIMIZER
def test_weights_and_statistics_stay_until_their_step_and_move_from_it_on(name: str) -> None:
    model, opt, unfreezing = start_of(name)
    for step in range(7):
        before = copy.deepcopy(model.state_dict())
        take_step(model, opt, unfreezing, step)
        trained_now = {block for block, s in UNTIL.items() if s != "end" and step >= int(s)} - {"head"}
        assert moved(model, before) == trained_now | {f"statistics of {block}" for block in trained_now}
        assert unfreezing.steps == step + 1


@EVERY_OPTIMIZER
def test_groups_stay_as_they_are_and_what_is_frozen_has_no_state(name: str) -> None:
    model, opt, unfreezing = start_of(name)
    ids = [[id(p) for p in group["params"]] for group in opt.param_groups]
    for step in range(6):
        take_step(model, opt, unfreezing, step)
        assert [[id(p) for p in group["params"]] for group in opt.param_groups] == ids
        for block, until in UNTIL.items():
            for p in model.get_submodule(block).parameters():
                asleep = until == "end" or step < int(until)
                assert (p.grad is None) == asleep
                assert not (asleep and opt.state.get(p))
                assert p.requires_grad == (until != "end" and step + 1 >= int(until))


@pytest.mark.parametrize("split", range(7))
@EVERY_OPTIMIZER
def test_a_run_that_is_resumed_goes_on_bit_for_bit(name: str, split: int) -> None:
    model, opt, unfreezing = start_of(name)
    for step in range(split):
        take_step(model, opt, unfreezing, step)
    kept = copy.deepcopy((model.state_dict(), opt.state_dict(), unfreezing.state_dict()))
    other = Normed()
    other_opt = OPTIMIZERS[name](gradual().apply(other, verbose=False))
    other_unfreezing = Unfreezing(other_opt, other)
    other.load_state_dict(kept[0])
    other_opt.load_state_dict(kept[1])
    other_unfreezing.load_state_dict(kept[2])
    assert situation(other).modes == situation(model).modes
    for step in range(split, 7):
        take_step(model, opt, unfreezing, step)
        take_step(other, other_opt, other_unfreezing, step)
        assert not changed(other, model.state_dict())
        assert situation(other).requires == situation(model).requires
        assert situation(other).modes == situation(model).modes


def modes(model: Normed) -> list[bool]:
    return [all(module.training for module in layer.modules()) for layer in model.layers]


def test_what_is_frozen_is_in_evaluation_mode_until_it_is_thawed() -> None:
    model, opt, unfreezing = start_of("pytl.SGD")
    found = [modes(model)]
    for step in range(5):
        take_step(model, opt, unfreezing, step)
        found.append(modes(model))
    first, second, third = [False, False, False, True], [False, False, True, True], [False, True, True, True]
    assert found == [first, first, second, second, third, third]
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.layers[0].modules())


def test_hold_puts_to_sleep_again_what_train_has_woken() -> None:
    model, opt, unfreezing = start_of("pytl.SGD")
    take_step(model, opt, unfreezing, 0)
    model.eval()
    unfreezing.hold()
    assert not any(module.training for module in model.modules())
    model.train()
    assert modes(model) == [True] * 4
    unfreezing.hold()
    assert modes(model) == [False, False, False, True]
    before = copy.deepcopy(model.state_dict())
    take_step(model, opt, unfreezing, 1)
    assert moved(model, before) == {"layers.3", "statistics of layers.3"}


def test_thawing_in_evaluation_mode_leaves_it() -> None:
    model, opt, unfreezing = start_of("pytl.SGD")
    take_step(model, opt, unfreezing, 0)
    model.eval()
    unfreezing.step()
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.layers[2].parameters())


def test_what_the_plan_does_not_freeze_is_left_as_it_is() -> None:
    model = Normed()
    model.layers[3][1].eval()
    model.layers[3][0].requires_grad_(False)
    opt = OPTIMIZERS["pytl.SGD"](gradual().apply(model, verbose=False))
    unfreezing = Unfreezing(opt, model)
    for step in range(5):
        take_step(model, opt, unfreezing, step)
        assert not model.layers[3][1].training
        assert model.layers[3][0].training
        assert not any(p.requires_grad for p in model.layers[3][0].parameters())


def test_what_another_optimizer_trains_stays_awake() -> None:
    model = Normed()
    groups = gradual({**dict.fromkeys(UNTIL, 2), "head": 0}).apply(model, verbose=False)
    unfreezing = Unfreezing(torch.optim.SGD([group for group in groups if group["frozen_until"]], lr=0.1), model)
    found = []
    for _ in range(3):
        found.append((model.training, model.head.training, *modes(model)))
        unfreezing.step()
    asleep, awake = (True, True, *[False] * 4), (True,) * 6
    assert found == [asleep, asleep, awake]


def test_a_module_that_another_optimizer_trains_in_part_stays_awake() -> None:
    model = Normed()
    params = [p for layer in model.layers for p in layer[0].parameters()]
    Unfreezing(torch.optim.SGD([{"params": params, "frozen_until": 2}], lr=0.1), model)
    assert [(layer.training, layer[0].training, layer[1].training) for layer in model.layers] == [
        (True, False, True)
    ] * 4


def test_the_model_itself_is_awake_where_all_of_it_is_frozen() -> None:
    model = Normed()
    unfreezing = Unfreezing(planned(model, gradual(dict.fromkeys(UNTIL, 2))), model)
    assert (model.training, model.head.training, *modes(model)) == (True, *[False] * 5)
    for _ in range(2):
        unfreezing.step()
    assert (model.training, model.head.training, *modes(model)) == (True,) * 6


@EVERY_OPTIMIZER
def test_gradients_from_before_do_not_move_what_is_frozen(name: str) -> None:
    model = Normed()
    opt = OPTIMIZERS[name](gradual().apply(model, verbose=False))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    Unfreezing(opt, model)
    before = copy.deepcopy(model.state_dict())
    opt.step()
    assert moved(model, before) == {"layers.3"}


def test_groups_without_a_plan_are_all_trained() -> None:
    model = Normed()
    before = situation(model)
    unfreezing = Unfreezing(torch.optim.SGD(model.parameters(), lr=0.1), model)
    unfreezing.step()
    assert_same_situation(before, situation(model))


def moving_statistics(until: dict[str, int | str], steps: int) -> list[set[str]]:
    """Of `Bare`'s normalisations, at each step."""
    model = Bare()
    plan = TransferPlan(tuple(BlockPlan(block, frozen_until=step) for block, step in until.items()))
    opt = OPTIMIZERS["pytl.SGD"](plan.apply(model, verbose=False))
    unfreezing, found = Unfreezing(opt, model), []
    for _ in range(steps):
        before = copy.deepcopy(model.state_dict())
        opt.zero_grad()
        model(torch.randn(6, 4)).square().sum().backward()
        opt.step()
        unfreezing.step()
        found.append({name.rpartition(".")[0] for name in changed(model, before) if "running" in name})
    return found


def test_statistics_of_normalisations_without_weights_stay_in_a_frozen_block() -> None:
    found = moving_statistics({"stem": 0, "layers.0": 2, "layers.1": 0, "head": 0}, 3)
    assert found == [{"first", "layers.1.1", "last"}] * 2 + [{"first", "layers.0.1", "layers.1.1", "last"}]


def test_statistics_of_normalisations_without_weights_stay_in_a_frozen_stem() -> None:
    found = moving_statistics({"stem": "end", "layers.0": "end", "layers.1": 0, "head": 0}, 2)
    assert found == [{"layers.1.1", "last"}] * 2


def test_statistics_behind_a_frozen_block_stay_where_the_head_is_named() -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
    model = named(layers=layers, last=nn.BatchNorm1d(4, affine=False), top=nn.Linear(4, 2))
    plan = plan_of(model, head="top", frozen_blocks=2, frozen_until=1)
    unfreezing = Unfreezing(OPTIMIZERS["pytl.SGD"](plan.apply(model, head="top", verbose=False)), model)
    assert (model.last.training, model.top.training) == (False, True)
    unfreezing.step()
    assert (model.last.training, model.top.training) == (True, True)


def test_statistics_move_in_a_block_that_is_frozen_in_part() -> None:
    model = Bare()
    frozen_weight = {"params": [model.layers[0][0].weight], "frozen_until": "end"}
    others = [p for p in model.parameters() if p is not model.layers[0][0].weight]
    Unfreezing(torch.optim.SGD([frozen_weight, {"params": others}], lr=0.1), model)
    assert all(module.training for module in model.modules())


def test_statistics_stay_where_some_of_a_frozen_block_was_frozen_before() -> None:
    model = Normed()
    model.layers[1][1].requires_grad_(False)
    opt = OPTIMIZERS["pytl.SGD"](gradual().apply(model, verbose=False))
    unfreezing = Unfreezing(opt, model)
    before = copy.deepcopy(model.state_dict())
    take_step(model, opt, unfreezing, 0)
    assert moved(model, before) == {"layers.3", "statistics of layers.3"}


# In DistributedDataParallel


@pytest.fixture
def one_rank() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def planned(model: nn.Module, plan: TransferPlan | None = None) -> torch.optim.Optimizer:
    return OPTIMIZERS["pytl.SGD"]((plan or gradual()).apply(model, verbose=False))


@pytest.mark.usefixtures("one_rank")
def test_ddp_that_does_not_look_for_unused_parameters_is_refused() -> None:
    wrapped = DistributedDataParallel(Normed())
    opt = planned(wrapped)
    before = situation(wrapped)
    with pytest.raises(ValueError, match="model must be in DDP with find_unused_parameters=True"):
        Unfreezing(opt, wrapped)
    assert_same_situation(before, situation(wrapped))


@pytest.mark.usefixtures("one_rank")
def test_ddp_that_never_saw_what_is_trained_later_is_refused() -> None:
    model = Normed()
    opt = planned(model)
    Unfreezing(opt, model)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    with pytest.raises(
        ValueError, match="model must be wrapped in DDP before anything that is trained later is frozen"
    ):
        Unfreezing(opt, wrapped)


@pytest.mark.usefixtures("one_rank")
def test_ddp_may_freeze_for_good_without_looking_for_unused_parameters() -> None:
    model = Normed()
    opt = planned(model, gradual({**dict.fromkeys(UNTIL, 0), "layers.0": "end"}))
    Unfreezing(opt, DistributedDataParallel(model))
    assert modes(model) == [False, True, True, True]


@pytest.mark.usefixtures("one_rank")
@EVERY_OPTIMIZER
def test_ddp_takes_the_steps_of_the_network_alone(name: str) -> None:
    alone, opt, unfreezing = start_of(name)
    torch.manual_seed(1)
    model = Normed()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    other_opt = OPTIMIZERS[name](gradual().apply(wrapped, verbose=False))
    other = Unfreezing(other_opt, wrapped)
    for step in range(6):
        take_step(alone, opt, unfreezing, step)
        take_step(wrapped, other_opt, other, step)
        assert not changed(model, alone.state_dict())


# Printed


def test_a_plan_is_printed_with_a_line_for_each_block_and_its_numbers() -> None:
    plan = TransferPlan(
        (
            BlockPlan("stem", frozen_until="end"),
            BlockPlan("layer1", lr=0.006, sp_decay=0.02, frozen_until=500),
            BlockPlan("layer2.a.long.name", lr=0.0),
            BlockPlan("head", transferred=False, weight_decay=5e-4),
        )
    )
    rows = [re.split(r"  +", line) for line in str(plan).splitlines()]
    assert rows == [
        ["block", "weights", "lr", "to the start", "to zero", "frozen"],
        ["stem", "transferred", "-", "-", "-", "for good"],
        ["layer1", "transferred", "0.006", "0.02", "-", "until 500"],
        ["layer2.a.long.name", "transferred", "0", "-", "-"],
        ["head", "new", "given", "-", "0.0005"],
    ]
    starts = {
        line.index(word)
        for line, word in zip(str(plan).splitlines()[1:], ("trans", "trans", "trans", "new"), strict=True)
    }
    assert len(starts) == 1


def test_a_direction_is_printed_last() -> None:
    line = BlockPlan("head")
    assert str(TransferPlan((line,), direction="dtnh")) == f"{TransferPlan((line,))}\ndirection: dtnh"


def test_a_plan_is_printed_when_it_is_applied_unless_that_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(digits(), new_blocks=2, lr=0.1)
    plan.apply(digits(), verbose=False)
    assert capsys.readouterr().out == ""
    plan.apply(digits())
    assert capsys.readouterr().out == f"{plan}\n"
