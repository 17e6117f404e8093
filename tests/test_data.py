from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from pytl.data import batches, digits, image_folder, stratified
from pytl.data.image_folder import Preparation

SMALL = Preparation(size=8)


def rows(data: object) -> set[bytes]:
    assert isinstance(data, TensorDataset)
    return {image.numpy().tobytes() for image in data.tensors[0]}


@pytest.mark.parametrize("seed", range(3))
def test_test_images_are_never_trained_on(seed: int) -> None:
    upright = digits.load("unsuitable", seed)  # its target is the digits as they are
    source = digits.load("mirrored", seed).source
    assert not rows(upright.test) & rows(upright.train)
    assert not rows(upright.test) & rows(source)
    assert not rows(upright.train) & rows(source)


@pytest.mark.parametrize("name", digits.TASKS)
def test_test_images_are_the_same_for_every_seed(name: str) -> None:
    assert rows(digits.load(name, 0).test) == rows(digits.load(name, 1).test)
    assert rows(digits.load(name, 0).train) != rows(digits.load(name, 1).train)


def test_validation_images_are_neither_tested_nor_trained_on() -> None:
    chosen, reported = digits.load("unsuitable", 0, held_out="validation"), digits.load("unsuitable", 0)
    assert rows(chosen.train) == rows(reported.train)
    assert not rows(chosen.test) & (rows(reported.test) | rows(reported.train))


def test_tasks_are_what_their_names_say() -> None:
    upright, mirrored = digits.load("unsuitable", 0), digits.load("mirrored", 0)
    inverted, high = digits.load("inverted", 0), digits.load("classes", 0)
    assert torch.equal(mirrored.test[:][0].flip(-1), upright.test[:][0])
    assert torch.equal(1 - inverted.test[:][0], upright.test[:][0])
    assert high.num_classes == 5
    assert set(high.train[:][1].tolist()) == set(range(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("upside-down", 0), "digits task must be one of classes, .*; got 'upside-down'"),
        (("mirrored", 0, 0.0), r"share must be in \(0, 1\]; got 0.0"),
        (("mirrored", 0, 0.5, "train"), "held_out must be 'test' or 'validation'; got 'train'"),
    ],
)
def test_bad_digits_are_named(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits.load(*arguments)


def test_stratified_split_covers_every_sample_once_and_each_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20 + [2])
    chosen, rest = stratified(labels, 0.3, seed=0)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(31))
    assert labels[chosen].bincount().tolist() == [3, 6, 1]


def test_batches_of_tensors_are_those_of_collated_samples() -> None:
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    values: list[Tensor] = [values for values, _ in batches(data, 4, shuffle=False)]
    assert [len(value) for value in values] == [4, 4, 2]
    assert torch.equal(torch.cat(values), torch.arange(10.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shade in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("L" if index else "RGB", (12 + index, 20), shade).save(tmp_path / name / f"{index}.png")
    return tmp_path


def test_folder_is_split_by_class_and_read_as_rgb(folder: Path) -> None:
    task = image_folder.load(folder, SMALL)
    assert task.num_classes == 2
    assert [label for _, label in task.test] == [0, 1]
    assert [label for _, label in task.train] == [0, 0, 0, 1, 1, 1]
    assert all(image.shape == (3, 8, 8) for image, _ in task.train)
    black, _ = task.test[0]
    assert torch.allclose(black[:, 0, 0], -torch.tensor(SMALL.mean) / torch.tensor(SMALL.std))


def test_train_and_val_folders_are_used_where_they_are(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(root / part / name / "only.jpg")
    task = image_folder.load(root, SMALL)
    assert (len(task.train), len(task.test)) == (2, 2)


def test_corrupt_images_are_named_and_left_out(folder: Path) -> None:
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "text.jpg").write_text("not an image")
    task = image_folder.load(folder, SMALL)
    assert {path.name for path in task.skipped} == {"cut.png", "text.jpg"}
    assert len(task.train) + len(task.test) == 8


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data must be .* or a folder of class folders; got .*nowhere"):
        image_folder.load(tmp_path / "nowhere")


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no readable images"):
        image_folder.load(tmp_path)


def test_class_with_one_sample_is_named(folder: Path) -> None:
    (folder / "bird").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "bird" / "only.png")
    with pytest.raises(ValueError, match=r"class 'bird' must have >= 2 readable images .*; got 1"):
        image_folder.load(folder)


def test_single_class_is_refused(folder: Path) -> None:
    for image in (folder / "dog").iterdir():
        image.unlink()
    (folder / "dog").rmdir()
    with pytest.raises(ValueError, match=">= 2 class folders; got 1: cat"):
        image_folder.load(folder)
