"""Named layers' outputs, of the network that is trained and of its source."""

from pytl.features.cache import CachedSource
from pytl.features.capture import Capture, Feature, remove_hooks
from pytl.features.layers import head_input, last_convolutions, layer_names, stages
from pytl.features.probe import linear_probe
from pytl.features.source import Source

__all__ = [
    "CachedSource",
    "Capture",
    "Feature",
    "Source",
    "head_input",
    "last_convolutions",
    "layer_names",
    "linear_probe",
    "remove_hooks",
    "stages",
]
