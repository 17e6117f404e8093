"""Bars on a terminal; elsewhere quiet, or a line now and then."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from pytl.extras import require


@contextmanager
def bar(label: str, total: int | None, done: int = 0, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Shows `done` of `total`; yields what to call for each more. Quiet where there is no terminal or no rich."""
    if not (shown and sys.stderr.isatty() and find_spec("rich")):
        yield lambda: None
        return
    with _bars() as bars:
        steps = bars.add_task(label, total=total, completed=done)
        yield lambda: bars.advance(steps)


@contextmanager
def watching(
    runs: int, epochs: int, unit: str = "run", first: str = "pre-training"
) -> Iterator[Callable[[str, int], None]]:
    """A bar over the epochs of several runs, named after the one in progress; without a terminal a line for each run.

    What comes before the first run's first epoch is called `first`.

    Yields:
        What to call with a run's label and the number of epochs done in all runs.
    """
    if not sys.stderr.isatty():
        yield partial(_line, unit, runs, epochs)
        return
    with _bars() as bars:
        all_epochs = bars.add_task(f"{first:32}", total=runs * epochs)
        yield lambda label, done: bars.update(all_epochs, description=f"{label:32}", completed=done)


def _line(unit: str, runs: int, epochs: int, label: str, done: int) -> None:
    if done % epochs == 0:
        print(f"{unit} {done // epochs} of {runs}: {label}", file=sys.stderr)


def _bars() -> Any:
    rich = require("rich.progress", "cli")
    columns = (rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn())
    console = require("rich.console", "cli").Console(stderr=True)
    return rich.Progress(rich.TextColumn("{task.description}"), *columns, console=console)
