"""Chooses the strengths of `pytl.training.methods.METHODS` and the digits' learning rate.

Seeds and images are others than those of the reported comparisons: seeds from 1000 on, accuracy on validation
images, never on the test images. Every method, plain fine-tuning too, gets a grid of the same size, and one point of
it for all five tasks. Prints one line for each point, best first; one to two minutes a method on one core.

    python benchmarks/tune_digits.py plain l2sp dtnh grod delta
"""

import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from pytl.data import Task, batches, digits
from pytl.plan import Rules
from pytl.study.networks import pretrained_digits
from pytl.training.fine_tuning import finetune
from pytl.training.methods import Method, parse
from pytl.training.penalties import REGULARIZERS

SEEDS = range(1000, 1004)
LEARNING_RATES = (0.02, 0.03, 0.05)
STRENGTHS = {
    "plain": (0.0, 0.01, 0.03, 0.1),
    "scratch": (0.0, 0.001, 0.005, 0.03),
    "delta": (0.01, 0.03, 0.1, 0.64),
    "at": (0.1, 1.0, 10.0, 100.0),
    "distillation": (0.01, 0.03, 0.1, 1.0),
    "bss": (0.003, 0.01, 0.064, 0.3),
    "l1sp": (1e-5, 1e-4, 3e-4, 1e-3),
    "grouplassosp": (1e-5, 1e-4, 3e-4, 1e-3),
    "l2spfisher": (1.0, 10.0, 100.0, 1000.0),
    **dict.fromkeys(("tred", "tred-max-mmd", "tred-min-mi"), (0.001, 0.01, 0.1, 1.0)),
    **dict.fromkeys(("rifle", "cycliclr"), (2, 3, 4, 5)),
    **dict.fromkeys(("dropout", "dropconnect", "stochasticdepth"), (0.1, 0.2, 0.35, 0.5)),
    "disturblabel": (0.02, 0.05, 0.1, 0.2),
}
PULLS = (0.01, 0.03, 0.1, 0.3)
OPTIONS = {"plain": "weight_decay", "rifle": "periods", "cycliclr": "cycles"}


def with_strength(name: str, value: float) -> Method:
    """The method with another strength of what it is about."""
    method = parse(name)
    if method.penalties:
        return replace(method, penalties=dict.fromkeys(method.penalties, value))
    if isinstance(method.plan, Rules):
        return replace(method, plan=replace(method.plan, weight_decay=value))
    if method.noise:
        return replace(method, noise=dict.fromkeys(method.noise, value))
    return replace(method, **{OPTIONS.get(name, "sp_decay"): value})


def accuracy(task: Task, seed: int, method: Method, lr: float, cache: Path) -> float:
    network = pretrained_digits(task, seed, cache)
    train, validation = batches(task.train, 16, shuffle=True), batches(task.test, 1024, shuffle=False)
    result = finetune(network, train, method=method, head="head", epochs=20, lr=lr, seed=seed, progress=False)
    network.eval()
    with torch.no_grad():
        images, labels = next(iter(validation))
        return float((result.model(images).argmax(-1) == labels).float().mean())


def tune(name: str, cache: Path) -> None:
    tasks = {task: [digits.load(task, seed, held_out="validation") for seed in SEEDS] for task in digits.TASKS}
    lines = []
    for lr, value in product(LEARNING_RATES, STRENGTHS.get(name, PULLS)):
        method = with_strength(name, value)
        means = {
            task: fmean(accuracy(one, seed, method, lr, cache) for one, seed in zip(loaded, SEEDS, strict=True))
            for task, loaded in tasks.items()
        }
        lines.append((fmean(means.values()), lr, value, means))
    for mean, lr, value, means in sorted(lines, key=lambda line: -line[0]):
        each = "  ".join(f"{task} {100 * accuracy:5.1f}" for task, accuracy in means.items())
        print(f"{name:12} lr {lr:<6} strength {value:<7} mean {100 * mean:5.2f}   {each}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for method_name in sys.argv[1:] or ["plain", "l2sp", "dtnh", "grod", *REGULARIZERS]:
            tune(method_name, Path(folder))
