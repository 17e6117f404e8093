"""Parameters in parts on several ranks (DTensor): the part that is here, and sums over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def here(tensor: Tensor) -> Tensor:
    """The part on this rank: shares the tensor's memory. A tensor that is no DTensor is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, weight: Tensor) -> Tensor:
    """Of a tensor of the weight's shape, the part that belongs to the weight's part on this rank.

    A whole tensor must be the same on all ranks. Nothing is sent but where a DTensor is placed otherwise.
    """
    if not isinstance(weight, DTensor):
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if isinstance(tensor, DTensor):
        placed = tensor.device_mesh == weight.device_mesh and tensor.placements == weight.placements
        return here(tensor if placed else tensor.redistribute(weight.device_mesh, weight.placements))
    if tensor.shape != weight.shape:
        return tensor  # its faults are told where shapes are checked
    if any(type(placement) not in (Shard, Replicate) for placement in weight.placements):  # strided shards
        return here(distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None))
    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    for dim, (begin, length) in enumerate(zip(offset, shape, strict=True)):
        tensor = tensor.narrow(dim, min(begin, tensor.shape[dim]), length)
    return tensor


def whole(tensor: Tensor, weight: Tensor) -> Tensor:
    """The tensor of which this is the part beside the weight's: a DTensor of its placements."""
    if not isinstance(weight, DTensor):
        return tensor
    return DTensor.from_local(
        tensor,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def mesh_shape(tensor: Tensor) -> list[int]:
    """Of the ranks that have parts of it; ``[]``: it is whole."""
    return [*tensor.device_mesh.shape] if isinstance(tensor, DTensor) else []


def check_placements(weight: Tensor, name: str) -> None:
    """Raises TypeError for a weight whose parts on the ranks are summands."""
    if isinstance(weight, DTensor) and any(isinstance(placement, Partial) for placement in weight.placements):
        raise TypeError(f"{name} must be sharded or replicated; got placements {weight.placements}")


def _groups(weight: Tensor) -> list[ProcessGroup]:
    """The groups of ranks over which numbers of the weight's parts are to be summed, one after the other."""
    if not isinstance(weight, DTensor):
        return []
    mesh = weight.device_mesh
    dims = [dim for dim, placement in enumerate(weight.placements) if not placement.is_replicate()]
    return [mesh.get_group(dim) for dim in dims if mesh.size(dim) > 1]


def sum_over_parts(number: Tensor, *weights: Tensor) -> Tensor:
    """Sums a number of the weights' parts here over all parts, in place; the ranks that have them must all ask."""
    for group in dict.fromkeys(group for weight in weights for group in _groups(weight)):
        distributed.all_reduce(number, group=group)
    return number


def all_agree(flag: bool, weight: Tensor) -> bool:
    """Whether the flag is set on all ranks that have a part of the weight; those must all ask."""
    if not _groups(weight):
        return flag
    return not bool(sum_over_parts(torch.tensor(float(not flag), device=here(weight).device), weight))


class RankSums:
    """Sums rows of numbers, one for each weight, over the parts of the weights: one all-reduce, where all are sharded
    over the same ranks.

    Args:
        weights: of the rows, in the same order on all ranks.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        rows: dict[ProcessGroup, list[int]] = {}
        for i, weight in enumerate(weights):
            for group in _groups(weight):
                rows.setdefault(group, []).append(i)
        self._parts = [(g, torch.tensor(index, device=here(weights[0]).device)) for g, index in rows.items()]
        self._count = len(weights)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def over(self, table: Tensor) -> None:
        """Puts the sums in place of this rank's rows."""
        for group, index in self._parts:
            if len(index) == self._count:
                distributed.all_reduce(table, group=group)
            else:
                rows = table[index]
                distributed.all_reduce(rows, group=group)
                table[index] = rows
