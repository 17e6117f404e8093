"""What holds a network near what it knew: penalties on weights and on features, one method a file."""

from pytl.regularizers.attention_transfer import AttentionTransfer
from pytl.regularizers.base import Penalties, Penalty, Regularizer
from pytl.regularizers.bss import BSS
from pytl.regularizers.channels import ChannelWeights, channel_weights
from pytl.regularizers.delta import DELTA
from pytl.regularizers.distillation import Distillation
from pytl.regularizers.features import FeatureRegularizer
from pytl.regularizers.fisher import fisher_diagonal
from pytl.regularizers.group_lasso_sp import GroupLassoSP
from pytl.regularizers.l1_sp import L1SP
from pytl.regularizers.l2_sp_fisher import L2SPFisher

__all__ = [
    "BSS",
    "DELTA",
    "L1SP",
    "AttentionTransfer",
    "ChannelWeights",
    "Distillation",
    "FeatureRegularizer",
    "GroupLassoSP",
    "L2SPFisher",
    "Penalties",
    "Penalty",
    "Regularizer",
    "channel_weights",
    "fisher_diagonal",
]
