"""An optimizer's last step in numbers, for an epoch's record."""

import math

from torch.optim import Optimizer

from pytl.metrics import Record, finite


def conflicts(optimizer: Optimizer) -> Record:
    """The last step's conflict numbers: one read of the device, so once an epoch; none for optimizers of others."""
    if not hasattr(optimizer, "report"):
        return {}
    report = optimizer.report()
    cosines = [value for value in report.cosine if math.isfinite(value)]
    return {
        "conflict_rate": finite(report.conflict_rate),
        "mean_cosine": sum(cosines) / len(cosines) if cosines else None,
        "penalty": finite(report.penalty),
        "distance": finite(math.hypot(*report.distance)),
        "nonfinite": report.nonfinite,
    }
