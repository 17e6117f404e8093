"""Features by the samples' ids, up to a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pytl.features.shards import Folder, Shard, row_bytes

_ROW = 32  # bits of a place that count rows; those above count shards

Form = tuple[tuple[str, torch.Size], ...]


class Store:
    """In shards; with a folder, those that are full lie there and are mapped into memory. No thread may share it.

    Args:
        folder: None keeps all in memory.
        max_bytes: of features, ids and digests, with those found in the folder; None is without a bound.
        shard_bytes: of a shard, and of all that the folder does not yet have; one sample at least. The index takes
            some 150 bytes a sample more.

    Raises:
        ValueError: the folder's shards are not those of one source and data set.
    """

    def __init__(self, folder: Folder | None, max_bytes: int | None, shard_bytes: int) -> None:
        self._folder, self._max_bytes, self._shard_bytes = folder, max_bytes, shard_bytes
        self.where = f"folder {folder.path}" if folder else "memory"
        self._shards: list[Shard] = []
        self._places: dict[int, int] = {}
        self._open: dict[Form, int] = {}
        self.bytes = 0
        self.given: dict[str, torch.dtype] = {}
        """Layer -> the network's dtype, of what is kept; empty where nothing is."""
        for shard in folder.shards() if folder else ():
            self._take(shard)

    def _take(self, shard: Shard) -> None:
        """Of a sample that two writers kept, the first one's features count."""
        number = self._append(shard)
        self.bytes += shard.count * shard.row_bytes
        for row, (sample, digest) in enumerate(zip(shard.ids.tolist(), shard.digests.tolist(), strict=True)):
            if self._places.setdefault(sample, number << _ROW | row) != number << _ROW | row:
                self.refuse_other_inputs([sample], [digest])

    def _append(self, shard: Shard) -> int:
        self._shards.append(shard)
        self.given = shard.given
        return len(self._shards) - 1

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sample: int) -> bool:
        return sample in self._places

    def refuse_other_inputs(self, ids: Sequence[int], digests: Sequence[int]) -> None:
        """Raises ValueError where a kept sample, or one that comes twice, has two digests."""
        digest_of: dict[int, int] = {}
        for sample, digest in zip(ids, digests, strict=True):
            if sample in self._places:
                shard, row = self._row(sample)
                digest_of[sample] = int(shard.digests[row])
            digest_of.setdefault(sample, digest)
        wrong = [str(sample) for sample, digest in zip(ids, digests, strict=True) if digest_of[sample] != digest]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(
                f"ids {', '.join(wrong[:5])}{more} were kept with other inputs in {self.where}: the cache belongs to "
                "other data, or the inputs are augmented at random, or padded to each batch's longest"
            )

    def _row(self, sample: int) -> tuple[Shard, int]:
        place = self._places[sample]
        return self._shards[place >> _ROW], place & (1 << _ROW) - 1

    def features(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Layer -> [len(ids), ...] of kept samples, on the CPU, as stored."""
        places = [self._row(sample) for sample in ids]
        return {layer: torch.stack([shard.features[layer][row] for shard, row in places]) for layer in self.given}

    def add(
        self, ids: Sequence[int], digests: Tensor, features: Mapping[str, Tensor], given: dict[str, torch.dtype]
    ) -> None:
        """Keeps the first samples, as many as the bound admits.

        Raises:
            OSError: the disk is full, see `flush`; what is kept stays so.
        """
        each = row_bytes(features)
        number = len(ids) if self._max_bytes is None else min(len(ids), (self._max_bytes - self.bytes) // each)
        start = 0
        while start < number:
            stop = min(number, start + self._room(each))
            some = {layer: tensor[start:stop] for layer, tensor in features.items()}
            self._put(ids[start:stop], digests[start:stop], some, given)
            start = stop

    def _room(self, each: int) -> int:
        """For how many samples there is room in the buffer; it is emptied where there is none."""
        buffered = sum(self._shards[n].count * self._shards[n].row_bytes for n in self._open.values())
        if buffered + each > self._shard_bytes:
            self.flush()
            buffered = 0
        return max(1, (self._shard_bytes - buffered) // each)

    def _put(
        self, ids: Sequence[int], digests: Tensor, features: Mapping[str, Tensor], given: dict[str, torch.dtype]
    ) -> None:
        form = tuple((layer, tensor.shape[1:]) for layer, tensor in features.items())
        if form not in self._open:
            rows = max(1, self._shard_bytes // row_bytes(features))
            self._open[form] = self._append(Shard.empty(features, given, rows))
        number = self._open[form]
        shard = self._shards[number]
        first = number << _ROW | shard.count
        shard.put(torch.tensor(ids, device="cpu"), digests, features)
        self._places.update({sample: first + row for row, sample in enumerate(ids)})
        self.bytes += len(ids) * shard.row_bytes

    def flush(self) -> None:
        """Writes to the folder what is only in memory.

        Raises:
            OSError: the disk is full. What is not written stays in memory, and can be used.
        """
        for form, number in list(self._open.items()):
            if self._folder:
                self._shards[number] = self._written(self._folder, self._shards[number])
            del self._open[form]

    def clear(self) -> None:
        """Forgets all that is kept, without touching the folder."""
        self._shards, self._places, self._open, self.bytes = [], {}, {}, 0

    def _written(self, folder: Folder, shard: Shard) -> Shard:
        try:
            return folder.write(shard)
        except OSError as error:
            buffered = [self._shards[number] for number in self._open.values()]
            whole = len(self) - sum(one.count for one in buffered)
            room = self.bytes - sum(one.count * one.row_bytes for one in buffered)
            raise OSError(
                error.errno,
                f"{whole} samples are kept whole in the folder, and the rest cannot be: free space, or give "
                f"max_bytes={room}: {error.strerror}",
                str(folder.path),
            ) from error
