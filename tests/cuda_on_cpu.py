"""A pytest plugin: the CUDA kernels run on the CPU's tensors, through tests/native/shim.h. It must come before pytl.

python -m pytest -p cuda_on_cpu test_steps.py
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build" / "native"

name, (path,) = "pytl._core", BUILD.glob("_core*.so")
loader = ExtensionFileLoader(name, str(path))
spec = spec_from_loader(name, loader)
assert spec
assert name not in sys.modules
sys.modules[name] = module_from_spec(spec)
loader.exec_module(sys.modules[name])

from pytl.ops import features, plan, tensor_list  # noqa: E402 - the core is chosen above

plan.current_stream = features.current_stream = lambda device: 0
plan.is_capturing = lambda: False
features.is_cuda = lambda device: True
tensor_list.plan_of = lambda addresses, device: plan.CudaPlan(addresses, device) if addresses else plan.CpuPlan([])
