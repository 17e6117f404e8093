"""Builds pytl._core with CMake and ninja. Where that fails, pytl installs all the same, on its PyTorch reference.

PYTL_CUDA=0 leaves the CUDA kernels out; PYTL_CUDA_ARCHITECTURES (such as "90;120", or "native") says for what they are
compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
CHOICES = ("PYTL_CUDA", "PYTL_CUDA_ARCHITECTURES")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / "native"
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DPYTL_MODULE_DIR={target.parent}"]
        configure += [f"-D{name}={os.environ[name]}" if name in os.environ else f"-U{name}" for name in CHOICES]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build), "--target", "_core"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(
                f"the compiled core was not built ({error}); pytl will run its PyTorch reference"
            ) from error


setup(ext_modules=[Extension("pytl._core", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
