"""What the figures of a GPU depend on: the chip, its memory, driver and toolkits, beside the host's own record."""

import re
import subprocess
from dataclasses import dataclass, fields

import torch

from pytl.benchmark.machine import Machine, this_machine
from pytl.benchmark.timing import Spread
from pytl.ops import core


@dataclass(frozen=True)
class GpuMachine(Machine):
    gpu: str
    gpu_memory_gib: float
    multiprocessors: int
    l2_bytes: int
    driver: str
    torch_cuda: str
    """CUDA that torch was built for."""
    core_toolkit: str
    """CUDA that pytl's core was built with."""
    core_architectures: str
    copy_gigabytes_per_second: Spread
    """Of 1 GiB by ``Tensor.copy_`` on the device, read and written, before the run."""

    @property
    def slug(self) -> str:
        """``gpu-nvidia-h200``."""
        return "-".join(["gpu", *re.findall(r"[a-z0-9]+", self.gpu.lower())])

    @property
    def headline(self) -> str:
        core_of = f"core: CUDA {self.core_toolkit} for {self.core_architectures}, commit {self.commit}"
        rate = f"copy {self.copy_gigabytes_per_second.p50:.0f} GB/s"
        chip = f"{self.multiprocessors} multiprocessors, {self.l2_bytes / 2**20:.0f} MiB L2"
        return f"{self.words}; {chip}; {rate}; torch {self.torch}; {core_of}"

    @property
    def words(self) -> str:
        return f"{self.gpu}, driver {self.driver}, CUDA {self.torch_cuda}, time on the device"


def this_gpu(place: torch.device, copied: Spread) -> GpuMachine:
    host = this_machine()
    properties = torch.cuda.get_device_properties(place)
    toolkit = core.module.cuda.toolkit_version()
    known = {field.name: getattr(host, field.name) for field in fields(Machine)}
    return GpuMachine(
        **{**known, "commit": host.commit or "unknown"},
        gpu=properties.name,
        gpu_memory_gib=round(properties.total_memory / 2**30, 1),
        multiprocessors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        driver=_driver(),
        torch_cuda=str(torch.version.cuda),
        core_toolkit=f"{toolkit // 1000}.{toolkit % 1000 // 10}",
        core_architectures=str(core.module.cuda.architectures()),
        copy_gigabytes_per_second=copied,
    )


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"for CUDA {core.module.cuda.driver_version()}"
