"""Which parameters take part in a step, in which launch: worked out once, and again only when something has moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from pytl.ops.operands import Operands
from pytl.ops.plan import CudaPlan
from pytl.ops.step import gathered
from pytl.ops.tensor_list import GRAM_COLUMNS, TensorList, place
from pytl.optim.prefetch import Prefetch
from pytl.optim.sharding import RankSums, here, is_sharded, part

Signature = Sequence[tuple[Any, ...]]


@dataclass
class Plan:
    """The lists of one step: those the core runs, and those PyTorch runs."""

    params: list[Tensor]
    absent: list[int]
    """The places of those that have no gradient."""
    signature: Signature
    """What of the groups decides about operands and paths."""
    lists: list[TensorList]
    indices: list[list[int]]
    """Of each list: the places of its tensors among ``params``."""
    windows: list[int]
    """Of each list: in which window its starting points come from elsewhere; -1: they are there."""
    prefetch: Prefetch
    starts: dict[int, Tensor]
    """By the place of a parameter: w0 where it is kept."""
    state: dict[Tensor, Any]
    """The optimizer's, with those of its entries that the lists were made from."""

    def __post_init__(self) -> None:
        order = [i for index in self.indices for i in index]
        self._sharded = [p for p in self.params if is_sharded(p)]
        self._sharded_addresses = _addresses(self._sharded)
        self._sums = RankSums(self.params)
        self._in_order = len(self.lists) == 1 and order == [*range(len(self.params))]
        device = self.lists[0].device if self.lists else None
        self.gram = torch.zeros(len(self.params), GRAM_COLUMNS, dtype=torch.float64, device=device)
        """Of all parameters; rows of those without a gradient are 0."""
        self._places = torch.tensor(order, dtype=torch.int64, device=device)
        if self._in_order:
            self.gram = self.lists[0].rows
        self.cuda = [tensors.plan for tensors in self.lists if tensors.on_core and isinstance(tensors.plan, CudaPlan)]
        self._entries = list(self.state.values())
        self._values = list(chain.from_iterable(map(dict.values, self._entries)))
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._addresses = self._addresses_of_state()
        self.on_core = [o.weight for tensors in self.lists if tensors.on_core for o in tensors.operands]

    def holds(
        self, params: list[Tensor], grads: list[Tensor | None], signature: Signature, state: Mapping[Tensor, Any]
    ) -> bool:
        """Whether this plan is still the one for these parameters, gradients, groups and states."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and signature == self.signature
            and self._holds_state(state)
            and (not self._sharded or _addresses(self._sharded) == self._sharded_addresses)
            and all([grads[i] is None for i in self.absent])
        )

    def _holds_state(self, state: Mapping[Tensor, Any]) -> bool:
        """Tensors and their memory: what has gone would be written to. Half of what a step asks of the host."""
        values = list(chain.from_iterable(map(dict.values, state.values())))
        return (
            len(values) == len(self._values)
            and all(map(is_, values, self._values))
            and self._addresses_of_state() == self._addresses
        )

    def _addresses_of_state(self) -> list[int]:
        return _addresses(self._tensors) if self._sharded else list(map(Tensor.data_ptr, self._tensors))

    def take(self, grads: Sequence[Any], penalties: Mapping[Tensor, Tensor]) -> bool:
        """Hands this step's gradients to the lists; False where they no longer fit the plan."""
        if self._sharded:
            grads = [None if g is None else part(g, p) for g, p in zip(grads, self.params, strict=True)]
        for tensors, index in zip(self.lists, self.indices, strict=True):
            h = [penalties.get(self.params[i]) for i in index] if penalties else None
            if not tensors.take(grads if self._in_order else [grads[i] for i in index], h):
                return False
        return True

    def publish(self) -> None:
        """Brings the step's Gram numbers into the order of the parameters."""
        if self.lists and not self._in_order:
            self.gram[self._places] = gathered([tensors.rows for tensors in self.lists])

    def each(self) -> Iterator[TensorList]:
        """The lists in turn, each when its starting points are there."""
        return self.prefetch.bring(self.lists, self.windows)

    @property
    def total(self) -> Callable[[], None] | None:
        """Brings rows of the parts on this rank into rows of whole parameters; None where all are whole."""
        return self._total if self._sums else None

    def _total(self) -> None:
        self.publish()
        self._sums.over(self.gram)
        if not self._in_order:
            for tensors, index in zip(self.lists, self.indices, strict=True):
                tensors.rows.copy_(self.gram[index])

    @property
    def is_on_device(self) -> bool:
        """Whether a step asks nothing of the host: it reads overflow and loss scale on the device."""
        return len(self.cuda) == len(self.lists)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [here(tensor).data_ptr() for tensor in tensors]


def split(
    operands: Sequence[Operands], fused: Sequence[bool | None], window_of: Sequence[int]
) -> tuple[list[TensorList], list[list[int]], list[int]]:
    """The lists for the core and for PyTorch on each device and of each window, the place of their tensors among
    ``operands``, and their windows."""
    indices: dict[tuple[int, bool, torch.device], list[int]] = {}
    for i, (one, wanted, window) in enumerate(zip(operands, fused, window_of, strict=True)):
        indices.setdefault((window, place([one], wanted), one.weight.device), []).append(i)
    lists = [TensorList([operands[i] for i in index], on_core=on_core) for (_, on_core, _), index in indices.items()]
    return lists, [*indices.values()], [window for window, _, _ in indices]
