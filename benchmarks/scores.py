"""Times LogME and the H-scores on 50,000 x 2048 features of 100 classes, beside their textbook forms, with peak memory.

Each runs in a process of its own, so that memory is its own; beyond the input, 400 MB of float32.

    python benchmarks/scores.py            # about five minutes on two cores
    python benchmarks/scores.py 5000 512   # samples, features
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pytl.analysis.scores import h_score, h_score_regularised, logme, transrate

CLASSES = 100


def textbook_h_score(features: Tensor, labels: Tensor) -> float:
    """As the paper writes it, in NumPy: a pseudo-inverse of one covariance, a product with another."""
    f, y = features.double().numpy(), labels.numpy()
    means = np.zeros_like(f)
    for c in np.unique(y):
        means[y == c] = f[y == c].mean(0)
    return float(np.trace(np.linalg.pinv(np.cov(f, rowvar=False), rcond=1e-15) @ np.cov(means, rowvar=False)))


def textbook_logme(features: Tensor, labels: Tensor) -> float:
    """By a singular value decomposition of the features and alternation between a and b, class by class."""
    f, y = features.double().numpy(), labels.numpy()
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    n, squares, values = len(f), s**2, []
    for c in np.unique(y):
        target = (y == c).astype(float)
        z2 = (u.T @ target) ** 2
        outside, a, b = target.sum() - z2.sum(), 1.0, 1.0
        for _ in range(100):
            t = a / b
            gamma = (squares / (t + squares)).sum()
            m2 = (squares * z2 / (t + squares) ** 2).sum()
            residual = (z2 / (1 + squares / t) ** 2).sum() + outside
            a, b = gamma / m2, (n - gamma) / residual
            if abs(a / b - t) <= 1e-10 * t:
                break
        logs = len(s) * np.log(a) - np.log(a + b * squares).sum() + n * np.log(b) - n * np.log(2 * np.pi)
        values.append((logs - b * residual - a * m2) / 2 / n)
    return float(np.mean(values))


CONTENDERS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "h_score": lambda f, y: float(h_score(f, y)),
    "h_score, textbook": textbook_h_score,
    "h_score_regularised": lambda f, y: float(h_score_regularised(f, y)),
    "logme": lambda f, y: float(logme(f, y)),
    "logme, textbook": textbook_logme,
    "transrate": lambda f, y: float(transrate(f, y)),
}


def sample(n: int, d: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (n,))
    return torch.randn(n, d).add_(0.1 * torch.randn(CLASSES, d)[labels]).relu_(), labels


def measure(name: str, n: int, d: int, out: Connection) -> None:
    features, labels = sample(n, d)
    CONTENDERS[name](features[:1000], labels[:1000])  # loads the libraries
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began = memory("VmRSS"), time.perf_counter()
    value = CONTENDERS[name](features, labels)
    seconds = time.perf_counter() - began
    out.send((value, seconds, memory("VmHWM") - before))


def memory(field: str) -> int:
    """KiB of this process: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main(n: int = 50_000, d: int = 2048) -> None:
    print(f"{n} samples, {d} features, {CLASSES} classes; {torch.get_num_threads()} threads, torch {torch.__version__}")
    context = multiprocessing.get_context("spawn")
    for name in CONTENDERS:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(name, n, d, sender))
        process.start()
        sender.close()
        value, seconds, kibibytes = receiver.recv()
        process.join()
        print(
            f"{name:20} {seconds:7.2f} s  {kibibytes / 2**20:6.2f} GiB beyond the input  value {value:.10g}", flush=True
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
