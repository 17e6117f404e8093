"""Where the starting point is kept: in memory, elsewhere, on disk; what a resumed run makes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import assert_same, copy_of, draw, give
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

import pytl
from pytl.optim import prefetch

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"a.weight": (30, 20), "a.bias": (30,), "b.weight": (4, 30)}
L2SP = {"lr": 0.01, "sp_decay": 0.3, "direction": "dtnh"}


def named(dtype: torch.dtype = torch.float32) -> list[tuple[str, Parameter]]:
    return [(n, Parameter(t)) for n, t in zip(SHAPES, draw(0, list(SHAPES.values()), dtype), strict=True)]


def source(dtype: torch.dtype = torch.float32, seed: int = 9) -> dict[str, Tensor]:
    """Not what bfloat16 holds: nothing is made smaller."""
    return {n: (t * 1.01).to(dtype) for n, t in zip(SHAPES, draw(seed, list(SHAPES.values())), strict=True)}


@pytest.fixture
def path_of_start(tmp_path: Path) -> Path:
    save_file(source(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def make(method: Any, members: Any, **options: Any) -> Any:
    own = {"momentum": 0.9} if method is pytl.SGD else {}
    return method(members, **L2SP, **own, **options)


def take_steps(opt: Any, numbers: range) -> None:
    params = [p for group in opt.param_groups for p in group["params"]]
    for number in numbers:
        give(params, draw(number, [p.shape for p in params]))
        opt.step()


def weights(opt: Any) -> list[Tensor]:
    return [p.detach().clone() for group in opt.param_groups for p in group["params"]]


# On disk


def test_a_start_on_disk_gives_the_bits_of_one_in_memory(
    path_of_start: Path, method: Any, direction: str, granularity: str, path: dict[str, bool]
) -> None:
    found = []
    for device in (None, "disk"):
        opt = make(method, named(), start=path_of_start, start_device=device, granularity=granularity, **path)
        take_steps(opt, range(1, 4))
        found.append((weights(opt), opt.gram, opt.report().to_dict() | {"start_bytes": None}))
    assert_same(found[0], found[1])


def test_a_start_on_disk_is_in_no_state_and_no_checkpoint(path_of_start: Path, method: Any) -> None:
    opt = make(method, named(), start=path_of_start, start_device="disk")
    take_steps(opt, range(1, 3))
    assert all("start" not in state for state in opt.state.values())
    assert all("start" not in state for state in opt.state_dict()["state"].values())


@pytest.mark.filterwarnings("ignore:1 gradients keep")
def test_what_a_step_cannot_read_in_place_is_copied(tmp_path: Path, method: Any) -> None:
    """A file may keep elements where no processor reads them, and in another order than the weight."""
    members = named()
    members[0] = "a.weight", Parameter(members[0][1].detach().t().contiguous().t())
    found = []
    for form in ("mapping", "disk"):
        tensors = source()
        save_file(tensors, tmp_path / "start.safetensors")
        where: dict[str, Any] = {"start": tensors}
        if form == "disk":
            where = {"start": tmp_path / "start.safetensors", "start_device": "disk"}
        opt = make(method, [(n, Parameter(p.detach().clone())) for n, p in members], **where)
        take_steps(opt, range(1, 4))
        found.append(weights(opt))
    assert_same(found[0], found[1])


@pytest.mark.parametrize(
    "options",
    [
        {"start_device": "disk"},
        {"start_device": "disk", "start": source()},
        {"start_device": "disk", "start": "here.safetensors", "start_dtype": torch.bfloat16},
        {"save_start": False},
    ],
    ids=["no source", "a mapping", "another dtype", "not saved, no source"],
)
def test_a_start_that_could_not_be_read_again_is_refused(options: dict[str, Any], method: Any) -> None:
    with pytest.raises(ValueError, match=r'start_device="disk" needs start=|save_start=False needs start='):
        method(named(), **options)


# Resuming


@pytest.mark.parametrize("where", [{"save_start": False}, {"start_device": "disk"}], ids=["not saved", "disk"])
def test_a_run_resumed_from_the_source_has_the_same_bits(
    where: dict[str, Any], path_of_start: Path, method: Any, path: dict[str, bool], tmp_path: Path
) -> None:
    opt = make(method, named(), start=path_of_start, **where, **path)
    take_steps(opt, range(1, 4))
    members = [(n, Parameter(p.detach().clone())) for (n, _), p in zip(named(), weights(opt), strict=True)]
    resumed = make(method, members, start=path_of_start, **where, **path)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one in (opt, resumed):
        take_steps(one, range(4, 7))
    assert_same(weights(resumed), weights(opt))


@pytest.mark.parametrize("where", [{"save_start": False}, {"start_device": "disk"}], ids=["not saved", "disk"])
def test_a_source_that_changed_meanwhile_is_refused(
    where: dict[str, Any], path_of_start: Path, method: Any, tmp_path: Path
) -> None:
    opt = make(method, named(), start=path_of_start, **where)
    take_steps(opt, range(1, 4))
    saved = opt.state_dict()
    other = source() | {"a.weight": source(seed=7)["a.weight"]}
    save_file(other, tmp_path / "other.safetensors")
    resumed = make(method, named(), start=tmp_path / "other.safetensors", **where)
    resumed.load_state_dict(saved)
    before = copy_of(resumed)
    text = r"start must be the weights that the run began with; .*other.* a\.weight: \|w0\|"
    with pytest.raises(ValueError, match=text):
        take_steps(resumed, range(4, 5))
    assert_same(copy_of(resumed), before)


def test_a_state_without_its_start_is_refused_where_none_is_given(path_of_start: Path, method: Any) -> None:
    opt = make(method, named(), start=path_of_start, save_start=False)
    take_steps(opt, range(1, 4))
    resumed = make(method, named())
    before = copy_of(resumed)
    with pytest.raises(ValueError, match=r"or start= name its source: .*; without: a\.weight, a\.bias, b\.weight"):
        resumed.load_state_dict(opt.state_dict())
    assert_same(copy_of(resumed), before)


@pytest.mark.parametrize("given", [True, False])
def test_a_state_of_torchs_adamw_keeps_its_moments_and_needs_a_start(given: bool, path_of_start: Path) -> None:
    theirs = torch.optim.AdamW(named(), lr=0.01)
    take_steps(theirs, range(1, 4))
    members = named()
    ours = make(pytl.AdamW, members, **({"start": path_of_start} if given else {}))
    before = copy_of(ours)
    if not given:
        with pytest.raises(ValueError, match="the saved state must hold the starting point"):
            ours.load_state_dict(theirs.state_dict())
        assert_same(copy_of(ours), before)
        return
    ours.load_state_dict(theirs.state_dict())
    moments = [state["exp_avg"] for state in theirs.state_dict()["state"].values()]
    assert_same([ours.state[p]["exp_avg"] for _, p in members], moments)
    take_steps(ours, range(4, 5))
    assert_same([ours.state[p]["start"] for _, p in members], list(source().values()))


def test_all_misshapen_states_are_listed_before_anything_is_loaded(method: Any) -> None:
    opt = make(method, named())
    take_steps(opt, range(1, 3))
    other = make(method, [(n, Parameter(torch.ones(*p.shape, 2))) for n, p in named()])
    before = copy_of(other)
    with pytest.raises(
        ValueError, match=r"of another shape: .*a\.weight: expected \[30, 20, 2\], got \[30, 20\].* more"
    ):
        other.load_state_dict(opt.state_dict())
    assert_same(copy_of(other), before)


def test_a_start_taken_in_a_step_that_moves_nothing_is_whole_until_the_next(method: Any) -> None:
    """A checkpoint may be loaded into its memory, which must hold another."""
    members = named(torch.float32)
    opt = make(method, members)
    opt.param_groups[0]["lr"] = 0.0
    take_steps(opt, range(1, 2))
    assert {opt.state[p]["start"].dtype for _, p in members} == {torch.float32}
    opt.state[members[0][1]]["start"].mul_(1.01)
    opt.param_groups[0]["lr"] = 0.01
    take_steps(opt, range(2, 3))
    assert [opt.state[p]["start"].dtype for _, p in members] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert_same(opt.state[members[0][1]]["start"], draw(0, [(30, 20)], torch.float32)[0] * 1.01)


# Elsewhere: brought in windows. On a GPU these come from pinned memory; here the CPU is told that they are elsewhere.


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lists each pass over the windows had."""
    passes: list[int] = []
    bring = prefetch.Prefetch.bring

    def counted(self: Any, lists: Any, windows: Any) -> Any:
        passes.append(len(set(windows)))
        yield from bring(self, lists, windows)

    monkeypatch.setattr(prefetch, "is_elsewhere", lambda start, weight: True)
    monkeypatch.setattr(prefetch, "WINDOW", 1500)
    monkeypatch.setattr(prefetch.Prefetch, "bring", counted)
    return passes


def test_windows_give_the_bits_of_a_start_at_home(
    method: Any, direction: str, granularity: str, path: dict[str, bool], windows: list[int], monkeypatch: Any
) -> None:
    found = []
    for elsewhere in (True, False):
        monkeypatch.setattr(prefetch, "is_elsewhere", lambda start, weight, elsewhere=elsewhere: elsewhere)
        opt = make(method, named(), start=source(), granularity=granularity, max_grad_norm=1.0, **path)
        take_steps(opt, range(1, 4))
        found.append((weights(opt), opt.gram))
    for there, here in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=0)
    assert max(windows) == 2


def test_two_windows_are_there_at_a_time(windows: list[int]) -> None:
    opt = make(pytl.AdamW, [(f"w{i}", Parameter(torch.ones(300))) for i in range(40)], start_dtype=torch.float32)
    take_steps(opt, range(1, 3))
    assert windows[-1] == 40
    addresses = {o.start.data_ptr() for tensors in opt._plan.lists for o in tensors.operands}
    assert len(addresses) == 2


def test_optimizers_with_windows_can_be_copied(windows: list[int]) -> None:
    opt = make(pytl.AdamW, named(), start=source())
    take_steps(opt, range(1, 3))
    other = copy.deepcopy(opt)
    for one in (opt, other):
        take_steps(one, range(3, 5))
    assert_same(weights(other), weights(opt))
