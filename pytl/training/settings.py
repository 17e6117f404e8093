"""How a run trains, apart from its data and its method."""

import math
from dataclasses import dataclass

import torch

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """How long, how fast and in what precision a run trains; checked when made.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    epochs: int = 10
    lr: float = 0.01
    schedule: str = "cosine"
    amp: str | None = None
    seed: int | None = None
    checkpoint_every: int | None = None
    snapshots: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be >= 1; got {self.epochs}")
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"lr must be finite and >= 0; got {self.lr}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        if self.amp is not None and self.amp not in AMP_DTYPES:
            raise ValueError(f"amp must be None or one of {', '.join(AMP_DTYPES)}; got {self.amp!r}")
        if self.snapshots < 0:
            raise ValueError(f"snapshots must be >= 0; got {self.snapshots}")
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be >= 1; got {self.checkpoint_every}")
