"""How alike source and target are: by their inputs, as a network sees them, and by their labels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytl import pictures
from pytl.analysis.scores import mmd, nce
from pytl.analysis.scores.base import check_labels, classes_of
from pytl.analysis.scores.domain_similarity import check_pair
from pytl.extras import require

_MOST = 2000  # samples on each side of the earth mover's problem, whose cost grows with their cube
_PERMUTATIONS = 100
_ROUNDING = 1e-9  # of one table's entropy, summed in another order


@dataclass(frozen=True)
class InputSimilarity:
    """Distances between two sets of features.

    Attributes:
        mmd: ``MMD^2``, with the kernels of `pytl.analysis.scores.mmd`.
        emd: the earth mover's distance between samples, in the features' unit.
        chance_mmd, chance_emd: the same between two random halves of the target: what a distance of 0 looks like with
            samples so few.
        samples: of target and source; for EMD at most 2,000 of each.
    """

    mmd: float
    emd: float
    chance_mmd: float
    chance_emd: float
    samples: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: both distances, beside those of two halves of the target."""
        with pictures.drawing(path, 3.0) as figure:
            for axes, values, label in zip(
                figure.subplots(1, 2),
                ((self.mmd, self.chance_mmd), (self.emd, self.chance_emd)),
                ("MMD²", "EMD, the features' unit"),
                strict=True,
            ):
                axes.bar(("source", "halves\nof target"), values, color=pictures.COLOURS[1::-1], width=0.6)
                axes.set(ylabel=label, xlabel="target against")
                axes.grid(visible=False, axis="x")


def input_similarity(features: Tensor, source_features: Tensor, *, seed: int = 0) -> InputSimilarity:
    """How far the target's features are from the source's, by MMD and by EMD.

    EMD is ``min sum_ij T_ij |x_i - y_j|`` over couplings of equal weights, by POT. Cost: ``(n + m)^2 d`` for MMD; for
    EMD, on at most 2,000 drawn samples of each, seconds.

    Args:
        features, source_features: of target and source by one network, [n, d] and [m, d]; n >= 4, m >= 2.
        seed: of what is drawn.

    Raises:
        ValueError: shapes that disagree, values that are not finite, too few samples.
        ImportError: POT is missing.
    """
    check_pair(features, source_features)
    if len(features) < 4 or len(source_features) < 2:
        raise ValueError(
            f"features must have >= 4 samples, the source's >= 2; got {len(features)}, {len(source_features)}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator).to(features.device)
    halves = features[order[: len(order) // 2]], features[order[len(order) // 2 :]]
    return InputSimilarity(
        mmd(features, source_features).value,
        earth_movers_distance(_some(features, generator), _some(source_features, generator)),
        mmd(*halves).value,
        earth_movers_distance(*(_some(half, generator) for half in halves)),
        (len(features), len(source_features)),
    )


def earth_movers_distance(x: Tensor, y: Tensor) -> float:
    """EMD of two clouds with equal weights, ``[n, d]`` and ``[m, d]``, Euclidean ground distance; exact, by POT."""
    library = require("ot", "analysis")
    ground = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    return float(library.emd2([], [], ground, numItermax=1_000_000))


def _some(features: Tensor, generator: torch.Generator) -> Tensor:
    if len(features) <= _MOST:
        return features
    return features[torch.randperm(len(features), generator=generator)[:_MOST].to(features.device)]


@dataclass(frozen=True)
class LabelSimilarity:
    """What source labels z tell of target labels y, of the same inputs.

    Attributes:
        nce: ``-H(y | z)`` in nats.
        entropy: ``H(y)`` in nats.
        chance: the mean of ``-H(y | z)`` with the labels permuted: the same inputs, labels that have nothing to do with
            them. With few samples it lies above ``-H(y)``.
        p: the share of permutations that tell as much or more, ``(1 + count) / (1 + permutations)``.
        samples, permutations: how many.
    """

    nce: float
    entropy: float
    chance: float
    p: float
    samples: int
    permutations: int

    @property
    def explained(self) -> float:
        """``(nce - chance) / -chance``: 0 by chance, 1 where z settles y; nan where permuted labels are settled too."""
        return (self.nce - self.chance) / -self.chance if self.chance < 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"explained": self.explained}

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: the measure between chance and certainty."""
        with pictures.drawing(path, 2.0) as figure:
            axes = figure.subplots()
            axes.barh([0], [self.nce - self.chance], left=self.chance, color=pictures.COLOURS[1], height=0.4)
            for x, text in ((self.chance, "permuted"), (self.nce, "labels"), (0.0, "certain")):
                axes.axvline(x, color=pictures.INK, linewidth=1)
                axes.annotate(text, (x, 0.3), ha="center", fontsize=9)
            axes.set(xlabel=f"-H(y | z), nats, {self.samples} samples", yticks=[], ylim=(-0.4, 0.5))


def label_similarity(
    source_labels: Tensor, labels: Tensor, *, permutations: int = _PERMUTATIONS, seed: int = 0
) -> LabelSimilarity:
    """How much the source's labels tell of the target's, against permuted labels.

    Args:
        source_labels: integers >= 0 [n]: the same samples by the source's classes, known or as its head answers.
        labels: integers >= 0 [n].
        permutations: how often labels are permuted.
        seed: of the permutations.

    Raises:
        ValueError: as in `pytl.analysis.scores.nce`; permutations < 1.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be >= 1; got {permutations}")
    check_labels(labels, labels.numel())
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=generator).to(labels.device) for _ in range(permutations)]
    value = nce(source_labels, labels).value
    permuted = [nce(source_labels, labels[order]).value for order in orders]
    shares = classes_of(labels)[1].double() / len(labels)
    return LabelSimilarity(
        nce=value,
        entropy=float(-torch.xlogy(shares, shares).sum()),
        chance=sum(permuted) / permutations,
        p=(1 + sum(other >= value - _ROUNDING for other in permuted)) / (1 + permutations),
        samples=len(labels),
        permutations=permutations,
    )
