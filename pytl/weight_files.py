"""Files of weights, read tensor by tensor: .safetensors, .pt, Hugging Face's folders. Nothing in them is executed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pytl.files import mapping, read_json

_PIECE = 1 << 20  # bytes read at a time
_FOLDER = 0x10  # among a record's attributes; torch reads nothing of such a one
_ZIP = b"PK\x03\x04"  # what torch takes a file for its own by

Reader = Callable[[str], Tensor]


class Entry(NamedTuple):
    """What a source says of a tensor before it is read."""

    shape: torch.Size
    dtype: str


Catalogue = tuple[dict[str, Entry], Reader]


def read_weights(path: Path, argument: str = "checkpoint") -> dict[str, Tensor]:
    """All tensors of a file or folder, on the CPU. Errors as `open_weights`."""
    entries, read = open_weights(path, argument)
    return {name: read(name) for name in entries}


def catalogue(tensors: Mapping[str, Tensor], argument: str) -> Catalogue:
    """What a mapping holds.

    Raises:
        TypeError: something that is no tensor, or no name.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"{argument} must map names to tensors; got a {type(name).__name__} for a name")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{argument} must map names to tensors; got {type(tensor).__name__} for {name}")
    return {name: Entry(tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()}, tensors.__getitem__


def open_weights(path: Path, argument: str) -> Catalogue:
    """What a file or a Hugging Face folder holds; tensors are read when they are asked for.

    Of a checkpoint of ``pytl.finetune`` it is the model's. A ``.pt`` file is read once as a whole, for its checksums,
    see `check_records`; a ``.safetensors`` file of somebody else's has none.

    Args:
        path: a ``.safetensors`` or ``.pt`` file, or a folder.
        argument: what an error is about.

    Raises:
        FileNotFoundError, ValueError: it is missing, or not whole, or other bits than were saved.
        TypeError: a ``.pt`` file holds something that is no tensor.
        ImportError: safetensors is missing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{argument} must name a file or a folder; {path} does not exist")
    if path.is_dir():
        return _open_folder(path, argument)
    if path.suffix == ".safetensors":
        return _open_safetensors(path, argument)
    try:
        check_records(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of a broken file torch raises anything: RuntimeError, EOFError, KeyError, ...
        raise ValueError(f"{argument} must be a whole .safetensors or .pt file of tensors; {path}: {error}") from error
    if isinstance(tensors, Mapping) and {"fingerprint", "model", "history"} <= tensors.keys():
        tensors = tensors["model"]
    if not isinstance(tensors, Mapping):
        kind = type(tensors).__name__
        raise ValueError(f"{argument} must hold a mapping from names to tensors; {path} holds a {kind}")
    return catalogue(tensors, f"{argument}: {path}")


def check_records(path: Path) -> None:
    """Compares a file of torch.save with the CRC-32 of each of its records, which torch itself does not.

    Costs a read of the file, 0.15 to 0.6 seconds a gigabyte where it is in memory. What has none is not compared: files
    from before torch 1.6, and where it is 0, as ``torch.serialization.set_crc32_options(False)`` leaves it.

    Raises:
        ValueError: some bits are others than were saved.
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.external_attr & _FOLDER:
                    raise zipfile.BadZipFile(f"{record.filename!r} is marked as a folder")
                with archive.open(record) as opened:
                    while record.CRC and opened.read(_PIECE):
                        pass
    except Exception as error:  # zipfile, of a broken file: BadZipFile, NotImplementedError, struct.error, zlib.error
        raise ValueError(f"its bits are others than were saved: {error}") from error


def _open_safetensors(path: Path, argument: str) -> Catalogue:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError('reading .safetensors needs: pip install "pytl[hf]"') from error
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        entries = {name: Entry(torch.Size(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
        for name in {entry.dtype: name for name, entry in entries.items()}.values():
            file.get_tensor(name)  # a mapping only; it raises for a dtype that torch lacks
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{argument} must be a whole .safetensors file; {path}: {error}") from error
    return entries, file.get_tensor


def _open_folder(folder: Path, argument: str) -> Catalogue:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).exists():
                return open_weights(folder / name, argument)
        raise FileNotFoundError(f"{argument} must hold model.safetensors or its index; {folder} has neither")
    shard_of = _shards(index, argument)
    shards = {shard: open_weights(folder / shard, argument) for shard in sorted(set(shard_of.values()))}
    entries = {name: shards[shard][0].get(name) for name, shard in shard_of.items()}
    there = {name: entry for name, entry in entries.items() if entry}  # tied tensors may be in the index alone
    return there, lambda name: shards[shard_of[name]][1](name)


def _shards(index: Path, argument: str) -> dict[str, str]:
    """Name -> file in the index's folder."""
    try:
        shard_of = mapping(read_json(index, argument)["weight_map"])
    except (ValueError, KeyError) as error:
        text = f"{argument}: an index must map names to files under weight_map; {index}: {error!r}"
        raise ValueError(text) from error
    outside = sorted({repr(s) for s in shard_of.values() if not isinstance(s, str) or os.path.basename(s) != s})
    if outside:
        raise ValueError(f"{argument}: an index must name files of its own folder; {index} names {some(outside)}")
    missing = sorted({repr(s) for s in shard_of.values() if not os.path.isfile(index.parent / s)})
    if missing:
        raise FileNotFoundError(f"{argument}: an index must name files that are there; {index} names {some(missing)}")
    return shard_of


def some(names: list[str]) -> str:
    """The first few."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
