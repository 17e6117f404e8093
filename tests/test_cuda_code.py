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


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An optimizer's kernels for compute capability 9.0: the compiler's report, and the machine code."""
    code = tmp_path_factory.mktemp("cuda") / f"{request.param}.cubin"
    source = f"csrc/cuda/{request.param}.cu"
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-cubin", source, "-o", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr, code


def is_hot(kernel: str) -> bool:
    """Those of the usual parameters: Form, not FullForm."""
    return "4FormI" in kernel


def test_hot_kernels_use_at_most_64_registers_and_nothing_is_spilled(compiled: tuple[str, Path]) -> None:
    registers: dict[str, int] = {}
    spilled, kernel = Counter[str](), ""
    for name, stores, loads, used in REPORT.findall(compiled[0]):
        kernel = name or kernel
        if used:
            registers[kernel] = int(used)
        elif stores:
            spilled[kernel] += int(stores) + int(loads)
    assert sum(map(is_hot, registers)) == 16, "4 forms, each with look, step, the step that looks, and both in one"
    assert not +spilled
    assert max(used for kernel, used in registers.items() if is_hot(kernel)) <= 64


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


def test_hot_kernels_read_and_write_16_bytes_and_no_local_memory(compiled: tuple[str, Path]) -> None:
    of = {kernel: count for kernel, count in accesses(compiled[1]).items() if is_hot(kernel)}
    assert len(of) == 16
    for kernel, count in of.items():
        assert not count["LDL"] + count["STL"], f"{kernel} has local memory traffic"
        looks, steps = "look" in kernel, "step" in kernel
        assert count["LDG128"] >= 3 * looks + 4 * steps, f"{kernel}: g, w, w0 and the states come in 16 bytes"
        assert count["STG128"] >= 2 * steps, f"{kernel}: w and the states go in 16 bytes"
