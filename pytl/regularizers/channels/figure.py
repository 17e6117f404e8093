"""The picture of channel weights: how far they are from uniform, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytl.pictures import INK, drawing

_BLUE = "#0072b2"
_NAME = 22  # letters of a title that fit into half the width


def draw(weights: Mapping[str, Tensor], path: Path) -> None:
    """Draws each layer's weights, [C], in descending order, as multiples of 1/C: a PNG."""
    columns = 2 if len(weights) > 1 and max(map(len, weights)) <= _NAME else 1
    rows = math.ceil(len(weights) / columns)
    with drawing(path, 0.8 + 1.8 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for axes, (layer, row) in zip(panels, weights.items(), strict=False):
            axes.set_title(layer)
            _panel(axes, row.double().sort(descending=True).values)
        panels[0].set_ylim(0, 1.1 * max(1.5, *(len(row) * float(row.max()) for row in weights.values())))
        for axes in panels[len(weights) :]:
            axes.set_visible(False)
        figure.supxlabel("channels, the heaviest first", fontsize=11)
        figure.supylabel("weight / uniform weight", fontsize=11)


def _panel(axes: Any, falling: Tensor) -> None:
    """One layer's weights, and what the heaviest tenth of them add up to."""
    count = len(falling)
    edges, multiples = torch.arange(count + 1), count * falling[[*range(count), -1]]
    axes.fill_between(edges, multiples, 1, step="post", color=_BLUE, alpha=0.15, linewidth=0)
    axes.plot(edges, multiples, drawstyle="steps-post", color=_BLUE, linewidth=2)
    axes.axhline(1, color=INK, linewidth=1)
    axes.set_xlim(0, count)
    axes.locator_params(axis="x", nbins=4, integer=True)
    tenth = math.ceil(count / 10)
    note = f"top {tenth} of {count} hold {falling[:tenth].sum():.0%}"
    legible = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.98, 0.96, note, color=INK, fontsize=10, bbox=legible, **place)
