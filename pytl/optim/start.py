"""The starting point w0: where it comes from, where it is kept, and the smallest dtype that holds it without loss."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pytl.ops import gram
from pytl.ops.core import is_dense
from pytl.ops.operands import in_order
from pytl.optim.sharding import all_agree, here, part, sum_over_parts, whole
from pytl.weight_files import Catalogue, catalogue, open_weights, some

Source = Mapping[str, Tensor] | str | os.PathLike[str] | None

_FLOATING = re.compile(r"(torch\.)?b?f", re.IGNORECASE)  # torch.bfloat16, F32, BF16


class StartingPoint:
    """Gives each parameter its w0: the weight it has now, or the tensor of its name in a mapping or in files.

    Args:
        source: None, a mapping from parameter names to tensors, or the path of a ``.safetensors`` or ``.pt`` file, or
            of a Hugging Face folder. Files are read as they are needed, and never unpickled beyond tensors.
        dtype: what w0 is kept in; "auto": bfloat16 where that holds every element exactly, else the source's own.
        device: where w0 is kept; None: beside the weight; "disk": it stays in the source's files, mapped into memory.
        saved: whether a checkpoint of the optimizer holds it; from "disk" none does.

    Raises:
        ValueError, TypeError: an option of another kind; what is not saved, or lies on disk, and has no files.
    """

    def __init__(
        self, source: Source, dtype: torch.dtype | str, device: torch.device | str | None, saved: bool
    ) -> None:
        if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f'start_dtype must be "auto" or a floating point dtype; got {dtype!r}')
        if source is not None and not isinstance(source, Mapping | str | os.PathLike):
            raise TypeError(f"start must be None, a mapping or a path; got {type(source).__name__}")
        self.on_disk = device == "disk"
        if self.on_disk and (dtype != "auto" or not isinstance(source, str | os.PathLike)):
            raise ValueError(
                'start_device="disk" needs start= to be a path and start_dtype="auto", which is the file\'s; '
                f"got {_kind(source)} and {dtype}"
            )
        if not saved and source is None:
            raise ValueError("save_start=False needs start=, where a resumed run finds the starting point; got None")
        self.source, self.dtype, self.saved = source, dtype, saved and not self.on_disk
        self.device = None if device is None or self.on_disk else torch.device(device)
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

    def of(self, name: str | None, weight: Tensor, *, shrink: bool = True) -> Tensor:
        """A new tensor: w0 of a parameter, its elements in the weight's order, sharded as the weight is.

        From "disk" it is the file's memory, where that has this order. shrink: False: "auto" is the source's own dtype.
        """
        ours = part(self._origin(name, weight), weight)
        if self.on_disk and _serves(ours, here(weight)):
            return whole(ours, weight)
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else ours.dtype
        if shrink and self.dtype == "auto" and not self.on_disk:
            dtype = smallest_lossless(ours, weight)
        return self._kept(ours, weight, dtype)

    def shrunk(self, start: Tensor, weight: Tensor) -> Tensor:
        """A w0 that was taken whole, in the dtype that it is kept in."""
        dtype = smallest_lossless(here(start), weight) if self.dtype == "auto" else start.dtype
        return start if dtype == start.dtype else self._kept(here(start), weight, dtype)

    def _kept(self, ours: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        w = here(weight.detach())
        device = torch.device("cpu") if self.on_disk else self.device or w.device
        kept = torch.empty_like(w, dtype=dtype, device=device, pin_memory=w.is_cuda and device.type == "cpu")
        return whole(kept.copy_(ours), weight)

    def _origin(self, name: str | None, weight: Tensor) -> Tensor:
        if self.source is None:
            return weight.detach()
        assert name is not None
        return self._open()[1](name)

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


def norm(start: Tensor, weight: Tensor) -> Tensor:
    """|w0| of the whole parameter, float64: what a starting point that is read again is recognised by."""
    ours = here(start)
    return sum_over_parts(gram([ours], [ours])[0, 0].to(weight.device), weight).sqrt()


def check_norms(found: Mapping[str, tuple[Tensor, Tensor]], source: Source) -> None:
    """Raises ValueError that lists the parameters whose |w0|, first, is not the one that was saved, second."""
    faults = [
        f"{name}: |w0| {float(now):.9g}, when the run began {float(saved):.9g}"
        for name, (now, saved) in found.items()
        if not torch.allclose(now.cpu(), saved.to("cpu", torch.float64), rtol=1e-6, atol=0)
    ]
    if faults:
        raise ValueError(
            f"start must be the weights that the run began with; {_kind(source)} differs in {some(faults)}"
        )


def _kind(source: Source) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "None" if source is None else "a mapping"


def _serves(mapped: Tensor, weight: Tensor) -> bool:
    """Whether a step can read w0 where it lies."""
    aligned = mapped.data_ptr() % mapped.itemsize == 0
    return aligned and is_dense(mapped) and in_order(mapped, weight)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def smallest_lossless(ours: Tensor, weight: Tensor) -> torch.dtype:
    """For all parts of a weight's w0, of which this one is ours."""
    for dtype in (torch.bfloat16, torch.float32):
        if dtype.itemsize < ours.dtype.itemsize and all_agree(_is_lossless(ours, dtype), weight):
            return dtype
    return ours.dtype


def _is_lossless(tensor: Tensor, dtype: torch.dtype) -> bool:
    return bool((tensor.to(dtype).to(tensor.dtype) == tensor).all())
