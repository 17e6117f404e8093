"""What PyTorch and its ecosystem expect of an optimizer, property by property."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import WEIGHT_DTYPES, assert_same, copy_of, draw, give, give_penalties, parameters
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

import pytl

pytestmark = pytest.mark.usefixtures("one_thread")

L2SP: dict[str, Any] = {"lr": 0.1, "sp_decay": 0.3, "weight_decay": 0.05, "direction": "dtnh"}


def detached(params: Any) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def take_steps(optimizer: Any, count: int, first: int = 1, dtype: torch.dtype | None = None) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, first + count):
        give(params, draw(t, [p.shape for p in params]))
        optimizer.step()


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Parameters and groups.


def test_is_a_torch_optimizer(method: Any) -> None:
    assert issubclass(method, torch.optim.Optimizer)
    assert method._step_supports_amp_scaling is True


@pytest.mark.parametrize("form", ["tensors", "generator", "dicts", "names", "dicts of names"])
def test_parameters_come_in_every_form_of_torch(form: str, method: Any) -> None:
    params = parameters()
    named = [(f"layer.{i}", p) for i, p in enumerate(params)]
    optimizer = method(
        {
            "tensors": params,
            "generator": (p for p in params),
            "dicts": [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}],
            "names": named,
            "dicts of names": [{"params": named[:2]}, {"params": named[2:], "lr": 0.5}],
        }[form]
    )
    take_steps(optimizer, 1)
    assert len(optimizer.state) == len(params)
    if "names" in form:
        assert optimizer.report().names == [name for name, _ in named]


def test_duplicates_warn_and_are_stepped_on_once_or_raise_across_groups(method: Any) -> None:
    (p,) = parameters(0, [(3,)])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        method([p, p])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        method([{"params": [p]}, {"params": [p]}])


def test_unknown_group_keys_are_kept(method: Any) -> None:
    optimizer = method([{"params": parameters(), "lr_scale": 0.5, "layer": "head"}])
    take_steps(optimizer, 2)
    saved = saved_and_loaded(optimizer.state_dict())
    assert saved["param_groups"][0]["lr_scale"] == 0.5
    assert saved["param_groups"][0]["layer"] == "head"


def test_group_added_in_the_middle_of_training_starts_there(method: Any, path: dict[str, bool]) -> None:
    params, late = parameters(), parameters(5, [(4, 2)])
    optimizer = method(params, **L2SP, **path)
    take_steps(optimizer, 2)
    late[0].data += 1
    expected = late[0].detach().clone()
    optimizer.add_param_group({"params": late, "lr": 0.5, "sp_decay": 1.0})
    take_steps(optimizer, 1)
    assert torch.equal(optimizer.state[late[0]]["start"].double(), expected)
    assert optimizer.state[late[0]]["step"] == 1
    assert optimizer.state[params[0]]["step"] == 3
    assert len(optimizer.gram) == len(params) + 1


@pytest.mark.parametrize("option", ["lr", "sp_decay", "weight_decay", "direction", "maximize", "granularity"])
def test_options_are_read_at_each_step(option: str, method: Any, path: dict[str, bool]) -> None:
    value = {"direction": "grod", "maximize": True, "granularity": "global"}.get(option, 0.7)
    changed, given = method(parameters(), **L2SP, **path), method(parameters(), **(L2SP | {option: value}), **path)
    changed.param_groups[0][option] = value
    take_steps(changed, 3)
    take_steps(given, 3)
    assert_same(detached(changed.param_groups[0]["params"]), detached(given.param_groups[0]["params"]))


def test_options_changed_between_steps_count_at_once(method: Any, path: dict[str, bool]) -> None:
    params = parameters()
    optimizer = method(params, **L2SP, **path)
    take_steps(optimizer, 2)
    before = detached(params)
    optimizer.param_groups[0]["lr"] = 0.0
    take_steps(optimizer, 1)
    assert_same(detached(params), before)


def test_parameter_moved_to_another_group_takes_its_options(method: Any, path: dict[str, bool]) -> None:
    params = parameters(0, [(3,), (3,)])
    optimizer = method([{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], **L2SP, **path)
    take_steps(optimizer, 1)
    before = params[1].detach().clone()
    optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop())
    take_steps(optimizer, 1)
    assert not torch.equal(params[1], before)


# One step.


def test_closure_runs_first_with_gradients_and_its_value_returns(method: Any, path: dict[str, bool]) -> None:
    params, theirs = parameters(), parameters()
    optimizer, plain = method(params, **L2SP, **path), method(theirs, **L2SP, **path)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    give(theirs, [2 * p.detach() for p in theirs])
    plain.step()
    assert loss.item() == pytest.approx(sum((p**2).sum().item() for p in parameters()))
    assert_same(detached(params), detached(theirs))


def test_step_without_any_gradient_changes_nothing(method: Any) -> None:
    optimizer = method(parameters(), **L2SP)
    before = copy_of(optimizer)
    optimizer.step()
    assert_same(copy_of(optimizer), before)
    assert not optimizer.gram.any()


def test_gradients_stay_as_they_are(method: Any, path: dict[str, bool]) -> None:
    optimizer = method(parameters(), max_grad_norm=0.1, maximize=True, **L2SP, **path)
    take_steps(optimizer, 1)
    assert_same([p.grad for p in optimizer.param_groups[0]["params"]], draw(1))


def test_gradients_are_the_users_to_free(method: Any, path: dict[str, bool]) -> None:
    p = Parameter(torch.zeros(4))
    optimizer = method([p], sp_decay=0.1, **path)
    for _ in range(2):
        p.grad = torch.ones(4)
        gone = weakref.ref(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert gone() is None


def test_states_that_are_no_tensors_are_let_be(method: Any) -> None:
    p = Parameter(torch.zeros(4))
    optimizer = method([p])
    optimizer.state[p]["momentum_buffer"] = None
    for _ in range(2):
        p.grad = torch.ones(4)
        optimizer.step()
    assert p.any()


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_gradients_of_no_path_raise_clearly_and_change_nothing(
    kind: str, steps_before: int, method: Any, path: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters(0, [(3, 2), (4,)], torch.float32)
    optimizer = method(params, **L2SP, **path)
    take_steps(optimizer, steps_before)
    before = copy_of(optimizer)
    give(params, draw(1, [(3, 2), (4,)]))
    if kind == "sparse":
        params[1].grad = params[1].detach().to_sparse()
    else:
        params[1].grad_dtype = None
        params[1].grad = params[1].detach().to(torch.complex64)
    with pytest.raises(RuntimeError, match=rf"parameter 1.*{kind}"):
        optimizer.step()
    assert_same(copy_of(optimizer), before)


@pytest.mark.parametrize("first", ["same", "other"])
def test_gradient_of_another_dtype_is_refused(first: str, path: dict[str, bool]) -> None:
    p = Parameter(torch.zeros(64))
    p.grad_dtype = None
    optimizer = pytl.SGD([p], lr=1.0, **path)
    p.grad = torch.ones(64) if first == "same" else torch.ones(64, dtype=torch.bfloat16)
    if first == "same":
        optimizer.step()
        p.grad = torch.ones(64, dtype=torch.bfloat16)
    before = p.detach().clone()
    with pytest.raises(TypeError, match=r"gradient.*float32.*bfloat16"):
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("make", ["transposed", "channels_last", "with gaps", "0-d", "empty"])
def test_layout_of_a_weight_changes_no_result(make: str, method: Any) -> None:
    shapes = {"channels_last": (2, 3, 4, 5), "0-d": (), "empty": (0,)}
    (plain,) = draw(0, [shapes.get(make, (6, 4))])
    arranged = {
        "transposed": lambda t: t.t().contiguous().t(),
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "with gaps": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    }.get(make, lambda t: t)(plain.clone())
    ours, theirs = Parameter(arranged), Parameter(plain)
    strides = ours.stride()
    copied = make in ("transposed", "channels_last")
    with pytest.warns(UserWarning, match="another order") if copied else contextlib.nullcontext():
        for params in ([ours], [theirs]):
            take_steps(method(params, **L2SP), 3)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-13, atol=1e-13)
    assert ours.stride() == strides


def test_backward_through_a_weight_that_was_stepped_on_raises(method: Any, path: dict[str, bool]) -> None:
    p = Parameter(torch.ones(3))
    optimizer = method([p], **L2SP, **path)
    for _ in range(2):
        loss = (p * p * p).sum()
        p.grad = torch.ones(3)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("decoupled", [False, True])
def test_step_of_zero_gradients_and_zero_lr_moves_nothing(
    decoupled: bool, eps: float, direction: str, method: Any, path: dict[str, bool]
) -> None:
    """Distributed checkpointing makes the state so."""
    params = parameters()
    own = {"eps": eps} if method is pytl.AdamW else {}
    optimizer = method(params, **(L2SP | {"lr": 0.0, "direction": direction}), decoupled=decoupled, **own, **path)
    give(params, [torch.zeros_like(p) for p in params])
    optimizer.step()
    assert_same(detached(params), draw(0))
    assert all(t.isfinite().all() for state in optimizer.state.values() for t in state.values())


def test_lr_tensor_is_read_at_each_step(method: Any, path: dict[str, bool]) -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    if path.get("foreach") and method is pytl.AdamW:
        pytest.skip("torch refuses it, and so does pytl")
    ours, theirs = method(parameters(), **(L2SP | {"lr": lr}), **path), method(parameters(), **L2SP, **path)
    take_steps(ours, 1)
    take_steps(theirs, 1)
    lr.fill_(0.5)
    theirs.param_groups[0]["lr"] = 0.5
    take_steps(ours, 1)
    take_steps(theirs, 1)
    assert_same(detached(ours.param_groups[0]["params"]), detached(theirs.param_groups[0]["params"]))


def test_differentiable_step_has_the_right_gradient() -> None:
    def weight_after(p: Tensor, g: Tensor, method: Any) -> Tensor:
        stepped = p.clone()
        stepped.grad = g
        method([stepped], lr=0.1, weight_decay=0.1, differentiable=True).step()
        return stepped

    p, g = (torch.rand(4, dtype=torch.float64).add(0.1).requires_grad_() for _ in range(2))
    for method in (pytl.SGD, pytl.AdamW):
        assert torch.autograd.gradcheck(lambda a, b, m=method: weight_after(a, b, m), (p, g))


# The starting point.


def test_start_is_taken_at_the_first_step_from_the_parameter_of_then(method: Any, path: dict[str, bool]) -> None:
    optimizer = method(parameters(), **L2SP, **path)
    assert not optimizer.state
    replaced = parameters(7)
    optimizer.param_groups[0]["params"] = replaced
    take_steps(optimizer, 2)
    assert_same([optimizer.state[p]["start"].double() for p in replaced], draw(7))
    assert set(optimizer.state) == set(replaced)


def test_no_start_is_kept_without_a_pull(method: Any) -> None:
    optimizer = method(parameters(), lr=0.1)
    take_steps(optimizer, 1)
    assert all("start" not in state for state in optimizer.state.values())


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
def test_auto_start_dtype_is_the_smallest_that_loses_nothing(dtype: torch.dtype) -> None:
    exact, full = Parameter(torch.tensor([1.0, -0.5], dtype=dtype)), Parameter(torch.tensor([0.1, 1 / 3], dtype=dtype))
    optimizer = pytl.SGD([exact, full], **L2SP)
    expected = [p.detach().clone() for p in (exact, full)]
    take_steps(optimizer, 1)
    starts = [optimizer.state[p]["start"] for p in (exact, full)]
    assert starts[0].dtype == (torch.bfloat16 if dtype.itemsize > 2 else dtype)
    assert starts[1].dtype == dtype
    assert_same([start.to(dtype) for start in starts], expected)


def test_start_dtype_and_device_are_as_asked() -> None:
    optimizer = pytl.SGD(parameters(), **L2SP, start_dtype=torch.float16, start_device="cpu")
    take_steps(optimizer, 2)
    assert {state["start"].dtype for state in optimizer.state.values()} == {torch.float16}


NAMES = ("body.weight", "body.bias", "head.weight")


def named_parameters() -> list[tuple[str, Parameter]]:
    return list(zip(NAMES, parameters(0, [(3, 4), (4,), (2, 3)], torch.float32), strict=True))


def source(kind: str, folder: Path) -> Any:
    tensors = dict(zip(NAMES, draw(9, [(3, 4), (4,), (2, 3)], torch.float32), strict=True))
    if kind == "mapping":
        return tensors
    if kind == ".pt":
        torch.save(tensors, folder / "start.pt")
        return folder / "start.pt"
    if kind == ".safetensors":
        save_file(tensors, folder / "start.safetensors")
        return str(folder / "start.safetensors")
    if kind == "folder":
        save_file(tensors, folder / "model.safetensors")
        return folder
    for shard, name in enumerate(NAMES):
        save_file({name: tensors[name]}, folder / f"model-{shard}.safetensors")
    index = {"weight_map": {name: f"model-{shard}.safetensors" for shard, name in enumerate(NAMES)}}
    (folder / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    return folder


@pytest.mark.parametrize("kind", ["mapping", ".pt", ".safetensors", "folder", "folder of shards"])
def test_start_comes_from_a_source_by_name(kind: str, tmp_path: Path, method: Any) -> None:
    named = named_parameters()
    optimizer = method(named, **L2SP, start=source(kind, tmp_path))
    take_steps(optimizer, 1)
    expected = draw(9, [p.shape for _, p in named], torch.float32)
    assert_same([optimizer.state[p]["start"].float() for _, p in named], expected)
    assert optimizer.report().distance == pytest.approx(
        [(p - w0).norm().item() for (_, p), w0 in zip(named, expected, strict=True)], rel=1e-6
    )


def test_start_is_a_copy_of_its_source() -> None:
    named = named_parameters()
    mapping = {name: p.detach() for name, p in named}
    optimizer = pytl.SGD(named, **L2SP, start=mapping, start_dtype=torch.float32)
    take_steps(optimizer, 3)
    assert_same([optimizer.state[p]["start"] for _, p in named], draw(0, [(3, 4), (4,), (2, 3)], torch.float32))


# Saving and loading.


def half_way(method: Any, path: dict[str, bool], dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    own = {"momentum": 0.9} if method is pytl.SGD else {"amsgrad": True}
    optimizer = method(parameters(0, dtype=dtype), **L2SP, **own, **options, **path)
    take_steps(optimizer, 3)
    return optimizer


def test_state_is_keyed_by_parameters_and_holds_plain_values(method: Any, path: dict[str, bool]) -> None:
    optimizer = half_way(method, path)
    assert all(isinstance(key, Tensor) for key in optimizer.state)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert all(isinstance(v, Tensor) for state in saved["state"].values() for v in state.values())
    saved_and_loaded(saved)


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
def test_resumed_training_is_bit_identical(way: str, dtype: torch.dtype, method: Any, path: dict[str, bool]) -> None:
    optimizer = half_way(method, path, dtype, max_grad_norm=1.0, granularity="global")
    if way == "deepcopy":
        resumed = copy.deepcopy(optimizer)
    elif way == "pickle":
        resumed = pickle.loads(pickle.dumps(optimizer))
    else:
        again = [Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
        own = {"momentum": 0.5} if method is pytl.SGD else {}
        resumed = method(again, lr=9.0, max_grad_norm=1.0, **own)
        resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for one in (optimizer, resumed):
        take_steps(one, 3, first=10)
    assert_same(detached(resumed.param_groups[0]["params"]), detached(optimizer.param_groups[0]["params"]))
    assert_same(list(resumed.state.values()), list(optimizer.state.values()))
    assert_same(resumed.gram, optimizer.gram)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loading_keeps_dtypes_of_states_on_16_bit_weights(dtype: torch.dtype, method: Any) -> None:
    optimizer = half_way(method, {}, dtype, start_dtype=torch.float32)
    expected = {name: t.dtype for name, t in optimizer.state_dict()["state"][0].items()}
    assert expected["start"] == torch.float32
    assert expected["compensation"] == dtype
    assert {t for name, t in expected.items() if "exp_avg" in name or "momentum" in name} == {torch.float32}
    fresh = method(parameters(0, dtype=dtype), **L2SP)
    fresh.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert_same(fresh.state_dict()["state"], optimizer.state_dict()["state"])
    assert {name: t.dtype for name, t in fresh.state_dict()["state"][0].items()} == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (pytl.AdamW, torch.optim.AdamW, {"amsgrad": True, "weight_decay": 0.1}),
        (pytl.AdamW, torch.optim.AdamW, {"fused": True}),
        (pytl.SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
        (pytl.SGD, torch.optim.SGD, {}),
    ],
)
def test_state_of_torch_loads_and_continues(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    expected = theirs(parameters(), lr=0.1, **options)
    take_steps(expected, 3)
    params = [Parameter(p.detach().clone()) for p in expected.param_groups[0]["params"]]
    optimizer = ours(params)
    optimizer.load_state_dict(saved_and_loaded(expected.state_dict()))
    for one in (expected, optimizer):
        take_steps(one, 3, first=10)
    torch.testing.assert_close(params, expected.param_groups[0]["params"], rtol=1e-13, atol=1e-13)


def test_old_and_partial_state_loads(method: Any) -> None:
    optimizer = half_way(method, {})
    saved = copy.deepcopy(optimizer.state_dict())
    for key in ("sp_decay", "direction", "granularity", "decoupled"):
        del saved["param_groups"][0][key]
    del saved["state"][2]
    for state in saved["state"].values():
        state["step"] = state["step"].item()  # as torch once kept it
    fresh = method(parameters(), **L2SP)
    fresh.load_state_dict(saved)
    take_steps(fresh, 1)
    assert fresh.param_groups[0]["direction"] == "dtnh"
    assert [state["step"].item() for state in fresh.state.values()].count(4) == len(parameters()) - 1


def test_own_direction_is_saved_by_name_and_needed_to_load() -> None:
    optimizer = pytl.SGD(parameters(), lr=0.1, direction=Halved())
    take_steps(optimizer, 1)
    saved = saved_and_loaded(optimizer.state_dict())
    again = pytl.SGD(parameters(), lr=0.1, direction=Halved())
    again.load_state_dict(saved)
    assert isinstance(again.param_groups[0]["direction"], Halved)
    other = pytl.SGD(parameters(), lr=0.1)
    before = copy_of(other)
    with pytest.raises(ValueError, match="Halved"):
        other.load_state_dict(saved)
    assert_same(copy_of(other), before)


class Halved(pytl.Direction):
    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gg), torch.full_like(gg, 0.5)


def replaced_state(optimizer: Any, way: str) -> list[Tensor]:
    """Gives back the old memory: who still writes there must fail a test, not crash it."""
    old = [t.data for state in optimizer.state.values() for t in state.values()]
    for p, state in list(optimizer.state.items()):
        if way == "new tensors":
            optimizer.state[p] = {name: t.clone() for name, t in state.items()}
        elif way == "new data":
            for t in state.values():
                t.data = t.data.clone()
        elif way == "cleared":
            optimizer.state[p] = {}
    return old


@pytest.mark.parametrize("way", ["new tensors", "new data", "cleared"])
def test_state_replaced_between_steps_is_the_one_in_use(way: str, method: Any, path: dict[str, bool]) -> None:
    """What moves optimizers between devices, and what resets a part of them, writes into ``optimizer.state``."""
    optimizer, again = half_way(method, path), half_way(method, path)
    old = replaced_state(optimizer, way)
    if way == "cleared":
        again = method([Parameter(p.detach().clone()) for p in again.param_groups[0]["params"]], **again.defaults)
    for one in (optimizer, again):
        take_steps(one, 1, first=10)
    assert_same(list(optimizer.state.values()), list(again.state.values()))
    assert_same(detached(optimizer.param_groups[0]["params"]), detached(again.param_groups[0]["params"]))
    del old


def test_weights_given_new_memory_are_the_ones_stepped_on(method: Any, path: dict[str, bool]) -> None:
    optimizer, again = half_way(method, path), half_way(method, path)
    for p in optimizer.param_groups[0]["params"]:
        p.data = p.data.clone()
    for one in (optimizer, again):
        take_steps(one, 1, first=10)
    assert_same(detached(optimizer.param_groups[0]["params"]), detached(again.param_groups[0]["params"]))


# Mixed precision.


def scaled_step(optimizer: Any, params: Any, gradients: Any, scale: float, unscale: bool = False) -> Any:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scaler.scale(torch.zeros(()))  # makes the scale
    give(params, [g * scale for g in gradients])
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return scaler


@pytest.mark.parametrize("unscale", [False, True])
def test_scaled_gradients_are_unscaled_on_the_way(unscale: bool, method: Any, path: dict[str, bool]) -> None:
    params, theirs = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    options = L2SP | {"max_grad_norm": 2.0}
    optimizer, plain = method(params, **options, **path), method(theirs, **options, **path)
    for t in (1, 2):
        scaled_step(optimizer, params, draw(t), 1024.0, unscale)
        give(theirs, draw(t))
        plain.step()
    assert_same(detached(params), detached(theirs))
    assert_same(optimizer.gram, plain.gram)


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("unscale", [False, True])
def test_overflow_changes_nothing(unscale: bool, steps_before: int, method: Any, path: dict[str, bool]) -> None:
    params = parameters(dtype=torch.float32)
    optimizer = method(params, **L2SP, **path)
    take_steps(optimizer, steps_before)
    before = copy_of(optimizer)
    gradients = draw(1)
    gradients[3][2] = float("inf")
    scaler = scaled_step(optimizer, params, gradients, 1024.0, unscale)
    assert scaler.get_scale() == 512
    assert_same(copy_of(optimizer), before)
    assert "start" not in optimizer.state.get(params[0], {}) or steps_before


def test_penalty_of_a_step_that_overflowed_is_dropped(path: dict[str, bool]) -> None:
    params, theirs = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    optimizer, plain = pytl.SGD(params, lr=0.1, **path), pytl.SGD(theirs, lr=0.1, **path)
    give_penalties(optimizer, params, draw(5))
    scaled_step(optimizer, params, [g * float("inf") for g in draw(1)], 2.0)
    for one, its in ((optimizer, params), (plain, theirs)):
        give(its, draw(2))
        one.step()
    assert_same(detached(params), detached(theirs))


# 16-bit weights.


@pytest.mark.parametrize("compensated", [None, True, False])
def test_small_pull_on_bfloat16_survives_with_compensation(compensated: bool | None, path: dict[str, bool]) -> None:
    p = Parameter(torch.full((50,), 1.25, dtype=torch.bfloat16))
    start = {"w": torch.ones(50)}
    optimizer = pytl.SGD([("w", p)], lr=1e-3, sp_decay=1.0, start=start, compensated=compensated, **path)
    for _ in range(1000):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    expected = 1 + 0.25 * (1 - 1e-3) ** 1000
    if compensated is False:
        assert torch.equal(p.float(), torch.full((50,), 1.25))
        assert "compensation" not in optimizer.state[p]
    else:
        assert p.float().mean().item() == pytest.approx(expected, rel=4e-3)


# Penalties.


def test_penalties_accumulate_over_micro_batches(method: Any, path: dict[str, bool]) -> None:
    results = []
    for parts in (1, 4):
        params = parameters()
        optimizer = method(params, **L2SP, **path)
        for t in (1, 2):
            give(params, draw(t))
            for _ in range(parts):
                optimizer.take_penalty(sum((p**2).sum() for p in params) / parts)
            optimizer.step()
        results.append(detached(params))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)


def test_penalty_leaves_the_gradients_of_the_task_and_the_shared_graph(method: Any) -> None:
    layer = nn.Linear(3, 2)
    optimizer = method(layer.parameters(), lr=0.1)
    out = layer(torch.ones(4, 3))
    optimizer.take_penalty(out.pow(2).sum())
    assert layer.weight.grad is None
    out.sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((2, 3), 4.0))


def test_penalty_counts_in_one_step_only(method: Any, path: dict[str, bool]) -> None:
    optimizer = method(parameters(), lr=0.1, direction="dtnh", **path)
    params = optimizer.param_groups[0]["params"]
    give(params, draw(1))
    give_penalties(optimizer, params, draw(2))
    optimizer.step()
    first = (optimizer.gram if method is pytl.SGD else optimizer.penalty_gram).clone()
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert first[:, 2].any()
    assert not optimizer.gram[:, 2].any()
    assert not optimizer.penalty_gram[:, 2].any()


def test_penalty_of_no_parameter_is_refused(method: Any) -> None:
    optimizer = method(parameters(), lr=0.1)
    other = torch.ones(3, requires_grad=True)
    for value in (other.sum(), torch.ones(()), (optimizer.param_groups[0]["params"][0] ** 2).sum(0)):
        with pytest.raises(ValueError, match="scalar that depends on"):
            optimizer.take_penalty(value)


def test_zero_grad_drops_gradients_and_penalties(method: Any) -> None:
    for to_none in (True, False):
        params = parameters()
        optimizer = method(params, **(L2SP | {"weight_decay": 0, "sp_decay": 0}))
        give(params, draw(1))
        give_penalties(optimizer, params, draw(2))
        optimizer.zero_grad(set_to_none=to_none)
        assert all(p.grad is None if to_none else not p.grad.any() for p in params)
        optimizer.step()
        assert_same(detached(params), draw(0))


# The ecosystem.


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "Cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "OneCycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "Cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05),
}


@pytest.mark.filterwarnings("error:.*lr_scheduler.step.*")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_set_what_torch_gets(scheduler: str, method: Any, path: dict[str, bool]) -> None:
    own = {"momentum": 0.9} if method is pytl.SGD else {}
    ours = method(parameters(), lr=0.1, **own, **path)
    theirs = getattr(torch.optim, method.__name__)(parameters(), lr=0.1, **own)
    schedules = [SCHEDULERS[scheduler](o) for o in (ours, theirs)]
    for t in range(5):
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            take_steps(optimizer, 1, first=t)
            schedule.step()
    expected = theirs.param_groups[0]["params"]
    torch.testing.assert_close(ours.param_groups[0]["params"], expected, rtol=1e-13, atol=1e-13)


def test_hooks_run_around_the_step(method: Any) -> None:
    optimizer = method(parameters(), **L2SP)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(len(o.state)))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(len(o.state)))
    take_steps(optimizer, 1)
    assert seen == [0, len(parameters())]


def test_averaged_models_take_the_stepped_weights(method: Any) -> None:
    layer = nn.Linear(2, 2)
    optimizer, averaged = method(layer.parameters(), **L2SP), torch.optim.swa_utils.AveragedModel(layer)
    for _ in range(2):
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        averaged.update_parameters(layer)
    assert averaged.n_averaged == 2
    assert not torch.equal(averaged.module.weight, layer.weight)


def in_backward(method: Any, layer: nn.Module, **options: Any) -> list[Any]:
    optimizers = {p: method([p], **L2SP, **options) for p in layer.parameters()}

    def hook(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in layer.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return list(optimizers.values())


def test_optimizer_in_backward_equals_the_step_after_it(method: Any, path: dict[str, bool]) -> None:
    layers = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))]
    layers.append(copy.deepcopy(layers[0]))
    in_backward(method, layers[0], **path)
    optimizer = method(layers[1].parameters(), **L2SP, **path)
    for _ in range(3):
        for layer in layers:
            layer(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(detached(layers[0].parameters()), detached(layers[1].parameters()))


def test_optimizer_in_backward_refuses_global_granularity(method: Any) -> None:
    layer = nn.Linear(3, 1)
    in_backward(method, layer, granularity="global")
    with pytest.raises(RuntimeError, match="granularity"):
        layer(torch.ones(2, 3)).sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_compiled_step_and_compiled_model_give_the_same(method: Any) -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = method(layer.parameters(), **L2SP)
        forward = torch.compile(layer, backend="aot_eager") if compiled else layer
        step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        for _ in range(5):
            optimizer.zero_grad()
            forward(torch.ones(4, 3)).pow(2).sum().backward()
            step()
        results.append(detached(layer.parameters()))
    torch.testing.assert_close(*results)


def test_report_counts_and_names(path: dict[str, bool]) -> None:
    named = named_parameters()
    optimizer = pytl.SGD([{"params": named[:2]}, {"params": named[2:], "sp_decay": 0}], **L2SP, **path)
    with pytest.raises(RuntimeError, match="before the first step"):
        optimizer.report()
    take_steps(optimizer, 2)
    report = optimizer.report()
    assert report.names == list(NAMES)
    assert len(report.cosine) == len(report.distance) == 3
    assert report.distance[2] == 0
    assert 0 <= report.conflict_rate <= 1
    starts = draw(0, [(3, 4), (4,), (2, 3)], torch.float32)
    pulled = sum(0.3 / 2 * (p - w0).pow(2).sum() for (_, p), w0 in zip(named[:2], starts, strict=False))
    decayed = sum(0.05 / 2 * p.pow(2).sum() for _, p in named)
    assert report.penalty == pytest.approx((pulled + decayed).item(), rel=1e-5)
    assert report.start_bytes == sum(optimizer.state[p]["start"].nbytes for _, p in named[:2])
    assert "3 tensors" in str(report)


def test_optimizer_prints_its_options(method: Any) -> None:
    text = repr(method(parameters(), **L2SP))
    assert "sp_decay: 0.3" in text
    assert "direction: dtnh" in text
