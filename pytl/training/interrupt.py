"""Ctrl-C that waits for the step in progress, so that what is saved is never half of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and its state is saved; the message says how to resume."""


class Interrupt:
    """While open, the first SIGINT is only noted and `check` raises it; a second one raises at once, saving nothing.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._noted = False
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if error is None:  # noted after the last check
            self.check()

    def check(self) -> None:
        """Raises `Interrupted` if Ctrl-C was pressed."""
        if self._noted:
            raise Interrupted

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True
