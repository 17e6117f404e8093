"""Files that a kill, a crash or a full disk leaves whole."""

import fcntl
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from pytl.digest import checksum
from pytl.extras import require

_MOST_JSON = 1 << 26  # bytes; the index of a network of a million tensors takes as many
_CHECKSUM = "crc32"  # among what a safetensors file of ours says of its tensors


class NotSynced(OSError):
    """A file is in its place, whole, but the system did not say that its folder is on the disk too."""


def writable_folder(path: str | Path, name: str = "out") -> Path:
    """Makes the folder where it is missing; `name` is the argument that an error is about.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        text = f"{name} must be a folder that can be written: {error.strerror}"
        raise OSError(error.errno, text, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` in one rename, once it is whole and on the disk.

    A kill at any moment leaves the previous file or the new one; an error leaves the previous one and no debris.

    Raises:
        NotSynced: the new file is in place; a crash of the machine may bring the previous one back.
        OSError: the disk is full or not writable; it names `path`.
    """
    temporary = path.with_name(f".{path.name}.partial")  # same folder: a rename cannot cross file systems
    try:
        with naming(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    try:
        _sync_folder(path.parent)
    except OSError as error:
        text = f"written and in place, but its folder is perhaps not on the disk: {error.strerror}"
        raise NotSynced(error.errno, text, str(path)) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name into an OSError that has none, as that of a write on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def json_ready(value: Any) -> Any:
    """The value with null for what JSON does not know, nan and infinities."""
    if isinstance(value, Mapping):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, argument: str) -> dict[str, Any]:
    """The mapping that a JSON file of anybody's holds.

    Args:
        path: of the file.
        argument: what an error is about.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, no JSON, nested too deeply, or no mapping.
    """
    with open(path, "rb") as file:
        written = file.read(_MOST_JSON + 1)
    try:
        if len(written) > _MOST_JSON:
            raise ValueError(f"it has more than {_MOST_JSON} bytes")
        return mapping(parse_json(written))
    except ValueError as error:
        raise ValueError(f"{argument} must be a JSON file that holds a mapping; {path}: {error}") from error


def parse_json(written: bytes | str) -> Any:
    """What it says.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(written)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def mapping(value: Any) -> dict[str, Any]:
    """The same, where it is a mapping from JSON; ValueError else."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping; got a {type(value).__name__}")
    return value


def number(value: Any) -> float:
    """A number from JSON, nan and infinities too; ValueError for anything else and for integers beyond float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number; got a {type(value).__name__}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError("expected a number; got an integer beyond float64")
    return float(value)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it no other process has `path` locked; waits for the one that has."""
    with open(path.with_name(f".{path.name}.lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Puts a rename itself on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes one safetensors file with a checksum, or leaves what was there.

    Args:
        path: of the file.
        kind: what it holds, in words; `read_tensors` asks for it.
        tensors: by name.
        about: more to know of them.

    Raises:
        OSError: the disk is full or not writable.
    """
    known = {"pytl": kind, **about}
    known[_CHECKSUM] = _sum(tensors, known)
    whole = require("safetensors.torch", "features").save(dict(tensors), known)
    with replacing(Path(path)) as file:
        file.write(whole)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote: the tensors, mapped into memory, and what there is to know of them.

    Costs a read of the file, see `pytl.digest.checksum`; files of versions of pytl that wrote none are not compared.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, no safetensors file, one of another kind, or other bits than were written.
    """
    tensors, about = mapped_tensors(path)
    if about.get("pytl") != kind:
        raise ValueError(f"{path} must hold {kind}; found {about.get('pytl', 'tensors of something else')}")
    check_tensors(path, tensors, about)
    return tensors, about


def mapped_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, mapped into memory, and its metadata, of any kind.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, or no safetensors file.
    """
    library = require("safetensors", "features")
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise
    except (library.SafetensorError, OSError) as error:  # of a folder it says: No such device
        raise ValueError(f"{path} must be a whole safetensors file: {error}") from error


def check_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Raises ValueError where a file's checksum says that its tensors, or what it says of them, were others."""
    if _CHECKSUM in about and about[_CHECKSUM] != (found := _sum(tensors, about)):
        raise ValueError(f"{path} must be what was written: its CRC-32 was {about[_CHECKSUM]} and is {found}")


def _sum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    return checksum(tensors, {key: value for key, value in about.items() if key != _CHECKSUM})
