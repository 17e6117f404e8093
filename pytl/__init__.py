"""Fine-tuning that keeps what the network knows, without letting that knowledge hurt."""

from .directions import DTNH, Direction, GrOD, PCGrad, Sum
from .doctor import doctor
from .optim.adamw import AdamW
from .optim.groups import param_groups
from .optim.report import Report
from .optim.schedule import StrengthSchedule
from .optim.sgd import SGD

__version__ = "0.1.0"

__all__ = [
    "DTNH",
    "SGD",
    "AdamW",
    "Direction",
    "GrOD",
    "PCGrad",
    "Report",
    "StrengthSchedule",
    "Sum",
    "doctor",
    "param_groups",
]
