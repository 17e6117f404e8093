"""What training takes of memory: the table against what is allocated, and what a step takes beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import give
from safetensors.torch import save_file
from torch import nn
from torch.nn import Parameter

import pytl
from pytl.benchmark.allocations import net_bytes, peak_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

FORMATS = ("float32", "bfloat16", "8bit")


def network(dtype: torch.dtype, lossless: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Linear(200, 30)).to(dtype)
    with torch.no_grad():
        for p in model.parameters() if lossless else ():
            p.copy_(p.bfloat16())
    return model


def give_gradients(model: nn.Module) -> None:
    params = list(model.parameters())
    give(params, [torch.ones_like(p) for p in params])


@pytest.mark.parametrize("start", ["here", "disk"])
@pytest.mark.parametrize("kept_in", FORMATS)
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_table_is_what_the_first_step_allocates(
    dtype: torch.dtype, lossless: bool, kept_in: str, start: str, tmp_path: Path
) -> None:
    model = network(dtype, lossless)
    groups = pytl.param_groups(model, head="2", sp_decay=0.1, verbose=False)
    expected = pytl.memory(groups).row(kept_in, start)
    where: dict[str, Any] = {}
    if start == "disk":
        save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "start.safetensors")
        where = {"start": tmp_path / "start.safetensors", "start_device": "disk"}
    opt = pytl.AdamW(groups, moments=kept_in, **where)
    give_gradients(model)
    taken = net_bytes(opt.step)
    held = [tensor for state in opt.state.values() for tensor in state.values() if tensor.dim()]
    assert sum(tensor.nbytes for tensor in held) == expected.state
    assert expected.state <= taken <= expected.state + 20_000  # numbers of each tensor and the plan's
    weights = sum(p.nbytes for p in model.parameters())
    assert expected.weights == expected.gradients == weights
    assert expected.per_parameter == (2 * weights + expected.state) / expected.parameters


@pytest.mark.parametrize("start", ["here", "disk"])
@pytest.mark.parametrize("kept_in", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_takes_no_memory_beside_the_state(dtype: torch.dtype, kept_in: str, start: str, tmp_path: Path) -> None:
    """In the core: less than a mebibyte and a thousandth."""
    members = [(f"w{i}", Parameter(torch.ones(1 << 20, dtype=dtype))) for i in range(4)]
    where: dict[str, Any] = {}
    if start == "disk":
        save_file({name: p.detach() for name, p in members}, tmp_path / "start.safetensors")
        where = {"start": tmp_path / "start.safetensors", "start_device": "disk"}
    opt = pytl.AdamW(members, sp_decay=0.1, direction="dtnh", max_grad_norm=1.0, moments=kept_in, fused=True, **where)
    give([p for _, p in members], [torch.ones(1 << 20)] * 4)
    opt.step()
    weights = sum(p.nbytes for _, p in members)
    assert peak_bytes(opt.step) < (1 << 20) + weights / 1000


def test_a_start_on_disk_adds_nothing_to_resident_memory(tmp_path: Path) -> None:
    """64 MB here; `benchmarks/memory.py` has 2 GB."""
    count = 1 << 24
    save_file({"w": torch.full((count,), 0.5)}, tmp_path / "start.safetensors")
    p = Parameter(torch.ones(count))
    p.grad = torch.ones(count)
    opt = pytl.SGD([("w", p)], lr=0.1, sp_decay=0.1, start=tmp_path / "start.safetensors", start_device="disk")
    before = anonymous_bytes()
    for _ in range(2):
        opt.step()
    assert anonymous_bytes() - before < 8 << 20


def anonymous_bytes() -> int:
    """Resident memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_the_table_of_a_network_on_meta_counts_its_own_dtype() -> None:
    with torch.device("meta"):
        model = network(torch.bfloat16)
    row = pytl.memory(model).row()
    assert row.weights == 2 * row.parameters
    assert row.compensation == 2 * row.parameters
    assert row.moments == 8 * row.parameters


def test_on_a_gpu_a_start_elsewhere_takes_two_windows() -> None:
    members = [("w", Parameter(torch.ones(1 << 20, device="meta"))) for _ in range(100)]
    table = pytl.memory([{"params": members, "sp_decay": 0.1}], device="cuda")
    assert [table.row(start=at).start >> 20 for at in ("here", "cpu", "disk")] == [400, 128, 128]
    assert [table.row(start=at).elsewhere >> 20 for at in ("here", "cpu", "disk")] == [0, 400, 0]


def test_ranks_share_the_first_dimension() -> None:
    model = nn.Linear(8, 5, bias=False)
    whole, part = (pytl.memory(model, ranks=ranks).row() for ranks in (1, 2))
    assert (whole.weights, part.weights) == (4 * 40, 4 * 24)
    assert part.parameters == whole.parameters == 40


def test_the_table_is_printed_with_a_row_for_each_choice() -> None:
    printed = str(pytl.memory(network(torch.bfloat16)))
    assert printed.splitlines()[0] == "bytes a parameter, 66,630 parameters"
    assert [line.split()[:2] for line in printed.splitlines()[2:]] == [
        [kept_in, start] for kept_in in FORMATS for start in ("here", "cpu", "disk")
    ]


@pytest.mark.parametrize("options", [{"ranks": 0}, {"moments_each": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be >= [01]; got"):
        pytl.memory(nn.Linear(2, 2), **options)
