"""The search's pictures: accuracy by trial, the importance of each dimension, and accuracy along each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from pytl.pictures import INK, drawing

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#9aa4b1"
_COLUMNS = 2

Trial = Mapping[str, Any]


def draw(trials: Sequence[Trial], importances: Mapping[str, float], folder: Path) -> dict[str, Path]:
    """Draws PNG files: ``"history"``, ``"dimensions"``, and ``"importances"`` where they are known."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"history": folder / "history.png", "dimensions": folder / "dimensions.png"}
    with drawing(drawn["history"], 3.6) as figure:
        _history(figure.subplots(), trials)
    whole = [trial for trial in trials if trial["state"] == "complete"]
    rows = math.ceil(len(whole[0]["values"]) / _COLUMNS)
    with drawing(drawn["dimensions"], 0.6 + 1.7 * rows) as figure:
        _dimensions(figure, whole, rows)
    if importances:
        drawn["importances"] = folder / "importances.png"
        with drawing(drawn["importances"], 0.9 + 0.3 * len(importances)) as figure:
            _importances(figure.subplots(), importances)
    return drawn


def _history(axes: Any, trials: Sequence[Trial]) -> None:
    whole = [trial for trial in trials if trial["state"] == "complete"]
    pruned = [trial for trial in trials if trial["state"] != "complete" and trial["accuracies"]]
    axes.plot([t["number"] for t in pruned], [_percent(t) for t in pruned], "x", color=_GREY, label="given up")
    axes.plot([t["number"] for t in whole], [_percent(t) for t in whole], "o", color=_BLUE, label="finished")
    best = [*accumulate((_percent(trial) for trial in whole), max)]
    axes.step([t["number"] for t in whole], best, where="post", color=_ORANGE, linewidth=2, label="best so far")
    axes.set(xlabel="trial", ylabel="validation accuracy, %", title="Trials")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")


def _percent(trial: Trial) -> float:
    accuracies = trial["accuracies"]
    return 100 * sum(accuracies) / len(accuracies)


def _importances(axes: Any, importances: Mapping[str, float]) -> None:
    names = [*importances]
    axes.barh(names, [100 * importances[name] for name in names], color=_BLUE)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="share of the variance explained, %", title="What matters")


def _dimensions(figure: Any, whole: Sequence[Trial], rows: int) -> None:
    """Each finished trial's accuracy by the values it had."""
    names = [*whole[0]["values"]]
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True).flatten()
    for axes, name in zip(panels, names, strict=False):
        choices = sorted({trial["values"][name] for trial in whole}, key=lambda v: (isinstance(v, str), v))
        places = [choices.index(trial["values"][name]) for trial in whole]
        axes.plot(places, [_percent(trial) for trial in whole], "o", color=_BLUE, alpha=0.5)
        axes.set_xticks(range(len(choices)), [_short(choice) for choice in choices], fontsize=9)
        axes.set_xlim(-0.5, len(choices) - 0.5)
        axes.set_title(name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("validation accuracy, %", fontsize=11, color=INK)


def _short(choice: float | str) -> str:
    """A tick's label: 5e-4 for 0.0005, which would run into the next."""
    if isinstance(choice, str):
        return choice
    return f"{choice:.0e}".replace("e-0", "e-") if 0 < choice < 0.01 else f"{choice:g}"
