"""The functional form of every kernel: plain PyTorch and the compiled core behind one signature."""

from pytl.ops.adamw import adamw_step
from pytl.ops.attention_map import attention_map, attention_map_distance
from pytl.ops.bss import bss
from pytl.ops.club import Gaussian, club
from pytl.ops.direction_weights import direction_weights
from pytl.ops.distillation import distillation
from pytl.ops.feature_distance import feature_distance, tapped_feature_distance
from pytl.ops.gram import gram
from pytl.ops.mmd import mmd
from pytl.ops.sgd import sgd_step

__all__ = [
    "Gaussian",
    "adamw_step",
    "attention_map",
    "attention_map_distance",
    "bss",
    "club",
    "direction_weights",
    "distillation",
    "feature_distance",
    "gram",
    "mmd",
    "sgd_step",
    "tapped_feature_distance",
]
