"""What readers compare: checksums where there are some, and the parts of a file with one another."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_files import KEPT, plain, refusal, same
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import Parameter

import pytl
from pytl import files
from pytl.training import checkpoint
from pytl.weight_files import check_records, read_weights

OURS = ("channel weights", "feature split", "channel sums", "cached features")


def rewritten(path: Path, without: str = "", **about: str) -> None:
    """The same safetensors file with other metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        known = {key: value for key, value in file.metadata().items() if key != without}
    path.unlink()  # it may still be mapped
    save_file(tensors, path, {**known, **about})


@pytest.mark.parametrize("name", OURS)
def test_files_of_versions_that_wrote_no_checksum_are_read(tmp_path: Path, name: str) -> None:
    path = KEPT[name].made_in(tmp_path)
    before = plain(KEPT[name].read(path))
    rewritten(path, without="crc32")
    assert same(KEPT[name].read(path), before)


@pytest.mark.parametrize("name", OURS)
def test_a_checksum_of_other_tensors_is_refused(tmp_path: Path, name: str) -> None:
    path = KEPT[name].made_in(tmp_path)
    rewritten(path, crc32="00000000")
    with pytest.raises(ValueError, match=rf"{path.name}.*CRC-32"):
        KEPT[name].read(path)


def test_flipped_bits_all_over_a_checkpoint_are_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"model": {"w": torch.arange(6.0)}, "epoch": 3})
    whole, before = path.read_bytes(), checkpoint.load(path)
    attribute = 8 * (whole.index(b"PK\x01\x02") + 38) + 4  # which marks a record as a folder, for torch an empty one
    for place in (attribute, *range(0, 8 * len(whole), 11)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        said = refusal(lambda: checkpoint.load(path))
        assert same(checkpoint.load(path), before) if said is None else path.name in said


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    weights = {"w": torch.arange(6.0)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, tmp_path / "start.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "start.pt") as archive:
        assert not any(record.CRC for record in archive.infolist())
    assert same(read_weights(tmp_path / "start.pt"), weights)
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_records(tmp_path / "old.pt")
    assert same(checkpoint.load(tmp_path / "old.pt"), weights)


def test_all_files_that_an_index_misses_are_listed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    shard_of = {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    with pytest.raises(FileNotFoundError, match=r"index\.json names 'three\.safetensors', 'two\.safetensors'$"):
        pytl.SGD([("a", Parameter(torch.zeros(2)))], sp_decay=0.1, start=tmp_path)


def test_names_that_an_index_has_and_its_files_lack_are_no_entries(tmp_path: Path) -> None:
    """Tied tensors, which conversions leave out of the files."""
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    shard_of = dict.fromkeys("ab", "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    assert same(read_weights(tmp_path), {"a": torch.ones(2)})


@pytest.mark.parametrize("key", ["done", "samples"])
@pytest.mark.parametrize("value", ["-1", "0", "1.0", "٣", str(10**30)])
def test_sums_of_no_whole_number_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = KEPT["channel sums"].made_in(tmp_path)
    rewritten(path, without="crc32", **{key: value})
    with pytest.raises(ValueError, match=rf"{path.name} must hold an int64 >= 1 for {key}"):
        KEPT["channel sums"].read(path)


WEIGHTS: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    "another sum": (torch.ones(3), torch.zeros(3).double()),
    "below 0": (torch.tensor([2.0, -1.0]), torch.zeros(2).double()),
    "not finite": (torch.full((2,), 0.5), torch.tensor([float("nan"), 0.0]).double()),
    "other counts": (torch.full((2,), 0.5), torch.zeros(3).double()),
    "no row": (torch.tensor(1.0), torch.tensor(0.0).double()),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_rows_that_are_no_channel_weights_are_refused(tmp_path: Path, what: str) -> None:
    weights, scores = WEIGHTS[what]
    pytl.ChannelWeights({"a": weights}, {"a": scores}, "exact").save(tmp_path / "weights")
    with pytest.raises(ValueError, match="weights must hold weights, scores and method of each layer"):
        pytl.ChannelWeights.load(tmp_path / "weights")


PREPARED = ('"abc"', "[0.5]", "[0.5, 0.5, 0.5, 0.5]", '["a", 1, 1]', "[1, 1, 1e999]", "[true, 1, 1]", "{}", "0.5")


@pytest.mark.parametrize("key", ["image_mean", "image_std"])
@pytest.mark.parametrize("value", PREPARED)
def test_means_that_are_not_three_numbers_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(f'{{"{key}": {value}}}')
    with pytest.raises(ValueError, match="model must say three finite numbers"):
        KEPT["preparation"].read(path)
    path.write_text('{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}')
    with pytest.raises(ValueError, match=r"image_std > 0; got \[1\.0, 0\.0, 1\.0\]"):
        KEPT["preparation"].read(path)
    path.write_text('{"image_mean": null}')
    assert KEPT["preparation"].read(path).mean == (0.485, 0.456, 0.406)


def test_a_folder_that_is_not_synced_is_told_apart_from_a_file_that_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "checkpoint.pt", os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    checkpoint.save(path, {"epoch": 1})
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(files.NotSynced, match=r"written and in place.*Input/output error.*checkpoint\.pt"):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "got a int"),
        ("[" * 200_000, "nested too deeply"),
        ("{", "Expecting"),
        ('{"a": 1}' + " " * files._MOST_JSON, "has more than"),
    ],
)
def test_json_that_is_no_mapping_is_refused_by_argument_and_name(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^plan must be a JSON file that holds a mapping; .*a\.json: .*{said}"):
        files.read_json(tmp_path / "a.json", "plan")


@pytest.mark.parametrize("value", [True, "1", None, [1], {}, 10**400, -(10**400)])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a number; got an? "):
        files.number(value)
