"""Checkpoints that a kill, a crash or a full disk cannot spoil."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pytl.files import NotSynced, replacing
from pytl.weight_files import check_records

_LINES = 12  # of differences shown; two architectures differ in hundreds


class ResumeError(ValueError):
    """A checkpoint belongs to another run: another model, method or hyper-parameters."""


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` to `path`, or leaves what was there.

    Raises:
        NotSynced: the new checkpoint is in place; a crash of the machine may bring the previous one back.
        OSError: the disk is full or not writable; a checkpoint that was there before is still whole.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            _write(dict(state), file)
    except NotSynced:
        raise
    except OSError as error:
        kept = "the previous one is whole" if path.exists() else "there was none before"
        raise OSError(error.errno, f"checkpoint not written, {kept}: {error.strerror}", str(path)) from error


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # torch's zip writer fails while closing, and so hides the disk's own error
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint's tensors and plain values, and compares its checksums; nothing in the file is executed.

    Raises:
        ResumeError: the file is truncated, other bits than were saved, or is not a checkpoint.
    """
    try:
        check_records(Path(path))
        return dict(torch.load(path, map_location=device, weights_only=True))
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a broken file
        raise ResumeError(f"{path} cannot be read as a checkpoint: {error}") from error


def refuse_other_run(saved: Mapping[str, Any], current: Mapping[str, Any], where: str | Path) -> None:
    """Compares two runs' fingerprints, dicts of plain values.

    Raises:
        ResumeError: they differ; the message lists each difference.
    """
    lines = list(_differences(saved, current))
    if lines:
        first = f"{where} belongs to another run and is left as it is:"
        more = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
        raise ResumeError("\n  ".join([first, *lines[:_LINES], *more]))


def _differences(saved: Any, current: Any, name: str = "") -> Iterator[str]:
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in dict.fromkeys([*saved, *current]):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(saved.get(key, "nothing"), current.get(key, "nothing"), inner)
    elif saved != current:
        yield f"{name}: saved {saved}, now {current}"
