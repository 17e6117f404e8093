"""What stands below the tables of features: allocations, and the memory of a training step."""

from collections.abc import Sequence

import torch

from pytl.benchmark.features.chart import megabytes
from pytl.benchmark.records import Comparison, FeatureComparison, Memory, Run


def notes(run: Run) -> list[str]:
    return [_allocations(run.comparisons), *(line for memory in run.memory for line in _lines(memory))]


def _allocations(comparisons: Sequence[Comparison]) -> str:
    """The most over all shapes, in sizes of the gradient: what is beyond 1 are temporaries."""
    most: dict[str, float] = {}
    for one in comparisons:
        if isinstance(one, FeatureComparison) and one.ours.allocations and one.ours.bytes_per_element:
            size = one.elements * getattr(torch, one.dtype).itemsize
            most[one.ours.words] = max(most.get(one.ours.words, 0.0), one.ours.allocations.bytes / size)
    sizes = "; ".join(f"{words}: {size:.2f}" for words, size in most.items())
    return f"Allocated for value and gradient, in sizes of the gradient: {sizes}"


def _lines(memory: Memory) -> list[str]:
    floor = f"plain + the source's features ({megabytes(memory.source_features_bytes)})"
    rows = [("plain step", memory.plain_bytes, "")]
    rows += [(peak.words, peak.bytes, f"{floor} {peak.excess / 1e6:+.3g} MB") for peak in memory.peaks]
    weights = (
        f"weights {megabytes(memory.weights_bytes)}, the source network's {megabytes(memory.source_weights_bytes)}"
    )
    return [
        f"\nMemory of a training step, {memory.words}: the most held at once, beyond weights, moments and batches",
        *(f"  {words:40}{megabytes(number):>9}  {beside}".rstrip() for words, number, beside in rows),
        f"  in none of them: {weights}",
    ]
