"""Fine-tuning that keeps what the network knows, without letting that knowledge hurt."""

from pytl import ops
from pytl.directions import DTNH, Direction, GrOD, PCGrad, Sum
from pytl.doctor import doctor
from pytl.optim import SGD, AdamW, Report, StrengthSchedule, param_groups
from pytl.training import Result, finetune

__version__ = "0.1.0"

__all__ = [
    "DTNH",
    "SGD",
    "AdamW",
    "Direction",
    "GrOD",
    "PCGrad",
    "Report",
    "Result",
    "StrengthSchedule",
    "Sum",
    "doctor",
    "finetune",
    "ops",
    "param_groups",
]
