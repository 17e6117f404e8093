"""The functional form of every kernel: plain PyTorch and the compiled core behind one signature."""

from .adamw import adamw_step
from .direction_weights import direction_weights
from .gram import gram
from .sgd import sgd_step

__all__ = ["adamw_step", "direction_weights", "gram", "sgd_step"]
