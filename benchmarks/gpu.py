"""All that a machine with an NVIDIA GPU can tell, in under ten minutes: ``make gpu``. Downloads nothing.

Builds the core for this GPU, runs the tests on it, the benchmarks, and a memory checker where there is one. Each stage
has a time limit; its output goes to build/gpu/. A short table of the stages comes last.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "gpu"
SUITE = ("gram", "steps", "directions", "contract", "bad_input", "schedule", "feature_ops")
SMALL = ("tests/test_cuda.py", "-k", "test_bits_are_the_same_in_every_run and AdamW and not rule")
SECONDS_IN_ALL = 570
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Stage:
    name: str
    command: tuple[str, ...]
    seconds: int
    shown: bool = False
    """Whether its output also goes to the terminal."""
    tool: str = ""
    """What it needs on the PATH."""


def sanitizer(tool: str) -> tuple[str, ...]:
    return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *PYTEST, *SMALL)


def bench(what: str, seconds: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytl", "bench", what, "--device", "cuda", "--time-limit", str(seconds))


STAGES = (
    Stage("build", (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"), 120),
    Stage("doctor", (sys.executable, "-m", "pytl", "doctor"), 20, shown=True),
    Stage("tests of the device", (*PYTEST, "tests/test_cuda.py", "tests/test_cuda_features.py"), 80),
    Stage("suite on the device", (*PYTEST, "--device", "cuda", *(f"tests/test_{name}.py" for name in SUITE)), 80),
    Stage("benchmark", bench("optimizers", 165), 195, shown=True),
    Stage("feature benchmark", bench("features", 55), 75, shown=True),
    Stage("memcheck", sanitizer("memcheck"), 60, tool="compute-sanitizer"),
    Stage("racecheck", sanitizer("racecheck"), 60, tool="compute-sanitizer"),
)


def run(stage: Stage, left: float) -> str:
    """Runs a stage for as many seconds as are left in all; what became of it."""
    if stage.tool and not shutil.which(stage.tool):
        return f"not run: {stage.tool} is not here"
    if left < 10:
        return f"not run: {SECONDS_IN_ALL} s are over"
    limit = min(stage.seconds, left)
    log = LOGS / f"{stage.name.replace(' ', '-')}.log"
    began = time.monotonic()
    with log.open("w") as to:
        try:
            code = subprocess.run(
                stage.command, cwd=ROOT, stdout=to, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
            ended = "ok" if code == 0 else f"FAILED, exit status {code}"
        except subprocess.TimeoutExpired:
            ended = f"STOPPED at its limit of {limit:.0f} s"
    said = log.read_text()
    if stage.shown or ended != "ok":
        print(said if stage.shown else said[-4000:], flush=True)
    last = (said.strip().splitlines() or [""])[-1]
    return f"{ended}, {time.monotonic() - began:.0f} s" + (f": {last[:70]}" if not stage.shown else "")


def main() -> int:
    sees_gpu = "import torch; raise SystemExit(not torch.cuda.is_available())"
    if subprocess.run((sys.executable, "-c", sees_gpu), check=False).returncode:
        print(f"make gpu needs an NVIDIA GPU that the torch of {sys.executable} sees", file=sys.stderr)
        return 1
    LOGS.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTL_CUDA_ARCHITECTURES", "native")
    outcomes, end = {}, time.monotonic() + SECONDS_IN_ALL
    for stage in STAGES:
        print(f"--- {stage.name}", flush=True)
        outcomes[stage.name] = run(stage, end - time.monotonic())
        if stage.name == "build" and not outcomes["build"].startswith("ok"):
            break
    print("--- stages")
    for name, outcome in outcomes.items():
        print(f"{name:20} {outcome}")
    return int(any("FAILED" in outcome or "STOPPED" in outcome for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
