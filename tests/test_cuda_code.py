"""What nvcc makes of the kernels, read from its report and from the machine code: no GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = re.compile(
    r"entry function '(\w+)' for|(\d+) bytes spill stores, (\d+) bytes spill loads|Used (\d+) registers"
)
ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)(\.[\w.]+)?\s")

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")


Compiled = tuple[str, Path]
"""The compiler's report, and the machine code."""

HOT_FEATURES = {
    "feature_distance": {"add_up_parts": (4, 0), "write_gradient": (2, 1)},
    "attention_map": {"add_up": (4, 0), "scale": (2, 2)},
    "distillation": {"short_rows": (8, 2), "long_rows": (8, 2)},
}
"""Kernels, and how many reads and writes of 16 bytes each has at least."""


def compiled_for_sm_90(name: str, folder: Path) -> Compiled:
    code = folder / f"{name}.cubin"
    source = f"csrc/cuda/{name}.cu"
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-cubin", source, "-o", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr, code


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """An optimizer's kernels."""
    return compiled_for_sm_90(request.param, tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module", params=HOT_FEATURES)
def features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Compiled]:
    """A feature regulariser's name and kernels."""
    return request.param, compiled_for_sm_90(request.param, tmp_path_factory.mktemp("cuda"))


def is_hot(kernel: str) -> bool:
    """Those of the usual parameters: Form, not FullForm."""
    return "4FormI" in kernel


def usage(report: str) -> tuple[dict[str, int], Counter[str]]:
    """Of each kernel: registers, and bytes that are spilled."""
    registers: dict[str, int] = {}
    spilled, kernel = Counter[str](), ""
    for name, stores, loads, used in REPORT.findall(report):
        kernel = name or kernel
        if used:
            registers[kernel] = int(used)
        elif stores:
            spilled[kernel] += int(stores) + int(loads)
    return registers, +spilled


def test_hot_kernels_use_at_most_64_registers_and_nothing_is_spilled(compiled: Compiled) -> None:
    registers, spilled = usage(compiled[0])
    assert sum(map(is_hot, registers)) == 16, "4 forms, each with look, step, the step that looks, and both in one"
    assert not spilled
    assert max(used for kernel, used in registers.items() if is_hot(kernel)) <= 64


def test_feature_kernels_use_at_most_64_registers_and_nothing_is_spilled(features: tuple[str, Compiled]) -> None:
    """But for exponentials in float64, of which one block is a processor's."""
    registers, spilled = usage(features[1][0])
    assert not spilled
    for kernel, used in registers.items():
        assert used <= (128 if "_rowsI" in kernel and "RowsIdL" in kernel else 64), kernel


def disassembler() -> str | None:
    """That of the toolkit, or of the package nvidia-cuda-nvdisasm."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    return shutil.which("nvdisasm", path=os.pathsep.join([os.environ["PATH"], str(packaged)]))


def accesses(code: Path) -> dict[str, Counter[str]]:
    """Of each kernel: how many instructions read and write global and local memory, by their width."""
    tool = disassembler()
    if tool is None:
        pytest.skip("nvdisasm is not here")
    text = subprocess.run([tool, "-c", str(code)], capture_output=True, text=True, check=True).stdout
    found: dict[str, Counter[str]] = {}
    for section in re.split(r"\.section\s+\.text\.", text)[1:]:
        kernel = re.split(r"[,\s]", section, maxsplit=1)[0]
        found[kernel] = Counter(
            instruction + ("128" if ".128" in options else "") for instruction, options in ACCESS.findall(section)
        )
    return found


def test_hot_kernels_read_and_write_16_bytes_and_no_local_memory(compiled: Compiled) -> None:
    of = {kernel: count for kernel, count in accesses(compiled[1]).items() if is_hot(kernel)}
    assert len(of) == 16
    for kernel, count in of.items():
        assert not count["LDL"] + count["STL"], f"{kernel} has local memory traffic"
        looks, steps = "look" in kernel, "step" in kernel
        assert count["LDG128"] >= 3 * looks + 4 * steps, f"{kernel}: g, w, w0 and the states come in 16 bytes"
        assert count["STG128"] >= 2 * steps, f"{kernel}: w and the states go in 16 bytes"


def test_kernels_of_moments_in_fewer_bits_spill_nothing_and_have_no_local_memory(compiled: Compiled) -> None:
    registers, spilled = usage(compiled[0])
    narrow = {kernel: used for kernel, used in registers.items() if "10NarrowFormI" in kernel}
    assert len(narrow) == 6, "3 forms, each with step, and look and step in one; looks are those of the full forms"
    assert max(narrow.values()) <= 128
    assert not spilled.keys() & narrow.keys()
    of = accesses(compiled[1])
    for kernel in narrow:
        assert not of[kernel]["LDL"] + of[kernel]["STL"], f"{kernel} has local memory traffic"
        assert of[kernel]["LDG128"] >= 4, f"{kernel}: g, w, w0 and moments in bfloat16 come in 16 bytes"
        assert of[kernel]["STG128"] >= 2, f"{kernel}: w and moments in bfloat16 go in 16 bytes"


def test_feature_kernels_read_and_write_16_bytes_and_no_local_memory(features: tuple[str, Compiled]) -> None:
    """With every kind of weights. Rows that are not of whole vectors (width 1) have kernels of their own."""
    name, (_, code) = features
    of, seen = accesses(code), Counter[str]()
    for kernel, count in of.items():
        assert not count["LDL"] + count["STL"], f"{kernel} has local memory traffic"
        for hot, (reads, writes) in HOT_FEATURES[name].items():
            if f"{len(hot)}{hot}I" in kernel and "Li1E" not in kernel:
                seen[hot] += 1
                assert count["LDG128"] >= reads, f"{kernel}: operands come in 16 bytes, several at a time"
                assert count["STG128"] >= writes, f"{kernel}: the gradient goes in 16 bytes"
    assert min(seen[hot] for hot in HOT_FEATURES[name]) >= 4, "each dtype has its kernels"
