"""pytl doctor, and what runs where the core is not built."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import pytl
from pytl.ops import core


def test_doctor_names_a_path_for_each_dtype() -> None:
    text = pytl.doctor()
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert f"cpu      {dtype}" in text


def test_without_the_core_the_reference_runs_and_doctor_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "missing", "the compiled core is not built (as a test)")
    monkeypatch.setattr(core, "module", None)
    assert "PyTorch reference: the compiled core is not built (as a test)" in pytl.doctor()
    assert "C++17" in pytl.doctor()
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = pytl.AdamW([p], lr=0.1, sp_decay=0.1, direction="dtnh")
    p.grad = torch.ones(3)
    optimizer.step()
    assert torch.allclose(p, torch.tensor(1 - 0.1 - 0.1 * 0.01))
    with pytest.raises(RuntimeError, match=r"fused=True.*as a test"):
        pytl.SGD([p], fused=True).step()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A core with CUDA kernels, and what they say of the device."""
    fake = SimpleNamespace(
        why_not=lambda index: "",
        architectures=lambda: "80 90, PTX 80",
        toolkit_version=lambda: 13000,
        driver_version=lambda: 12080,
    )
    sets = {name: getattr(core.module, name) for name in ("instruction_set", "instruction_sets", "max_threads")}
    monkeypatch.setattr(core, "module", SimpleNamespace(cuda=fake, **sets))
    core._why_not_cuda.cache_clear()
    yield fake
    core._why_not_cuda.cache_clear()


GPU = torch.device("cuda", 1)


def test_doctor_tells_toolkit_architectures_and_driver(cuda: SimpleNamespace) -> None:
    text = pytl.doctor()
    assert "13.0, for compute capabilities 80 90, PTX 80; the driver serves 12.8" in text
    if torch.version.cuda is None:
        assert "install a build of torch that has" in text


def test_doctor_says_when_no_driver_is_installed(cuda: SimpleNamespace) -> None:
    cuda.driver_version = lambda: 0
    assert "no driver is installed" in pytl.doctor()


@pytest.mark.parametrize("reason", ["the NVIDIA driver serves CUDA 12.8", "has compute capability 7.5"])
def test_a_device_that_the_core_cannot_use_takes_the_reference_and_says_why(reason: str, cuda: SimpleNamespace) -> None:
    cuda.why_not = {1: reason}.__getitem__
    assert core.why_not(GPU, torch.float32) == reason


def test_dtypes_without_kernels_and_builds_without_cuda_are_named(cuda: SimpleNamespace) -> None:
    assert core.why_not(GPU, torch.float32) == ""
    assert "no kernels for torch.float8_e4m3fn" in core.why_not(GPU, torch.float8_e4m3fn)
    core._why_not_cuda.cache_clear()
    del core.module.cuda
    assert "built without CUDA" in core.why_not(GPU, torch.float32)
    assert "left out" in pytl.doctor()
