"""Files of weights, read tensor by tensor: .safetensors, .pt, Hugging Face's folders. Nothing in them is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

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
        TypeError: something that is no tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{argument} must map names to tensors; got {type(tensor).__name__} for {name}")
    return {name: Entry(tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()}, tensors.__getitem__


def open_weights(path: Path, argument: str) -> Catalogue:
    """What a file or a Hugging Face folder holds; tensors are read when they are asked for.

    Of a checkpoint of ``pytl.finetune`` it is the model's.

    Args:
        path: a ``.safetensors`` or ``.pt`` file, or a folder.
        argument: what an error is about.

    Raises:
        FileNotFoundError, ValueError: it is missing, or not whole.
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
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{argument} must be a whole .safetensors or .pt file of tensors; {path}: {error}") from error
    if not isinstance(tensors, Mapping):
        kind = type(tensors).__name__
        raise ValueError(f"{argument} must hold a mapping from names to tensors; {path} holds a {kind}")
    ours = {"fingerprint", "model", "history"} <= tensors.keys()
    return catalogue(tensors["model"] if ours else tensors, f"{argument}: {path}")


def _open_safetensors(path: Path, argument: str) -> Catalogue:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError('reading .safetensors needs: pip install "pytl[hf]"') from error
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{argument} must be a whole .safetensors file; {path}: {error}") from error
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {name: Entry(torch.Size(s.get_shape()), s.get_dtype()) for name, s in slices.items()}, file.get_tensor


def _open_folder(folder: Path, argument: str) -> Catalogue:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).exists():
                return open_weights(folder / name, argument)
        raise FileNotFoundError(f"{argument} must hold model.safetensors or its index; {folder} has neither")
    try:
        shard_of: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        text = f"{argument}: an index must map names to files under weight_map; {index}: {error!r}"
        raise ValueError(text) from error
    outside = sorted({shard for shard in shard_of.values() if Path(shard).name != shard})
    if outside:
        raise ValueError(f"{argument}: an index must name files of its own folder; {index} names {some(outside)}")
    shards = {shard: open_weights(folder / shard, argument) for shard in sorted(set(shard_of.values()))}
    entries = {name: entry for shard, _ in shards.values() for name, entry in shard.items()}
    return entries, lambda name: shards[shard_of[name]][1](name)


def some(names: list[str]) -> str:
    """The first few."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
