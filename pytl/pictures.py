"""How the figures look, those of comparisons and of channels alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytl.extras import require
from pytl.files import replacing

INK = "#3c4653"
COLOURS = ("#5f6b7a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Okabe and Ito's, which colour-blind readers can tell apart, and two more."""
_LONG = 45  # letters of names in a row
WIDTH = 5.4  # inches: on a phone, where a picture is as wide as the screen, the letters are still readable
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4b1",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaef",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}


@contextmanager
def drawing(path: str | Path, height: float = 4.0, width: float = WIDTH) -> Iterator[Any]:
    """A figure, in inches, to draw in: a PNG file of it takes the place of `path` at the end.

    It is not one of pyplot's, which would choose a window system for the caller's own figures.
    """
    with require("matplotlib", "plots").rc_context(STYLE):
        figure = require("matplotlib.figure", "plots").Figure((width, height), layout="constrained")
        yield figure
        with replacing(Path(path)) as file:
            figure.savefig(file, format="png")


def name_places(axes: Any, names: Sequence[str], label: str = "block, from the input on") -> None:
    """Names for 0, 1, ... on the x axis; those that are long in all stand upright."""
    axes.set_xticks(range(len(names)), names, rotation=90 if sum(map(len, names)) > _LONG else 0)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="x")


def logarithmic(low: float, high: float) -> Any:
    """A scale of colours between the two."""
    return require("matplotlib.colors", "plots").LogNorm(low, high)
