"""The features' figures as a picture: times over eager PyTorch's, a panel for each operation; memory comes last."""

from collections.abc import Sequence
from pathlib import Path

from pytl.benchmark.chart import inverse, kind_of, median, versions
from pytl.benchmark.picture import Bar, Panel, draw
from pytl.benchmark.records import Comparison, Memory, Run
from pytl.benchmark.timing import Spread

TITLES = {
    "eager-distance": "Feature distance",
    "eager-tap": "Feature distance, tapped: with the task's gradient",
    "eager-attention": "Distance of attention maps",
    "eager-distillation": "Distillation",
    "eager-mmd": "Maximum mean discrepancy",
    "svd": "Batch spectral shrinkage",
    "plain-step": "Training step",
}
_NOTE = """
Bars: median of paired ratios; lines: p20 to p80. Right: median times, pytl's and the eager form's in their own pairing,
or of torch.compile and others theirs. Light bars were paired with pytl, and are shown times pytl's own ratio.
Memory: the most that a step holds at once, beyond weights, moments and batches."""


def draw_features(run: Run, path: Path) -> bool:
    """Writes the chart as PNG; whether there is one."""
    title = "Penalties of features, forward and backward, as multiples of eager PyTorch"
    shown = [*panels(run.comparisons), *map(_memory_panel, run.memory)]
    return draw(shown, title, versions(run.machine) + _NOTE, path)


def panels(comparisons: Sequence[Comparison]) -> list[Panel]:
    found = []
    for baseline, title in TITLES.items():
        direct = [one for one in comparisons if one.rival.name == baseline]
        bars = [bar for one in direct for bar in _bars(one, comparisons)]
        if bars:
            found.append(Panel(title, f"{_where(direct[0])}{direct[0].rival.words} = 1", bars))
    return found


def _bars(direct: Comparison, comparisons: Sequence[Comparison]) -> list[Bar]:
    """A bar of pytl's, and one of each further rival that was paired with it on the same features."""
    who = direct.ours.words if _where(direct) else f"{direct.words}: pytl"
    bars = [Bar(who, direct.ratio, f"{median(direct.ours)} / {median(direct.rival)}", "ours")]
    for one in comparisons:
        if (one.case, one.ours.name) == (direct.case, direct.ours.name) and one.rival.name not in TITLES:
            ratio = inverse(one.ratio, direct.ratio.p50)
            bars.append(Bar(one.rival.words, ratio, median(one.rival), "other"))
    return bars


def _where(direct: Comparison) -> str:
    """The network, where all bars are of one; else each names its features."""
    return f"{direct.words}; " if direct.rival.name == "plain-step" else ""


def _memory_panel(memory: Memory) -> Panel:
    size = f"the source's features {megabytes(memory.source_features_bytes)}"
    plain = Bar("plain step = 1", Spread(1, 1, 1), megabytes(memory.plain_bytes), "baseline")
    bars = [
        Bar(
            peak.words,
            Spread(*3 * [peak.bytes / memory.plain_bytes]),
            megabytes(peak.bytes),
            kind_of(peak.name),
        )
        for peak in memory.peaks
    ]
    return Panel("Memory of a training step", size, [plain, *bars])


def megabytes(number: int) -> str:
    return f"{number / 1e6:.3g} MB"
