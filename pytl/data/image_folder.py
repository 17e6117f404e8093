"""Class folders of images: ``root/cat/1.jpg``, or ``root/train/cat/1.jpg`` with ``root/val/cat/2.jpg``."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pytl.data.task import Task, stratified
from pytl.extras import require

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_VAL_SHARE = 0.25
_SPLIT_SEED = 0  # one split for all seeds of a comparison, so that their test images are the same

Sample = tuple[Path, int]


@dataclass(frozen=True)
class Preparation:
    """How an image becomes a tensor [3, size, size]: RGB, centre or random crop, (x - mean) / std."""

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's, as most published networks expect
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"image_size must be >= 1; got {self.size}")


class Images(Dataset[Any]):
    """Images read when asked for; training images are cropped and mirrored at random, by torch's generator."""

    def __init__(self, samples: Sequence[Sample], prepare: Preparation, augment: bool) -> None:
        self.samples, self.prepare, self.augment = samples, prepare, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        pixels = _pixels(path, self.prepare.size, self.augment)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.prepare.mean, self.prepare.std))
        return (pixels - mean) / std, label


def _pixels(path: Path, size: int, augment: bool) -> Tensor:
    """RGB in [0, 1]; the shorter side is scaled to 8/7 of `size` (256 for 224), then a square is cut out."""
    pillow = require("PIL.Image", "cli")
    with pillow.open(path) as file:
        image = file.convert("RGB")
    scale = size * 8 / 7 / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], pillow.Resampling.BILINEAR)
    room = [side - size for side in image.size]
    left, top = [int(torch.randint(0, space + 1, ())) if augment else space // 2 for space in room]
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1) / 255
    return pixels.flip(-1) if augment and torch.rand(()) < 0.5 else pixels


def load(root: str | Path, prepare: Preparation | None = None) -> Task:
    """Reads a folder's classes and checks every image by decoding it once.

    Images that cannot be decoded are left out and named in `Task.skipped`. Without ``train/`` and ``val/`` a quarter
    of each class is held out, the same quarter in every run.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no class folders with images.
        ValueError: fewer than two classes, or a class that cannot be both trained on and tested.
    """
    root, prepare = Path(root), prepare or Preparation()
    if not root.is_dir():
        raise FileNotFoundError(f"data must be 'digits', 'digits:TASK' or a folder of class folders; got {str(root)!r}")
    train_root, val_root = root / "train", root / "val"
    parts = [train_root, val_root] if train_root.is_dir() and val_root.is_dir() else [root]
    classes = sorted({folder.name for part in parts for folder in part.iterdir() if _is_class(folder)})
    scanned = [_scan(part, classes) for part in parts]
    skipped = tuple(path for _, unreadable in scanned for path in unreadable)
    if not any(samples for samples, _ in scanned):
        raise FileNotFoundError(f"{root} holds no readable images in class folders ({len(skipped)} corrupt ones)")
    train, val = [samples for samples, _ in scanned] if len(parts) == 2 else _split(scanned[0][0], classes)
    _check_classes(classes, train, val)
    return Task(
        name=root.name,
        title=f"{root.name}: {len(train)} images to train on, {len(val)} to test on, {len(classes)} classes",
        num_classes=len(classes),
        train=Images(train, prepare, augment=True),
        test=Images(val, prepare, augment=False),
        skipped=skipped,
    )


def unaugmented(data: Dataset[Any]) -> Dataset[Any]:
    """The same images, without random crops and mirrors; other data sets as they are."""
    return Images(data.samples, data.prepare, augment=False) if isinstance(data, Images) else data


def divided(data: Dataset[Any], share: float, seed: int) -> tuple[Images, Images]:
    """Images to train on, and that share of each class to validate on, without augmentation.

    Raises:
        ValueError: a class with fewer than two images.
    """
    if not isinstance(data, Images):
        raise TypeError(f"data must be a folder's Images; got {type(data).__name__}")
    labels = torch.tensor([label for _, label in data.samples])
    if few := [str(label) for label in labels.unique().tolist() if int((labels == label).sum()) < 2]:
        raise ValueError(f"each class must have >= 2 images to train on, one for validation; class {few[0]} has 1")
    held, rest = stratified(labels, share, seed)
    chosen = Images([data.samples[i] for i in rest], data.prepare, data.augment)
    return chosen, Images([data.samples[i] for i in held], data.prepare, augment=False)


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")


def _scan(part: Path, classes: Sequence[str]) -> tuple[list[Sample], list[Path]]:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((part / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    with ThreadPoolExecutor() as threads:  # Pillow decodes without holding the interpreter
        readable = list(threads.map(_is_readable, [path for path, _ in found]))
    samples = [sample for sample, fine in zip(found, readable, strict=True) if fine]
    return samples, [path for (path, _), fine in zip(found, readable, strict=True) if not fine]


def _is_readable(path: Path) -> bool:
    pillow = require("PIL.Image", "cli")
    try:
        with pillow.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError):  # truncated, broken, unknown, oversized
        return False
    return True


def _split(samples: list[Sample], classes: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    for name, count in _counts(samples, classes).items():
        if count < 2:
            raise ValueError(f"class {name!r} must have >= 2 readable images (one is held out); got {count}")
    val, train = stratified(torch.tensor([label for _, label in samples]), _VAL_SHARE, _SPLIT_SEED)
    return [samples[i] for i in train], [samples[i] for i in val]


def _check_classes(classes: Sequence[str], train: list[Sample], val: list[Sample]) -> None:
    if len(classes) < 2:
        raise ValueError(f"data must have >= 2 class folders; got {len(classes)}: {', '.join(classes)}")
    for part, samples in (("train", train), ("val", val)):
        for name, count in _counts(samples, classes).items():
            if count < 1:
                raise ValueError(f"class {name!r} must have >= 1 readable image to {part} with; got 0")


def _counts(samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, int]:
    found = Counter(label for _, label in samples)
    return {name: found[label] for label, name in enumerate(classes)}
