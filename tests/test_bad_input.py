"""Bad input is named - argument, what was expected, what was found - before anything is changed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import assert_same, copy_of, draw, give, parameters
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

import pytl
from pytl.ops.operands import Operands
from pytl.optim.plan import split

pytestmark = pytest.mark.usefixtures("one_thread")

NAN = float("nan")
OPTIONS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "negative lr": ({"lr": -0.1}, ValueError, r"Invalid learning rate: -0\.1"),
    "NaN lr": ({"lr": NAN}, ValueError, "Invalid learning rate: nan"),
    "negative tensor lr": ({"lr": torch.tensor(-1.0)}, ValueError, "Invalid learning rate"),
    "lr of two elements": ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    "negative weight_decay": ({"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    "NaN weight_decay": ({"weight_decay": NAN}, ValueError, "Invalid weight_decay value: nan"),
    "negative sp_decay": ({"sp_decay": -1.0}, ValueError, r"sp_decay must be >= 0; got -1\.0"),
    "NaN sp_decay": ({"sp_decay": NAN}, ValueError, "sp_decay must be >= 0; got nan"),
    "unknown direction": ({"direction": "dtnhh"}, ValueError, "direction must be one of sum, dtnh, .*got 'dtnhh'"),
    "direction of another type": ({"direction": 3}, (TypeError, ValueError), "direction must be.*got 3"),
    "direction that has no hash": ({"direction": ["dtnh"]}, (TypeError, ValueError), "direction must be"),
    "class for a direction": ({"direction": pytl.DTNH}, (TypeError, ValueError), "direction must be"),
    "unknown granularity": ({"granularity": "layer"}, ValueError, "granularity must be one of tensor, global.*'layer'"),
    "fused and foreach": ({"fused": True, "foreach": True}, RuntimeError, "`fused` and `foreach` cannot be `True`"),
    "fused and differentiable": (
        {"fused": True, "differentiable": True},
        RuntimeError,
        "`fused` does not support `differentiable`",
    ),
}
CONSTRUCTOR: dict[str, tuple[dict[str, Any], Any, str]] = {
    "negative max_grad_norm": ({"max_grad_norm": -1.0}, ValueError, r"max_grad_norm must be > 0.*got -1\.0"),
    "zero max_grad_norm": ({"max_grad_norm": 0.0}, ValueError, r"max_grad_norm must be > 0.*got 0\.0"),
    "NaN max_grad_norm": ({"max_grad_norm": NAN}, ValueError, "max_grad_norm must be > 0.*got nan"),
    "start_dtype": ({"start_dtype": torch.int8}, ValueError, "start_dtype must be.*int8"),
    "start_dtype by name": ({"start_dtype": "bfloat16"}, ValueError, "start_dtype must be.*'bfloat16'"),
    "start_device": ({"start_device": "nowhere"}, (ValueError, RuntimeError), "nowhere"),
    "start of another type": ({"start": 3}, TypeError, "start must be None, a mapping or a path; got int"),
    "start without names": ({"start": {}}, ValueError, "start needs the parameters' names"),
}
OWN = {
    pytl.SGD: {
        "negative momentum": ({"momentum": -0.5}, ValueError, r"Invalid momentum value: -0\.5"),
        "NaN momentum": ({"momentum": NAN}, ValueError, "Invalid momentum value: nan"),
        "nesterov alone": ({"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
        "nesterov and dampening": (
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            ValueError,
            "Nesterov momentum requires a momentum and zero dampening",
        ),
    },
    pytl.AdamW: {
        "negative eps": ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
        "NaN eps": ({"eps": NAN}, ValueError, "Invalid epsilon value: nan"),
        "beta1 of 1": ({"betas": (1.0, 0.9)}, ValueError, r"Invalid beta parameter at index 0: 1\.0"),
        "negative beta2": ({"betas": (0.9, -0.1)}, ValueError, r"Invalid beta parameter at index 1: -0\.1"),
        "NaN beta": ({"betas": (NAN, 0.9)}, ValueError, "Invalid beta parameter at index 0: nan"),
        "three betas": ({"betas": (0.9, 0.9, 0.9)}, ValueError, "betas"),
        "one beta": ({"betas": (0.9,)}, ValueError, "betas"),
    },
}
METHODS = (pytl.SGD, pytl.AdamW)
GROUP_CASES = [(m, name, *case) for m in METHODS for name, case in (OPTIONS | OWN[m]).items()]
CASES = GROUP_CASES + [(m, name, *case) for m in METHODS for name, case in CONSTRUCTOR.items()]


def ids(cases: list[Any]) -> list[str]:
    return [f"{case[0].__name__}: {case[1]}" for case in cases]


@pytest.mark.parametrize(("method", "name", "options", "error", "message"), CASES, ids=ids(CASES))
def test_bad_option_is_named(method: Any, name: str, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        method(parameters(), **options)


@pytest.mark.parametrize(("method", "name", "options", "error", "message"), GROUP_CASES, ids=ids(GROUP_CASES))
def test_bad_option_of_an_added_group_changes_nothing(
    method: Any, name: str, options: dict[str, Any], error: Any, message: str
) -> None:
    optimizer = method(parameters())
    before = copy_of(optimizer)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": parameters(9), **options})
    assert_same(copy_of(optimizer), before)


@pytest.mark.parametrize("option", ["direction", "granularity"])
def test_bad_option_set_in_the_middle_of_training_moves_no_weight(option: str, method: Any) -> None:
    optimizer = method(parameters(), sp_decay=0.1)
    params = optimizer.param_groups[0]["params"]
    give(params, draw(1))
    optimizer.step()
    before = copy_of(optimizer)[:2]
    optimizer.param_groups[0][option] = "nonsense"
    with pytest.raises(ValueError, match=f"{option} must be one of"):
        optimizer.step()
    assert_same(copy_of(optimizer)[:2], before)


PARAMS: dict[str, tuple[Any, Any, str]] = {
    "empty list": (lambda: [], ValueError, "empty parameter list"),
    "a bare tensor": (
        lambda: torch.zeros(3),
        TypeError,
        "params argument given to the optimizer should be an iterable",
    ),
    "no tensor": (lambda: [3], TypeError, "optimizer can only optimize Tensors"),
    "not a leaf": (lambda: [torch.ones(2, requires_grad=True) * 2], ValueError, "can't optimize a non-leaf Tensor"),
    "integers": (lambda: [torch.zeros(3, dtype=torch.int64)], TypeError, "parameter 0.*floating point.*int64"),
    "complex": (
        lambda: [torch.zeros(3, dtype=torch.complex64)],
        (TypeError, RuntimeError),
        "parameter 0.*real.*complex64",
    ),
    "sparse": (lambda: [torch.eye(3).to_sparse()], (TypeError, ValueError, RuntimeError), "parameter 0.*sparse"),
    "expanded": (lambda: [torch.zeros(1).expand(4)], ValueError, "parameter 0.*expanded"),
    "overlap": (lambda: overlapping(lambda t: (t[:6], t[4:])), ValueError, "overlap"),
    "overlap of tensors with gaps": (lambda: overlapping(lambda t: (t[::2], t[4:])), ValueError, "overlap"),
    "the same memory twice": (lambda: overlapping(lambda t: (t, t.view(2, 5))), ValueError, "overlap"),
}


def overlapping(views: Any) -> list[Parameter]:
    return [Parameter(view) for view in views(torch.zeros(10))]


@pytest.mark.parametrize("case", PARAMS)
def test_bad_parameters_are_named(case: str, method: Any) -> None:
    make, error, message = PARAMS[case]
    with pytest.raises(error, match=message):
        method(make())


@pytest.mark.parametrize("case", ["integers", "complex", "sparse", "expanded", "overlap", "no tensor", "not a leaf"])
def test_bad_parameters_of_an_added_group_change_nothing(case: str, method: Any) -> None:
    make, error, _ = PARAMS[case]
    optimizer = method(parameters())
    before = copy_of(optimizer)
    with pytest.raises(error):
        optimizer.add_param_group({"params": make()})
    assert_same(copy_of(optimizer), before)


def test_parameter_that_overlaps_one_of_another_group_is_refused(method: Any) -> None:
    memory = torch.zeros(10)
    optimizer = method([Parameter(memory[:6])])
    with pytest.raises(ValueError, match="overlap"):
        optimizer.add_param_group({"params": [Parameter(memory[5:])]})
    assert len(optimizer.param_groups) == 1


def test_views_side_by_side_are_no_overlap(method: Any) -> None:
    memory = torch.zeros(10)
    method([Parameter(memory[:5]), Parameter(memory[5:])])
    method([Parameter(memory[::2]), Parameter(memory[1::2])])


def test_fused_names_why_the_core_cannot_and_changes_nothing(method: Any) -> None:
    p = Parameter(torch.zeros(4, 2)[:, 0])
    optimizer = method([p], fused=True, sp_decay=0.1)
    p.grad = torch.ones(4)
    before = copy_of(optimizer)
    with pytest.raises(RuntimeError, match=r"fused=True.*gaps"):
        optimizer.step()
    assert_same(copy_of(optimizer), before)


# The starting point.

NAMES = ("a.weight", "a.bias")
SHAPES = ((3, 4), (4,))


def whole() -> dict[str, Tensor]:
    return dict(zip(NAMES, draw(3, SHAPES, torch.float32), strict=True))


MAPPINGS: dict[str, tuple[Any, Any, str]] = {
    "missing": (lambda m: {"a.weight": m["a.weight"]}, ValueError, "missing: a.bias"),
    "extra": (lambda m: m | {"b.weight": torch.ones(2)}, ValueError, "extra: b.weight"),
    "shape": (lambda m: m | {"a.bias": torch.ones(5)}, ValueError, r"a.bias: expected \[4\], got \[5\]"),
    "all at once": (
        lambda m: {"a.bias": torch.ones(2), "c": torch.ones(1)},
        ValueError,
        "missing: a.weight.*extra: c.*a.bias",
    ),
    "no tensor": (lambda m: m | {"a.bias": [1, 2, 3, 4]}, TypeError, "start.*list.*a.bias"),
    "integers": (lambda m: m | {"a.bias": torch.ones(4, dtype=torch.int64)}, (TypeError, ValueError), "a.bias.*int64"),
    "complex": (lambda m: m | {"a.bias": torch.ones(4) * 1j}, (TypeError, ValueError), "a.bias.*complex64"),
}


@pytest.mark.parametrize("case", MAPPINGS)
def test_start_that_does_not_fit_is_refused_with_the_names(case: str, method: Any) -> None:
    change, error, message = MAPPINGS[case]
    named = list(zip(NAMES, parameters(0, SHAPES, torch.float32), strict=True))
    with pytest.raises(error, match=message):
        method(named, sp_decay=0.1, start=change(whole()))


def test_start_needs_only_the_anchored(method: Any) -> None:
    named = list(zip(NAMES, parameters(0, SHAPES, torch.float32), strict=True))
    groups = [{"params": named[:1], "sp_decay": 0.1}, {"params": named[1:], "sp_decay": 0}]
    method(groups, start={"a.weight": whole()["a.weight"]})
    method(groups, start=whole())


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def write(kind: str, folder: Path) -> Path:
    path = folder / ("start.safetensors" if "safetensors" in kind else "start.pt")
    if kind == "no file":
        return path
    if kind.startswith("empty"):
        path.write_bytes(b"")
    elif kind.startswith("text"):
        path.write_text("not a checkpoint, but some text that is long enough for a header")
    elif kind == "pickle bomb .pt":
        torch.save(whole() | {"a.bias": Bomb()}, path)
    elif kind == "bare pickle bomb .pt":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "list .pt":
        torch.save(list(whole().values()), path)
    elif kind == "nested .pt":
        torch.save({"model": whole()}, path)
    elif kind == "folder without a model":
        return folder
    elif kind == "folder with a broken index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": ')
        return folder
    elif kind == "folder with an index to elsewhere":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": "../x.safetensors"}}')
        return folder
    elif kind == "folder with a shard missing":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": "x.safetensors"}}')
        return folder
    else:
        save_file(whole(), path) if "safetensors" in kind else torch.save(whole(), path)
        truncated(path)
    return path


KINDS = [
    "no file",
    "empty .pt",
    "empty .safetensors",
    "text .pt",
    "text .safetensors",
    "truncated .pt",
    "truncated .safetensors",
    "pickle bomb .pt",
    "bare pickle bomb .pt",
    "list .pt",
    "nested .pt",
    "folder without a model",
    "folder with a broken index",
    "folder with an index to elsewhere",
    "folder with a shard missing",
]


@pytest.mark.parametrize("kind", KINDS)
def test_start_from_a_bad_file_is_refused_with_its_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(kind, tmp_path)
    named = list(zip(NAMES, parameters(0, SHAPES, torch.float32), strict=True))
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match="start") as caught:
        pytl.SGD(named, sp_decay=0.1, start=path)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_file_with_more_names_than_the_model_warns(tmp_path: Path) -> None:
    torch.save(whole() | {"old_head.weight": torch.ones(2)}, tmp_path / "start.pt")
    named = list(zip(NAMES, parameters(0, SHAPES, torch.float32), strict=True))
    with pytest.warns(UserWarning, match=r"old_head\.weight"):
        pytl.SGD(named, sp_decay=0.1, start=tmp_path / "start.pt")


# Loading.


@pytest.mark.parametrize("change", ["groups", "sizes", "shape", "direction"])
def test_state_that_does_not_fit_is_refused_and_changes_nothing(change: str, method: Any) -> None:
    optimizer, other = method(parameters(), lr=0.1, sp_decay=0.1), method(parameters(3), lr=0.5, sp_decay=0.1)
    for one in (optimizer, other):
        give(one.param_groups[0]["params"], draw(1))
        one.step()
    saved = other.state_dict()
    if change == "groups":
        saved["param_groups"] = saved["param_groups"] * 2
    elif change == "sizes":
        saved["param_groups"][0]["params"] = saved["param_groups"][0]["params"][:-1]
    elif change == "shape":
        saved["state"][0]["start"] = torch.ones(2, 2)
    else:
        saved["param_groups"][0]["direction"] = "unheard of"
    before = copy_of(optimizer)
    with pytest.raises(ValueError, match=r"group|shape|direction"):  # noqa: PT012 - a shape is seen at the step
        optimizer.load_state_dict(saved)
        optimizer.step()
    if change != "shape":
        assert_same(copy_of(optimizer), before)


# The functional forms.

FUNCTIONAL: dict[str, tuple[dict[str, Any], Any, str]] = {
    "direction": ({"direction": "up"}, ValueError, "direction must be one of"),
    "granularity": ({"granularity": "layer"}, ValueError, "granularity must be one of"),
    "fewer starts": ({"starts": []}, ValueError, "start: expected one tensor for each of the 1 params; got 0"),
    "shape of a start": ({"starts": [torch.ones(2)]}, ValueError, r"start of \w+\[0\].*\[3\].*\[2\]"),
    "integer start": ({"starts": [torch.ones(3, dtype=torch.int32)]}, TypeError, r"start of \w+\[0\].*int32"),
    "dtype of a penalty": ({"penalties": [torch.ones(3).double()]}, TypeError, "penalty.*float32.*float64"),
    "device of a penalty": ({"penalties": [torch.ones(3, device="meta")]}, RuntimeError, "penalty.*cpu.*meta"),
    "dtype of a compensation": ({"compensations": [torch.ones(3).half()]}, TypeError, "compensation.*float16"),
}


@pytest.mark.parametrize("case", FUNCTIONAL)
def test_functional_step_refuses_before_anything_is_changed(case: str, path: dict[str, bool]) -> None:
    options, error, message = FUNCTIONAL[case]
    w, buffer, step = torch.ones(3), torch.zeros(3), torch.zeros(())
    arguments = {"lr": 0.1, "momentum": 0.9, "sp_decay": 0.1, "starts": [torch.zeros(3)], **options}
    with pytest.raises(error, match=message):
        pytl.ops.sgd_step([w], [torch.ones(3)], [buffer], [step], **arguments, fused="fused" in path)
    assert_same([w, buffer, step], [torch.ones(3), torch.zeros(3), torch.zeros(())])


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float16])
def test_functional_step_refuses_moments_of_another_dtype(state_dtype: torch.dtype, path: dict[str, bool]) -> None:
    w = torch.ones(3)
    with pytest.raises(TypeError, match=r"states\[0\].*float32"):
        pytl.ops.sgd_step([w], [w], [w.to(state_dtype)], [torch.zeros(())], lr=1.0, momentum=0.9, fused="fused" in path)


@pytest.mark.parametrize(
    "step", [torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.float64), torch.zeros(2)]
)
def test_functional_step_refuses_a_counter_of_another_kind(step: Tensor, path: dict[str, bool]) -> None:
    w = torch.ones(3)
    with pytest.raises((TypeError, ValueError), match="step"):
        pytl.ops.sgd_step([w], [torch.ones(3)], [], [step], lr=1.0, fused="fused" in path)
    assert torch.equal(w, torch.ones(3))


def test_direction_weights_refuses_numbers_of_another_kind() -> None:
    for gram in (torch.ones(3, dtype=torch.float64), torch.ones(2, 3), torch.ones(2, 2, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"gram must be float64 of shape \[n, 3\]"):
            pytl.ops.direction_weights(gram)


def test_own_direction_of_the_wrong_shape_is_named_and_moves_nothing(path: dict[str, bool]) -> None:
    class Scalar(pytl.Direction):
        def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
            return gg.sum(), gr.sum()

    params = parameters()
    give(params, draw(1))
    with pytest.raises(ValueError, match=r"Scalar\.weights must give two tensors of shape"):
        pytl.SGD(params, direction=Scalar(), sp_decay=0.1, **path).step()
    assert_same([p.detach() for p in params], draw(0))


def test_tensors_on_two_devices_in_one_functional_call_are_refused() -> None:
    params = [torch.zeros(3), torch.zeros(3, device="meta")]
    with pytest.raises(RuntimeError, match=r"weights\[1\] must be on cpu, as the others are; got meta"):
        pytl.ops.gram(params, [torch.zeros_like(p) for p in params])


def test_parameters_on_two_devices_go_to_two_lists() -> None:
    operands = [
        Operands(torch.zeros(3, device=device), torch.zeros(3, device=device)) for device in ("cpu", "meta", "cpu")
    ]
    lists, indices, _ = split(operands, [None, None, None], [-1, -1, -1])
    assert [tensors.device.type for tensors in lists] == ["cpu", "meta"]
    assert indices == [[0, 2], [1]]


def test_running_out_of_memory_while_planning_leaves_nothing_half_built(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters()
    optimizer = method(params, sp_decay=0.1)
    give(params, draw(1))
    before = copy_of(optimizer)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("as a test")

    with monkeypatch.context() as patched:
        patched.setattr("pytl.ops.tensor_list.plan_of", full)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
    assert_same(copy_of(optimizer), before)
    optimizer.step()
