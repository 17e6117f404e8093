"""Non-binary transfer (arXiv:2107.08585): how much of a source network to transfer, block by block."""

from pytl.plan.block_plan import FOR_GOOD, BlockPlan
from pytl.plan.renewal import renew
from pytl.plan.rules import ALL, Rules
from pytl.plan.transfer_plan import PlanError, TransferPlan
from pytl.plan.unfreezing import Unfreezing

__all__ = ["ALL", "FOR_GOOD", "BlockPlan", "PlanError", "Rules", "TransferPlan", "Unfreezing", "renew"]
