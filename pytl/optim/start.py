"""The starting point w0: where it comes from, and the smallest dtype that holds it without loss."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Source = Mapping[str, Tensor] | str | os.PathLike[str] | None
Reader = Callable[[str], Tensor]

_FLOATING = re.compile(r"(torch\.)?b?f", re.IGNORECASE)  # torch.bfloat16, F32, BF16


class Entry(NamedTuple):
    """What a source says of a tensor before it is read."""

    shape: torch.Size
    dtype: str


Catalogue = tuple[dict[str, Entry], Reader]


class StartingPoint:
    """Gives each parameter its w0: the weight it has now, or the tensor of its name in a mapping or in files.

    Args:
        source: None, a mapping from parameter names to tensors, or the path of a ``.safetensors`` or ``.pt`` file, or
            of a Hugging Face folder. Files are read as they are needed, and never unpickled beyond tensors.
        dtype: what w0 is kept in; "auto": bfloat16 where that holds every element exactly, else the source's own.
        device: where w0 is kept; None: beside the weight.
    """

    def __init__(self, source: Source, dtype: torch.dtype | str, device: torch.device | str | None) -> None:
        if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f'start_dtype must be "auto" or a floating point dtype; got {dtype!r}')
        if source is not None and not isinstance(source, Mapping | str | os.PathLike):
            raise TypeError(f"start must be None, a mapping or a path; got {type(source).__name__}")
        self.source = source
        self.dtype = dtype
        self.device = None if device is None else torch.device(device)
        self._catalogue: Catalogue | None = None

    def check(self, anchored: Mapping[str, Tensor], others: Iterable[str]) -> None:
        """Compares the source with the parameters that are anchored, by name, and those that are not.

        Raises ValueError that lists every missing, extra or differently shaped name; in a
        mapping no name may belong to a module without parameters; in a file those are told in a warning.
        """
        if self.source is None:
            return
        entries, _ = self._open()
        found = {name: entries[name] for name in anchored if name in entries}
        parameters = {*anchored, *others}
        modules = {_module(name) for name in parameters}  # their other tensors are buffers
        extra = sorted(name for name in entries if name not in parameters and _module(name) not in modules)
        faults = {
            "missing": [name for name in anchored if name not in entries],
            "extra": extra if isinstance(self.source, Mapping) else [],
            "of another shape": [
                f"{name}: expected {[*anchored[name].shape]}, got {[*entry.shape]}"
                for name, entry in found.items()
                if entry.shape != anchored[name].shape
            ],
            "not floating point": [f"{n}: {e.dtype}" for n, e in found.items() if not _FLOATING.match(e.dtype)],
        }
        if any(faults.values()):
            listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
            raise ValueError(f"start must hold a tensor for each anchored parameter; {listed}")
        if extra:
            warnings.warn(
                f"start: {len(extra)} names in {self.source} belong to no parameter: {_some(extra)}", stacklevel=2
            )

    def of(self, name: str | None, weight: Tensor) -> Tensor:
        """A new tensor: w0 of a parameter, its elements in the weight's order."""
        if self.source is None:
            origin = weight.detach()
        else:
            assert name is not None
            origin = self._open()[1](name)
        dtype = _smallest_lossless(origin) if self.dtype == "auto" else self.dtype
        assert isinstance(dtype, torch.dtype)
        return torch.empty_like(weight, dtype=dtype, device=self.device or weight.device).copy_(origin)

    def _open(self) -> Catalogue:
        if self._catalogue is None:
            assert self.source is not None
            mapping = self.source if isinstance(self.source, Mapping) else None
            self._catalogue = _catalogue(mapping) if mapping is not None else _open_path(Path(str(self.source)))
        return self._catalogue

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_catalogue": None}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _smallest_lossless(tensor: Tensor) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float32):
        if dtype.itemsize < tensor.dtype.itemsize and bool((tensor.to(dtype).to(tensor.dtype) == tensor).all()):
            return dtype
    return tensor.dtype


def _catalogue(tensors: Mapping[str, Tensor], source: str = "start") -> Catalogue:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{source} must map names to tensors; got {type(tensor).__name__} for {name}")
    return {name: Entry(tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()}, tensors.__getitem__


def _open_path(path: Path) -> Catalogue:
    if not path.exists():
        raise FileNotFoundError(f"start must name a file or a folder; {path} does not exist")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"start must be a whole .safetensors or .pt file of tensors; {path}: {error}") from error
    if not isinstance(tensors, Mapping):
        raise ValueError(f"start must hold a mapping from names to tensors; {path} holds a {type(tensors).__name__}")
    return _catalogue(tensors, f"start: {path}")


def _open_safetensors(path: Path) -> Catalogue:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError('reading .safetensors needs: pip install "pytl[hf]"') from error
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"start must be a whole .safetensors file; {path}: {error}") from error
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {name: Entry(torch.Size(s.get_shape()), s.get_dtype()) for name, s in slices.items()}, file.get_tensor


def _open_folder(folder: Path) -> Catalogue:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).exists():
                return _open_path(folder / name)
        raise FileNotFoundError(f"start must hold model.safetensors or its index; {folder} has neither")
    try:
        shard_of: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"start: an index must map names to files under weight_map; {index}: {error!r}") from error
    outside = sorted({shard for shard in shard_of.values() if Path(shard).name != shard})
    if outside:
        raise ValueError(f"start: an index must name files of its own folder; {index} names {_some(outside)}")
    shards = {shard: _open_path(folder / shard) for shard in sorted(set(shard_of.values()))}
    entries = {name: entry for shard, _ in shards.values() for name, entry in shard.items()}
    return entries, lambda name: shards[shard_of[name]][1](name)
