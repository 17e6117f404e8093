"""Gathers the evidence: a pass of the source network, a few of networks with new weights, and the measures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pytl.advice.evidence import Evidence, Gain, Layer
from pytl.analysis import scores
from pytl.analysis.scores import Score
from pytl.analysis.scores.base import check_labels, draws, gram, standard_error
from pytl.architecture import Head, unwrapped
from pytl.batch import Batch, evaluating
from pytl.depth import HEAD, depth_blocks
from pytl.features import remove_hooks
from pytl.features.extraction import Features, extract, layers_of
from pytl.plan import renew
from pytl.plan.renewal import Fresh
from pytl.progress import bar
from pytl.seeding import seeded

LABEL_MEASURES: dict[str, Callable[..., Score]] = {
    "logme": scores.logme,
    "h_score_regularised": scores.h_score_regularised,
    "transrate": scores.transrate,
    "knn": scores.knn,
}
_MOST_DIRECTIONS = 256  # of features in a draw of the bootstrap

Classifier = Callable[..., Any]


@dataclass(frozen=True)
class Question:
    """A network, a target, and what else is known of the source; how carefully it is looked at.

    Attributes:
        model: the source network, with a new head.
        data: batches of the target.
        head: as in ``pytl.param_groups``.
        source_model: the source network with its own head, or any function of a batch's inputs that gives its logits.
        source_data: batches of the source, with the source's labels.
        fresh: as in `pytl.plan.renew`.
        references: networks with new weights.
        bootstrap: draws for standard errors and intervals.
        seed: of new weights and draws.
        device: where the model is.
        progress: a bar on a terminal.
    """

    model: nn.Module
    data: Iterable[Any]
    head: Head | None
    source_model: Classifier | None
    source_data: Iterable[Any] | None
    fresh: Fresh | None
    references: int
    bootstrap: int
    seed: int
    device: torch.device
    progress: bool

    @property
    def draws(self) -> dict[str, int]:
        return {"bootstrap": self.bootstrap, "seed": self.seed}


def gather(asked: Question) -> Evidence:
    """Measures.

    Raises:
        ValueError: as `pytl.features.extraction.extract` and `pytl.plan.renew` have it; a class without samples;
            features that are not finite, with the layer's name.
    """
    blocks = depth_blocks(asked.model, asked.head)
    places = layers_of(asked.model, blocks, asked.head)
    layers = list(dict.fromkeys(places.values()))
    with bar("features", None, 0, asked.progress) as advance:
        own = extract(asked.model, layers, asked.data, asked.device, advance)
        _check(own)
        references = [extract(n, layers, asked.data, asked.device, advance, batch_statistics=True) for n in _new(asked)]
        for reference in references:
            _refuse_other_order(own, reference)
    measured = [_layer(block, layer, own, references, asked) for block, layer in places.items()]
    head_scores = _source_head(asked)
    entropy = _entropy(own.labels)
    return Evidence(
        layers=tuple(measured),
        head=any(block.name == HEAD for block in blocks),
        samples=len(own.labels),
        classes=own.logits.shape[1],
        references=asked.references,
        source_head=head_scores,
        label_information=1 + float(head_scores["nce"]) / entropy if head_scores else None,
        domain=_domain(asked, layers[-1], own),
    )


def _check(found: Features) -> None:
    if found.logits.dim() != 2:
        raise ValueError(f"model must answer with [samples, classes]; got {[*found.logits.shape]}")
    classes = found.logits.shape[1]
    check_labels(found.labels, len(found.logits))
    if int(found.labels.max()) >= classes:
        raise ValueError(
            f"labels must be < {classes}, the classes that the model answers with; got {int(found.labels.max())}"
        )
    counts = found.labels.bincount(minlength=classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        named = ", ".join(map(str, empty[:10]))
        raise ValueError(f"data must have samples of each of the model's {classes} classes; none of {named}")
    for layer, rows in found.layers.items():
        if not rows.isfinite().all():
            raise ValueError(f"features must be finite; those of layer {layer!r} are not")


def _refuse_other_order(own: Features, other: Features) -> None:
    if not torch.equal(own.labels, other.labels):
        raise ValueError("data must come in the same order in each pass; give a loader without shuffling")


def _new(asked: Question) -> Iterable[nn.Module]:
    """The same network with new weights, one after another."""
    for index in range(asked.references):
        seed = asked.seed + index
        if asked.fresh is not None:
            with seeded(seed, [asked.device]):
                network = unwrapped(asked.fresh()).to(asked.device)
            yield network
            continue
        network = copy.deepcopy(unwrapped(asked.model))
        remove_hooks(network, left_over=True)
        body = [block for block in depth_blocks(network, asked.head) if block.name != HEAD]
        renew(network, body, head=asked.head, seed=seed)
        yield network


def _layer(block: str, layer: str, own: Features, references: Sequence[Features], asked: Question) -> Layer:
    rows, labels = own.layers[layer], own.labels
    found = {name: measure(rows, labels) for name, measure in LABEL_MEASURES.items()}
    narrow = _narrow(rows)
    found = {
        name: _with_interval(value, LABEL_MEASURES[name](narrow, labels, **asked.draws))
        for name, value in found.items()
    }
    others = [reference.layers[layer] for reference in references]
    reference = fmean(float(scores.logme(of, labels)) for of in others)
    gain = Gain(float(found["logme"]) - reference, _error_of_gain(narrow, [*map(_narrow, others)], labels, asked))
    return Layer(block, layer, rows.shape[1], found, reference, gain)


def _with_interval(score: Score, narrow: Score) -> Score:
    """A score of all features, with as wide an interval as that of their strongest directions."""
    if narrow.low is None or narrow.high is None:
        return score
    measure = scores.MEASURES[score.name]
    shift = score.value - narrow.value
    low, high = max(measure.least, narrow.low + shift), min(measure.most, narrow.high + shift)
    return Score(score.name, score.value, low, high, score.samples)


def _narrow(rows: Tensor) -> Tensor:
    """Features in their 256 strongest directions: what draws are made of, so that each costs little."""
    n, d = rows.shape
    if min(n, d) <= _MOST_DIRECTIONS:
        return rows
    squares, vectors = torch.linalg.eigh(gram(rows))
    strongest = vectors[:, -_MOST_DIRECTIONS:]
    return rows.double() @ strongest if d <= n else strongest * squares[-_MOST_DIRECTIONS:].clamp(min=0).sqrt()


def _error_of_gain(rows: Tensor, others: Sequence[Tensor], labels: Tensor, asked: Question) -> float:
    """The standard error of the difference, over draws of samples that source and new weights share."""
    generator = torch.Generator().manual_seed(asked.seed)
    values = []
    for _ in range(asked.bootstrap):
        ((_, drawn),) = draws([(rows, labels)], generator)
        chosen = drawn.to(rows.device)
        new = fmean(float(scores.logme(of[chosen], labels[chosen])) for of in others)
        values.append(float(scores.logme(rows[chosen], labels[chosen])) - new)
    return standard_error(values, len(labels))


@torch.no_grad()
def _source_head(asked: Question) -> Mapping[str, Score]:
    if asked.source_model is None:
        return {}
    answers, labels = [], []
    network = asked.source_model if isinstance(asked.source_model, nn.Module) else nn.Module()
    with evaluating(network):
        for found in asked.data:
            batch = Batch.of(found, asked.device)
            answers.append(batch.logits(asked.source_model).double().softmax(-1))
            labels.append(batch.labels)
    probabilities, y = torch.cat(answers), torch.cat(labels)
    return {
        "leep": scores.leep(probabilities, y, **asked.draws),
        "nce": scores.nce(probabilities.argmax(1), y, **asked.draws),
    }


def _entropy(labels: Tensor) -> float:
    """H(y) in nats."""
    shares = labels.bincount().double() / len(labels)
    return -float(torch.xlogy(shares, shares).sum())


def _domain(asked: Question, layer: str, own: Features) -> Mapping[str, Score]:
    if asked.source_data is None:
        return {}
    source = extract(asked.model, [layer], asked.source_data, asked.device)
    here, there = own.layers[layer], source.layers[layer]
    return {
        "domain_similarity": scores.domain_similarity(here, own.labels, there, source.labels, **asked.draws),
        "centroid_distance": scores.centroid_distance(here, there, **asked.draws),
        "mmd": scores.mmd(here, there, **asked.draws),
    }
