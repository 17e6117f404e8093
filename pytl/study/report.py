"""The comparison written down: ``results.json``, PNG pictures, and ``report.html``, one file that needs no network."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pytl import files, pages
from pytl.study import figures, table, terms
from pytl.study.comparison import Study
from pytl.study.evidence import Margin, Outcome, Row, margins, rows
from pytl.training.methods import GIVEN, parse


def write(study: Study, outcomes: Sequence[Outcome]) -> Path:
    """Writes all of it to ``study.out``.

    Returns:
        The path of ``report.html``.
    """
    found = rows(outcomes)
    drawn = figures.draw(outcomes, found, study.out / "figures")
    results = {
        "study": asdict(study),
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "cpu": platform.machine()},
        "rows": [asdict(row) for row in found],
        "margins": [asdict(one) for one in margins_of(study, outcomes)],
        "terms": [asdict(term) | {"value": term.value} for term in terms.table(outcomes)],
        "runs": [
            {"task": one.task.name, "method": one.method, "seed": one.seed, "accuracy": one.accuracy}
            for one in outcomes
        ],
    }
    with files.replacing(study.out / "results.json") as file:
        file.write(json.dumps(files.json_ready(results), indent=2, default=str).encode())
    path = study.out / "report.html"
    with files.replacing(path) as file:
        file.write(_page(study, outcomes, found, drawn))
    return path


def margins_of(study: Study, outcomes: Sequence[Outcome]) -> list[Margin]:
    """Of the methods that follow a plan."""
    return margins(outcomes, [name for name in dict.fromkeys(study.methods) if parse(name).plan == GIVEN])


def _page(study: Study, outcomes: Sequence[Outcome], found: Sequence[Row], drawn: Mapping[str, Path]) -> bytes:
    tasks: dict[str, list[Row]] = {}
    for row in found:
        tasks.setdefault(row.task, []).append(row)
    return pages.render(
        "pytl.study",
        "report.html",
        drawn,
        text=table,
        study=study,
        tasks=tasks,
        summary=table.summary(found),
        terms=terms.table(outcomes),
        margins=margins_of(study, outcomes),
        plans={name: str(study.plan_for(name)) for name in tasks} if study.plan else {},
        renewed=any(name.startswith("gradients ") for name in drawn),
        compared=sum(1 for row in found if row.difference),
        methods=[parse(name) for name in dict.fromkeys(row.method for row in found)],
        skipped=sorted({str(path) for outcome in outcomes for path in outcome.task.skipped}),
        torch=torch.__version__,
    )
