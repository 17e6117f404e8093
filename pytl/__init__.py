"""Fine-tuning that keeps what the network knows, without letting that knowledge hurt."""

from .directions import DTNH, Direction, GrOD, PCGrad, Sum
from .optim.adamw import AdamW
from .optim.report import Report
from .optim.sgd import SGD

__version__ = "0.1.0"

__all__ = ["DTNH", "SGD", "AdamW", "Direction", "GrOD", "PCGrad", "Report", "Sum"]
