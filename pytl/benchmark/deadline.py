"""An end to the whole run: what no longer fits is told, not waited for."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic


class OutOfTime(Exception):
    """The run's time is up."""


class Deadline:
    """So many seconds from now; None: there is none."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = inf if seconds is None else monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative where the time is up."""
        return self._end - monotonic()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raises OutOfTime within the block, also in the middle of a compilation. Needs the main thread."""
        if self._end == inf:
            yield
            return
        if self.left <= 0:
            raise OutOfTime
        before = signal.signal(signal.SIGALRM, _ring)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _ring(number: int, frame: object) -> None:
    raise OutOfTime
