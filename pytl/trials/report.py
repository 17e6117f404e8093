"""The search written down: figures, and one page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytl import pages
from pytl.files import replacing
from pytl.trials import figure
from pytl.trials.problem import Problem

if TYPE_CHECKING:
    from pytl.trials.search import SearchResult

_SHOWN = 10  # trials in the table


def write(problem: Problem, result: SearchResult, folder: Path) -> Path:
    """Writes ``figures/`` and ``report.html`` to the folder; returns the page's path."""
    drawn = figure.draw(result.trials, result.importances, folder / "figures")
    whole = [trial for trial in result.trials if trial["state"] == "complete"]
    ranked = sorted(whole, key=lambda trial: -trial["value"])
    page = pages.render(
        "pytl.trials",
        "search.html",
        drawn,
        problem=problem,
        result=result,
        plan=str(result.plan),
        ranked=ranked[:_SHOWN],
        finished=len(whole),
        given_up=len(result.trials) - len(whole),
        seconds=sum(trial["seconds"] or 0.0 for trial in result.trials),
    )
    path = folder / "report.html"
    with replacing(path) as file:
        file.write(page)
    return path
