"""The native core on its own: under AddressSanitizer and UndefinedBehaviorSanitizer, and its formulas through nvcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pytl.ops import core

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "sanitized"

pytestmark = pytest.mark.skipif(bool(core.missing), reason="the compiled core is not built")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_passes_equal_a_plain_loop_under_sanitizers() -> None:
    run("cmake", "-S", ".", "-B", BUILD, "-G", "Ninja", "-DPYTL_SANITIZE=ON")
    run("cmake", "--build", BUILD, "--target", "native_tests")
    assert run(BUILD / "native_tests").endswith(" 0 failed\n")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
def test_formulas_compile_for_the_gpu(tmp_path: Path) -> None:
    run("nvcc", "-std=c++17", "-arch=sm_90", "-c", "tests/native/formulas.cu", "-o", tmp_path / "formulas.o")


def test_wide_instructions_do_not_leak_into_shared_symbols() -> None:
    objects = sorted((ROOT / "build" / "native").glob("CMakeFiles/loops_*/csrc/cpu/loops.cpp.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs the build's object files and nm")
    for compiled in objects:
        weak = [line for line in run("nm", "-C", compiled).splitlines() if line.split()[-2] in "WVu"]
        assert not weak, f"{compiled.parent}: the linker may merge {weak}"
