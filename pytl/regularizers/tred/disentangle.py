"""TRED, stage one: source features are split into a part that matters for the target, and the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pytl.batch import Batch
from pytl.features import Source, layer_names, stages
from pytl.progress import bar
from pytl.regularizers.tred.objective import Recipe
from pytl.regularizers.tred.split import FeatureSplit
from pytl.regularizers.tred.stage_one import Samples, split
from pytl.seeding import seeded

_LEAST = 4  # samples to train on, and half of it to hold out: MMD needs two of each


def disentangle(
    source: nn.Module | Source,
    loader: Iterable[Any],
    layers: str | Sequence[str] = "auto",
    *,
    recipe: Recipe | str = "both",
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> FeatureSplit:
    """Splits what source layers return, ``F_o ~ F_p + F_n``, by what the target's labels need.

    Minimises ``CE(classifier(pool F_p), y) + a (|F_o - (F_p + F_n)|^2 + max(0, -2 <F_p, F_n>)) / |F_o|^2 + L`` over a
    `Disentangler` and a classifier, with L of the criterion:

    - "max-mmd": ``-b MMD^2(pool F_p, pool F_n)``: the parts' distributions are to differ;
    - "min-mi": ``c CLUB(classifier(pool F_p); pool F_n)``: the rest is to say nothing of the part;
    - "both".

    That source features are disentangled by Max-MMD or Min-MI, and that both together are typically best, is the
    paper's (TRED, arXiv:2010.08532; Machine Learning 113:699-723, 2024). The rest is our reading: parts may not be
    large and cancel. CLUB is that of F_n and of what the classifier says of F_p, its probabilities: all that the target
    takes from F_p. (With the whole of F_p there, F_p took in what has nothing to do with the classes, and more of them
    stayed in F_n.) Its q is the Gaussian of greatest likelihood, fitted anew at each step: alternation, by an exact
    fit. Its gradient goes into F_n alone: what F_p holds is to be absent there. (Into F_p as well, it made F_p forget
    the classes.) L begins at 0 and is whole after a third of the steps.

    Cost: one pass over the loader, whose features are kept in memory (N C h w numbers a layer) and trained on; so
    random augmentations are those of that pass, and a ``CachedSource`` that knows the samples runs no network.
    With several processes split in one of them, save, and load in all: each would split by its own samples.
    A warning tells of a trivial split; `FeatureSplit.report` and `plot` show the guards.

    Args:
        source: the source network, of which a copy is looked at; or a ``pytl.features.Source``.
        loader: batches as ``pytl.finetune`` takes them, with integer labels, one a sample.
        layers: names and patterns; "auto": the end of the last stage.
        recipe: a criterion, or a `Recipe` with its weights and steps.
        held_out: the share of each class's samples that early stopping and the guards look at.
        seed: of the split of samples, the first weights and the order; other random numbers are left as they are.
        progress: shows a bar for each layer.

    Raises:
        ValueError: one class; too few samples; features that are the same for all samples, or not finite; an unknown
            layer or criterion, or a number out of range.
        TypeError: labels are no integers, one a sample.
    """
    recipe = Recipe(recipe) if isinstance(recipe, str) else recipe
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be in (0, 1); got {held_out}")
    network = source.network if isinstance(source, Source) else source
    names = layer_names(network, stages(network)[-1:] if layers == "auto" else layers)
    with nullcontext(source) if isinstance(source, Source) else Source.copied(network) as looked_at:
        looked_at.watch(names)
        features, labels = _collected(looked_at, names, loader)
    classes = _classes(labels)
    found = {}
    with seeded(seed, [labels.device]):
        kept, held = _held_out(classes, held_out)
        for layer in names:
            _refuse_useless(layer, features[layer], kept)
        for layer in names:
            with bar(f"splitting {layer}", recipe.steps, 0, progress) as advance:
                found[layer] = split(Samples(features[layer], classes, kept, held), recipe, advance)
    made = FeatureSplit(
        {layer: disentangler for layer, (disentangler, _) in found.items()},
        {layer: guards for layer, (_, guards) in found.items()},
        recipe.criterion,
    )
    if reasons := made.warnings():
        warnings.warn(f"the split by {made.criterion} is trivial: {'; '.join(reasons)}", stacklevel=2)
    return made


def _collected(source: Source, names: Sequence[str], loader: Iterable[Any]) -> tuple[dict[str, Tensor], Tensor]:
    """The layers' features of all samples, and their labels."""
    device = next((p.device for p in source.network.parameters()), torch.device("cpu"))
    features: dict[str, list[Tensor]] = {name: [] for name in names}
    labels: list[Tensor] = []
    for batch in loader:
        one = Batch.of(batch, device)
        if one.labels.dim() != 1 or one.labels.is_floating_point():
            found = f"{one.labels.dtype} of shape {[*one.labels.shape]}"
            raise TypeError(f"labels must be integers, one a sample: classes are what is split by; got {found}")
        given = source(*one.inputs, ids=one.ids, **one.keywords)
        for name in names:
            features[name].append(given[name])
        labels.append(one.labels)
    if not labels:
        raise ValueError("loader must give at least one batch; got none")
    return {name: torch.cat(values) for name, values in features.items()}, torch.cat(labels)


def _classes(labels: Tensor) -> Tensor:
    """Labels counted from 0, whatever they are called."""
    known, classes = labels.unique(return_inverse=True)
    if len(known) < 2:
        raise ValueError(f"loader must give >= 2 classes; got {len(labels)} samples of class {known[0].item()}")
    return classes


def _held_out(classes: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the samples that are trained on, and of the others: a share of each class, but not its last one."""
    order = torch.randperm(len(classes)).to(classes.device)
    held = torch.zeros_like(classes, dtype=torch.bool)
    for label in classes.unique():
        members = order[classes[order] == label]
        held[members[: min(round(share * len(members)), len(members) - 1)]] = True
    kept = (~held).sum()
    if kept < _LEAST or len(classes) - kept < _LEAST // 2:
        raise ValueError(
            f"loader must give enough samples to train on {_LEAST} and hold out {_LEAST // 2}; got {len(classes)}, of "
            f"which {kept} and {len(classes) - kept}"
        )
    return order[~held[order]], order[held[order]]


def _refuse_useless(layer: str, features: Tensor, kept: Tensor) -> None:
    """Raises ValueError for features that are not finite, or the same for all samples that are trained on."""
    if not features.isfinite().all():
        raise ValueError(f"layer {layer!r} must have finite features; some are not")
    if bool((features[kept] == features[kept[:1]]).all()):
        raise ValueError(f"layer {layer!r} must have features that differ; those of all {len(kept)} samples agree")
