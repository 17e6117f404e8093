"""Which path runs where, and why."""

from __future__ import annotations

import platform

import torch

from pytl.ops import core


def doctor() -> str:
    """A text for a person: versions, the core, and for each device and dtype the path that a step takes."""
    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {platform.system()}",
        f"core: {core.missing or _core_in_use()}",
        f"CUDA in the core: {_cuda_in_core()}",
        f"CUDA in torch: {_cuda_in_torch()}",
        "",
        f"{'device':8} {'dtype':10} path",
    ]
    for device in _devices():
        for dtype in core.DTYPES:
            reason = core.why_not(device, dtype)
            path = f"PyTorch reference: {reason}" if reason else "compiled core"
            lines.append(f"{device!s:8} {str(dtype).removeprefix('torch.'):10} {path}")
    return "\n".join([*lines, *_advice()])


def _core_in_use() -> str:
    sets = ", ".join(core.module.instruction_sets())
    return f"built; runs {core.module.instruction_set()} (of {sets}) on {core.module.max_threads()} threads"


def _cuda_in_core() -> str:
    if core.missing or not hasattr(core.module, "cuda"):
        return "left out"
    cuda = core.module.cuda
    driver = (
        f"the driver serves {_version(cuda.driver_version())}" if cuda.driver_version() else "no driver is installed"
    )
    return f"{_version(cuda.toolkit_version())}, for compute capabilities {cuda.architectures()}; {driver}"


def _cuda_in_torch() -> str:
    if torch.version.cuda is None:
        return "left out"
    if not torch.cuda.is_available():
        return f"{torch.version.cuda}; it sees no device"
    return f"{torch.version.cuda}; {'; '.join(_named(i) for i in range(torch.cuda.device_count()))}"


def _named(index: int) -> str:
    device = torch.cuda.get_device_properties(index)
    memory = f"{device.total_memory / 2**30:.0f} GiB"
    return f"cuda:{index} {device.name}, compute capability {device.major}.{device.minor}, {memory}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _advice() -> list[str]:
    build = "in the source tree: pip install --force-reinstall --no-deps ."
    if core.missing:
        return ["", "To build the core: install a C++17 compiler (g++ or clang++), then,", build]
    if torch.cuda.is_available() and not hasattr(core.module, "cuda"):
        return ["", "To build the CUDA kernels: install the CUDA toolkit (nvcc on the PATH), then,", build]
    if torch.version.cuda is None and hasattr(core.module, "cuda") and core.module.cuda.driver_version():
        return ["", "There is an NVIDIA driver, but this torch has no CUDA: install a build of torch that has."]
    return []


def _devices() -> list[torch.device]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    others = [torch.device(accelerator.type, i) for i in range(torch.accelerator.device_count())] if accelerator else []
    return [torch.device("cpu"), *others]
