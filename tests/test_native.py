"""The native core on its own: under AddressSanitizer and UndefinedBehaviorSanitizer, the CUDA kernels as well."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytl.ops import core

ROOT = Path(__file__).parents[1]
NATIVE, SANITIZED = ROOT / "build" / "native", ROOT / "build" / "sanitized"
SEAM = ("gram", "steps", "directions", "contract", "bad_input", "schedule", "torch_suite")

pytestmark = pytest.mark.skipif(bool(core.missing), reason="the compiled core is not built")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["native_tests", "shim_tests", "cuda_tests"])
def test_passes_equal_a_plain_loop_under_sanitizers(program: str) -> None:
    run("cmake", "-S", ".", "-B", SANITIZED, "-G", "Ninja", "-DPYTL_SANITIZE=ON")
    run("cmake", "--build", SANITIZED, "--target", program)
    assert run(SANITIZED / program).endswith(" 0 failed\n")


def test_optimizers_run_on_the_cuda_kernels() -> None:
    """What the other tests ask of the core, asked of the CUDA kernels on the CPU's tensors."""
    if not (NATIVE / "build.ninja").exists():
        pytest.skip("needs the build's folder")
    run("cmake", "--build", NATIVE, "--target", "core_on_shim")
    tests = [f"test_{name}.py" for name in SEAM]
    run(sys.executable, "-m", "pytest", "-q", "-p", "cuda_on_cpu", "-k", "not reference", *tests, cwd=ROOT / "tests")


def test_wide_instructions_do_not_leak_into_shared_symbols() -> None:
    objects = sorted(NATIVE.glob("CMakeFiles/loops_*/csrc/cpu/loops.cpp.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs the build's object files and nm")
    for compiled in objects:
        weak = [line for line in run("nm", "-C", compiled).splitlines() if line.split()[-2] in "WVu"]
        assert not weak, f"{compiled.parent}: the linker may merge {weak}"


@pytest.mark.parametrize(("isa", "register"), [("avx512", "zmm"), ("avx2", "ymm")])
def test_loops_over_elements_are_vectorised(isa: str, register: str) -> None:
    """AdamW takes square roots in whole registers, in each of its six loops. A scalar loop would be right, and slow."""
    compiled = NATIVE / f"CMakeFiles/loops_{isa}.dir/csrc/cpu/loops.cpp.o"
    if not compiled.exists() or shutil.which("objdump") is None:
        pytest.skip("needs the build's object files and objdump")
    assert len(re.findall(rf"vsqrtps .*%{register}", run("objdump", "-d", compiled))) >= 6
