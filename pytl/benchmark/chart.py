"""The optimizers' figures as a picture: each one's time over torch's fused optimizer's, a panel for each list."""

from collections.abc import Sequence
from pathlib import Path

from pytl.benchmark.machine import Machine
from pytl.benchmark.picture import Bar, Kind, Panel, draw
from pytl.benchmark.records import Comparison, Measurement, Run
from pytl.benchmark.table import in_unit
from pytl.benchmark.timing import Spread

_BASELINES = {"torch": "AdamW", "torch-sgd": "SGD"}
_LEFT_OUT = "pytl-reference"  # its bar, 50 times the others, would leave these no length


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
    bars = [Bar(one.ours.words, one.ratio, median(one.ours), "ours") for one in direct]
    for one in others:
        ours = over_baseline.get(one.ours.name)
        if ours is not None and one.rival.name != _LEFT_OUT:
            bars.append(Bar(one.rival.words, inverse(one.ratio, ours), median(one.rival), kind_of(one.rival.name)))
    bars.sort(key=lambda bar: bar.ratio.p50)
    baseline = Bar(f"{first.rival.words} = 1", Spread(1, 1, 1), median(first.rival), "baseline")
    return Panel(f"{first.words}, {_BASELINES[first.rival.name]}", first.size, [baseline, *bars])


def kind_of(name: str) -> Kind:
    return "ours" if name.startswith("pytl") else "other"


def inverse(ratio: Spread, times: float = 1.0) -> Spread:
    """Of the rival to what our time is so many times of."""
    return Spread(times / ratio.p80, times / ratio.p50, times / ratio.p20)


def median(measured: Measurement) -> str:
    times, unit = in_unit(measured.milliseconds)
    return f"{times.p50:.3g} {unit}"


def draw_optimizers(run: Run, path: Path) -> bool:
    """Writes the chart as PNG; whether there is one."""
    title = "Time of an optimizer step, as a multiple of torch's fused optimizer"
    return draw(panels(run.comparisons), title, _note(run.machine), path)


def versions(machine: Machine) -> str:
    return f"{machine.words}; torch {machine.torch}, pytl {machine.pytl}; {machine.date[:10]}"


def _note(machine: Machine) -> str:
    return (
        f"{versions(machine)}\n"
        "Bars: median of paired ratios; lines: p20 to p80. Right: median time of a step in its own pairing, which\n"
        "the machine's load moves more than ratios. torch's fused optimizers do neither L2-SP nor DTNH.\n"
        "Light bars were paired with pytl, and are shown times pytl's own ratio to torch."
    )
