"""A source network that computes each sample's features once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytl.features.digest import network_digest
from pytl.features.layers import layer_names
from pytl.features.samples import Samples, numbers
from pytl.features.shards import Folder
from pytl.features.source import Ids, Source
from pytl.features.store import Store

_DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CachedSource(Source):
    """A source that keeps what it computed, for data sets whose samples always look the same.

    A batch's samples that are not kept go through the network in one pass; where all are kept there is none. Kernels
    differ with the batch's size, so a pass over the whole batch may give other last bits than those kept.

    Beyond ``max_bytes`` nothing more is kept, and the rest is computed each time. No sample makes way for another one:
    an epoch comes back to what it used longest ago, which is what an LRU cache has just dropped.

    Each sample's inputs have a digest of 64 bits, kept beside its features and compared whenever they are used.

    Args:
        network: the source network, as `Source` has it. Samples must not influence one another in it.
        folder: where safetensors shards are kept for later runs, and found; None keeps the features in memory. Several
            processes may write to one folder; each sees of the others' what was there when it began.
        max_bytes: bound on what is kept, 16 bytes a sample for id and digest included; None is without.
        shard_bytes: of a file, and of what is in memory until it is written; lost when the process is killed.
        dtype: of the features as kept; None is the network's own. They are rounded before their first use, so that all
            uses agree, and always returned in the network's dtype. Integers are kept as they are.

    Raises:
        ValueError: the folder is of other weights, another dtype or format, or a file is broken or foreign; it is left
            as it is, and so is the network. An argument is out of range.
        OSError: the folder cannot be written to.
        ImportError: a folder is given and safetensors is missing.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        folder: str | Path | None = None,
        max_bytes: int | None = None,
        shard_bytes: int = 64 << 20,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(max_bytes, shard_bytes, dtype)
        self._store = Store(_folder(folder, network, dtype), max_bytes, shard_bytes)
        self._dtype = dtype
        self._closed = False
        super().__init__(network)
        if self._store.given:
            self.watch([*self._store.given])

    @property
    def kept(self) -> int:
        """How many samples' features are kept, those in the folder included."""
        return len(self._store)

    @property
    def bytes(self) -> int:
        """How many bytes are kept: features, and 16 a sample."""
        return self._store.bytes

    def watch(self, layers: str | Sequence[str]) -> None:
        """Adds layers. Those that a folder holds are watched from the beginning, and computed and returned as well.

        Raises:
            ValueError: a layer that the network lacks, or that is missing from the features which are kept.
        """
        kept = self._store.given
        missing = [layer for layer in layer_names(self.network, layers) if layer not in kept]
        if kept and missing:
            raise ValueError(
                f"layers must be among those kept in {self._store.where}, which are {', '.join(kept)}; got "
                f"{', '.join(missing)}: watch all before the first call, and use a folder for each choice of layers"
            )
        super().watch(layers)

    def __call__(self, *inputs: Any, ids: Ids | None = None, **keywords: Any) -> dict[str, Tensor]:
        """The watched layers' outputs for a batch, without gradients.

        Args:
            inputs, keywords: what the network is called with: tensors and plain values. Of tensors whose first
                dimension is as long as ``ids``, the rows of samples that are not kept go in; all else goes in whole.
            ids: int64 [B] or ints: what the samples are called, each once in the data set.

        Returns:
            Layer -> [B, ...] in the batch's order, on the inputs' device, in the network's dtype.

        Raises:
            ValueError: ids are missing or not as many as samples; samples that were kept come with other inputs; a
                layer's first dimension is not the batch; its dtype is not that of the features kept.
            TypeError: an input is neither a tensor nor a plain value.
            OSError: the disk is full. Features that are kept can still be used.
            RuntimeError: the source is closed.
        """
        if self._closed:
            raise RuntimeError("CachedSource is closed; make a new one")
        return super().__call__(*inputs, ids=ids, **keywords)

    @torch.no_grad()
    def _compute(self, inputs: tuple[Any, ...], keywords: dict[str, Any], ids: Ids | None) -> dict[str, Tensor]:
        batch = Samples(inputs, keywords, numbers(ids))
        device, digests = batch.device, batch.digests()
        self._store.refuse_other_inputs(batch.ids, digests.tolist())
        each = dict.fromkeys(batch.ids)
        old, new = [s for s in each if s in self._store], [s for s in each if s not in self._store]
        parts = [self._old_features(old, device)] if old else []
        if new:
            parts.append(self._new_features(batch.part(new), digests[batch.rows(new)]))
        return _in_order(parts, [*old, *new], batch.ids)

    def _old_features(self, ids: list[int], device: torch.device) -> dict[str, Tensor]:
        given = self._store.given
        return {layer: kept.to(device, given[layer]) for layer, kept in self._store.features(ids).items()}

    def _new_features(self, batch: Samples, digests: Tensor) -> dict[str, Tensor]:
        found = super()._compute(batch.inputs, batch.keywords, None)
        given = {layer: tensor.dtype for layer, tensor in found.items()}
        for layer, tensor in found.items():
            shape, kept = [*tensor.shape], self._store.given.get(layer, tensor.dtype)
            if shape[:1] != [len(batch.ids)]:
                raise ValueError(f"layer {layer!r} must have the batch first, {len(batch.ids)} samples; got {shape}")
            if kept != tensor.dtype:
                raise ValueError(f"layer {layer!r} must return {kept}, as kept; got {tensor.dtype}: autocast differs")
        stored = {layer: _rounded(tensor, self._dtype, layer) for layer, tensor in found.items()}
        self._store.add(batch.ids, digests, stored, given)
        return {layer: tensor.to(batch.device, given[layer]) for layer, tensor in stored.items()}

    def flush(self) -> None:
        """Writes to the folder what is only in memory.

        Raises:
            OSError: the disk is full. What is not written can still be used.
        """
        self._store.flush()

    def close(self) -> None:
        """Flushes, removes the hooks from the network and releases the memory; closing twice is no error.

        Raises:
            OSError: the disk is full; closing again tries again.
        """
        self._closed = True
        super().close()
        self._store.flush()
        self._store.clear()


def _check(max_bytes: int | None, shard_bytes: int, dtype: torch.dtype | None) -> None:
    if max_bytes is not None and max_bytes < 0:
        raise ValueError(f"max_bytes must be >= 0 or None; got {max_bytes}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be >= 1; got {shard_bytes}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}; got {dtype}")


def _folder(path: str | Path | None, network: nn.Module, dtype: torch.dtype | None) -> Folder | None:
    if path is None:
        return None
    return Folder(path, {"network's weights": network_digest(network), "dtype": str(dtype or "the network's")})


def _rounded(tensor: Tensor, dtype: torch.dtype | None, layer: str) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if not torch.equal(rounded.isfinite(), tensor.isfinite()):
        raise ValueError(f"dtype must hold the features of layer {layer!r}; {dtype} does not: try torch.bfloat16")
    return rounded


def _in_order(parts: list[dict[str, Tensor]], held: list[int], ids: list[int]) -> dict[str, Tensor]:
    """The features of ``ids``, out of parts that together have those of ``held``."""
    whole = parts[0] if len(parts) == 1 else {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
    if held == ids:
        return whole
    place = {sample: row for row, sample in enumerate(held)}
    order = torch.tensor([place[sample] for sample in ids], device="cpu")
    return {layer: tensor[order.to(tensor.device)] for layer, tensor in whole.items()}
