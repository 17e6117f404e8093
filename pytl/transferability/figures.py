"""The analysis' pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pytl.analysis.landscape import contours, label_levels, loss_levels
from pytl.analysis.trace import heat_map
from pytl.intervals import interval
from pytl.pictures import COLOURS, INK, drawing, name_places
from pytl.study.figures import Look, looks_of
from pytl.study.subject import folder_name
from pytl.transferability.analyse import STAGE_MEASURES, Analysis
from pytl.transferability.claims import OPEN, Finding, geometric_mean
from pytl.transferability.measuring import Measured
from pytl.transferability.runs import Run

Pictures = dict[str, Path]


def draw(result: Analysis, folder: Path) -> Pictures:
    """Draws all that was measured, as PNG files.

    Returns:
        A title -> file; titles begin with the number of the claim, or with "recorded".
    """
    folder.mkdir(parents=True, exist_ok=True)
    looks = looks_of(run.method for run in result.found.runs)
    drawn: Pictures = {}
    for claim in result.claims:
        if claim.findings:
            drawn[f"{claim.number} What the data say"] = _findings(claim.findings, folder / f"claim-{claim.number}.png")
    tasks = list(dict.fromkeys(run.task for run in result.found.runs))
    for task in tasks:
        drawn |= _of_task(result, task, looks, folder)
    if result.similar and any(f.task == "" for c in result.claims for f in c.findings):
        drawn["3 Gain and similarity, by task"] = _similarity(result, folder / "similarity.png")
    return drawn


def _of_task(result: Analysis, task: str, looks: Mapping[str, Look], folder: Path) -> Pictures:
    measured = {run: m for run, m in result.measured.items() if run.task == task and "failed" not in m}
    stem, name = folder_name(task), task.removeprefix("digits:")
    drawn: Pictures = {}
    if measured:
        drawn[f"1 Distance from the start, {name}"] = _distances(measured, looks, folder / f"distance-{stem}.png")
        drawn[f"2 Smoothness along the way, {name}"] = _smoothness(measured, looks, folder / f"smoothness-{stem}.png")
        drawn[f"2 The first gradient, {name}"] = _energy(measured, looks, folder / f"energy-{stem}.png")
    shown = {run.method: found for run, found in result.landscapes.items() if run.task == task}
    if shown:
        drawn[f"1 Landscapes, {name}"] = _landscapes(shown, folder / f"landscape-{stem}.png")
    if any("forgetting" in m for m in measured.values()):
        drawn[f"1 The source task afterwards, {name}"] = _forgetting(measured, looks, folder / f"source-{stem}.png")
    sweeps = [one for one in result.sweeps.get(task, {}).values() if "values" in one]
    if sweeps:
        label = STAGE_MEASURES[result.asked.stage_measure]
        drawn[f"4 By stage of pre-training, {name}"] = _stages(sweeps, label, folder / f"stages-{stem}.png")
    for run, trace in result.traces.items():
        if run.task == task:
            for quantity in [q for q in ("distance", "cosine", "penalty_cosine") if _recorded(trace.values.get(q, {}))]:
                path = folder / f"{quantity}-{stem}-{run.method}.png"
                with drawing(path, 1.4 + 0.3 * len(trace.values[quantity])) as figure:
                    heat_map(figure, figure.subplots(), trace, quantity)
                drawn[f"recorded {run.method} on {name}, seed {run.seed}: {quantity.replace('_', ' of the ')}"] = path
    return drawn


def _recorded(rows: Mapping[str, Sequence[float]]) -> bool:
    return any(math.isfinite(value) for row in rows.values() for value in row)


def _findings(findings: Sequence[Finding], path: Path) -> Path:
    """A panel a quantity, a line a task and method; hollow where it is not decided."""
    quantities = list(dict.fromkeys(one.quantity for one in findings))
    rows = [sum(one.quantity == quantity for one in findings) for quantity in quantities]
    with drawing(path, 0.6 + sum(0.75 + 0.26 * count for count in rows)) as figure:
        panels = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": [1 + c for c in rows]})
        for axes, quantity in zip(panels[:, 0], quantities, strict=True):
            mine = [one for one in findings if one.quantity == quantity]
            _forest(axes, mine, quantity)
    return path


def _forest(axes: Any, findings: Sequence[Finding], title: str) -> None:
    ratios = findings[0].neutral == 1
    for y, one in enumerate(findings):
        low, high = (one.estimate.low, one.estimate.high)
        low, high = (x if math.isfinite(x) else one.estimate.mean for x in (low, high))
        axes.plot((low, high), (y, y), color=COLOURS[1], linewidth=2)
        hollow = "white" if one.verdict == OPEN else COLOURS[1]
        axes.plot(one.estimate.mean, y, "o", color=COLOURS[1], markerfacecolor=hollow, markersize=7)
    axes.axvline(findings[0].neutral, color=INK, linewidth=1)
    if ratios:
        axes.set_xscale("log")
        means = [one.estimate.mean for one in findings]
        axes.set_xlim(min(0.1, *means) / 2, max(10.0, *means) * 2)
    names = [f"{one.task.removeprefix('digits:')} {one.method}".strip() or "all tasks" for one in findings]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_title("\n".join(_wrapped(title)), fontsize=10)
    axes.set_xlabel("ratio, 95% interval over seeds" if ratios else "95% interval over seeds", fontsize=9)


def _wrapped(text: str, width: int = 58) -> list[str]:
    lines = [""]
    for word in text.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return lines


def _by_method(measured: Mapping[Run, Measured], value: Callable[[Measured], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for run, one in measured.items():
        found.setdefault(run.method, []).append(value(one))
    return found


def _distances(measured: Mapping[Run, Measured], looks: Mapping[str, Look], path: Path) -> Path:
    """Relative distance by block, means over seeds."""
    with drawing(path, 3.8) as figure:
        axes = figure.subplots()
        for method, seeds in _by_method(measured, lambda m: m["distance"]["relative"]).items():
            blocks = [b for b in seeds[0] if all(seed.get(b) is not None for seed in seeds)]
            means = [fmean(seed[block] for seed in seeds) for block in blocks]
            axes.plot(range(len(blocks)), means, marker="o", linewidth=2, label=method, **looks[method])
            name_places(axes, blocks)
        axes.set(ylabel="|w - w0| / |w0|", title="Distance from the start", ylim=(0, None))
        axes.legend(fontsize=9)
    return path


def _smoothness(measured: Mapping[Run, Measured], looks: Mapping[str, Look], path: Path) -> Path:
    """beta and the loss along the way; geometric means over seeds."""
    with drawing(path, 5.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        for method, seeds in _by_method(measured, lambda m: m["path"]).items():
            names = [one["at"] for one in seeds[0]]
            for axes, value in ((above, lambda p: p["beta"]), (below, lambda p: p["gradient_norm"])):
                columns = zip(
                    *([value(point) for point in seed] for seed in seeds if len(seed) == len(names)), strict=True
                )
                means = [geometric_mean(column) for column in columns]
                axes.plot(range(len(means)), means, marker="o", linewidth=2, label=method, **looks[method])
            name_places(below, [_short(name) for name in names], "step of training")
        above.set(yscale="log", ylabel="beta: |dg| / |dw|", title="Along the gradient, at weights along the way")
        below.set(yscale="log", ylabel="gradient norm")
        above.legend(fontsize=9)
    return path


def _short(name: str) -> str:
    """Of "step-000120" the 120; the ends by their names."""
    return {"checkpoint": "end"}.get(name, name.removeprefix("step-").lstrip("0") or "0")


def _energy(measured: Mapping[Run, Measured], looks: Mapping[str, Look], path: Path) -> Path:
    """How much of the first gradient lies on the leading singular directions; geometric means over seeds."""
    with drawing(path, 3.8) as figure:
        axes = figure.subplots()
        for method, seeds in _by_method(measured, lambda m: m["energy"]["top_tenth"]).items():
            names = [name for name in seeds[0] if all(name in seed for seed in seeds)]
            means = [geometric_mean([seed[name] for seed in seeds]) for name in names]
            axes.plot(range(len(names)), means, marker="o", linewidth=2, label=method, **looks[method])
            name_places(axes, [name.removesuffix(".weight") for name in names], "weight matrix, from the input on")
        axes.axhline(1, color=INK, linewidth=1)
        axes.set(yscale="log", ylabel="share, over 1 / directions", title="Gradient on the first tenth of directions")
        axes.legend(fontsize=9)
    return path


def _landscapes(shown: Mapping[str, Any], path: Path) -> Path:
    """One a method, on one scale of losses."""
    levels = loss_levels(shown.values())
    rows = -(-len(shown) // 2)
    with drawing(path, 0.5 + 2.5 * rows) as figure:
        panels = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flatten()
        for axes, (method, one) in zip(panels, shown.items(), strict=False):
            filled = contours(axes, one, levels)
            axes.set_title(method)
            axes.set(xlabel="", ylabel="")
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        label_levels(figure.colorbar(filled, ax=[*panels], label="training loss"), levels)
        figure.supxlabel("filter-normalised direction 1", fontsize=10)
        figure.supylabel("filter-normalised direction 2", fontsize=10)
    return path


def _forgetting(measured: Mapping[Run, Measured], looks: Mapping[str, Look], path: Path) -> Path:
    methods = _by_method({r: m for r, m in measured.items() if "forgetting" in m}, lambda m: m["forgetting"])
    with drawing(path, 1.2 + 0.35 * len(methods)) as figure:
        axes = figure.subplots()
        for y, (method, seeds) in enumerate(methods.items()):
            found = interval([100 * one["after"] for one in seeds])
            reach = found.half_width if math.isfinite(found.half_width) else 0
            axes.errorbar(found.mean, y, xerr=reach, fmt="o", color=looks[method]["color"], capsize=3, linewidth=2)
        before = fmean(100 * one["before"] for seeds in methods.values() for one in seeds)
        axes.axvline(before, color=INK, linewidth=1, label="before fine-tuning")
        axes.set_yticks(range(len(methods)), [*methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="accuracy on the source's data, %, 95% interval over seeds", title="The source afterwards")
        axes.legend(fontsize=9)
    return path


def _stages(sweeps: Sequence[Measured], label: str, path: Path) -> Path:
    """Means over seeds with 95% intervals."""
    with drawing(path, 3.6) as figure:
        axes = figure.subplots()
        bands = [interval([100 * v for v in at]) for at in zip(*(one["values"] for one in sweeps), strict=True)]
        places = range(len(bands))
        axes.plot(places, [band.mean for band in bands], "o-", color=COLOURS[1], linewidth=2)
        if len(sweeps) > 1:
            low, high = [band.low for band in bands], [band.high for band in bands]
            axes.fill_between(places, low, high, color=COLOURS[1], alpha=0.12, linewidth=0)
        name_places(axes, [_short(name) for name in sweeps[0]["stages"]], "step of the source's training")
        axes.set(ylabel=f"{label}, %", title="By stage of pre-training")
    return path


def _similarity(result: Analysis, path: Path) -> Path:
    """The gain of each task and seed by each measure of likeness."""
    gains, similar = result.gains, result.similar
    asked = (
        ("MMD² of inputs", lambda m: m["inputs"]["mmd"]),
        ("EMD of inputs", lambda m: m["inputs"]["emd"]),
        ("what source labels tell", lambda m: m["labels"]["explained"]),
    )
    with drawing(path, 7.4) as figure:
        panels = figure.subplots(3, 1, sharey=True)
        for axes, (label, value) in zip(panels, asked, strict=True):
            for index, (task, by_seed) in enumerate(gains.items()):
                seeds = [seed for seed in by_seed if "failed" not in similar.get(task, {}).get(seed, {"failed": ""})]
                x, y = [value(similar[task][s]) for s in seeds], [100 * by_seed[s] for s in seeds]
                axes.plot(x, y, "o", color=COLOURS[index % len(COLOURS)], label=task.removeprefix("digits:"))
            axes.axhline(0, color=INK, linewidth=1)
            axes.set(xlabel=label, ylabel="gain, points")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=9)
    return path
