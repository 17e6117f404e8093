"""The figures as a picture: each contender's time over torch's fused optimizer's, a panel for each list of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytl.benchmark.machine import Machine
from pytl.benchmark.records import Comparison, Measurement
from pytl.benchmark.table import in_unit, size
from pytl.benchmark.timing import Spread
from pytl.extras import require

_BASELINES = {"torch": "AdamW", "torch-sgd": "SGD"}
_LEFT_OUT = "pytl-reference"  # its bar, 50 times the others, would leave these no length
_OURS, _OTHERS, _BASELINE, _INK, _FAINT = "#0072b2", "#c3ccd6", "#5f6b7a", "#26323f", "#6b7785"
_BAR, _HEAD, _ENDS = 0.29, 0.42, 1.3  # inches a bar, a panel's title, and the picture's title and note
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.edgecolor": "#9aa4b1",
    "ytick.color": _INK,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.2,
}


@dataclass(frozen=True)
class Bar:
    words: str
    ratio: Spread
    """To the baseline's time."""
    milliseconds: Spread
    is_ours: bool


@dataclass(frozen=True)
class Panel:
    title: str
    size: str
    baseline: Measurement
    bars: list[Bar]


def panels(comparisons: Sequence[Comparison]) -> list[Panel]:
    """A panel for each list of shapes and baseline. A rival that was paired with one of pytl's steps, not with the
    baseline, gets the product of both medians."""
    found = []
    for case in dict.fromkeys(comparison.case for comparison in comparisons):
        of_case = [comparison for comparison in comparisons if comparison.case == case]
        for baseline in _BASELINES:
            direct = [comparison for comparison in of_case if comparison.rival.name == baseline]
            if direct:
                found.append(_panel(direct, [one for one in of_case if one.rival.name not in _BASELINES]))
    return found


def _panel(direct: Sequence[Comparison], others: Sequence[Comparison]) -> Panel:
    first = direct[0]
    over_baseline = {one.ours.name: one.ratio.p50 for one in direct}
    bars = [Bar(one.ours.words, one.ratio, one.ours.milliseconds, is_ours=True) for one in direct]
    for one in others:
        ours = over_baseline.get(one.ours.name)
        if ours is not None and one.rival.name != _LEFT_OUT:
            ratio = Spread(ours / one.ratio.p80, ours / one.ratio.p50, ours / one.ratio.p20)
            is_ours = one.rival.name.startswith("pytl")
            bars.append(Bar(one.rival.words, ratio, one.rival.milliseconds, is_ours))
    bars.sort(key=lambda bar: bar.ratio.p50)
    return Panel(f"{first.words}, {_BASELINES[first.rival.name]}", size(first), first.rival, bars)


def draw(comparisons: Sequence[Comparison], machine: Machine, path: Path) -> None:
    """Writes the chart as PNG."""
    require("matplotlib", "plots").use("Agg")
    pyplot = require("matplotlib.pyplot", "plots")
    shown = panels(comparisons)
    rows = [len(panel.bars) + 1 for panel in shown]
    height = _ENDS + _HEAD * len(rows) + _BAR * sum(rows)
    with pyplot.rc_context(_STYLE):
        figure, grid = pyplot.subplots(
            len(rows), figsize=(9, height), height_ratios=rows, squeeze=False, layout="constrained"
        )
        for axes, panel in zip(grid[:, 0], shown, strict=True):
            _draw_panel(axes, panel)
        figure.suptitle(
            "Time of an optimizer step, as a multiple of torch's fused optimizer", weight="bold", fontsize=12.5
        )
        figure.supxlabel(_note(machine), fontsize=8.5, color=_FAINT)
        figure.savefig(path)
        pyplot.close(figure)


def _draw_panel(axes: Any, panel: Panel) -> None:
    baseline = Bar(f"{panel.baseline.words} = 1", Spread(1, 1, 1), panel.baseline.milliseconds, is_ours=False)
    bars = [baseline, *panel.bars]
    colours = [_BASELINE] + [_OURS if bar.is_ours else _OTHERS for bar in panel.bars]
    medians = [bar.ratio.p50 for bar in bars]
    reach = [
        [bar.ratio.p50 - bar.ratio.p20 for bar in bars],
        [bar.ratio.p80 - bar.ratio.p50 for bar in bars],
    ]
    axes.barh(range(len(bars)), medians, color=colours, height=0.72)
    axes.errorbar(medians, range(len(bars)), xerr=reach, fmt="none", ecolor=_INK, elinewidth=0.9, capsize=2)
    axes.axvline(1, color=_BASELINE, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    end = 1.3 * max(bar.ratio.p80 for bar in bars)
    for row, bar in enumerate(bars):
        times, unit = in_unit(bar.milliseconds)
        axes.text(bar.ratio.p80 + 0.012 * end, row, f"{bar.ratio.p50:.2f}x", bbox=_PAPER, va="center", weight="bold")
        axes.text(end, row, f"{times.p50:.3g} {unit}", va="center", ha="right", color=_FAINT)
    axes.set(xlim=(0, end), ylim=(len(bars) - 0.5, -0.5), title=panel.title, xticks=[])
    axes.set_title(panel.size, loc="right", fontsize=9, weight="normal", color=_FAINT)
    axes.set_yticks(range(len(bars)), [bar.words for bar in bars])
    axes.tick_params(axis="y", length=0)


def _note(machine: Machine) -> str:
    return (
        f"{machine.words}; torch {machine.torch}, pytl {machine.pytl}; {machine.date[:10]}\n"
        "Bars: median of paired ratios; lines: p20 to p80. Right: median time of a step in its own pairing, which\n"
        "the machine's load moves more than ratios. torch's fused optimizers do neither L2-SP nor DTNH.\n"
        "Light bars were paired with pytl, and are shown times pytl's own ratio to torch."
    )
