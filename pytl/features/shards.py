"""Features of many samples in one table, and a folder of such tables as safetensors files."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pytl.extras import require
from pytl.files import check_tensors, mapped_tensors, mapping, parse_json, writable_folder, write_tensors

_KIND = "source features"
_VERSION = {"format version": "1"}
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_FEATURES = "features."
_ABANDONED = 3600.0  # seconds; a shard is written within one of them, so whoever wrote this one was killed


@dataclass
class Shard:
    """The features of some samples, in memory or mapped from a file.

    Attributes:
        ids, digests: int64 [rows], on the CPU.
        features: layer -> [rows, ...], on the CPU.
        given: layer -> the dtype that the network gave.
        count: how many rows are in use, from the first on.
    """

    ids: Tensor
    digests: Tensor
    features: dict[str, Tensor]
    given: dict[str, torch.dtype]
    count: int

    @classmethod
    def empty(cls, like: Mapping[str, Tensor], given: dict[str, torch.dtype], rows: int) -> Shard:
        """With room for samples such as ``like`` has. The system gives memory as rows are filled, not before."""
        with torch.inference_mode(False):  # else nothing could be added outside of it
            ids, digests = torch.empty(2, rows, dtype=torch.int64, device="cpu")
            features = {
                layer: torch.empty(rows, *tensor.shape[1:], dtype=tensor.dtype, device="cpu")
                for layer, tensor in like.items()
            }
        return cls(ids, digests, features, given, 0)

    def form(self) -> list[str]:
        """Each layer, with the network's dtype and, where features are kept in another, that."""
        kept = {layer: tensor.dtype for layer, tensor in self.features.items()}
        return [
            f"{layer} {dtype}" + (f" kept as {kept[layer]}" if kept[layer] != dtype else "")
            for layer, dtype in self.given.items()
        ]

    @property
    def row_bytes(self) -> int:
        """Of a sample: its features, id and digest."""
        return row_bytes(self.features)

    def put(self, ids: Tensor, digests: Tensor, features: Mapping[str, Tensor]) -> None:
        """Adds rows, for which there must be room; tensors may lie on other devices."""
        rows = slice(self.count, self.count + len(ids))
        self.ids[rows], self.digests[rows] = ids, digests
        for layer, tensor in features.items():
            self.features[layer][rows] = tensor
        self.count += len(ids)


def row_bytes(features: Mapping[str, Tensor]) -> int:
    """Of a sample: its features, [rows, ...], and 16 for its id and digest."""
    return 16 + sum(tensor.shape[1:].numel() * tensor.element_size() for tensor in features.values())


class Folder:
    """Where several runs and processes keep features of one source network: each writes files of its own.

    Args:
        path: made where it is missing. What a killed run left half-written an hour ago or more is removed.
        about: what the features depend on, in words, beside the layers.

    Raises:
        ImportError: safetensors is missing.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | Path, about: Mapping[str, str]) -> None:
        require("safetensors", "features")
        self.path = writable_folder(path, "folder")
        self.about = _VERSION | dict(about)
        self._writer, self._written = secrets.token_hex(4), 0
        for left in self.path.glob(".shard-*.partial"):
            with suppress(FileNotFoundError):  # another process removes it as well
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()

    def shards(self) -> list[Shard]:
        """All that are there. Costs a read of each, see `pytl.digest.checksum`.

        Raises:
            ValueError: one is truncated, other bits than were written, no shard, or of another source network, dtype
                or layers than the others.
        """
        found = [self._read(path) for path in sorted(self.path.glob("shard-*.safetensors"))]
        given = sorted({", ".join(shard.form()) for shard in found})
        if len(given) > 1:
            raise ValueError(f"folder {self.path} must hold the same layers in all shards; got {' and '.join(given)}")
        return found

    def write(self, shard: Shard) -> Shard:
        """The shard's rows as a file, and that mapped into memory. Writing takes twice the shard's memory more.

        Raises:
            OSError: the disk is full; the file is not there then.
        """
        path = self.path / f"shard-{self._writer}-{self._written:05}.safetensors"
        tensors = {"ids": shard.ids, "digests": shard.digests}
        tensors |= {_FEATURES + layer: tensor for layer, tensor in shard.features.items()}
        given = json.dumps({layer: _name(dtype) for layer, dtype in shard.given.items()})
        used = {name: tensor[: shard.count] for name, tensor in tensors.items()}
        write_tensors(path, _KIND, used, {**self.about, "given": given})
        self._written += 1
        return _shard(*mapped_tensors(path))  # whose checksum was of these very tensors

    def _read(self, path: Path) -> Shard:
        try:
            tensors, about = mapped_tensors(path)
            self._refuse_other(path, about)
            check_tensors(path, tensors, about)
            return _shard(tensors, about)
        except _OtherShard:
            raise
        except (ValueError, KeyError, TypeError) as error:
            text = f"{path} must be a whole shard: {error!r}; delete it to compute its samples anew"
            raise ValueError(text) from error

    def _refuse_other(self, path: Path, about: Mapping[str, str]) -> None:
        if about.get("pytl") != _KIND:
            found = about.get("pytl", "tensors of something else")
            raise _OtherShard(f"{path} must be a shard of {_KIND}; found {found}: delete or move it")
        differences = [
            f"{key}: kept {about.get(key)}, now {now}" for key, now in self.about.items() if about.get(key) != now
        ]
        if differences:
            first = f"folder {self.path}: {path.name} holds features of another source and is left as it is:"
            raise _OtherShard("\n  ".join([first, *differences]))


class _OtherShard(ValueError):
    """A whole shard, but not of this folder's source."""


def _shard(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Shard:
    """Raises KeyError, TypeError, ValueError: something is missing, or does not fit the rest."""
    given = {layer: _DTYPES[name] for layer, name in mapping(parse_json(about["given"])).items()}
    ids, digests = tensors["ids"], tensors["digests"]
    features = {layer: tensors[_FEATURES + layer] for layer in given}
    forms = {name: (tensor.dtype, tensor.shape) for name, tensor in (("ids", ids), ("digests", digests))}
    if {*forms.values()} != {(torch.int64, (ids.numel(),))}:
        raise ValueError(f"ids and digests must be torch.int64 [rows]; got {forms}")
    short = [layer for layer, tensor in features.items() if tensor.shape[:1] != ids.shape]
    if short:
        raise ValueError(f"features must have {len(ids)} rows; got others for {', '.join(short)}")
    return Shard(ids, digests, features, given, len(ids))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
