"""The analysis written down: ``analysis.json``, PNG pictures, and ``report.html``, one file that needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from pytl import files, pages
from pytl.analysis.lipschitz import STEPS
from pytl.transferability import figures
from pytl.transferability.analyse import Analysis


def write(result: Analysis, out: Path) -> Path:
    """Writes all of it to the folder; returns the path of ``report.html``."""
    drawn = figures.draw(result, out / "figures")
    with files.replacing(out / "analysis.json") as file:
        file.write(json.dumps(files.json_ready(_values(result)), indent=2, default=str).encode())
    path = out / "report.html"
    with files.replacing(path) as file:
        file.write(_page(result, drawn))
    return path


def _values(result: Analysis) -> dict[str, object]:
    return {
        "asked": asdict(result.asked),
        "torch": torch.__version__,
        "claims": [asdict(claim) | {"summary": claim.summary} for claim in result.claims],
        "runs": [
            {"task": run.task, "method": run.method, "seed": run.seed, "accuracy": run.accuracy, **measured}
            for run, measured in result.measured.items()
        ],
        "similarity": result.similar,
        "stages": result.sweeps,
        "landscapes": {str(run): found.to_dict() for run, found in result.landscapes.items()},
        "conflict": {str(run): trace.conflict() for run, trace in result.traces.items()},
        "failures": result.failures,
        "left_out": result.found.left_out,
    }


def _page(result: Analysis, drawn: Mapping[str, Path]) -> bytes:
    runs = result.found.runs
    return pages.render(
        "pytl.transferability",
        "transferability.html",
        drawn,
        runs=runs,
        tasks=list(dict.fromkeys(run.task for run in runs)),
        methods=list(dict.fromkeys(run.method for run in runs)),
        seeds=len({run.seed for run in runs}),
        protocol=result.asked.protocol,
        claims=result.claims,
        measured=result.measured,
        recorded=any(title.startswith("recorded ") for title in drawn),
        named=len({run.task for run in runs}) > 1,
        number=number,
        known=math.isfinite,
        steps=STEPS,
        failures=result.failures,
        left_out=result.found.left_out,
        torch=torch.__version__,
    )


def number(value: float | None) -> str:
    """Three digits, a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"
