"""The picture of a split: how stage one went, and what both parts tell of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytl.pictures import INK, drawing
from pytl.regularizers.tred.guards import Guards

_CURVES = {
    "cross entropy": ("cross entropy, nats", "#0072b2"),
    "reconstruction error": ("$|F_o-(F_p+F_n)|^2/|F_o|^2$", "#d55e00"),
    "MMD^2": ("MMD$^2$", "#009e73"),
    "mutual information": ("CLUB, nats", "#cc79a7"),
}
_PARTS = {
    "source_probe": ("$F_o$", "#5f6b7a"),
    "relevant_probe": ("$F_p$", "#0072b2"),
    "rest_probe": ("$F_n$", "#e69f00"),
}


def draw(guards: Mapping[str, Guards], criterion: str, path: Path) -> None:
    """Draws each layer's curves, on held-out samples, and its probes: a PNG, a row a layer and kind."""
    rows = 3 * len(guards)
    with drawing(path, 1.9 * rows) as figure:
        panels = figure.subplots(rows, 2, gridspec_kw={"height_ratios": [1, 1, 0.8] * len(guards)})
        figure.suptitle(f"Split by {criterion}", x=0.02, ha="left", fontweight="bold")
        for index, (layer, found) in enumerate(guards.items()):
            mine = panels[3 * index : 3 * index + 3]
            for axes, (name, (label, colour)) in zip(mine[:2].flatten(), _CURVES.items(), strict=True):
                _curve(axes, found, name, label, colour)
            mine[0, 0].set_title(f"{layer}\n{mine[0, 0].get_title('left')}", fontsize=10, fontweight="normal")
            _bars(mine[2], found)


def _curve(axes: Any, found: Guards, name: str, label: str, colour: str) -> None:
    axes.plot(found.curves["step"], found.curves[name], color=colour, linewidth=2)
    axes.axvline(found.steps, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    axes.set_title(label, fontsize=10, fontweight="normal")
    axes.set_ylim(bottom=min(0.0, *found.curves[name]))
    axes.set_xlabel("step (dashed: kept)", fontsize=9)


def _bars(pair: Any, found: Guards) -> None:
    """Probes' accuracies on the left, norms on the right."""
    probes, norms = pair
    labels = [label for label, _ in _PARTS.values()]
    colours = [colour for _, colour in _PARTS.values()]
    values = [100 * getattr(found, name) for name in _PARTS]
    for axes, names, heights, shades, title in (
        (probes, labels, values, colours, "linear probe, %"),
        (norms, labels[1:], [found.relevant_share, found.rest_share], colours[1:], "norm over $|F_o|$"),
    ):
        drawn = axes.barh(names, heights, color=shades)
        axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_title(title, fontsize=10, fontweight="normal")
    probes.axvline(100 * found.chance, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    probes.set_xlim(0, 118)
    norms.set_xlim(0, 1.25 * max(1.0, found.relevant_share, found.rest_share))
