"""What all regularisers share: a strength, named terms, and that they can be added and closed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any

import torch
from torch import Tensor


class Penalty(ABC):
    """``value = reg(x)`` after ``model(x)``: a differentiable scalar, 0-dim. ``a + b`` is both.

    Attributes:
        name: the method's, as on the command line.
        terms: of the last call, by name, strengths included; detached, on the device.
        closed: nothing of it is left in the model.
    """

    name: str = ""

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.closed = False

    def __call__(self, *inputs: Any, **keywords: Any) -> Tensor:
        """The penalty of the model's last forward pass.

        Args:
            inputs, keywords: what the model was called with, for the source network. ``ids=``: the samples' ids, for a
                cached source.

        Raises:
            RuntimeError: it is closed, or the model has not run since the last call.
        """
        return _sum(self.values(*inputs, **keywords))

    @property
    @abstractmethod
    def parts(self) -> list[Regularizer]:
        """The regularisers that it consists of."""

    @abstractmethod
    def values(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        """The penalty, apart for each regulariser, by its name. Arguments and errors: as for a call."""

    def prepare(self, *inputs: Any, **keywords: Any) -> None:
        """Before ``model(x)``, if memory is short: the source passes while the model's activations are not there yet.

        Arguments: as for the call that follows, which then costs no pass.
        """
        for part in self.parts:
            part._prepare(*inputs, **keywords)

    def __add__(self, other: Penalty) -> Penalties:
        return Penalties(self, other)

    def close(self) -> None:
        """Removes what it placed in the model; closing twice is no error."""
        self.closed = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed: its hooks are gone; make a new one")


class Regularizer(Penalty):
    """One method's penalty: the sum of its terms, times ``strength``, which may be changed between steps.

    A subclass says what its terms are.

    Attributes:
        facts: what there is to know of it beside its terms, by name; it does not change while it is used.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.facts: dict[str, float] = {}
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be finite and >= 0; got {strength}")
        self.strength = strength

    @property
    def parts(self) -> list[Regularizer]:
        return [self]

    @abstractmethod
    def _terms(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        """The terms by name, without the strength: 0-dim, at least one."""

    def _prepare(self, *inputs: Any, **keywords: Any) -> None:
        """What can be computed before the model runs."""

    def values(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        self._refuse_closed()
        terms = {name: self.strength * term for name, term in self._terms(*inputs, **keywords).items()}
        self.terms = {name: term.detach() for name, term in terms.items()}
        return {self.name: _sum(terms)}


class Penalties(Penalty):
    """Several regularisers. Their terms are told apart by their names: ``"delta layer4"``.

    Raises:
        ValueError: two of one name.
    """

    def __init__(self, *parts: Penalty) -> None:
        super().__init__()
        self._parts = [one for part in parts for one in part.parts]
        names = [part.name for part in self.parts]
        self.name = "+".join(names)
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"regularisers that are added must differ in name; got two of {', '.join(sorted(twice))}")

    @property
    def parts(self) -> list[Regularizer]:
        return self._parts

    def values(self, *inputs: Any, **keywords: Any) -> dict[str, Tensor]:
        self._refuse_closed()
        values = {name: v for part in self.parts for name, v in part.values(*inputs, **keywords).items()}
        self.terms = {f"{part.name} {term}": v for part in self.parts for term, v in part.terms.items()}
        return values

    def close(self) -> None:
        for part in self.parts:
            part.close()
        super().close()


def _sum(values: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(values.values())).sum()
