"""Measurements on networks and on training: functions with small results that plot themselves."""

from pytl.analysis import scores
from pytl.analysis.gradients import GradientNorms, gradient_norms, plot_gradient_norms

__all__ = ["GradientNorms", "gradient_norms", "plot_gradient_norms", "scores"]
