"""The optimizers, their groups and their schedules."""

from pytl.optim.adamw import AdamW
from pytl.optim.groups import param_groups
from pytl.optim.memory import memory
from pytl.optim.report import Report
from pytl.optim.schedule import StrengthSchedule
from pytl.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "Report", "StrengthSchedule", "memory", "param_groups"]
