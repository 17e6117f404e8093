"""Transfer tasks on scikit-learn's handwritten digits: 1,797 real 8x8 images (UCI), embedded in the package.

A third of the images, the same for every seed, is for testing and is never trained on, by source or target. Each
seed deals the other two thirds into a source half and a target half; of the target half only a share is used, because
gains from transfer show where data are few.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pytl.data.task import Task, stratified
from pytl.extras import require

_TEST_SHARE = 1 / 3
_TEST_SEED = 1797  # never changed: results of two versions then rest on the same test images
_NOISE = 0.45  # standard deviation; pixels are in [0, 1]
_MEANINGLESS = 200

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Recipe:
    title: str
    source_name: str
    source: Callable[[Tensor, Tensor, int], Images]
    target: Callable[[Tensor, Tensor, int], Images]


def _upright(images: Tensor, labels: Tensor, seed: int) -> Images:
    return images, labels


def _low_classes(images: Tensor, labels: Tensor, seed: int) -> Images:
    return images[labels < 5], labels[labels < 5]


def _high_classes(images: Tensor, labels: Tensor, seed: int) -> Images:
    return images[labels >= 5], labels[labels >= 5] - 5


def _mirrored(images: Tensor, labels: Tensor, seed: int) -> Images:
    return images.flip(-1), labels


def _inverted(images: Tensor, labels: Tensor, seed: int) -> Images:
    return 1 - images, labels


def _noisy(images: Tensor, labels: Tensor, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return images + _NOISE * torch.randn(images.shape, generator=generator), labels


def _meaningless(images: Tensor, labels: Tensor, seed: int) -> Images:
    """Shuffled pixels with random labels; few, so that a network fits some of them and does not give up on all."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randperm(64, generator=generator)
    shuffled = images[:_MEANINGLESS].flatten(1)[:, pixels].view(-1, *images.shape[1:])
    return shuffled, torch.randint(0, 10, labels[:_MEANINGLESS].shape, generator=generator)


_RECIPES = {
    "classes": _Recipe("digits 0-4, then 5-9", "low-classes", _low_classes, _high_classes),
    "mirrored": _Recipe("digits, then mirrored digits", "upright", _upright, _mirrored),
    "noisy": _Recipe("digits, then noisy digits", "upright", _upright, _noisy),
    "inverted": _Recipe("digits, then inverted digits", "upright", _upright, _inverted),
    "unsuitable": _Recipe("shuffled pixels with random labels, then digits", "meaningless", _meaningless, _upright),
}

TASKS = tuple(_RECIPES)


@lru_cache(maxsize=1)
def _digits() -> Images:
    found = require("sklearn.datasets", "cli").load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(found.target, dtype=torch.int64)


def load(name: str, seed: int, share: float = 0.15, held_out: str = "test") -> Task:
    """One of `TASKS`, dealt by `seed`.

    Args:
        name: ``"classes"``, ``"mirrored"``, ``"noisy"``, ``"inverted"`` or ``"unsuitable"``.
        seed: deals the non-test images to source and target, and draws the target's share and noise.
        share: of the target half that is trained on, in (0, 1].
        held_out: what accuracy is measured on: ``"test"``, or ``"validation"`` for choosing hyper-parameters:
            the images of the target half that are not trained on, so that the test images play no part.

    Returns:
        Images float32 [n, 1, 8, 8] in [0, 1] (noise may leave it), labels int64 [n].
    """
    if name not in _RECIPES:
        raise ValueError(f"digits task must be one of {', '.join(TASKS)}; got {name!r}")
    if held_out not in ("test", "validation"):
        raise ValueError(f"held_out must be 'test' or 'validation'; got {held_out!r}")
    recipe = _RECIPES[name]
    images, labels = _digits()
    test, pool = stratified(labels, _TEST_SHARE, _TEST_SEED)
    source, target = _deal(pool, labels, 0.5, seed)
    train, unused = _deal(target, labels, share, seed)
    held = test if held_out == "test" else unused
    return Task(
        name=f"digits:{name}",
        title=recipe.title,
        num_classes=5 if name == "classes" else 10,
        train=TensorDataset(*recipe.target(images[train], labels[train], seed)),
        test=TensorDataset(*recipe.target(images[held], labels[held], _TEST_SEED)),
        source=TensorDataset(*recipe.source(images[source], labels[source], seed)),
        source_name=recipe.source_name,
    )


def _deal(indices: Tensor, labels: Tensor, share: float, seed: int) -> Images:
    chosen, rest = stratified(labels[indices], share, seed)
    return indices[chosen], indices[rest]
