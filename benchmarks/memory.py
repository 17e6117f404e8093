"""What a starting point on disk adds to resident memory, and what moments of fewer bits cost in time and save in bytes.

A file of `--gigabytes` in bfloat16 stands in for a checkpoint; weights and gradients are as large. Then steps of AdamW
with L2-SP and DTNH, moments in each format, in turn with torch's fused AdamW, which does neither: the ratio of times,
its median, and 20th and 80th percentile.

    python benchmarks/memory.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import Parameter

import pytl

TENSORS, MOMENTS = 16, ("float32", "bfloat16", "8bit")


def anonymous_mb() -> float:
    """Resident memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def on_disk(gigabytes: float, folder: Path) -> None:
    count = int(gigabytes * 1e9 / 2 / TENSORS)
    whole = {f"w{i}": torch.full((count,), 0.5, dtype=torch.bfloat16) for i in range(TENSORS)}
    save_file(whole, folder / "start.safetensors")
    named = [(name, Parameter(tensor)) for name, tensor in whole.items()]
    for _, p in named:
        p.grad = torch.full_like(p, 0.1)
    before = anonymous_mb()
    where = {"start": folder / "start.safetensors", "start_device": "disk"}
    opt = pytl.SGD(named, lr=0.1, sp_decay=0.1, direction="dtnh", compensated=False, **where)
    for step in ("first", "second"):
        began = time.perf_counter()
        opt.step()
        took = time.perf_counter() - began
        print(f"w0 of {gigabytes:g} GB on disk, {step} step: {took:.2f} s, {anonymous_mb() - before:+.0f} MB resident")


def optimizer(kept_in: str | None, elements: int) -> torch.optim.Optimizer:
    params = [Parameter(torch.randn(elements // 4)) for _ in range(4)]
    for p in params:
        p.grad = torch.randn_like(p)
    if kept_in is None:
        return torch.optim.AdamW(params, fused=True)
    return pytl.AdamW(params, sp_decay=0.01, direction="dtnh", moments=kept_in)


def seconds(opt: torch.optim.Optimizer) -> float:
    began = time.perf_counter()
    opt.step()
    return time.perf_counter() - began


def formats(elements: int, turns: int) -> None:
    contenders = [optimizer(kept_in, elements) for kept_in in (None, *MOMENTS)]
    took = np.array([[seconds(opt) for opt in contenders] for _ in range(turns + 3)])[3:]
    table = pytl.memory([{"params": contenders[1].param_groups[0]["params"], "sp_decay": 0.01}])
    for place, kept_in in enumerate(MOMENTS, 1):
        low, middle, high = np.percentile(took[:, place] / took[:, 0], [20, 50, 80])
        ratio, each = f"{middle:.2f} ({low:.2f} to {high:.2f})", table.row(kept_in).moments / elements
        print(f"moments in {kept_in}: {each:.2f} bytes a parameter, {ratio} of torch's time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2, help="of the file (default: %(default)s)")
    parser.add_argument("--elements", type=int, default=16_000_000, help="to step on (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=30, help="of each (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        on_disk(options.gigabytes, Path(name))
    formats(options.elements, options.turns)


if __name__ == "__main__":
    main()
