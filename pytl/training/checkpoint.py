"""Checkpoints that a kill, a crash or a full disk cannot spoil, and the random numbers that exact resume needs."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from pytl.files import replacing

_NumPyState = tuple[str, np.ndarray, int, int, float]
_LINES = 12  # of differences shown; two architectures differ in hundreds


class ResumeError(ValueError):
    """A checkpoint belongs to another run: another model, method or hyper-parameters."""


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` to `path`, or leaves what was there.

    Raises:
        OSError: the disk is full or not writable; a checkpoint that was there before is still whole.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            _write(dict(state), file)
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
    """Reads a checkpoint's tensors and plain values; nothing in the file is executed.

    Raises:
        ResumeError: the file is truncated or is not a checkpoint.
    """
    try:
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


def random_state(loader: object = None) -> dict[str, Any]:
    """The state of torch's, NumPy's and Python's generators, and of those that `loader` holds.

    Returns:
        Tensors and plain values only, as `torch.load(weights_only=True)` accepts them.
    """
    _, keys, position, has_gauss, gauss = cast(_NumPyState, np.random.get_state(legacy=True))
    version, internal, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal), next_gauss],
        "loader": [generator.get_state() for generator in _generators(loader)],
    }


def restore_random_state(state: Mapping[str, Any], loader: object = None) -> None:
    """Puts back what `random_state` took."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():  # on another machine's GPUs there are no bits to keep
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), next_gauss))
    for generator, saved in zip(_generators(loader), state["loader"], strict=True):
        generator.set_state(saved.cpu())


def _generators(loader: object) -> list[torch.Generator]:
    """A DataLoader's own generator and its samplers', each once."""
    found: dict[int, torch.Generator] = {}
    holders, seen = [loader], set()
    while holders:
        holder = holders.pop()
        if holder is None or id(holder) in seen:
            continue
        seen.add(id(holder))
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            found.setdefault(id(generator), generator)
        holders += [getattr(holder, name, None) for name in ("sampler", "batch_sampler")]
    return list(found.values())
