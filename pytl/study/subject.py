"""What commands work on: data, and the network that is to learn them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pytl.data import Task, digits, image_folder
from pytl.study import networks

DIGITS_LR, FOLDER_LR = 0.03, 0.01  # the first chosen by benchmarks/tune_digits.py


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Data and a network; checked when made.

    Attributes:
        data: ``"digits"`` (all its tasks), ``"digits:TASK"``, or a folder of class folders of images.
        model: ``"module:function"`` or a local Hugging Face folder; None for digits.
        head: name of the model's new head; None: found.
        share: of the digits' target images that is trained on.
        image_size: of a folder's images, in pixels.
        lr: learning rate at the start; None: 0.03 on digits (benchmarks/tune_digits.py), 0.01 on folders.
        workers: processes that read images.
        device: where to compute; None: a GPU if there is one.
    """

    data: str
    model: str | None = None
    head: str | None = None
    share: float = 0.15
    image_size: int = 224
    lr: float | None = None
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0; got {self.workers}")
        if self.on_digits and self.model:
            raise ValueError(f"model must be left out for digits, which bring their own; got {self.model!r}")
        if not self.on_digits and not self.model:
            raise ValueError("model must be given for a folder of images: module:function or a Hugging Face folder")

    @property
    def on_digits(self) -> bool:
        return self.data.partition(":")[0] == "digits"

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        return (DIGITS_LR if self.on_digits else FOLDER_LR) if self.lr is None else self.lr

    @property
    def place(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def head_name(self) -> str | None:
        return "head" if self.on_digits else self.head

    @property
    def task_names(self) -> tuple[str, ...]:
        """For folders the folder itself."""
        if not self.on_digits:
            return (self.data,)
        name = self.data.partition(":")[2]
        return (name,) if name else digits.TASKS

    def task(self, name: str, seed: int, held_out: str = "test") -> Task:
        """One of `task_names`; digits are dealt anew for each seed, a folder's split is one for all."""
        if self.on_digits:
            return digits.load(name, seed, self.share, held_out)
        return image_folder.load(name, networks.preparation(self.model or "", self.image_size))

    def network(self, task: Task, seed: int, cache: Path) -> nn.Module:
        """The source network with a new head, the same for the same seed.

        Raises:
            ValueError: the model's function does not return a network.
        """
        if self.model is None:
            return networks.pretrained_digits(task, seed, cache)
        torch.manual_seed(seed)
        network = networks.from_name(self.model)(task.num_classes)
        if not isinstance(network, nn.Module):
            raise ValueError(f"model must return a torch.nn.Module; {self.model} returned {type(network).__name__}")
        return network

    def check(self) -> None:
        """Raises ValueError for a device or a model that is not there."""
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch built without that device
            raise ValueError(f"device must be one that torch finds here; got {self.device!r}: {error}") from error
        if self.model is not None:
            networks.from_name(self.model)

    @property
    def torch_threads(self) -> int:
        """For images of 8x8 one: a second has nothing to do, and waiting for it costs, tenfold on a busy machine."""
        return 1 if self.on_digits else torch.get_num_threads()


def folder_name(task: str) -> str:
    """What a task's folder is called."""
    return Path(task).name.replace(":", "-")
