"""What fine-tuning did to the source task: what is forgotten, and what has become better."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytl import pictures
from pytl.analysis.micro_batches import MicroBatches
from pytl.architecture import Head, differing, unwrapped
from pytl.batch import Batch, evaluating
from pytl.depth import HEAD, placed
from pytl.intervals import Interval
from pytl.progress import bar
from pytl.seeding import seeded

_NORMAL = 1.959964  # of a standard normal variable, 95% lie within


@dataclass(frozen=True)
class Forgetting:
    """Accuracy on the source task before and after fine-tuning, on the same samples.

    Attributes:
        before, after: accuracies.
        backward_transfer: after - before, with a 95% interval over samples, paired; < 0: forgotten.
        agreement: the share of samples on which both answer alike.
        samples: how many.
        kept: blocks whose weights fine-tuning gave; the others, the head, are the source's.
    """

    before: float
    after: float
    backward_transfer: Interval
    agreement: float
    samples: int
    kept: tuple[str, ...]

    @property
    def forgetting(self) -> float:
        """``before - after``, the negative of backward transfer, as Avalanche has it; < 0: the source gained."""
        return -self.backward_transfer.mean

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"forgetting": self.forgetting}

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: accuracy before and after."""
        with pictures.drawing(path, 2.4) as figure:
            axes = figure.subplots()
            bars = axes.barh(("before", "after"), (100 * self.before, 100 * self.after), color=pictures.COLOURS[:2])
            axes.bar_label(bars, fmt="%.1f", padding=3)
            axes.invert_yaxis()
            axes.set(xlabel=f"accuracy on the source task, %, {self.samples} samples", xlim=(0, 112))
            axes.grid(visible=False, axis="y")


def forgetting(
    before: nn.Module,
    after: nn.Module,
    batches: Iterable[Any],
    *,
    head: Head | None = None,
    samples: int | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Forgetting:
    """How well a fine-tuned network still does the source task.

    Its body is measured under the source's head: what a new head has replaced cannot be asked. Backward transfer is
    that of Lopez-Paz & Ranzato 2017 (arXiv:1706.08840) for two tasks. Cost: two forward passes of the samples; memory:
    a second copy of the network. Both networks stay as they are.

    Args:
        before: the source network with the head of its own task.
        after: the fine-tuned one, with the same body.
        batches: of the source task, as ``pytl.finetune`` takes them; labels are the source's classes.
        head: of ``before``, as in ``pytl.param_groups``.
        samples, batch: as in `pytl.analysis.Objective`.
        progress: a bar on a terminal.

    Raises:
        ValueError: no batch; the bodies differ in names or shapes: the first few are named.
    """
    source = unwrapped(before)
    joined, kept = _joined(source, unwrapped(after), head)
    device = next(source.parameters()).device
    data = MicroBatches(batches, device, samples, batch)
    with bar(f"forgetting: two forward passes of {data.samples} samples", 2 * data.samples, shown=progress) as advance:
        answers = [_answers(network, data, device, advance) for network in (source, joined)]
    labels = torch.cat([one.labels for one in data.batches])
    right = [(answer == labels).double() for answer in answers]
    difference = right[1] - right[0]
    mean = float(difference.mean())
    reach = _NORMAL * float(difference.std()) / math.sqrt(len(labels)) if len(labels) > 1 else math.nan
    return Forgetting(
        before=float(right[0].mean()),
        after=float(right[1].mean()),
        backward_transfer=Interval(mean, mean - reach, mean + reach),
        agreement=float((answers[0] == answers[1]).double().mean()),
        samples=len(labels),
        kept=kept,
    )


def _joined(source: nn.Module, tuned: nn.Module, head: Head | None) -> tuple[nn.Module, tuple[str, ...]]:
    """The source network with the fine-tuned body, a copy; and the body's blocks."""
    blocks, state, there = placed(source, head), source.state_dict(), tuned.state_dict()
    body = [name for name in state if blocks.get(name, HEAD) != HEAD]
    if other := differing({name: state[name].shape for name in body}, {name: t.shape for name, t in there.items()}):
        raise ValueError(f"after must have the body of before; {len(other)} tensors differ: {', '.join(other[:3])}")
    joined = copy.deepcopy(source)
    joined.load_state_dict({**state, **{name: there[name] for name in body}})
    return joined, tuple(dict.fromkeys(blocks[name] for name in body))


@torch.no_grad()
def _answers(network: nn.Module, data: MicroBatches, device: torch.device, advance: Any) -> Tensor:
    """The class of the highest logit, [n]."""

    def answer(one: Batch) -> Tensor:
        return one.logits(network).argmax(-1)

    found = []
    with seeded(0, [device]), evaluating(network):
        for answers, count in data.each(answer):
            found.append(answers)
            for _ in range(count):
                advance()
    return torch.cat(found)
