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
SEAM = ("gram", "steps", "directions", "contract", "bad_input", "schedule", "torch_suite", "moments", "feature_ops")

pytestmark = pytest.mark.skipif(bool(core.missing), reason="the compiled core is not built")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["native_tests", "feature_tests", "shim_tests", "cuda_tests", "cuda_feature_tests"])
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
    objects = sorted(NATIVE.glob("CMakeFiles/loops_*/csrc/cpu/*loops.cpp.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs the build's object files and nm")
    for compiled in objects:
        weak = [line for line in run("nm", "-C", compiled).splitlines() if line.split()[-2] in "WVu"]
        assert not weak, f"{compiled}: the linker may merge {weak}"


IN_WHOLE_REGISTERS = {
    "AdamW's square root, in each of its six loops": ("loops", r"vsqrtps .*%{}", 6),
    "two exponentials' powers of 2, in three dtypes": ("feature_loops", r"vpslld \s*\$0x17,.*%{}", 6),
    "weighted squares, with and without a weight each, in three dtypes": ("feature_loops", r"vfmadd\d+pd .*%{}", 6),
}


@pytest.mark.parametrize("what", IN_WHOLE_REGISTERS)
@pytest.mark.parametrize(("isa", "register"), [("avx512", "zmm"), ("avx2", "ymm")])
def test_loops_over_elements_are_vectorised(isa: str, register: str, what: str) -> None:
    """A scalar loop would be right, and slow."""
    name, instruction, count = IN_WHOLE_REGISTERS[what]
    compiled = NATIVE / f"CMakeFiles/loops_{isa}.dir/csrc/cpu/{name}.cpp.o"
    if not compiled.exists() or shutil.which("objdump") is None:
        pytest.skip("needs the build's object files and objdump")
    assert len(re.findall(instruction.format(register), run("objdump", "-d", compiled))) >= count
