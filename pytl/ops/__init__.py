"""The functional form of every kernel: plain PyTorch and the compiled core behind one signature."""

from pytl.ops.adamw import adamw_step
from pytl.ops.direction_weights import direction_weights
from pytl.ops.gram import gram
from pytl.ops.sgd import sgd_step

__all__ = ["adamw_step", "direction_weights", "gram", "sgd_step"]
