"""Files that a kill, a crash or a full disk leaves whole."""

import fcntl
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from pytl.extras import require


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
    """
    temporary = path.with_name(f".{path.name}.partial")  # same folder: a rename cannot cross file systems
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def json_ready(value: Any) -> Any:
    """The value with null for what JSON does not know, nan and infinities."""
    if isinstance(value, Mapping):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """Writes one safetensors file, or leaves what was there.

    Args:
        path: of the file.
        kind: what it holds, in words; `read_tensors` asks for it.
        tensors: by name.
        about: more to know of them.

    Raises:
        OSError: the disk is full or not writable.
    """
    whole = require("safetensors.torch", "features").save(dict(tensors), {"pytl": kind, **about})
    with replacing(Path(path)) as file:
        file.write(whole)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote: the tensors, and what there is to know of them.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, no safetensors file, or one of another kind.
    """
    library = require("safetensors", "features")
    try:
        with library.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except library.SafetensorError as error:
        raise ValueError(f"{path} must be a whole safetensors file: {error}") from error
    if about.get("pytl") != kind:
        raise ValueError(f"{path} must hold {kind}; found {about.get('pytl', 'tensors of something else')}")
    return tensors, about
