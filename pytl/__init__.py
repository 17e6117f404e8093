"""Fine-tuning that keeps what the network knows, without letting that knowledge hurt."""

from pytl import features, ops, regularizers
from pytl.directions import DTNH, Direction, GrOD, PCGrad, Sum
from pytl.doctor import doctor
from pytl.optim import SGD, AdamW, Report, StrengthSchedule, param_groups
from pytl.regularizers import (
    BSS,
    DELTA,
    L1SP,
    AttentionTransfer,
    ChannelWeights,
    Distillation,
    GroupLassoSP,
    L2SPFisher,
    channel_weights,
    fisher_diagonal,
)
from pytl.rifle import RIFLE
from pytl.training import Result, finetune

__version__ = "0.1.0"

__all__ = [
    "BSS",
    "DELTA",
    "DTNH",
    "L1SP",
    "RIFLE",
    "SGD",
    "AdamW",
    "AttentionTransfer",
    "ChannelWeights",
    "Direction",
    "Distillation",
    "GrOD",
    "GroupLassoSP",
    "L2SPFisher",
    "PCGrad",
    "Report",
    "Result",
    "StrengthSchedule",
    "Sum",
    "channel_weights",
    "doctor",
    "features",
    "finetune",
    "fisher_diagonal",
    "ops",
    "param_groups",
    "regularizers",
]
