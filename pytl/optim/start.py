"""The starting point w0: where it comes from, and the smallest dtype that holds it without loss."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pytl.optim.sharding import all_agree, here, part, whole
from pytl.weight_files import Catalogue, catalogue, open_weights, some

Source = Mapping[str, Tensor] | str | os.PathLike[str] | None

_FLOATING = re.compile(r"(torch\.)?b?f", re.IGNORECASE)  # torch.bfloat16, F32, BF16


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
            listed = "; ".join(f"{kind}: {some(names)}" for kind, names in faults.items() if names)
            raise ValueError(f"start must hold a tensor for each anchored parameter; {listed}")
        if extra:
            warnings.warn(
                f"start: {len(extra)} names in {self.source} belong to no parameter: {some(extra)}", stacklevel=2
            )

    def of(self, name: str | None, weight: Tensor) -> Tensor:
        """A new tensor: w0 of a parameter, its elements in the weight's order, sharded as the weight is."""
        if self.source is None:
            origin = weight.detach()
        else:
            assert name is not None
            origin = self._open()[1](name)
        ours, w = part(origin, weight), here(weight.detach())
        dtype = _smallest_lossless(ours, weight) if self.dtype == "auto" else self.dtype
        assert isinstance(dtype, torch.dtype)
        return whole(torch.empty_like(w, dtype=dtype, device=self.device or w.device).copy_(ours), weight)

    def _open(self) -> Catalogue:
        if self._catalogue is None:
            assert self.source is not None
            mapping = self.source if isinstance(self.source, Mapping) else None
            self._catalogue = (
                catalogue(mapping, "start") if mapping is not None else open_weights(Path(str(self.source)), "start")
            )
        return self._catalogue

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_catalogue": None}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _smallest_lossless(ours: Tensor, weight: Tensor) -> torch.dtype:
    """For all parts of a weight's w0, of which this one is ours."""
    for dtype in (torch.bfloat16, torch.float32):
        if dtype.itemsize < ours.dtype.itemsize and all_agree(_is_lossless(ours, dtype), weight):
            return dtype
    return ours.dtype


def _is_lossless(tensor: Tensor, dtype: torch.dtype) -> bool:
    return bool((tensor.to(dtype).to(tensor.dtype) == tensor).all())
