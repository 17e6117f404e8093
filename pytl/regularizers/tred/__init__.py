"""TRED: the part of the source's features that the target needs, found first and held to afterwards."""

from pytl.regularizers.tred.disentangle import disentangle
from pytl.regularizers.tred.disentangler import Disentangler
from pytl.regularizers.tred.guards import Guards
from pytl.regularizers.tred.objective import CRITERIA, Recipe
from pytl.regularizers.tred.split import FeatureSplit
from pytl.regularizers.tred.tred import TRED, tred

__all__ = ["CRITERIA", "TRED", "Disentangler", "FeatureSplit", "Guards", "Recipe", "disentangle", "tred"]
