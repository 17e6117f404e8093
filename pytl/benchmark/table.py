"""The figures in the terminal; without one, or without rich, as plain text."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pytl.benchmark.records import Comparison, DeviceMeasurement, Measurement, Run
from pytl.benchmark.timing import Spread
from pytl.extras import require

_WIDTH = 200  # where there is no terminal to ask
_COLUMNS = ("pytl", "against", "pytl's time", "the other's", "ratio (p20 to p80)", "GB/s", "of copy", "target")
_HOST = "host's part, us"
_LEFT = ("pytl", "against", "target")
Paint = Callable[[str, str], str]
"""Text and colour -> marked text."""


def show(run: Run, timed: str, notes: Sequence[str]) -> None:
    """Prints a table for each case, what was not timed and why, and the notes. Figures of time are of what is timed."""
    try:
        console = require("rich.console", "cli").Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    except ImportError:
        console = None
    say: Callable[..., None] = console.print if console else print
    say(run.machine.headline)
    say(f"{timed}: median (p20 to p80). Ratio: pytl's time over the other's, median of the pairs.")
    for case in dict.fromkeys(comparison.case for comparison in run.comparisons):
        of_case = [comparison for comparison in run.comparisons if comparison.case == case]
        say(_drawn(of_case) if console else _plain(of_case))
    style: dict[str, Any] = {"style": "red", "markup": False} if console else {}
    for one in run.not_timed:
        say(f"not timed: {one.words}: {one.ours} against {one.rival}: {one.reason}", **style)
    for note in notes:
        say(note)


def _drawn(comparisons: Sequence[Comparison]) -> Any:
    box = require("rich.box", "cli").SIMPLE_HEAD
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box}
    drawn = require("rich.table", "cli").Table(title=_title(comparisons[0]), **style)
    head, *rows = _cells(comparisons, lambda text, colour: f"[{colour}]{text}[/]")
    for column in head:
        drawn.add_column(column, justify="left" if column in _LEFT else "right")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _plain(comparisons: Sequence[Comparison]) -> str:
    cells = _cells(comparisons, lambda text, colour: text)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(["", _title(comparisons[0]), *lines])


def _title(comparison: Comparison) -> str:
    return f"{comparison.words}: {comparison.size}"


def _cells(comparisons: Sequence[Comparison], paint: Paint) -> list[list[str]]:
    """The columns' names, then a row each."""
    on_device = isinstance(comparisons[0].ours, DeviceMeasurement)
    head = [*_COLUMNS[:-1], *([_HOST] if on_device else []), _COLUMNS[-1]]
    return [head, *(_row(comparison, paint) for comparison in comparisons)]


def _row(comparison: Comparison, paint: Paint) -> list[str]:
    ours, rival, ratio = comparison.ours, comparison.rival, comparison.ratio
    hosts = [f"{one.host_microseconds.p50:.0f}" for one in (ours, rival) if isinstance(one, DeviceMeasurement)]
    return [
        ours.words,
        rival.words,
        duration(ours),
        duration(rival),
        f"{ratio.p50:.3f} ({ratio.p20:.3f} to {ratio.p80:.3f})",
        "" if ours.gigabytes_per_second is None else f"{ours.gigabytes_per_second:.2g}",
        "" if ours.share_of_copy_rate is None else f"{ours.share_of_copy_rate:.0%}",
        *([" / ".join(hosts)] if hosts else []),
        verdict(comparison, paint),
    ]


def duration(measured: Measurement) -> str:
    """``14.6 ms (14.1 to 15.0)``; or in microseconds, or seconds."""
    times, unit = in_unit(measured.milliseconds)
    return f"{times.p50:.3g} {unit} ({times.p20:.3g} to {times.p80:.3g})"


def in_unit(milliseconds: Spread) -> tuple[Spread, str]:
    """Microseconds below a millisecond, seconds from a thousand on."""
    if milliseconds.p50 < 1:
        return milliseconds.scaled(1e3), "us"
    return (milliseconds, "ms") if milliseconds.p50 < 1000 else (milliseconds.scaled(1e-3), "s")


def verdict(comparison: Comparison, paint: Paint) -> str:
    """The target, what was found, and whether that meets it."""
    judged = comparison.verdict
    if judged is None:
        return ""
    if judged.met:
        return f"{judged.target}: {paint(f'met, {judged.found}', 'green')}"
    return f"{judged.target}: {paint(f'missed by {judged.excess:.0%}, {judged.found}', 'red')}"


def allocation_note(comparisons: Sequence[Comparison]) -> str:
    """Tensor allocations of one steady-state step, the most over all shapes, for each contender of pytl's."""
    most: dict[str, int] = {}
    for ours in (comparison.ours for comparison in comparisons):
        if ours.allocations:
            most[ours.words] = max(most.get(ours.words, 0), ours.allocations.count)
    counts = "; ".join(f"{words}: {count}" for words, count in most.items())
    return f"Tensor allocations in a steady-state step (target: 0): {counts}"
