"""Which parameters take part in a step, in which launch: worked out once, and again only when something has moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..ops.step import new_rows
from ..ops.tensor_list import Operands, TensorList, place

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
    gram: Tensor
    """float64 ``[len(params), 5]``; rows of parameters without a gradient are 0."""

    def __post_init__(self) -> None:
        order = [i for index in self.indices for i in index]
        self.rows = self.gram if order == [*range(len(self.params))] else new_rows(self.lists)
        self._places = torch.tensor(order, dtype=torch.int64)
        self.on_core = [o.weight for tensors in self.lists if tensors.on_core for o in tensors.operands]

    def holds(self, params: list[Tensor], grads: list[Tensor | None], signature: Signature) -> bool:
        """Whether this plan is still the one for these parameters, gradients and groups."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and signature == self.signature
            and all([grads[i] is None for i in self.absent])
        )

    def take(self, grads: Sequence[Any], penalties: Mapping[Tensor, Tensor]) -> bool:
        """Hands this step's gradients to the lists; False where they no longer fit the plan."""
        for tensors, index in zip(self.lists, self.indices, strict=True):
            h = [penalties.get(self.params[i]) for i in index] if penalties else None
            if not tensors.take([grads[i] for i in index], h):
                return False
        return True

    def publish(self) -> None:
        """Brings the step's Gram numbers into the order of the parameters."""
        if self.rows is not self.gram:
            self.gram[self._places] = self.rows


def split(operands: Sequence[Operands], names: Sequence[str], fused: Sequence[bool | None]) -> tuple[list[TensorList], list[list[int]]]:
    """The lists for the core and for PyTorch, and the place of each of their tensors among ``operands``."""
    on_core = [place([o], wanted) for o, wanted in zip(operands, fused, strict=True)]
    indices = [[i for i, core in enumerate(on_core) if core is wanted] for wanted in (True, False)]
    lists = [
        TensorList([operands[i] for i in index], [names[i] for i in index], on_core=on_core[index[0]])
        for index in indices
        if index
    ]
    return lists, [index for index in indices if index]
