"""Files that a kill, a crash or a full disk leaves whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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


def _sync_folder(folder: Path) -> None:
    """Puts a rename itself on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
