"""What `pytl.Recorder` costs on the digits demo: training with a line each 10 steps against training without, in pairs.

Three copies of one run, DTNH on mirrored digits as the demo has it, take an epoch in turn, in one process and thread:
one recorded, two not. The ratio of times, its median, and 20th and 80th percentile, and beside it that of the two that
do the same. Lines are written at each epoch's end, as `pytl.finetune` does. Then the parts.

    python benchmarks/recording.py
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pytl
from pytl.data import Task, batches, digits
from pytl.study.networks import pretrained_digits
from pytl.training.methods import parse

BATCH, RATE, EVERY, LINES = 16, 0.03, 10, 64
WARM = 50  # turns


class Training:
    """A network that is trained, recorded or not."""

    def __init__(self, network: nn.Module, task: Task, path: Path | None) -> None:
        self.model = copy.deepcopy(network)
        self.optimizer = parse("dtnh").optimizer(self.model, "sgd", RATE, "head")
        self.loader = batches(task.train, BATCH, shuffle=True)
        self.recorder = None if path is None else pytl.Recorder(self.model, self.optimizer, path, every=EVERY)

    def seconds(self) -> float:
        """Of an epoch."""
        began = time.perf_counter()
        for images, labels in self.loader:
            loss = cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            if self.recorder:
                self.recorder.step(loss)
            self.optimizer.zero_grad()
        if self.recorder:
            self.recorder.flush()
        return time.perf_counter() - began


def microseconds(run: Callable[[], object], repeats: int = 300) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e6 * median(times)


def parts(network: nn.Module, task: Task, folder: Path) -> None:
    model = copy.deepcopy(network)
    optimizer = parse("dtnh").optimizer(model, "sgd", RATE, "head")
    images, labels = next(iter(batches(task.train, BATCH, shuffle=True)))
    loss = cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    each = pytl.Recorder(model, optimizer, folder / "each.jsonl", every=1, head="head", capacity=10**6)
    idle = pytl.Recorder(model, optimizer, folder / "idle.jsonl", every=10**9, head="head")
    print(f"a step that records: {microseconds(lambda: each.step(loss)):.0f} us")
    print(f"a step that does not: {microseconds(lambda: idle.step(loss)):.1f} us")
    each.flush()
    for _ in range(LINES):
        each.step(loss)
    began = time.perf_counter()
    each.flush()
    print(f"a line that is written: {1e6 * (time.perf_counter() - began) / LINES:.0f} us")


def shown(ratios: np.ndarray) -> str:
    low, middle, high = np.percentile(ratios, [20, 50, 80])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=1500, help="of each (default: %(default)s)")
    turns = options.parse_args().turns
    torch.set_num_threads(1)
    task = digits.load("mirrored", 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = pretrained_digits(task, 0, folder)
        contenders = [Training(network, task, path) for path in (None, folder / "metrics.jsonl", None)]
        took = []
        for turn in range(turns + WARM):
            order = [(turn + place) % 3 for place in range(3)]
            found = {place: contenders[place].seconds() for place in order}
            took.append([found[place] for place in range(3)])
        plain, recorded, again = np.array(took[WARM:]).T
        print(f"torch {torch.__version__}, 1 thread; {1e3 * median(plain) / len(contenders[0].loader):.2f} ms a step")
        print(f"recording each {EVERY} steps: {shown(recorded / plain)} of that, target: under 1.03")
        print(f"the same against itself: {shown(again / plain)}")
        parts(network, task, folder)


if __name__ == "__main__":
    main()
