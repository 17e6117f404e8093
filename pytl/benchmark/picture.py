"""How a chart of ratios is drawn: panels of bars, each with its spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytl.benchmark.timing import Spread
from pytl.extras import require

Kind = Literal["ours", "other", "baseline"]
_INK, _FAINT, _LINE = "#26323f", "#6b7785", "#5f6b7a"
_COLOURS: dict[Kind, str] = {"ours": "#0072b2", "other": "#c3ccd6", "baseline": _LINE}
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
    """To the baseline's."""
    beside: str
    """At the right, without the ratio."""
    kind: Kind


@dataclass(frozen=True)
class Panel:
    title: str
    size: str
    bars: list[Bar]


def draw(panels: Sequence[Panel], title: str, note: str, path: Path) -> bool:
    """Writes a PNG; whether there is anything to draw."""
    require("matplotlib", "plots").use("Agg")
    pyplot = require("matplotlib.pyplot", "plots")
    if not panels:
        return False
    rows = [len(panel.bars) for panel in panels]
    height = _ENDS + _HEAD * len(rows) + _BAR * sum(rows)
    with pyplot.rc_context(_STYLE):
        figure, grid = pyplot.subplots(
            len(rows), figsize=(9, height), height_ratios=rows, squeeze=False, layout="constrained"
        )
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, panel)
        figure.suptitle(title, weight="bold", fontsize=12.5)
        figure.supxlabel(note, fontsize=8.5, color=_FAINT)
        figure.savefig(path)
        pyplot.close(figure)
    return True


def _draw_panel(axes: Any, panel: Panel) -> None:
    bars = panel.bars
    medians = [bar.ratio.p50 for bar in bars]
    reach = [
        [bar.ratio.p50 - bar.ratio.p20 for bar in bars],
        [bar.ratio.p80 - bar.ratio.p50 for bar in bars],
    ]
    axes.barh(range(len(bars)), medians, color=[_COLOURS[bar.kind] for bar in bars], height=0.72)
    axes.errorbar(medians, range(len(bars)), xerr=reach, fmt="none", ecolor=_INK, elinewidth=0.9, capsize=2)
    axes.axvline(1, color=_LINE, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    room = 1.2 + 0.014 * max(len(bar.beside) for bar in bars)  # for the ratio and what stands beside it
    end = room * max(1, *(bar.ratio.p80 for bar in bars))
    for row, bar in enumerate(bars):
        axes.text(bar.ratio.p80 + 0.012 * end, row, _times(bar.ratio.p50), bbox=_PAPER, va="center", weight="bold")
        axes.text(end, row, bar.beside, va="center", ha="right", color=_FAINT)
    axes.set(xlim=(0, end), ylim=(len(bars) - 0.5, -0.5), title=panel.title, xticks=[])
    axes.set_title(panel.size, loc="right", fontsize=9, weight="normal", color=_FAINT)
    axes.set_yticks(range(len(bars)), [bar.words for bar in bars])
    axes.tick_params(axis="y", length=0)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"
