"""The noise that RIFLE is compared with: on features, weights, branches and labels, one method a file."""

from pytl.noise.base import Noise
from pytl.noise.disturb_label import disturb_label, disturbed
from pytl.noise.dropconnect import DropConnect
from pytl.noise.dropout import Dropout
from pytl.noise.stochastic_depth import StochasticDepth

__all__ = ["DropConnect", "Dropout", "Noise", "StochasticDepth", "disturb_label", "disturbed"]
