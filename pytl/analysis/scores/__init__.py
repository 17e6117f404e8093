"""Measures of fit: numbers that say, before any training, how well a source network's features suit a target.

Each is a function of tensors that returns a `Score`; `MEASURES` says what each means.
"""

from pytl.analysis.scores.base import Measure, Score
from pytl.analysis.scores.centroid_distance import CENTROID_DISTANCE, centroid_distance
from pytl.analysis.scores.domain_similarity import DOMAIN_SIMILARITY, domain_similarity
from pytl.analysis.scores.h_score import H_SCORE, REGULARISED, h_score, h_score_regularised
from pytl.analysis.scores.knn import KNN, knn
from pytl.analysis.scores.leep import LEEP, leep
from pytl.analysis.scores.logme import LOGME, logme
from pytl.analysis.scores.mmd import MMD, mmd
from pytl.analysis.scores.nce import NCE, nce
from pytl.analysis.scores.transrate import TRANSRATE, transrate

MEASURES: dict[str, Measure] = {
    "h_score": H_SCORE,
    "h_score_regularised": REGULARISED,
    "logme": LOGME,
    "transrate": TRANSRATE,
    "knn": KNN,
    "leep": LEEP,
    "nce": NCE,
    "domain_similarity": DOMAIN_SIMILARITY,
    "centroid_distance": CENTROID_DISTANCE,
    "mmd": MMD,
}

__all__ = [
    "MEASURES",
    "Measure",
    "Score",
    "centroid_distance",
    "domain_similarity",
    "h_score",
    "h_score_regularised",
    "knn",
    "leep",
    "logme",
    "mmd",
    "nce",
    "transrate",
]
