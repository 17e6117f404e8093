"""The picture of advice: how source and new weights fit the target by depth, and what is transferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytl.advice.evidence import Evidence
from pytl.pictures import INK, drawing
from pytl.plan import TransferPlan

_SOURCE, _NEW, _GAIN = "#0072b2", "#5f6b7a", "#d55e00"
_LONG = 60  # letters of all names: beyond, they stand upright


def draw(plan: TransferPlan, evidence: Evidence, path: Path) -> None:
    """Draws a PNG: above LogME of both, with the source's interval; below the gain, and new blocks shaded."""
    blocks = [layer.block for layer in evidence.layers]
    kept = {block.block for block in plan.blocks if block.transferred}
    with drawing(path, 5.2) as figure:
        fit, gain = figure.subplots(2, 1, sharex=True)
        _fit(fit, evidence)
        _gain(gain, evidence)
        for axes in (fit, gain):
            _shade(axes, [index for index, block in enumerate(blocks) if block not in kept])
        upright = sum(map(len, blocks)) > _LONG
        gain.set_xticks(range(len(blocks)), blocks, rotation=90 if upright else 0)
        gain.set_xlabel("block, from the input on (shaded: to be re-initialised)")


def _fit(axes: Any, evidence: Evidence) -> None:
    found = [layer.scores["logme"] for layer in evidence.layers]
    values = [score.value for score in found]
    axes.plot(values, "-o", color=_SOURCE, linewidth=2, label="source")
    if all(score.low is not None for score in found):
        axes.fill_between(
            range(len(found)), [s.low for s in found], [s.high for s in found], color=_SOURCE, alpha=0.15, linewidth=0
        )
    axes.plot([layer.reference for layer in evidence.layers], "--o", color=_NEW, linewidth=2, label="new weights")
    axes.set(ylabel="LogME, nats a sample", title="How features fit the target")
    axes.legend(loc="best")


def _gain(axes: Any, evidence: Evidence) -> None:
    values = [layer.gain.value for layer in evidence.layers]
    errors = [layer.gain.error for layer in evidence.layers]
    axes.errorbar(range(len(values)), values, yerr=errors, fmt="-o", color=_GAIN, linewidth=2, capsize=3)
    axes.axhline(0, color=INK, linewidth=1)
    axes.set(ylabel="gain, ± standard error", title="What the source brings")


def _shade(axes: Any, places: list[int]) -> None:
    for place in places:
        axes.axvspan(place - 0.5, place + 0.5, color=INK, alpha=0.08, linewidth=0)
