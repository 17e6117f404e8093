"""The figures in the terminal; without one, as plain text."""

import sys
from collections.abc import Sequence
from typing import Any

from pytl.benchmark.machine import Machine
from pytl.benchmark.records import Comparison, Measurement, NotTimed
from pytl.benchmark.timing import Spread
from pytl.extras import require

_WIDTH = 190  # where there is no terminal to ask
_COLUMNS = ("pytl", "against", "pytl's step", "the other's", "ratio (p20 to p80)", "GB/s", "of copy", "target")


def show(comparisons: Sequence[Comparison], not_timed: Sequence[NotTimed], machine: Machine) -> None:
    """Prints a table for each list of shapes, what was not timed and why, and the allocations."""
    console = require("rich.console", "cli").Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    load = ", ".join(map(str, machine.load_average))
    console.print(f"{machine.cpu}, threads: {machine.threads}, {machine.instruction_set}, load {load}")
    console.print("Step: median (p20 to p80). Ratio: pytl's time over the other's, median of the pairs.")
    for case in dict.fromkeys(comparison.case for comparison in comparisons):
        console.print(_drawn([comparison for comparison in comparisons if comparison.case == case]))
    for one in not_timed:
        console.print(
            f"not timed: {one.words}: {one.ours} against {one.rival}: {one.reason}", style="red", markup=False
        )
    console.print(allocation_note(comparisons))


def _drawn(comparisons: Sequence[Comparison]) -> Any:
    first = comparisons[0]
    title = f"{first.words}: {size(first)}"
    box = require("rich.box", "cli").SIMPLE_HEAD
    drawn = require("rich.table", "cli").Table(title=title, title_justify="left", title_style="bold", box=box)
    for column in _COLUMNS:
        drawn.add_column(column, justify="left" if column in ("pytl", "against", "target") else "right")
    for comparison in comparisons:
        ours, ratio = comparison.ours, comparison.ratio
        drawn.add_row(
            ours.words,
            comparison.rival.words,
            duration(ours),
            duration(comparison.rival),
            f"{ratio.p50:.3f} ({ratio.p20:.3f} to {ratio.p80:.3f})",
            f"{ours.gigabytes_per_second:.2g}",
            f"{ours.share_of_copy_rate:.0%}",
            verdict(comparison),
        )
    return drawn


def duration(measured: Measurement) -> str:
    """``14.6 ms (14.1 to 15.0)``; or in microseconds, or seconds."""
    times, unit = in_unit(measured.milliseconds)
    return f"{times.p50:.3g} {unit} ({times.p20:.3g} to {times.p80:.3g})"


def in_unit(milliseconds: Spread) -> tuple[Spread, str]:
    """Microseconds below a millisecond, seconds from a thousand on."""
    if milliseconds.p50 < 1:
        return milliseconds.scaled(1e3), "us"
    return (milliseconds, "ms") if milliseconds.p50 < 1000 else (milliseconds.scaled(1e-3), "s")


def size(comparison: Comparison) -> str:
    """``161 tensors, 25.56 M parameters, float32``."""
    many = comparison.parameters
    parameters = f"{many / 1e6:.4g} M" if many >= 1e5 else f"{many:,}"
    return f"{comparison.tensors:,} tensor{'s' * (comparison.tensors > 1)}, {parameters} parameters, {comparison.dtype}"


def verdict(comparison: Comparison) -> str:
    """The target, what was found, and whether that meets it."""
    judged = comparison.verdict
    if judged is None:
        return ""
    if judged.met:
        return f"{judged.target}: [green]met, {judged.found}[/]"
    return f"{judged.target}: [red]missed by {judged.excess:.0%}, {judged.found}[/]"


def allocation_note(comparisons: Sequence[Comparison]) -> str:
    """Tensor allocations of one steady-state step, the most over all shapes, for each contender of pytl's."""
    most: dict[str, int] = {}
    for ours in (comparison.ours for comparison in comparisons):
        if ours.allocations:
            most[ours.words] = max(most.get(ours.words, 0), ours.allocations.count)
    counts = "; ".join(f"{words}: {count}" for words, count in most.items())
    return f"Tensor allocations in a steady-state step (target: 0): {counts}"
