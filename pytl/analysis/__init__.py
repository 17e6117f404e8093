"""Measurements on networks and on training: functions with small results that plot themselves."""

from pytl.analysis import scores
from pytl.analysis.distance import Distance, distance
from pytl.analysis.forgetting import Forgetting, forgetting
from pytl.analysis.gradient_energy import GradientEnergy, gradient_energy, plot_gradient_energy
from pytl.analysis.gradients import GradientNorms, gradient_norms, plot_gradient_norms
from pytl.analysis.landscape import Landscape, loss_landscape
from pytl.analysis.lipschitz import Smoothness, smoothness
from pytl.analysis.objective import Objective, Protocol
from pytl.analysis.sharpness import Sharpness, sharpness
from pytl.analysis.similarity import (
    InputSimilarity,
    LabelSimilarity,
    earth_movers_distance,
    input_similarity,
    label_similarity,
)
from pytl.analysis.stages import StageSweep, linear_transfer, stage_files, stage_sweep
from pytl.analysis.trace import Trace, read_trace

__all__ = [
    "Distance",
    "Forgetting",
    "GradientEnergy",
    "GradientNorms",
    "InputSimilarity",
    "LabelSimilarity",
    "Landscape",
    "Objective",
    "Protocol",
    "Sharpness",
    "Smoothness",
    "StageSweep",
    "Trace",
    "distance",
    "earth_movers_distance",
    "forgetting",
    "gradient_energy",
    "gradient_norms",
    "input_similarity",
    "label_similarity",
    "linear_transfer",
    "loss_landscape",
    "plot_gradient_energy",
    "plot_gradient_norms",
    "read_trace",
    "scores",
    "sharpness",
    "smoothness",
    "stage_files",
    "stage_sweep",
]
