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
        "",
        f"{'device':8} {'dtype':10} path",
    ]
    for device in _devices():
        for dtype in core.DTYPES:
            reason = core.why_not(device, dtype)
            path = f"PyTorch reference: {reason}" if reason else "compiled core"
            lines.append(f"{device.type:8} {str(dtype).removeprefix('torch.'):10} {path}")
    if core.missing:
        lines += [
            "",
            "To build the core: install a C++17 compiler (g++ or clang++), then, in the source tree:",
            "pip install --force-reinstall --no-deps .",
        ]
    return "\n".join(lines)


def _core_in_use() -> str:
    sets = ", ".join(core.module.instruction_sets())
    return f"built; runs {core.module.instruction_set()} (of {sets}) on {core.module.max_threads()} threads"


def _devices() -> list[torch.device]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu"), *([accelerator] if accelerator else [])]
