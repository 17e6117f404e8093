"""How much each channel of a layer matters for the target task: the weights of DELTA's penalty."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl.architecture import named_layers, nearest
from pytl.batch import Batch, evaluating
from pytl.digest import digest
from pytl.extras import require
from pytl.files import parse_json, read_tensors, write_tensors
from pytl.progress import bar
from pytl.regularizers.channels import figure
from pytl.regularizers.channels.ledger import Ledger
from pytl.regularizers.channels.network import Loss, Network
from pytl.regularizers.channels.scores import NOTHING, channel_scores, exact, first_order

METHODS = {"exact": exact, "first-order": first_order}
_KIND = "channel weights"
_ROUNDING = 1e-3  # of a sum of float32 weights; a thousand times that of 10^4 of them


@dataclass(frozen=True, eq=False)
class ChannelWeights:
    """What `channel_weights` found; all tensors on the CPU.

    Attributes:
        weights: layer -> float32 [C], positive, sum 1: a_j of DELTA's penalty.
        scores: layer -> float64 [C], in the loss's unit: how much the mean task loss rises without channel j.
        method: how the scores were found, ``"exact"`` or ``"first-order"``.
    """

    weights: dict[str, Tensor]
    scores: dict[str, Tensor]
    method: str

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, or leaves what was there.

        Raises:
            OSError: the disk is full or not writable.
        """
        tensors = {f"weights.{layer}": row for layer, row in self.weights.items()}
        tensors |= {f"scores.{layer}": row for layer, row in self.scores.items()}
        about = {"method": self.method, "layers": json.dumps([*self.weights])}  # the file itself sorts its tensors
        write_tensors(path, _KIND, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> ChannelWeights:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated, other bits than were written, or holds something else.
        """
        tensors, about = read_tensors(path, _KIND)
        try:
            layers = parse_json(about["layers"])
            weights, scores = (
                {layer: tensors[f"{kind}.{layer}"] for layer in layers} for kind in ("weights", "scores")
            )
            for layer in layers:
                _check_rows(layer, weights[layer], scores[layer])
            return cls(weights, scores, about["method"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must hold weights, scores and method of each layer: {error!r}") from error

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: each layer's weights in descending order, as multiples of uniform weights 1/C."""
        figure.draw(self.weights, Path(path))

    def rank_correlation(self, other: ChannelWeights) -> dict[str, float]:
        """Spearman's correlation of the two's scores, by layer: 1 where both rank the channels alike.

        Equal scores share the average of their ranks. NaN where all scores of one are equal.

        Raises:
            ValueError: the two are not of the same layers and numbers of channels.
        """
        own, others = ({layer: len(row) for layer, row in one.scores.items()} for one in (self, other))
        if own != others:
            raise ValueError(f"other must have the same layers and numbers of channels, {own}; got {others}")
        return {layer: _spearman(row, other.scores[layer]) for layer, row in self.scores.items()}


def _check_rows(layer: str, weights: Tensor, scores: Tensor) -> None:
    for row, dtype in ((weights, torch.float32), (scores, torch.float64)):
        if row.dtype != dtype or row.shape != (len(row),) or not row.isfinite().all():
            raise ValueError(f"layer {layer!r} must have finite {dtype} [C]; got {row.dtype} {[*row.shape]}")
    total = float(weights.double().sum())
    if len(weights) != len(scores) or not (weights >= 0).all() or abs(total - 1) > _ROUNDING:
        sizes = f"{len(weights)} with sum {total:.6g}, and {len(scores)}"
        raise ValueError(f"layer {layer!r} must have weights >= 0 with sum 1, and as many scores; got {sizes}")


def _spearman(a: Tensor, b: Tensor) -> float:
    if a.min() == a.max() or b.min() == b.max():
        return math.nan
    return float(require("scipy.stats", "cli").spearmanr(a.numpy(), b.numpy()).statistic)


def weights_from_scores(scores: Mapping[str, Tensor], temperature: float = 5.0) -> dict[str, Tensor]:
    """a = softmax(zscore(scores) / temperature) over each layer's channels; uniform where all scores are equal.

    The temperature 5 and the z-score by the population's standard deviation (sum of squares / C, not C - 1) are those
    of the code that DELTA's authors released. There, equal scores give NaN; equal weights for them are our reading.

    Args:
        scores: layer -> [C], any floating point dtype.

    Returns:
        Layer -> float32 [C], positive, sum 1.

    Raises:
        ValueError: temperature is not > 0, or a score is not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}")
    bad = [layer for layer, row in scores.items() if not row.isfinite().all()]
    if bad:
        raise ValueError(f"scores must be finite; got others in layer {', '.join(bad)}")
    return {layer: _softmax_of_z(row.double(), temperature).float() for layer, row in scores.items()}


def _softmax_of_z(row: Tensor, temperature: float) -> Tensor:
    if row.min() == row.max():
        return torch.full_like(row, 1 / len(row))
    return torch.softmax((row - row.mean()) / row.std(correction=0) / temperature, 0)


def channel_weights(
    model: nn.Module,
    layers: Sequence[str],
    loader: Iterable[Any],
    *,
    loss: Loss = cross_entropy,
    method: str = "exact",
    batches: int | None = None,
    chunk: int = 32,
    resume: str | Path | None = None,
    progress: bool = True,
) -> ChannelWeights:
    """Scores each channel by how much the task's loss rises without it, and makes weights of the scores.

    Exact: dCE_j = mean over samples of (the loss with channel j of the layer zeroed) - (the loss).
    First-order: dCE_j ~ -<dCE/dF_j, F_j>, for F_j the channel's values in all places; the mean over samples.
    Then a = softmax(zscore(dCE) / 5), see `weights_from_scores`.

    Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks", ICLR 2019,
    arXiv:1901.09229. The exact way is the paper's and its released code's, which zeroes the filters of the last
    convolution of each stage (without bias, so the output is zero) and looks at four batches of training data. That the
    *output* is zeroed, bias included, that each sample counts alike, tokens and the first-order estimate are our
    reading; `ChannelWeights.rank_correlation` says how well the estimate ranks the channels.

    Cost, for layers of C_1, C_2, ... channels: 1 forward, and for each batch
        exact: 1 + ceil(C_1 / chunk) + ceil(C_2 / chunk) + ... forwards of `chunk` times the batch: for the four stages
            of a ResNet-50 the work of 3,840 forwards of a batch, in 120 pieces. Memory is that of `chunk` batches
            without gradients.
        first-order: one forward and one backward.

    In float32 a score below about 1e-7 of the loss is rounding, in bfloat16 one below about 1e-2.

    Args:
        model: a network whose head alone was trained on the target. It works in evaluation mode, so that BatchNorm does
            not drift; its modes, gradients, requires_grad and hooks are afterwards what they were, after errors too.
        layers: names from ``model.named_modules()``, without what wrappers add. A layer returns a tensor, a tuple, or
            an object with ``last_hidden_state``; what counts is the (first) tensor: [B, C, H, W], [B, C, T, H, W] or
            [B, D] with the channels in dim 1, [B, T, D] with the channels last.
        loader: batches ``(inputs, labels)``, or mappings with ``"labels"`` whose other entries are keywords of the
            model; tensors with as many rows as there are labels have one row a sample. To resume, it must give the same
            batches each time, in the same order: no shuffling, no augmentation.
        loss: of (logits, labels), the mean over the batch, 0-dim.
        method: ``"exact"`` or ``"first-order"``.
        batches: how many to look at; None: all.
        chunk: how many channels are zeroed in one forward, each in a replica of the batch; changes rounding only.
        resume: where the sums are kept while it runs: every few seconds, on Ctrl-C, on errors. The same call goes on
            from there, to the same bits (with another `chunk`, to rounding); the file is removed at the end.
        progress: shows a bar.

    Raises:
        ValueError: a layer is unknown or not called, or has no channels; method, chunk or batches is out of range; the
            loader is empty; a loss is not finite; `resume` is another run's file, or broken.
        TypeError: layers is one string; a batch, a layer's output or the model's is of another form.
        OSError: the folder of `resume` cannot be written to.
    """
    _check(method, chunk, batches)
    model = getattr(model, "_orig_mod", model)  # what torch.compile makes of it need not notice new hooks
    network = Network(model, _modules(model, layers), loss, _device(model))
    given = islice(iter(loader), batches)
    first = next(given, None)
    if first is None:
        raise ValueError("loader must give at least one batch; got none")
    with evaluating(model):
        counts = network.channels(Batch.of(first, network.device))
        number = _number(loader, batches)
        about = {} if resume is None else _about(network, counts, method, number, first)
        rows = {NOTHING: 1} | counts
        total = None if number is None else number * sum(rows.values())
        with Ledger(resume, rows, about) as ledger, bar("channel weights", total, ledger.sums.done, progress) as step:
            found = channel_scores(network, chain([first], given), METHODS[method], ledger, chunk, step)
    return ChannelWeights(weights_from_scores(found), found, method)


def _check(method: str, chunk: int, batches: int | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}{nearest(method, METHODS)}")
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1; got {chunk}")
    if batches is not None and batches < 1:
        raise ValueError(f"batches must be >= 1 or None; got {batches}")


def _modules(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names; got one string, {layers!r}")
    known = {name: module for name, module in named_layers(model) if name}
    for layer in layers:
        if layer not in known:
            raise ValueError(f"layers must be names from model.named_modules(); got {layer!r}{nearest(layer, known)}")
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers must be at least one name, each once; got {list(layers)}")
    return {layer: known[layer] for layer in layers}


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def _number(loader: Iterable[Any], batches: int | None) -> int | None:
    """How many batches there will be, as far as it is known."""
    try:
        held = len(loader)  # type: ignore[arg-type]
    except TypeError:  # a generator; a DataLoader over an iterable
        return batches
    return held if batches is None else min(held, batches)


def _about(network: Network, counts: Mapping[str, int], method: str, number: int | None, first: Any) -> dict[str, str]:
    """What the scores depend on, as the file for resuming names it."""
    batch = first.items() if isinstance(first, Mapping) else zip(("inputs", "labels"), first, strict=False)
    return {
        "weights": digest(network.model.state_dict().items()),
        "layers": ", ".join(f"{layer} [{count}]" for layer, count in counts.items()),
        "method": method,
        "loss": getattr(network.loss, "__qualname__", type(network.loss).__qualname__),
        "batches": str(number or "all"),
        "first batch": digest(batch),
    }
