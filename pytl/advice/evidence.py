"""What was measured before training: all that rules may decide by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pytl.analysis.scores import Score


@dataclass(frozen=True)
class Gain:
    """What the source brings at a depth: LogME of its features less that of new weights, and the standard error."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """More than one standard error above 0."""
        return self.value > self.error

    @property
    def harmful(self) -> bool:
        """More than one standard error below 0."""
        return self.value < -self.error

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Layer:
    """One block's output.

    Attributes:
        block: its name in plans.
        layer: whose output, or ``":input"``, it is.
        width: features, maps and tokens averaged.
        scores: measure -> score of the source's features.
        reference: LogME of the same network with new weights, the mean over several.
        gain: of the source over those.
    """

    block: str
    layer: str
    width: int
    scores: Mapping[str, Score]
    reference: float
    gain: Gain


@dataclass(frozen=True)
class Evidence:
    """All of it.

    Attributes:
        layers: from the input on.
        head: whether the network has one.
        samples, classes: of the target.
        references: how many networks with new weights the source is held against.
        source_head: LEEP and NCE, where the source's head was given.
        label_information: ``1 + NCE / H(y)``, the share of what there is to know of the labels that the source head's
            answers tell, in [0, 1]; None without that head.
        domain: domain similarity, centroid distance and MMD of what the head is called with, where source samples
            were given.
    """

    layers: tuple[Layer, ...]
    head: bool
    samples: int
    classes: int
    references: int
    source_head: Mapping[str, Score]
    label_information: float | None
    domain: Mapping[str, Score]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
