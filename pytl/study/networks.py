"""Where a comparison's networks come from: pre-trained here on digits, made by a function, or read from a folder."""

import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pytl import files
from pytl.data import Task, batches
from pytl.data.image_folder import Preparation
from pytl.extras import require
from pytl.training import checkpoint
from pytl.training.fine_tuning import finetune
from pytl.training.methods import Method

_SOURCE_STEPS, _SOURCE_BATCH, _SOURCE_LR = 600, 32, 0.05


class Residual(nn.Module):
    """``relu(x + branch(x))``, a convolution for a branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU(), Residual(outputs))


class DigitsNet(nn.Module):
    """A residual network of three stages and a head, 72,000 weights; for images [n, 1, 8, 8]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = _stage(1, 16, 1), _stage(16, 32, 2), _stage(32, 64, 2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.layer3(self.layer2(self.layer1(images)))))


def source_digits(task: Task, seed: int, cache: Path) -> DigitsNet:
    """A `DigitsNet` that learnt `task.source`. It is trained once for each source and seed, and kept in `cache`."""
    source = _source_of(task)
    path = files.writable_folder(cache) / f"{task.source_name}-{seed}.pt"
    with files.locked(path):  # several processes may want it
        torch.manual_seed(seed)
        network = DigitsNet(10)
        if path.exists():
            network.load_state_dict(checkpoint.load(path))
            return network
        _pretrain(network, source, seed)
        checkpoint.save(path, network.state_dict())
        return network


def _source_of(task: Task) -> Dataset[Any]:
    if task.source is None:
        raise ValueError(f"task must have a source; got {task.name!r} without one")
    return task.source


def _pretrain(network: DigitsNet, source: Dataset[Any], seed: int, **kept: Any) -> None:
    loader = batches(source, _SOURCE_BATCH, shuffle=True)
    epochs = math.ceil(_SOURCE_STEPS / len(loader))
    alone = Method("source")  # the task's gradient and nothing else
    finetune(network, loader, method=alone, epochs=epochs, lr=_SOURCE_LR, seed=seed, progress=False, **kept)


def source_stages(task: Task, seed: int, cache: Path, count: int) -> Path:
    """The folder of a digits source's checkpoints: at its start, `count` on the way, and its end."""
    source = _source_of(task)
    folder = files.writable_folder(cache) / f"{task.source_name}-{seed}-{count}-stages"
    with files.locked(folder):
        torch.manual_seed(seed)
        _pretrain(DigitsNet(10), source, seed, out=folder, snapshots=count, resume=True)
    return folder


def pretrained_digits(task: Task, seed: int, cache: Path) -> nn.Module:
    """The same with a new head for the task's classes."""
    network = source_digits(task, seed, cache)
    torch.manual_seed(seed)  # the same head, whether the rest was trained just now or read
    network.head = nn.Linear(64, task.num_classes)
    return network


def from_name(name: str) -> Callable[[int], nn.Module]:
    """The maker of a user's network, called with the number of classes.

    Args:
        name: ``module:function`` (modules in the working directory are found), or a local Hugging Face folder.

    Raises:
        ValueError: it is neither, or the function is not found.
    """
    if (Path(name) / "config.json").is_file():
        return _hugging_face(name)
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(f"model must be module:function or a folder with a config.json; got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model must be module:function; got {name!r}: {error}") from error


def _hugging_face(folder: str) -> Callable[[int], nn.Module]:
    auto_model = require("transformers", "hf").AutoModelForImageClassification

    def make(num_classes: int) -> nn.Module:
        return auto_model.from_pretrained(
            folder, num_labels=num_classes, ignore_mismatched_sizes=True, local_files_only=True
        )

    return make


def preparation(name: str, image_size: int) -> Preparation:
    """How the network `name` wants its images: a Hugging Face folder says so itself, the others expect ImageNet's.

    Raises:
        ValueError: the folder's preprocessor_config.json is broken, or says something else than three numbers.
    """
    config = Path(name) / "preprocessor_config.json"
    if not config.is_file():
        return Preparation(image_size)
    found, usual = files.read_json(config, "model"), Preparation(image_size)
    try:
        mean, std = _colours(found.get("image_mean"), usual.mean), _colours(found.get("image_std"), usual.std)
        if min(std) <= 0:
            raise ValueError(f"expected image_std > 0; got {[*std]}")
    except ValueError as error:
        raise ValueError(
            f"model must say three finite numbers for image_mean and image_std; {config}: {error}"
        ) from error
    return Preparation(image_size, mean, std)


def _colours(found: Any, usual: tuple[float, float, float]) -> tuple[float, float, float]:
    """Red, green and blue; the usual ones where there is nothing, or null."""
    if found is None:
        return usual
    if not isinstance(found, list) or len(found) != len(usual):
        kind = f"{len(found)}" if isinstance(found, list) else f"a {type(found).__name__}"
        raise ValueError(f"expected three; got {kind}")
    red, green, blue = map(files.number, found)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError(f"expected finite numbers; got {found}")
    return red, green, blue
