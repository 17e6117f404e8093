"""What tells a split from a trivial one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from pytl.files import mapping, number

_EMPTY = 0.1  # of the whole's norm: 1% of its energy
_CANCELLING = 2.0  # the parts' energy over the whole's; of independent parts it is 1
_WRONG_SUM = 0.5  # of the whole's energy that is in neither part
_COUNTS = ("samples", "held_out", "steps")
_SAME = 0.05  # difference of two accuracies


@dataclass(frozen=True)
class Guards:
    """One layer's split, on held-out samples; norms and errors of features without their mean.

    Attributes:
        relevant_share, rest_share: |F_p| / |F_o| and |F_n| / |F_o|.
        reconstruction_error: |F_o - (F_p + F_n)|^2 / |F_o|^2.
        source_probe, relevant_probe, rest_probe: a linear probe's accuracy on F_o, F_p and F_n, pooled.
        chance: the share of the most frequent class.
        samples, held_out: how many were trained on, how many these numbers rest on.
        steps: when the split was best; nothing later of it is kept.
        curves: the same quantities while it was trained, by name: "step", "cross entropy", "reconstruction error",
            "cancelling" (-2 <F_p, F_n> / |F_o|^2, where it is > 0), "MMD^2", "mutual information" (CLUB of F_n
            and what the classifier says of F_p, in nats) and "loss".
    """

    relevant_share: float
    rest_share: float
    reconstruction_error: float
    source_probe: float
    relevant_probe: float
    rest_probe: float
    chance: float
    samples: int
    held_out: int
    steps: int
    curves: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Guards:
        """What `to_dict` gave.

        Raises:
            ValueError, TypeError: it is something else.
        """
        for point in chain(*mapping(saved.get("curves", {})).values()):
            number(point)
        for name in saved.keys() - {"curves"}:
            value = saved[name]
            if number(value) < 0 or (name in _COUNTS and not isinstance(value, int)):
                raise ValueError(f"{name} must be {'an integer' if name in _COUNTS else 'a number'} >= 0; got {value}")
        return cls(**saved)

    def warnings(self) -> Iterator[str]:
        """Why the split is trivial, where it is."""
        if self.relevant_share < _EMPTY:
            yield f"F_p is next to nothing (|F_p| / |F_o| = {self.relevant_share:.2f})"
        if self.rest_share < _EMPTY:
            yield f"F_p is the whole: F_n is next to nothing (|F_n| / |F_o| = {self.rest_share:.2f})"
        if self.relevant_share**2 + self.rest_share**2 > _CANCELLING:
            yield (
                f"the parts are large and cancel (|F_p| / |F_o| = {self.relevant_share:.2f}, "
                f"|F_n| / |F_o| = {self.rest_share:.2f})"
            )
        if self.reconstruction_error > _WRONG_SUM:
            yield f"F_p + F_n is not F_o (error {self.reconstruction_error:.0%})"
        if self.source_probe < self.chance + _SAME:
            yield f"the layer tells next to nothing of the classes (probe {self.source_probe:.0%})"
        elif self.rest_probe > self.relevant_probe - _SAME:
            yield (
                f"F_n tells as much of the classes as F_p (probes {self.rest_probe:.0%} and {self.relevant_probe:.0%})"
            )
