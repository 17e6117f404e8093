"""What the figures depend on besides the code: processor, memory, threads, versions, load."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pytl.ops import core

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cpus: int
    threads: int
    instruction_set: str | None
    """What pytl's core runs; None where it is not built."""
    last_level_cache_mib: float
    memory_gib: float
    available_gib: float
    load_average: tuple[float, ...]
    """Over 1, 5 and 15 minutes, before the run."""
    system: str
    python: str
    torch: str
    pytl: str
    commit: str | None
    date: str

    @property
    def slug(self) -> str:
        """``cpu-amd-epyc-2-threads``."""
        model = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", self.cpu.lower())
        words = re.findall(r"[a-z0-9]+", model)
        return "-".join(["cpu", *words, str(self.threads), "threads" if self.threads > 1 else "thread"])

    @property
    def headline(self) -> str:
        load = ", ".join(map(str, self.load_average))
        return f"{self.cpu}, threads: {self.threads}, {self.instruction_set}, load {load}"

    @property
    def words(self) -> str:
        return f"{self.cpu}, {self.threads} thread{'s' * (self.threads > 1)}, {self.instruction_set}"


def this_machine() -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cpus=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instruction_set=core.module.instruction_set() if core.module else None,
        last_level_cache_mib=last_level_cache_bytes() / 2**20,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        available_gib=round(available_bytes() / 2**30, 1),
        load_average=tuple(round(load, 2) for load in os.getloadavg()),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        pytl=_version(),
        commit=_commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def available_bytes() -> int:
    """Memory that can be taken without swapping; where the system does not tell, what is free."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(Path("/proc/meminfo")))
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def last_level_cache_bytes() -> int:
    """Of the first processor; 0 where the system does not tell."""
    sizes = [_read(index / "size") for index in _CACHES.glob("index*")]
    return max((int(size.strip()[:-1]) * 1024 for size in sizes if size.strip().endswith("K")), default=0)


def _cpu_model() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _read(Path("/proc/cpuinfo")))
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version() -> str:
    try:
        return version("pytl")
    except PackageNotFoundError:  # it runs from a source tree
        return "unknown"


def _commit() -> str | None:
    """The commit of the source tree that runs, with ``-dirty`` where it was changed since."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
