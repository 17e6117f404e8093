"""The comparison in words and numbers, for the terminal and for the report."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from pytl.extras import require
from pytl.intervals import Interval
from pytl.study.evidence import BASELINE, VERDICTS, Margin, Row
from pytl.study.terms import Term

_COLUMNS = {
    "task": "left",
    "method": "left",
    "accuracy, %": "right",
    "minus plain, points": "right",
    "verdict": "left",
}
_TERM_COLUMNS = {
    "task": "left",
    "method": "left",
    "term": "left",
    "value": "right",
    "in conflict": "right",
    "cosine": "right",
}
_COLOURS = {"helps": "green", "hurts": "red"}
_WIDTH = 100  # where there is no terminal to ask
_NOTE = "± and brackets: 95% intervals over seeds, of the difference paired by seed."
_TERMS_NOTE = (
    "Terms at the last step, means over seeds: value, strength included; share of weight tensors where its gradient "
    "opposes the task's; mean cosine of both."
)


def show(table: Sequence[Row], terms: Sequence[Term] = (), margins: Sequence[Margin] = ()) -> None:
    """Prints the table of results and the sentence below it, margins, and the named terms, where there are some."""
    console = require("rich.console", "cli").Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(_drawn(table))
    console.print(f"{_NOTE} {summary(table)}", highlight=False)
    for one in margins:
        console.print(margin(one), highlight=False)
    if terms:
        console.print(_terms_drawn(terms))
        console.print(_TERMS_NOTE, highlight=False)


def _drawn(table: Sequence[Row]) -> Any:
    drawn = require("rich.table", "cli").Table(box=require("rich.box", "cli").SIMPLE_HEAD)
    for title, justify in _COLUMNS.items():
        drawn.add_column(title, justify=justify)
    previous = ""
    for row in table:
        if row.task != previous and previous:
            drawn.add_section()
        colour = _COLOURS.get(row.verdict, "default")
        task = row.task.removeprefix("digits:") if row.task != previous else ""
        cells = (accuracy(row.accuracy), difference(row.difference), f"[{colour}]{verdict(row)}[/]")
        drawn.add_row(task, row.method, *cells)
        previous = row.task
    return drawn


def _terms_drawn(terms: Sequence[Term]) -> Any:
    drawn = require("rich.table", "cli").Table(box=require("rich.box", "cli").SIMPLE_HEAD)
    for title, justify in _TERM_COLUMNS.items():
        drawn.add_column(title, justify=justify)
    for term in terms:
        numbers = (number(term.value, "{:.3g}"), number(term.conflict, "{:.0%}"), number(term.cosine, "{:+.2f}"))
        drawn.add_row(term.task.removeprefix("digits:"), term.method, term.name, *numbers)
    return drawn


def breakable(method: str) -> str:
    """A method's name that may go on in the next line behind each ``+``."""
    return method.replace("+", "+\N{ZERO WIDTH SPACE}")


def number(value: float | None, shape: str) -> str:
    """A number in that shape, or a dash where there is none."""
    return "–" if value is None else shape.format(value)


def accuracy(found: Interval) -> str:
    """In percent: ``87.3 ± 1.2``, or the mean alone where one run leaves the interval unknown."""
    spread = "" if math.isnan(found.low) else f" ± {100 * found.half_width:.1f}"
    return f"{100 * found.mean:.1f}{spread}"


def ends(found: Interval, sign: str = "") -> str:
    """An interval in percent: ``86.1 to 88.5``; with `sign` ``"+"`` each end has its sign."""
    return "" if math.isnan(found.low) else f"{100 * found.low:{sign}.1f} to {100 * found.high:{sign}.1f}"


def difference(found: Interval | None) -> str:
    """In percentage points: ``+0.8 (+0.1 to +1.5)``."""
    if found is None:
        return ""
    known = ends(found, "+")
    return f"{100 * found.mean:+.1f}" + (f" ({known})" if known else "")


def margin(found: Margin) -> str:
    """A method against the best and the worst of the others."""
    is_worse = "worse" if found.to_best.high < 0 else "not worse"
    best, worst = difference(found.to_best), difference(found.to_worst)
    return (
        f"{found.task}: {found.method} is {is_worse} than the best of the others, {found.best}: {best}; "
        f"against the worst, {found.worst}: {worst}"
    )


def verdict(row: Row) -> str:
    """Whether the method helps, or that it is what the others are held against."""
    return "baseline" if row.method == BASELINE else row.verdict


def summary(table: Sequence[Row]) -> str:
    """What was found, method by method."""
    compared = [row for row in table if row.difference]
    if not compared:
        return f"Nothing was compared: that needs {BASELINE} and another method."
    count = len({row.task for row in compared})
    alike: dict[str, list[str]] = {}
    for method in dict.fromkeys(row.method for row in compared):
        alike.setdefault(_verdicts(method, compared), []).append(method)
    lines = [f"{', '.join(methods)}: {found}" for found, methods in alike.items()]
    return f"Against {BASELINE} fine-tuning, {count} task{'s' if count > 1 else ''}. {'. '.join(lines)}."


def _verdicts(method: str, compared: Sequence[Row]) -> str:
    verdicts = [row.verdict for row in compared if row.method == method]
    return ", ".join(f"{text} on {verdicts.count(text)}" for text in sorted(set(verdicts), key=VERDICTS.index))
