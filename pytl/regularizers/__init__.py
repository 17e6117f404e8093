"""What holds a network near what it knew: penalties on features and on weights, one method a file."""

from pytl.regularizers.attention_transfer import AttentionTransfer, attention_transfer
from pytl.regularizers.base import Penalties, Penalty, Regularizer
from pytl.regularizers.bss import BSS, batch_spectral_shrinkage
from pytl.regularizers.channels import ChannelWeights, channel_weights
from pytl.regularizers.delta import DELTA, delta
from pytl.regularizers.distillation import Distillation, feature_distillation
from pytl.regularizers.features import FeatureRegularizer
from pytl.regularizers.fisher import fisher_diagonal
from pytl.regularizers.group_lasso_sp import GroupLassoSP, group_lasso_sp
from pytl.regularizers.l1_sp import L1SP, l1_sp
from pytl.regularizers.l2_sp_fisher import L2SPFisher, l2_sp_fisher
from pytl.regularizers.tred import TRED, FeatureSplit, Recipe, disentangle, tred
from pytl.regularizers.weights import WeightRegularizer

__all__ = [
    "BSS",
    "DELTA",
    "L1SP",
    "TRED",
    "AttentionTransfer",
    "ChannelWeights",
    "Distillation",
    "FeatureRegularizer",
    "FeatureSplit",
    "GroupLassoSP",
    "L2SPFisher",
    "Penalties",
    "Penalty",
    "Recipe",
    "Regularizer",
    "WeightRegularizer",
    "attention_transfer",
    "batch_spectral_shrinkage",
    "channel_weights",
    "delta",
    "disentangle",
    "feature_distillation",
    "fisher_diagonal",
    "group_lasso_sp",
    "l1_sp",
    "l2_sp_fisher",
    "tred",
]
