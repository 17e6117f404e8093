"""pytl doctor, and what runs where the core is not built."""

from __future__ import annotations

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
