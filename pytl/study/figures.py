"""The comparison's pictures: differences to plain fine-tuning, accuracy by epoch, conflict by epoch."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pytl.analysis.gradients import by_depth
from pytl.extras import require
from pytl.intervals import interval
from pytl.metrics import Record
from pytl.pictures import INK, STYLE, WIDTH
from pytl.study import resets, terms
from pytl.study.evidence import BASELINE, Outcome, Row

Look = dict[str, Any]

_COLOURS = {  # Okabe and Ito's, which colour-blind readers can tell apart
    "plain": "#5f6b7a",
    "l2": "#e69f00",
    "l2sp": "#0072b2",
    "dtnh": "#d55e00",
    "grod": "#009e73",
    "pcgrad": "#cc79a7",
}
_OTHERS = ("#56b4e9", "#8c6d31", "#7b4fa3", "#b8a500")
_DASHES = {"dtnh": (0, (5, 1.5)), "grod": (0, (1.5, 1)), "pcgrad": (0, (4, 1.5, 1, 1.5))}  # they often coincide
_ROUNDS: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_LEGEND_ROW = 0.22  # inches


def draw(outcomes: Sequence[Outcome], rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draws all that the runs can show, as PNG files in `folder`.

    Returns:
        ``"differences"``, and ``"accuracy TASK"``, ``"conflict TASK"``, ``"gradients TASK"`` and ``"terms TASK"`` where
        there is something to show -> file.
    """
    require("matplotlib", "plots").use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    looks = looks_of(row.method for row in rows)
    drawn = {}
    with require("matplotlib.pyplot", "plots").rc_context(STYLE):
        if any(row.difference for row in rows):
            drawn["differences"] = _differences(rows, looks, folder / "differences.png")
        for task in dict.fromkeys(outcome.task.name for outcome in outcomes):
            mine = [outcome for outcome in outcomes if outcome.task.name == task]
            stem = task.replace(":", "-")
            drawn[f"accuracy {task}"] = _accuracy(mine, looks, folder / f"accuracy-{stem}.png")
            pulled = [one for one in mine if any(record.get("conflict_rate") is not None for record in one.history)]
            if pulled:
                drawn[f"conflict {task}"] = _conflict(pulled, looks, folder / f"conflict-{stem}.png")
            renewed = [one for one in mine if resets.epochs(one.history)]
            if renewed:
                drawn[f"gradients {task}"] = _gradients(renewed, folder / f"gradients-{stem}.png")
            if any(terms.names(one.history) for one in mine):
                drawn[f"terms {task}"] = _terms(mine, looks, folder / f"terms-{stem}.png")
    return drawn


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """Each method's colour and dashes, the same in every picture."""
    names = list(dict.fromkeys(methods))
    unknown = {name: index for index, name in enumerate(name for name in names if name not in _COLOURS)}
    colours = _COLOURS | {name: _OTHERS[index % len(_OTHERS)] for name, index in unknown.items()}
    dashes = _DASHES | {name: _ROUNDS[index // len(_OTHERS) % len(_ROUNDS)] for name, index in unknown.items()}
    return {name: {"color": colours[name], "linestyle": dashes.get(name, "-")} for name in names}


def _differences(rows: Sequence[Row], looks: dict[str, Look], path: Path) -> Path:
    """Each method's gain over plain fine-tuning, by task; what leaves out 0 is drawn full, the rest hollow."""
    compared = [(row, row.difference) for row in rows if row.difference]
    tasks = list(dict.fromkeys(row.task for row, _ in compared))
    places = [index + 2 * tasks.index(row.task) for index, (row, _) in enumerate(compared)]  # below a task's name
    figure, axes = _pyplot().subplots(figsize=(WIDTH, 1.1 + 0.25 * (len(compared) + 2 * len(tasks))))
    for y, (row, difference) in zip(places, compared, strict=True):
        mean, reach = 100 * difference.mean, 100 * difference.half_width
        sure = row.verdict in ("helps", "hurts")
        colour = looks[row.method]["color"]
        axes.errorbar(mean, y, xerr=0 if math.isnan(reach) else reach, color=colour, capsize=3, linewidth=2)
        axes.plot(mean, y, "o", color=colour, markerfacecolor=colour if sure else "white", markersize=7)
    axes.axvline(0, color=INK, linewidth=1)
    for task in tasks:
        first = next(y for y, (row, _) in zip(places, compared, strict=True) if row.task == task)
        beside = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "fontweight": "bold"}
        axes.text(-0.02, first - 1, task.removeprefix("digits:"), color=INK, **beside)
    axes.set_yticks(places, [row.method for row, _ in compared])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(places[-1] + 0.8, -1.8)
    axes.set_xlabel("accuracy minus plain's, percentage points\n(95% interval, paired by seed; hollow: includes 0)")
    return _saved(figure, path)


def _accuracy(outcomes: Sequence[Outcome], looks: dict[str, Look], path: Path) -> Path:
    figure, axes = _pyplot().subplots(figsize=(WIDTH, 4.4))
    _curves(axes, outcomes, "accuracy", looks, 100)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title="Accuracy")
    axes.yaxis.set_major_formatter("{x:g}")
    _legend(figure, list(dict.fromkeys(outcome.method for outcome in outcomes)), looks)
    return _saved(figure, path)


def _conflict(outcomes: Sequence[Outcome], looks: dict[str, Look], path: Path) -> Path:
    figure, (rate, cosine) = _pyplot().subplots(2, 1, figsize=(WIDTH, 4.4), sharex=True)
    _curves(rate, outcomes, "conflict_rate", looks, 100)
    rate.set(ylabel="tensors, %", ylim=(-4, 104), title="Where the regulariser opposes the task")
    _curves(cosine, outcomes, "mean_cosine", looks, 1)
    cosine.axhline(0, color=INK, linewidth=1)
    cosine.set(xlabel="epoch", ylabel="cosine", title="Mean cosine of its gradient and the task's")
    _legend(figure, list(dict.fromkeys(outcome.method for outcome in outcomes)), looks)
    return _saved(figure, path)


def _gradients(outcomes: Sequence[Outcome], path: Path) -> Path:
    """For each method that re-initialises its head: gradient norms by depth, before and after each time."""
    methods = list(dict.fromkeys(outcome.method for outcome in outcomes))
    figure, panels = _pyplot().subplots(
        len(methods), 1, figsize=(WIDTH, 0.6 + 2.6 * len(methods)), squeeze=False, sharex=True
    )
    for axes, method in zip(panels.flatten(), methods, strict=True):
        mine = [outcome for outcome in outcomes if outcome.method == method]
        for number, norms in resets.norms(mine).items():
            colour = _OTHERS[(number - 1) % len(_OTHERS)]
            after = resets.epochs(mine[0].history)[number - 1]
            by_depth(axes, norms["before"], color=colour, linestyle=(0, (4, 1.5)), markerfacecolor="white")
            by_depth(axes, norms["after"], color=colour, label=f"after epoch {after:.3g}")
        axes.set_title(method)
        axes.legend(title="new head (dashed: just before)", title_fontsize=9, fontsize=9)
        axes.set_xlabel("")
    panels[-1, 0].set_xlabel("block, from the input on")
    return _saved(figure, path)


def _terms(outcomes: Sequence[Outcome], looks: dict[str, Look], path: Path) -> Path:
    """Of each named term of each method: its value, how often it opposes the task, and its cosine."""
    figure, (value, rate, cosine) = _pyplot().subplots(3, 1, figsize=(WIDTH, 6.6), sharex=True)
    labels: dict[str, Look] = {}
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        histories = [outcome.history for outcome in outcomes if outcome.method == method]
        found = terms.names([record for history in histories for record in history])
        for axes in (value, rate, cosine) if found else ():
            _mark_resets(axes, histories[0], looks[method])
        for index, name in enumerate(found):
            look = looks[method] | ({"linestyle": _ROUNDS[index % len(_ROUNDS)]} if len(found) > 1 else {})
            labels[method if len(found) == 1 else f"{method}: {name}"] = look
            for axes, key, scale in ((value, "value", 1), (rate, "conflict", 100), (cosine, "cosine", 1)):
                by_epoch = _by_epoch([terms.of(name, history) for history in histories], key)
                axes.plot([*by_epoch], [scale * fmean(of) for of in by_epoch.values()], linewidth=2, **look)
    value.set(ylabel="value", yscale="log", title="Named terms (means over seeds)")
    rate.set(ylabel="in conflict, %", ylim=(-4, 104))
    cosine.axhline(0, color=INK, linewidth=1)
    cosine.set(xlabel="epoch", ylabel="cosine with the task")
    cosine.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, [*labels], labels)
    return _saved(figure, path)


def _curves(axes: Any, outcomes: Sequence[Outcome], key: str, looks: dict[str, Look], scale: float) -> None:
    """A line a method: the mean over seeds, in a band of its 95% interval."""
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        values = _by_epoch([outcome.history for outcome in outcomes if outcome.method == method], key)
        epochs, bands = list(values), [interval(one) for one in values.values()]
        order = 2 + (method != BASELINE)
        axes.plot(epochs, [scale * band.mean for band in bands], linewidth=2, zorder=order, **looks[method])
        low = [scale * max(band.low, -1 if key == "mean_cosine" else 0) for band in bands]
        high = [scale * min(band.high, 1) for band in bands]
        axes.fill_between(epochs, low, high, color=looks[method]["color"], alpha=0.1, linewidth=0)
        _mark_resets(axes, next(one.history for one in outcomes if one.method == method), looks[method])
    axes.xaxis.get_major_locator().set_params(integer=True)


def _mark_resets(axes: Any, history: Sequence[Record], look: Look) -> None:
    for epoch in resets.epochs(history):
        axes.axvline(epoch, linewidth=1, zorder=1, alpha=0.6, color=look["color"], linestyle=(0, (1, 2)))


def _by_epoch(histories: Sequence[Sequence[Record]], key: str) -> dict[int, list[float]]:
    """Each epoch's values over the seeds, where there are any."""
    found: dict[int, list[float]] = {}
    for record in (record for history in histories for record in history):
        value = record.get(key)
        if value is not None:
            found.setdefault(int(record["epoch"] or 0), []).append(value)
    return found


def _legend(figure: Any, methods: Sequence[str], looks: dict[str, Look]) -> None:
    line = require("matplotlib.lines", "plots").Line2D
    handles = [line([], [], linewidth=2.5, label=method, **looks[method]) for method in methods]
    columns = max(1, min(4, len(methods), 52 // max(map(len, methods))))  # as many as fit the width
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, handlelength=1.8)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, math.ceil(len(methods) / columns) - 2))


def _pyplot() -> Any:
    return require("matplotlib.pyplot", "plots")


def _saved(figure: Any, path: Path) -> Path:
    figure.set_layout_engine("constrained")
    figure.savefig(path)
    _pyplot().close(figure)
    return path
