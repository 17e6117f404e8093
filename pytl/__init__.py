"""Fine-tuning that keeps what the network knows, without letting that knowledge hurt."""

from pytl import advice, analysis, depth, features, integrations, noise, ops, plan, regularizers, trials
from pytl.advice import Advice, advise
from pytl.directions import DTNH, Direction, GrOD, PCGrad, Sum
from pytl.doctor import doctor
from pytl.optim import SGD, AdamW, Report, StrengthSchedule, memory, param_groups
from pytl.plan import BlockPlan, Rules, TransferPlan, Unfreezing
from pytl.recorder import Recorder
from pytl.regularizers import (
    BSS,
    DELTA,
    L1SP,
    TRED,
    AttentionTransfer,
    ChannelWeights,
    Distillation,
    FeatureSplit,
    GroupLassoSP,
    L2SPFisher,
    channel_weights,
    disentangle,
    fisher_diagonal,
)
from pytl.rifle import RIFLE
from pytl.training import Result, finetune
from pytl.trials import search

__version__ = "0.1.0"

__all__ = [
    "BSS",
    "DELTA",
    "DTNH",
    "L1SP",
    "RIFLE",
    "SGD",
    "TRED",
    "AdamW",
    "Advice",
    "AttentionTransfer",
    "BlockPlan",
    "ChannelWeights",
    "Direction",
    "Distillation",
    "FeatureSplit",
    "GrOD",
    "GroupLassoSP",
    "L2SPFisher",
    "PCGrad",
    "Recorder",
    "Report",
    "Result",
    "Rules",
    "StrengthSchedule",
    "Sum",
    "TransferPlan",
    "Unfreezing",
    "advice",
    "advise",
    "analysis",
    "channel_weights",
    "depth",
    "disentangle",
    "doctor",
    "features",
    "finetune",
    "fisher_diagonal",
    "integrations",
    "memory",
    "noise",
    "ops",
    "param_groups",
    "plan",
    "regularizers",
    "search",
    "trials",
]
