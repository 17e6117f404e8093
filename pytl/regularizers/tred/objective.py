"""What stage one minimises."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl import ops
from pytl.regularizers.tred.disentangler import Disentangler

CRITERIA = ("max-mmd", "min-mi", "both")
_PAIRED = 256  # samples of a batch that MMD looks at: its Gram matrix has (2 * 256)^2 entries, five kernels each


@dataclass(frozen=True)
class Recipe:
    """How stage one splits; checked when made. All numbers are our reading.

    Attributes:
        criterion: "max-mmd", "min-mi" or "both".
        reconstruction: weight a of ``|F_o - (F_p + F_n)|^2 / |F_o|^2``, and of what the parts cancel.
        mmd: weight b of MMD^2, which is at most 10: five kernels, from 0 to 2 each.
        mutual_information: weight c of CLUB, in nats, as the cross entropy is.
        width: of the bottlenecks; None: a quarter of the channels, at least as many as classes, at most 64.
        steps: at most; the learning rate falls from `lr` to 0 along a cosine.
        batch_size: samples a step.
        lr: of Adam.
        patience: looks at the held-out samples, one every 10 steps, without a lower loss until it stops.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    criterion: str = "both"
    reconstruction: float = 30.0
    mmd: float = 0.05
    mutual_information: float = 3.0
    width: int | None = None
    steps: int = 400
    batch_size: int = 512
    lr: float = 1e-2
    patience: int = 10

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {self.criterion!r}")
        for name in ("reconstruction", "mmd", "mutual_information", "lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0; got {value}")
        for name, least in (("width", 1), ("steps", 1), ("batch_size", 4), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}; got {value}")


class Objective(nn.Module):
    """A disentangler with its classifier, and the terms of their loss for a batch of rows, [B, positions, C]."""

    def __init__(self, disentangler: Disentangler, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.disentangler, self.recipe = disentangler, recipe
        self.classifier = nn.Linear(disentangler.channels, classes)
        self.conditional: ops.Gaussian | None = None

    def terms(self, z: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms without their weights: those of the loss in training mode, where q is fitted anew; else all."""
        net = self.disentangler
        relevant, rest = net.relevant(net.code(z)), z - net.taken(z)
        relevant, rest = relevant - relevant.mean((0, 1)), rest - rest.mean((0, 1))
        p, n = relevant.mean(1), rest.mean(1)
        logits, energy = self.classifier(p), z.square().mean()
        said = logits.softmax(1).detach()
        if self.training or self.conditional is None:
            self.conditional = ops.Gaussian.fitted(said, n)
        terms = {
            "cross entropy": cross_entropy(logits, labels),
            "reconstruction error": (z - relevant - rest).square().mean() / energy,
            "cancelling": (-2 * (relevant * rest).mean() / energy).clamp(min=0),
        }
        if self.recipe.criterion != "min-mi" or not self.training:
            terms["MMD^2"] = ops.mmd(p[:_PAIRED], n[:_PAIRED])
        if self.recipe.criterion != "max-mmd" or not self.training:
            terms["mutual information"] = ops.club(n, self.conditional.mean(said), self.conditional.variance)
        return terms

    def loss(self, terms: dict[str, Tensor], share: float = 1.0) -> Tensor:
        """Their weighted sum, with a share of the criterion's."""
        recipe = self.recipe
        value = terms["cross entropy"]
        value = value + recipe.reconstruction * (terms["reconstruction error"] + terms["cancelling"])
        if recipe.criterion != "min-mi":
            value = value - share * recipe.mmd * terms["MMD^2"]
        if recipe.criterion != "max-mmd":
            value = value + share * recipe.mutual_information * terms["mutual information"]
        return value
