"""Who is timed against whom, and the targets that were set for it."""

from dataclasses import dataclass
from typing import Literal

Quantity = Literal[
    "time ratio",
    "speed-up",
    "microseconds",
    "share of cores",
    "host microseconds",
    "floor ratio",
    "share of copy rate",
]
_AT_MOST = ("time ratio", "microseconds", "host microseconds", "floor ratio")
_FORMATS = {
    "time ratio": "{:.2f}",
    "speed-up": "{:.1f}x faster",
    "microseconds": "{:.0f} us",
    "share of cores": "{:.0%}",
    "host microseconds": "{:.0f} us",
    "floor ratio": "{:.2f}",
    "share of copy rate": "{:.0%}",
}
_OF = {
    "share of cores": " of the cores",
    "host microseconds": " of the host",
    "floor ratio": " of the {bytes} B floor",
    "share of copy rate": " of the copy rate",
}


@dataclass(frozen=True)
class Target:
    quantity: Quantity
    """Of pytl's time over the rival's, the inverse, pytl's step, pytl's CPU time over wall time and threads, the host's
    part of pytl's step, pytl's time over that of moving so many bytes at the copy rate, or bytes over that rate."""
    limit: float
    bytes_per_element: int = 0
    """Of the floor."""

    def __str__(self) -> str:
        of_what = _OF.get(self.quantity, "").format(bytes=self.bytes_per_element)
        return f"{'<=' if self.at_most else '>='} {self.shown(self.limit)}{of_what}"

    @property
    def at_most(self) -> bool:
        return self.quantity in _AT_MOST

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def shown(self, value: float) -> str:
        return _FORMATS[self.quantity].format(value)


@dataclass(frozen=True)
class Pairing:
    """Names of ``contenders.CONTENDERS``."""

    ours: str
    rival: str
    target: Target | None = None
    same_results: bool = True
    """Whether both compute the same; else the rival does less, and the ratio is the price of the difference."""
    quick: bool = True
    """Whether it is part of a quick run; compiling alone takes minutes."""
