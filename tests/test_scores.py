"""The measures of fit against float64 formulas written from their papers, and what must hold of each."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import ot
import pytest
import torch
from oracle import array, assert_same
from scipy.optimize import minimize_scalar
from scipy.stats import wasserstein_distance
from sklearn.covariance import LedoitWolf
from torch import Tensor

from pytl import ops
from pytl.analysis import scores
from pytl.analysis.scores import MEASURES, Score

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-8  # relative, of values of order one, to the oracles
ROUNDING = 1e-10  # relative, between two orders of the same sums


class Samples(NamedTuple):
    """``answers``: what the source's head calls the samples of ``features``. The source's own are others."""

    features: Tensor
    labels: Tensor
    source_features: Tensor
    source_labels: Tensor
    probabilities: Tensor
    answers: Tensor


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def drawn(n: int = 60, d: int = 7, classes: int = 4, m: int = 45, seed: int = 0, *, signal: float = 1.0) -> Samples:
    """Classes that overlap, each with a sample at least; a source a little apart."""
    rng = np.random.default_rng(seed)
    y, z = (np.concatenate([np.arange(k), rng.integers(k, size=of - k)]) for k, of in ((classes, n), (3, m)))
    centres = signal * rng.normal(size=(max(classes, 3), d))
    logits = rng.normal(size=(n, 5))
    logits[np.arange(n), y % 5] += signal
    x, source = centres[y] + rng.normal(size=(n, d)), 0.8 * centres[z] + 1.3 * rng.normal(size=(m, d)) + 0.5
    given = (x, y, source, z, softmax(logits), logits.argmax(1))
    return Samples(*map(torch.tensor, given))


GIVEN: dict[str, tuple[str, ...]] = {
    "h_score": ("features", "labels"),
    "h_score_regularised": ("features", "labels"),
    "logme": ("features", "labels"),
    "transrate": ("features", "labels"),
    "knn": ("features", "labels"),
    "leep": ("probabilities", "labels"),
    "nce": ("answers", "labels"),
    "domain_similarity": ("features", "labels", "source_features", "source_labels"),
    "centroid_distance": ("features", "source_features"),
    "mmd": ("features", "source_features"),
}
UNITLESS = ("h_score", "h_score_regularised", "logme", "knn", "centroid_distance", "mmd")
ARGUMENT = {"answers": "source_labels"}  # where it has another name than the field
LABELLED = [name for name, given in GIVEN.items() if "labels" in given]
OF_FEATURES = [name for name, given in GIVEN.items() if "features" in given]
PAIRED = [name for name, given in GIVEN.items() if "source_features" in given]
MATRICES = [(name, of) for name, given in GIVEN.items() for of in given if of.endswith(("features", "probabilities"))]
LISTS = [(name, of) for name, given in GIVEN.items() for of in given if of.endswith(("labels", "answers"))]


def score(name: str, samples: Samples, **options: Any) -> Score:
    return getattr(scores, name)(*(getattr(samples, of) for of in GIVEN[name]), **options)


def value(name: str, samples: Samples, **options: Any) -> float:
    return float(score(name, samples, **options))


def with_matrices(samples: Samples, change: Callable[[Tensor], Tensor]) -> Samples:
    """Features and source features changed alike."""
    return samples._replace(features=change(samples.features), source_features=change(samples.source_features))


def interval(found: Score) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def width(found: Score) -> float:
    low, high = interval(found)
    return high - low


@contextlib.contextmanager
def measured_or_refused(argument: str) -> Iterator[None]:
    try:
        yield
    except ValueError as refused:
        if argument not in str(refused):
            raise


# What the papers say:


def class_means(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each sample's row is the mean of its class."""
    return np.stack([f[y == own].mean(0) for own in y])


def h_score_of(f: np.ndarray, y: np.ndarray) -> float:
    """Bao et al. 2019, definition 2; the cut-off keeps rounding from being taken for a direction."""
    whole, between = (np.atleast_2d(np.cov(x.T)) for x in (f, class_means(f, y)))
    return float(np.trace(np.linalg.pinv(whole, rcond=1e-12, hermitian=True) @ between))


def h_score_regularised_of(f: np.ndarray, y: np.ndarray) -> float:
    """Ibrahim et al. 2021, equation 6, with scikit-learn's covariance."""
    fitted = LedoitWolf().fit(f)
    between = np.atleast_2d(np.cov(class_means(f, y).T, bias=True))
    return float(np.trace(np.linalg.pinv(fitted.covariance_) @ ((1 - fitted.shrinkage_) * between)))


def log_normal(y: np.ndarray, covariance: np.ndarray) -> float:
    """``log N(y; 0, covariance)``."""
    determinant = np.linalg.slogdet(covariance)[1]
    return float(-(len(y) * math.log(2 * math.pi) + determinant + y @ np.linalg.solve(covariance, y)) / 2)


def most_evidence(f: np.ndarray, y: np.ndarray) -> float:
    """The highest ``log N(y; 0, I / b + F F^T / a)``: over t = a / b by search, over b where its derivative is 0."""
    kernel, eye = f @ f.T, np.eye(len(y))
    largest = np.linalg.eigvalsh(kernel)[-1] or 1.0

    def lost(log_t: float) -> float:
        shape = eye + kernel / math.exp(log_t)
        b = len(y) / (y @ np.linalg.solve(shape, y))
        return -log_normal(y, eye / b + kernel / (math.exp(log_t) * b))

    low, high = math.log(1e-12 * largest), math.log(1e8 * largest)
    grid = np.linspace(low, high, 90)
    values = [lost(t) for t in grid]
    best, cell = grid[int(np.argmin(values))], grid[1] - grid[0]
    bounds = max(low, best - cell), min(high, best + cell)
    return -min(*values, minimize_scalar(lost, bounds=bounds, method="bounded", options={"xatol": 1e-9}).fun)


def logme_of(f: np.ndarray, y: np.ndarray) -> float:
    """You et al. 2021, section 4: the mean over classes."""
    return float(np.mean([most_evidence(f, (y == c).astype(float)) for c in np.unique(y)])) / len(y)


def mackay_evidence(f: np.ndarray, y: np.ndarray) -> float:
    """You et al. 2021, algorithm 1: a and b in turn, until neither changes; the evidence as in their equation 2."""
    (n, d), gram = f.shape, f.T @ f
    a, b, last = 1.0, 1.0, math.inf
    while abs(math.log(a / b) - last) > 1e-13:
        last = math.log(a / b)
        inverse = np.linalg.inv(a * np.eye(d) + b * gram)
        m = b * inverse @ f.T @ y
        gamma = b * np.trace(inverse @ gram)
        a, b = gamma / (m @ m), (n - gamma) / np.sum((f @ m - y) ** 2)
    fit = n / 2 * math.log(b) + d / 2 * math.log(a) - n / 2 * math.log(2 * math.pi)
    determinant = np.linalg.slogdet(a * np.eye(d) + b * gram)[1]
    return float(fit - b / 2 * np.sum((f @ m - y) ** 2) - a / 2 * m @ m - determinant / 2)


def rate_of(z: np.ndarray, eps: float) -> float:
    return float(np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * eps))[1]) / 2


def transrate_of(f: np.ndarray, y: np.ndarray, eps: float = 1e-4) -> float:
    """Huang et al. 2022, section 3.2, each class by its share of the samples."""
    z = f - f.mean(0)
    return rate_of(z, eps) - sum((y == c).mean() * rate_of(z[y == c], eps) for c in np.unique(y))


def knn_of(f: np.ndarray, y: np.ndarray, k: int = 5) -> float:
    right = 0
    for i in range(len(f)):
        others = sorted((j for j in range(len(f)) if j != i), key=lambda j: np.sum((f[i] - f[j]) ** 2))
        voters = [y[j] for j in others[:k]]
        votes = Counter(voters)
        right += max(votes, key=lambda c: (votes[c], -voters.index(c))) == y[i]
    return right / len(f)


def leep_of(p: np.ndarray, y: np.ndarray) -> float:
    """Nguyen et al. 2020, equations 1 and 2."""
    joint: dict[tuple[int, int], float] = Counter()
    for row, label in zip(p, y, strict=True):
        for z, share in enumerate(row):
            joint[label, z] += share / len(p)
    marginal = [sum(joint[label, z] for label in set(y)) for z in range(p.shape[1])]
    used = [z for z, share in enumerate(marginal) if share > 0]
    likelihoods = [sum(joint[c, z] / marginal[z] * row[z] for z in used) for row, c in zip(p, y, strict=True)]
    return float(np.mean(np.log(likelihoods)))


def nce_of(z: np.ndarray, y: np.ndarray) -> float:
    """Tran et al. 2019, equation 3: ``sum p(y, z) log (p(y, z) / p(z))``."""
    joint, marginal = Counter(zip(z.tolist(), y.tolist(), strict=True)), Counter(z.tolist())
    return sum(count / len(y) * math.log(count / marginal[pair[0]]) for pair, count in joint.items())


def domain_similarity_of(
    f: np.ndarray, y: np.ndarray, source: np.ndarray, source_y: np.ndarray, gamma: float = 0.01
) -> float:
    """Cui et al. 2018, equations 2 to 4."""
    means = [[x[of == c].mean(0) for c in np.unique(of)] for x, of in ((f, y), (source, source_y))]
    shares = [np.array([(of == c).mean() for c in np.unique(of)]) for of in (y, source_y)]
    ground = np.array([[np.linalg.norm(a - b) for b in means[1]] for a in means[0]])
    return math.exp(-gamma * ot.emd2(*shares, ground))


def centroid_distance_of(f: np.ndarray, source: np.ndarray) -> float:
    own = np.concatenate([x - x.mean(0) for x in (f, source)])
    return float(np.linalg.norm(f.mean(0) - source.mean(0)) / math.sqrt((own**2).sum(1).mean()))


def mmd_of(f: np.ndarray, source: np.ndarray) -> float:
    """Gretton et al. 2012, equation 5: the biased estimate; five widths, in units of the mean squared distance."""
    both, n = np.concatenate([f, source]), len(f)
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    scale = squared.sum() / (len(both) * (len(both) - 1))
    kernel = sum(np.exp(-squared / (width * scale)) for width in (0.125, 0.25, 0.5, 1, 2))
    return float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean())


ORACLES: dict[str, Callable[..., float]] = {
    "h_score": h_score_of,
    "h_score_regularised": h_score_regularised_of,
    "logme": logme_of,
    "transrate": transrate_of,
    "knn": knn_of,
    "leep": leep_of,
    "nce": nce_of,
    "domain_similarity": domain_similarity_of,
    "centroid_distance": centroid_distance_of,
    "mmd": mmd_of,
}


def expected(name: str, samples: Samples, **options: Any) -> float:
    given = (getattr(samples, of) for of in GIVEN[name])
    return ORACLES[name](*(array(t) if t.is_floating_point() else array(t).astype(int) for t in given), **options)


def cast(samples: Samples, dtype: torch.dtype) -> Samples:
    return Samples(*(t.to(dtype) if t.is_floating_point() else t for t in samples))


def with_a_class_of_one(samples: Samples) -> Samples:
    """The last class has one sample, the first most."""
    labels = torch.where(samples.labels == samples.labels.max(), 0, samples.labels)
    labels[5] = 9
    source = torch.zeros_like(samples.source_labels)
    source[7] = 1
    return samples._replace(labels=labels, source_labels=source)


def with_gaps(samples: Samples) -> Samples:
    names = torch.tensor([0, 3, 7, 1000, 12])
    return samples._replace(labels=names[samples.labels], source_labels=names[1:][samples.source_labels])


CASES: dict[str, Callable[[], Samples]] = {
    "overlapping classes": drawn,
    "two classes": lambda: drawn(classes=2),
    "one feature": lambda: drawn(d=1),
    "a class of one sample": lambda: with_a_class_of_one(drawn()),
    "more features than samples": lambda: drawn(24, 50, 3, 20),
    "as many features as samples": lambda: drawn(24, 24, 3, 20),
    "float32": lambda: cast(drawn(), torch.float32),
    "bfloat16": lambda: cast(drawn(), torch.bfloat16),
    "columns twice and constant ones": lambda: with_matrices(
        drawn(), lambda f: torch.cat([f, f[:, :3], torch.full_like(f[:, :2], 0.1)], 1)
    ),
    "labels with gaps": lambda: with_gaps(drawn()),
    "a transposed view": lambda: with_matrices(drawn(), lambda f: f.T.contiguous().T),
    "every other row": lambda: Samples(*(torch.stack([t, t + 1], 1).flatten(0, 1)[::2] for t in drawn())),
    "far from the origin": lambda: with_matrices(drawn(), lambda f: f + 100),
    "far from the origin, float32": lambda: cast(with_matrices(drawn(), lambda f: f + 100), torch.float32),
    "more features than samples, far from the origin": lambda: with_matrices(drawn(24, 50, 3, 20), lambda f: f + 100),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", GIVEN)
def test_a_measure_is_what_its_paper_says(name: str, case: str) -> None:
    samples = CASES[case]()
    wanted = expected(name, samples)
    assert abs(wanted) > 1e-3
    assert value(name, samples) == pytest.approx(wanted, rel=TOLERANCE, abs=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("knn", {"k": k}) for k in (1, 2, 4, 17)),
        *(("transrate", {"eps": eps}) for eps in (1e-6, 1e-2, 3.0)),
        *(("domain_similarity", {"gamma": gamma}) for gamma in (1e-3, 0.3)),
    ],
)
def test_an_option_is_the_papers(name: str, options: dict[str, float]) -> None:
    assert value(name, drawn(), **options) == pytest.approx(expected(name, drawn(), **options), rel=TOLERANCE)


@pytest.mark.parametrize("case", ["overlapping classes", "two classes", "float32", "far from the origin"])
def test_logme_is_where_the_papers_alternation_ends(case: str) -> None:
    samples = CASES[case]()
    f, y = array(samples.features), array(samples.labels)
    wanted = np.mean([mackay_evidence(f, (y == c).astype(float)) for c in np.unique(y)]) / len(y)
    assert value("logme", samples) == pytest.approx(wanted, rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_mmd_is_that_of_the_penalty(case: str) -> None:
    samples = CASES[case]()
    wanted = float(ops.mmd(samples.features.double(), samples.source_features.double()))
    assert value("mmd", samples) == pytest.approx(wanted, rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_domain_similarity_on_a_line_is_the_area_between_both_distributions(seed: int) -> None:
    samples = drawn(d=1, classes=5, seed=seed)
    f, y, source, z = (array(t) for t in samples[:4])
    means = [class_means(x, of)[:, 0] for x, of in ((f, y), (source, z))]
    wanted = math.exp(-0.2 * wasserstein_distance(*means))
    assert value("domain_similarity", samples, gamma=0.2) == pytest.approx(wanted, rel=TOLERANCE)


def test_domain_similarity_moves_each_class_to_the_nearest_and_the_rest_where_there_is_room() -> None:
    """Half of the target moves 3, a quarter 5; what has no room there, a quarter, moves from (10, 0) to (0, 3)."""
    f = torch.tensor([[-1.0, 0], [1, 0], [10, 0], [10, 0]])
    source = torch.tensor([[0.0, 3], [0, 3], [0, 3], [13, 4]])
    found = scores.domain_similarity(f, torch.tensor([0, 0, 1, 1]), source, torch.tensor([5, 5, 5, 2]), gamma=0.1)
    moved = 0.5 * 3 + 0.25 * 5 + 0.25 * math.hypot(10, 3)
    assert float(found) == pytest.approx(math.exp(-0.1 * moved), rel=TOLERANCE)


# Sums by the chunk:


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("case", ["overlapping classes", "more features than samples", "far from the origin, float32"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_measure_does_not_depend_on_how_much_is_computed_at_a_time(
    name: str, case: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = CASES[case]()
    whole = value(name, samples)
    module = importlib.import_module  # the package's attributes of these names are functions
    base = module("pytl.analysis.scores.base")
    assert len(list(base.chunks(samples.features))) == 1
    monkeypatch.setattr(base, "_CHUNK_BYTES", size)
    monkeypatch.setattr(module("pytl.analysis.scores.knn"), "_CHUNK_BYTES", size)
    monkeypatch.setattr(module("pytl.analysis.scores.logme"), "_CHUNK_BYTES", size)
    monkeypatch.setattr(module("pytl.analysis.scores.mmd"), "_BLOCK", max(7, size // 90))
    assert len(list(base.chunks(samples.features))) > 1
    assert value(name, samples) == pytest.approx(whole, rel=ROUNDING)


# What must hold of each:


def far_apart(noise: float, seed: int = 0) -> Samples:
    """Three classes one unit apart and noise; a source that the head of it tells apart, at the same places."""
    rng = np.random.default_rng(seed)
    y, z = np.arange(90) % 3, np.arange(60) % 3
    logits = np.eye(3)[y] / noise + rng.normal(size=(90, 3))
    x, source = (np.eye(3, 5)[of] + noise * rng.normal(size=(len(of), 5)) for of in (y, z))
    return Samples(*map(torch.tensor, (x, y, source, z, softmax(logits), logits.argmax(1))))


@pytest.mark.parametrize("name", LABELLED)
def test_classes_far_apart_fit_better_than_noise(name: str) -> None:
    fits, noise = (value(name, far_apart(spread)) for spread in (0.05, 10.0))
    assert MEASURES[name].higher_fits
    assert fits > noise + 0.01


@pytest.mark.parametrize("name", PAIRED)
def test_a_source_nearby_fits_better_than_one_far_away(name: str) -> None:
    samples = far_apart(0.5)
    near, far = (value(name, samples._replace(source_features=samples.source_features + by)) for by in (0.1, 5.0))
    assert (near > far + 0.01) if MEASURES[name].higher_fits else (near < far - 0.01)


@pytest.mark.parametrize("name", GIVEN)
def test_the_order_of_samples_does_not_count(name: str) -> None:
    samples = drawn()
    orders = {len(samples.labels): torch.randperm(60).tolist(), len(samples.source_labels): torch.randperm(45).tolist()}
    mixed = Samples(*(t[orders[len(t)]] for t in samples))
    assert value(name, mixed) == pytest.approx(value(name, samples), rel=ROUNDING)


@pytest.mark.parametrize("name", LABELLED)
def test_what_classes_are_called_does_not_count(name: str) -> None:
    samples, names = drawn(), torch.tensor([17, 2, 9, 0, 4])
    called = samples._replace(**{of: names[getattr(samples, of)] for of in ("labels", "source_labels", "answers")})
    assert value(name, called) == pytest.approx(value(name, samples), rel=ROUNDING)


@pytest.mark.parametrize("scale", [1e-30, 0.037, 1e6, 1e30])
@pytest.mark.parametrize("name", UNITLESS)
def test_the_features_unit_does_not_count(name: str, scale: float) -> None:
    scaled = with_matrices(drawn(), lambda f: scale * f)
    assert value(name, scaled) == pytest.approx(value(name, drawn()), rel=ROUNDING)


@pytest.mark.parametrize("name", [name for name in OF_FEATURES if name != "logme"])
def test_rotation_and_origin_of_features_do_not_count(name: str) -> None:
    rotation = torch.linalg.qr(drawn(7).features)[0]
    moved = with_matrices(drawn(), lambda f: f @ rotation + 3)
    assert value(name, moved) == pytest.approx(value(name, drawn()), rel=ROUNDING)


@pytest.mark.parametrize("name", [name for name in OF_FEATURES if name != "logme"])
def test_an_origin_far_away_costs_no_more_than_float64_does(name: str) -> None:
    """Which holds the features themselves to 1e-8 there."""
    moved = with_matrices(drawn(), lambda f: f + 1e8)
    assert value(name, moved) == pytest.approx(value(name, drawn()), rel=1e-6)


@pytest.mark.parametrize("name", GIVEN)
def test_a_measure_leaves_its_samples_and_the_global_generator_as_they_are(name: str) -> None:
    samples, state = drawn(), torch.get_rng_state()
    score(name, samples, bootstrap=3)
    assert_same(list(samples), list(drawn()))
    assert_same(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", GIVEN)
def test_autocast_does_not_count(name: str) -> None:
    samples = cast(drawn(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = score(name, samples)
    assert inside == score(name, samples)


@pytest.mark.parametrize("name", GIVEN)
def test_samples_that_need_gradients_are_numbers_like_others(name: str) -> None:
    needing = Samples(*(t.requires_grad_() if t.is_floating_point() else t for t in drawn()))
    assert score(name, needing, bootstrap=2) == score(name, drawn(), bootstrap=2)


SIZES = [(60, 7, 4), (60, 2, 4), (12, 3, 6), (20, 40, 3), (9, 9, 2)]


@pytest.mark.parametrize(("n", "d", "classes"), SIZES)
@pytest.mark.parametrize("signal", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("name", ["h_score", "h_score_regularised"])
def test_h_score_is_at_most_the_classes_less_one_and_the_features(
    name: str, signal: float, n: int, d: int, classes: int
) -> None:
    for seed in range(5):
        found = value(name, drawn(n, d, classes, seed=seed, signal=signal))
        assert 0 <= found <= min(classes - 1, d) * (1 + ROUNDING)


def test_h_score_is_the_classes_less_one_where_features_are_more_than_samples() -> None:
    assert value("h_score", drawn(20, 40, 3, signal=0.0)) == pytest.approx(2, rel=ROUNDING)
    assert value("h_score_regularised", drawn(20, 40, 3, signal=0.0)) < 1


def test_h_score_does_not_depend_on_a_linear_map_of_the_features() -> None:
    mapped = with_matrices(drawn(), lambda f: f @ drawn(7).features + 2)
    assert value("h_score", mapped) == pytest.approx(value("h_score", drawn()), rel=ROUNDING)


@pytest.mark.parametrize("seed", range(10))
def test_nce_lies_between_minus_log_c_and_0(seed: int) -> None:
    samples = drawn(15, classes=6, seed=seed, signal=0.0)
    assert -math.log(6) <= value("nce", samples) <= 0


def test_nce_is_0_where_the_sources_class_settles_the_targets() -> None:
    source = torch.arange(40) % 8
    assert float(scores.nce(source, source // 2)) == 0


def test_nce_is_minus_the_entropy_of_labels_that_the_source_tells_nothing_of() -> None:
    labels = torch.tensor([0, 1, 1, 2]).repeat(5)
    source = torch.arange(5).repeat_interleave(4)
    assert float(scores.nce(source, labels)) == pytest.approx(-1.5 * math.log(2), rel=TOLERANCE)
    assert float(scores.nce(source, torch.arange(4).repeat(5))) == pytest.approx(-math.log(4), rel=TOLERANCE)
    assert float(scores.nce(torch.full((20,), 7), labels)) == pytest.approx(-1.5 * math.log(2), rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_leep_of_a_certain_head_is_nce(seed: int) -> None:
    samples = drawn(seed=seed)
    certain = torch.nn.functional.one_hot(samples.answers, 6).double()
    assert value("leep", samples._replace(probabilities=certain)) == pytest.approx(value("nce", samples), rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_leep_is_at_least_nce_and_the_heads_certainty(seed: int) -> None:
    """Nguyen et al. 2020, property 1."""
    samples = drawn(seed=seed)
    certainty = float(samples.probabilities.gather(1, samples.answers[:, None]).log().mean())
    assert value("leep", samples) >= value("nce", samples) + certainty


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_leep_is_at_most_0_where_the_source_settles_the_label_and_rows_are_rounded(
    seed: int, dtype: torch.dtype
) -> None:
    share = softmax(np.random.default_rng(seed).normal(size=(30, 3)))
    labels = torch.arange(30) % 2
    rows = np.concatenate([share * (1 - array(labels))[:, None], share * array(labels)[:, None]], 1)
    found = scores.leep(torch.tensor(rows).to(dtype), labels, bootstrap=5)
    assert float(found) == pytest.approx(0, abs=2.0**-8)
    low, high = interval(found)
    assert low <= float(found) <= high <= 0


@pytest.mark.parametrize("classes", [2, 3, 5, 1000])
def test_a_softmax_of_16_bits_sums_to_one(classes: int) -> None:
    """1/3 in bfloat16 is 0.334."""
    labels = torch.arange(20) % 2
    for dtype in (torch.bfloat16, torch.float16):
        probabilities = torch.full((20, classes), 1 / classes).to(dtype)
        assert float(scores.leep(probabilities, labels)) == pytest.approx(-math.log(2), abs=2.0**-8)


@pytest.mark.parametrize("signal", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize(("n", "d", "classes"), SIZES)
def test_transrate_is_at_least_0(n: int, d: int, classes: int, signal: float) -> None:
    for seed in range(5):
        assert value("transrate", drawn(n, d, classes, seed=seed, signal=signal)) >= 0


def test_transrate_of_classes_with_the_same_samples_is_0_and_not_below() -> None:
    for seed in range(20):
        twice, labels = drawn(seed=seed).features.repeat(2, 1), torch.arange(120) // 60
        assert 0 <= float(scores.transrate(twice, labels)) < ROUNDING


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e7])
@pytest.mark.parametrize("case", ["columns twice and constant ones", "more features than samples"])
def test_transrate_of_few_directions_holds_on_any_scale(case: str, scale: float) -> None:
    """By singular values: a determinant loses the ones beside 1e16."""
    samples = with_matrices(CASES[case](), lambda f: scale * f)
    z, y = array(samples.features), array(samples.labels)
    z = z - z.mean(0)

    def rate(x: np.ndarray) -> float:
        squares = np.linalg.svd(x, compute_uv=False) ** 2
        return np.log1p(squares[squares > 1e-20 * squares[0]] / (1e-4 * len(x))).sum() / 2

    wanted = rate(z) - sum((y == c).mean() * rate(z[y == c]) for c in np.unique(y))
    assert value("transrate", samples) == pytest.approx(wanted, rel=TOLERANCE)


@pytest.mark.parametrize("copied", [False, True])
def test_a_set_is_at_no_distance_from_itself(copied: bool) -> None:
    x, y = drawn().features, drawn().labels
    same, same_y = (x.flip(0), y.flip(0)) if copied else (x, y)
    assert float(scores.domain_similarity(x, y, same, same_y)) == pytest.approx(1, abs=ROUNDING)
    assert float(scores.centroid_distance(x, same)) == pytest.approx(0, abs=ROUNDING)
    assert float(scores.mmd(x, same)) == pytest.approx(0, abs=ROUNDING)


def test_mmd_of_the_same_samples_is_not_below_0() -> None:
    for seed in range(20):
        x = drawn(seed=seed).features
        assert 0 <= float(scores.mmd(x, x.flip(0))) < ROUNDING


@pytest.mark.parametrize("name", ["centroid_distance", "mmd"])
def test_source_and_target_may_change_places(name: str) -> None:
    x, source = drawn().features, drawn().source_features
    measure = getattr(scores, name)
    assert float(measure(x, source)) == pytest.approx(float(measure(source, x)), rel=ROUNDING)


# Edges:


def two_samples(samples: Samples) -> Samples:
    return Samples(*(t[:2] for t in samples))


EDGES: dict[str, Callable[[], Samples]] = {
    "zeros": lambda: with_matrices(drawn(), torch.zeros_like),
    "two samples": lambda: two_samples(drawn()),
    "two samples of one feature": lambda: two_samples(drawn(d=1)),
    "a class for each sample": lambda: drawn(8, 3, 8),
    "features that are the labels": lambda: far_apart(1e-9),
    "features that are the labels, exactly": lambda: far_apart(1e-30),
    "features that are the labels, and more of them than samples": lambda: with_matrices(
        far_apart(1e-30), lambda f: torch.cat([f, torch.zeros(len(f), 200, dtype=f.dtype)], 1)
    ),
    "a sample a thousand times": lambda: Samples(*(t[:4].repeat(25, *[1] * (t.dim() - 1)) for t in drawn())),
    "float16's smallest": lambda: with_matrices(drawn(), lambda f: (6e-8 * f.sign()).half()),
    "float32's largest": lambda: with_matrices(drawn(), lambda f: (3e38 * f.sign()).float()),
    "a class of one sample": CASES["a class of one sample"],
    "more features than samples": CASES["more features than samples"],
    "columns twice and constant ones": CASES["columns twice and constant ones"],
    "bfloat16": CASES["bfloat16"],
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", GIVEN)
def test_a_measure_is_finite_and_in_its_range(name: str, edge: str) -> None:
    found, measure = score(name, EDGES[edge](), bootstrap=2), MEASURES[name]
    low, high = interval(found)
    assert math.isfinite(float(found))
    assert measure.least <= low <= float(found) <= high <= measure.most


@pytest.mark.parametrize("d", [1, 7])
@pytest.mark.parametrize("name", GIVEN)
def test_draws_of_one_sample_alone_do_not_break_the_interval(name: str, d: int) -> None:
    """As the draws of two samples are."""
    found = score(name, two_samples(drawn(d=d)), bootstrap=5)
    low, high = interval(found)
    assert low <= found.value <= high


@pytest.mark.parametrize("n", [10, 11, 100])
@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3, 123.456])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("h_score", 0.0),
        ("h_score_regularised", 0.0),
        ("transrate", 0.0),
        ("centroid_distance", 0.0),
        ("mmd", 0.0),
        ("domain_similarity", 1.0),
    ],
)
def test_constant_features_tell_nothing(name: str, wanted: float, constant: float, n: int) -> None:
    """Whose mean, rounded, need not be the constant."""
    samples = with_matrices(drawn(n, 3, m=7), lambda f: torch.full_like(f, constant))
    assert value(name, samples) == pytest.approx(wanted, abs=1e-9)


def test_logme_of_zeros_is_that_of_noise() -> None:
    """``y ~ N(0, 1/b)`` with 1/b the mean square, which is a class's share."""
    samples = EDGES["zeros"]()
    shares = np.bincount(array(samples.labels).astype(int)) / 60
    wanted = -np.mean(np.log(2 * math.pi * shares) + 1) / 2
    assert value("logme", samples) == pytest.approx(wanted, rel=TOLERANCE)


def test_two_constant_domains_apart_have_a_distance_or_are_refused_by_name() -> None:
    x, source = torch.zeros(3, 2), torch.ones(4, 2)
    for bootstrap in (0, 10):
        with measured_or_refused("features"):
            assert math.isfinite(float(scores.centroid_distance(x, source, bootstrap=bootstrap)))
    assert float(scores.mmd(x, source)) == pytest.approx(mmd_of(array(x), array(source)), rel=TOLERANCE)


@pytest.mark.parametrize("scale", [1e80, 1e160])
@pytest.mark.parametrize("name", UNITLESS)
def test_features_whose_powers_overflow_are_refused_or_measured(name: str, scale: float) -> None:
    with measured_or_refused("features"):
        found = value(name, with_matrices(drawn(), lambda f: scale * f))
        assert found == pytest.approx(value(name, drawn()), rel=ROUNDING)


def test_a_source_class_that_never_occurs_counts_for_nothing() -> None:
    samples = drawn()
    wider = torch.cat([torch.zeros(60, 2, dtype=torch.float64), samples.probabilities], 1)
    assert value("leep", samples._replace(probabilities=wider)) == value("leep", samples)
    assert value("nce", samples._replace(answers=samples.answers + 2)) == value("nce", samples)


@pytest.mark.parametrize("k", [59, 60, 10**6])
def test_k_is_at_most_all_others(k: int) -> None:
    assert value("knn", drawn(), k=k) == value("knn", drawn(), k=59) == knn_of(*map(array, drawn()[:2]), k=59)


@pytest.mark.parametrize("turned", [False, True])
def test_the_nearest_of_classes_with_as_many_votes_wins_however_far_it_is(turned: bool) -> None:
    """Sixty classes of one sample each lie nearer to the first sample than two of five."""
    line = np.concatenate([[0], 0.1 + np.arange(60) / 1000, 10 + np.arange(5) / 50, 10.01 + np.arange(5) / 50])
    labels = np.concatenate([[60], np.arange(60), np.full(5, 60), np.full(5, 61)])
    labels = 61 - labels if turned else labels
    found = scores.knn(torch.tensor(line[:, None]), torch.tensor(labels), k=70)
    assert float(found) == knn_of(line[:, None], labels, k=70) > 0


# What is refused, and by which name:

BAD_MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda f: f.index_fill(0, torch.tensor([3]), math.nan),
    "inf": lambda f: f.index_fill(0, torch.tensor([3]), math.inf),
    "minus inf": lambda f: f.index_fill(0, torch.tensor([3]), -math.inf),
    "integers": lambda f: f.round().long(),
    "complex": lambda f: f.to(torch.complex128),
    "one axis": lambda f: f[:, 0],
    "three axes": lambda f: f[:, :, None],
    "no samples": lambda f: f[:0],
    "no features": lambda f: f[:, :0],
}
BAD_LISTS: dict[str, Callable[[Tensor], Tensor]] = {
    "below 0": lambda y: y - 1,
    "floating point": lambda y: y.double(),
    "too few": lambda y: y[1:],
    "none": lambda y: y[:0],
    "two axes": lambda y: y[:, None],
    "no axis": lambda y: y[0],
}


@pytest.mark.parametrize("bad", BAD_MATRICES)
@pytest.mark.parametrize(("name", "of"), MATRICES)
def test_a_matrix_that_cannot_be_measured_is_refused_by_name(name: str, of: str, bad: str) -> None:
    samples = drawn()
    with pytest.raises(ValueError, match=f"^{of} must be "):
        score(name, samples._replace(**{of: BAD_MATRICES[bad](getattr(samples, of))}))


@pytest.mark.parametrize("bad", BAD_LISTS)
@pytest.mark.parametrize(("name", "of"), LISTS)
def test_labels_that_cannot_be_measured_are_refused_by_name(name: str, of: str, bad: str) -> None:
    samples = drawn()
    with pytest.raises(ValueError, match=f"{ARGUMENT.get(of, of)} must "):
        score(name, samples._replace(**{of: BAD_LISTS[bad](getattr(samples, of))}))


@pytest.mark.parametrize("name", [name for name in LABELLED if name != "domain_similarity"])
def test_one_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^labels must name >= 2 classes; got 1"):
        score(name, drawn()._replace(labels=torch.full((60,), 3)))


def test_one_class_has_a_domain_similarity() -> None:
    one = drawn()._replace(labels=torch.full((60,), 3), source_labels=torch.full((45,), 8))
    assert value("domain_similarity", one) == pytest.approx(expected("domain_similarity", one), rel=TOLERANCE)


@pytest.mark.parametrize("name", PAIRED)
def test_a_source_of_other_features_is_refused(name: str) -> None:
    samples = drawn()
    with pytest.raises(ValueError, match=r"^source_features must have the target's 7 features; got 6"):
        score(name, samples._replace(source_features=samples.source_features[:, 1:]))


@pytest.mark.parametrize("change", [lambda p: 1.01 * p, lambda p: p.log(), lambda p: p * 0, lambda p: 1.5 * p - 0.1])
def test_what_is_no_distribution_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^probabilities must be >= 0 and sum to one"):
        score("leep", drawn()._replace(probabilities=change(drawn().probabilities)))


def test_mmd_refuses_one_sample() -> None:
    with pytest.raises(ValueError, match=">= 2 samples; got 1 and 45"):
        scores.mmd(drawn().features[:1], drawn().source_features)


@pytest.mark.parametrize(
    ("name", "option", "bad"),
    [
        *(("knn", "k", k) for k in (0, -1)),
        *(("transrate", "eps", eps) for eps in (0.0, -1.0, math.nan)),
        *(("domain_similarity", "gamma", gamma) for gamma in (0.0, -1.0, math.nan, math.inf)),
        *((name, "bootstrap", draws) for name in GIVEN for draws in (1, -1)),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name: str, option: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be "):
        score(name, drawn(), **{option: bad})


# Intervals:


@pytest.mark.parametrize("name", GIVEN)
def test_an_interval_holds_the_value_and_depends_on_the_seed_alone(name: str) -> None:
    plain, first, again, other = (
        score(name, drawn(), **options)
        for options in ({}, {"bootstrap": 4}, {"bootstrap": 4, "seed": 0}, {"bootstrap": 4, "seed": 1})
    )
    assert (plain.low, plain.high) == (None, None)
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert plain.value == first.value == other.value
    low, high = interval(first)
    assert low < first.value < high
    assert {s.samples for s in (plain, first, other)} == {60}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("knn", "high"),
        ("leep", "high"),
        ("nce", "high"),
        ("domain_similarity", "high"),
        ("centroid_distance", "low"),
        ("mmd", "low"),
        ("h_score", "low"),
        ("transrate", "low"),
    ],
)
def test_an_interval_ends_where_the_measures_range_does(name: str, end: str) -> None:
    samples = clipped(name)
    found, measure = score(name, samples, bootstrap=50), MEASURES[name]
    limit = {"low": measure.least, "high": measure.most}[end]
    assert getattr(found, end) == limit
    assert found.value != limit


def clipped(name: str) -> Samples:
    """Few samples that fit all but perfectly, or hardly."""
    if name in ("h_score", "transrate"):
        return drawn(40, 1, 2, signal=0.0)
    if name in PAIRED:
        samples = drawn(12, 2, 2, m=12, signal=0.0)
        return samples._replace(source_features=samples.features + 0.01, source_labels=samples.labels)
    samples = far_apart(0.1)
    features, answers, probabilities = samples.features.clone(), samples.labels.clone(), torch.eye(3)[samples.labels]
    features[0], answers[0], probabilities[0] = features[1], 1, torch.tensor([0.0, 1, 0])
    return samples._replace(features=features, answers=answers, probabilities=probabilities)


@pytest.mark.parametrize("name", ["h_score", "knn"])
def test_an_interval_shrinks_with_the_root_of_the_samples(name: str) -> None:
    few, many = (width(score(name, drawn(n, 3, signal=0.7), bootstrap=200)) for n in (200, 3200))
    assert 2.5 < few / many < 6


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_knns_interval_is_that_of_a_share(noise: float) -> None:
    found = score("knn", far_apart(noise), bootstrap=3000)
    assert 0.3 < found.value < 0.9
    assert width(found) == pytest.approx(2 * 1.96 * math.sqrt(found.value * (1 - found.value) / 90), rel=0.05)


@pytest.mark.parametrize("name", LABELLED)
def test_an_interval_is_as_wide_as_new_samples_differ(name: str) -> None:
    """But for the shares of classes, which are the same in all of these, and not in what an interval draws."""
    spread = np.std([value(name, far_apart(1.0, seed)) for seed in range(50)])
    widths = [width(score(name, far_apart(1.0, seed), bootstrap=20)) for seed in range(4)]
    assert 0.6 < np.mean(widths) / (2 * 1.96 * spread) < 1.7


@pytest.mark.parametrize("name", ["centroid_distance", "domain_similarity"])
def test_one_sample_has_a_value_and_no_interval(name: str) -> None:
    one = drawn()._replace(features=drawn().features[:1], labels=drawn().labels[:1])
    assert value(name, one) == pytest.approx(expected(name, one), rel=TOLERANCE)
    with pytest.raises(ValueError, match=r"^bootstrap needs >= 2 samples to draw from; got 1"):
        score(name, one, bootstrap=5)


def test_samples_are_drawn_with_their_labels() -> None:
    labels = torch.arange(40) % 2
    one_hot = torch.nn.functional.one_hot(labels).double()
    for found in (
        scores.h_score(one_hot, labels, bootstrap=20),
        scores.leep(one_hot, labels, bootstrap=20),
        scores.nce(labels + 5, labels, bootstrap=20),
    ):
        assert width(found) == pytest.approx(0, abs=1e-9)


def test_source_and_target_are_drawn_each_from_its_own() -> None:
    x, source = torch.zeros(50, 1), torch.zeros(400, 1)
    x[::2], source[::2] = 1.0, 1.0
    spread = [width(scores.centroid_distance(a, b, bootstrap=300)) for a, b in ((x + 2, source), (x, x + 2))]
    one, other = 1 / 50 + 1 / 400, 2 / 50
    assert spread[0] / spread[1] == pytest.approx(math.sqrt(one / other), rel=0.15)


def test_95_of_100_intervals_hold_what_is_true() -> None:
    joint = np.array([[0.3, 0.1], [0.05, 0.25], [0.1, 0.2]])
    true = float((joint * np.log(joint / joint.sum(1, keepdims=True))).sum())
    held = 0
    for seed in range(100):
        pairs = torch.tensor(np.random.default_rng(seed).choice(6, p=joint.ravel(), size=1000))
        found = scores.nce(pairs // 2, pairs % 2, bootstrap=40, seed=seed)
        low, high = interval(found)
        held += low <= true <= high
    assert 85 <= held <= 100


# What they are called:


def test_each_measure_is_named_once() -> None:
    functions = {name for name in scores.__all__ if name.islower()}
    assert set(MEASURES) == functions == set(GIVEN) == set(ORACLES)
    assert len({measure.title for measure in MEASURES.values()}) == len(MEASURES)
    for name, measure in MEASURES.items():
        assert measure.paper
        assert measure.least < measure.most
        assert ("labels" in measure.needs) == (name in LABELLED)
        assert ("source samples" in measure.needs) == (name in PAIRED)


@pytest.mark.parametrize("bootstrap", [0, 4])
@pytest.mark.parametrize("name", GIVEN)
def test_a_score_is_json_a_number_and_a_line(name: str, bootstrap: int) -> None:
    found = score(name, drawn(), bootstrap=bootstrap)
    assert Score(**json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert found.name == name
    assert float(found) == found.value
    assert str(found).startswith(f"{found.value:.4g}")
    assert (" to " in str(found)) == bool(bootstrap)
