"""The diagonal of the Fisher information: how much what the network says hangs on each weight."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from pytl.batch import Batch, evaluating
from pytl.progress import bar
from pytl.regularizers.weights import own_name, unwrapped, wide

Slope = Callable[..., dict[str, Tensor]]  # of a batch of one, by parameter name


def fisher_diagonal(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    labels: str = "model",
    samples: int | None = None,
    chunk: int = 32,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The diagonal Fisher information at the model's weights: ``F_j = mean_x (d log p(y|x) / d w_j)^2``.

    p is the softmax of the logits, and each sample x has one y:

    - ``labels="model"``: drawn from p(.|x). That is the Fisher information, of which one draw a sample is an unbiased
      estimate ("Fisher" in Kunstner et al., arXiv:1905.12558; "sample" in van de Ven, arXiv:2502.11756).
    - ``labels="data"``: the data's own. Both papers call that the empirical Fisher; it is another quantity, which goes
      to 0 where the model fits its data.

    EWC (Kirkpatrick et al. 2017, arXiv:1612.00796) leaves open which one it takes; the default is our reading.

    Costs a forward and a backward pass a sample. Gradients of single samples are made `chunk` at a time and squared:
    beside the activations of `chunk` samples they take `chunk` times the memory of the weights (ResNet-50 in float32:
    3.3 GB for 32).

    The result goes to a file by ``safetensors.torch.save_file(fisher, path)`` and comes back by ``load_file(path)``.

    Args:
        model: gives logits [batch, classes] or an object with ``.logits``; also inside DDP, DataParallel or
            torch.compile, which are passed by, as are compiled layers. It is in eval mode meanwhile: dropout is off,
            batch norm takes its running statistics and leaves them as they are.
        loader: gives ``(inputs, labels)``, ``(inputs, labels, ids)``, or mappings with "labels" whose other entries are
            the model's keywords. Tensors have the batch in their first dimension, labels are integers [batch]. They are
            moved to the device of the model's first parameter.
        samples: take this many, from the front; None: all.
        chunk: samples at a time, by ``torch.func.vmap``. 1: without vmap, for models that it cannot batch, such as
            those of transformers that are given an attention mask.
        generator: for the draws, which do not depend on `chunk`; None: torch's own on the CPU.
        progress: show a bar.

    Returns:
        F by parameter name, for each parameter that requires a gradient, the head's too: of its shape, contiguous, on
        its device, in float32 (float64 for float64 weights).

    Raises:
        ValueError: `labels` unknown, `samples` or `chunk` below 1, a model without trained parameters, a loader without
            samples, labels or logits of another shape, or F that is not finite (the first such parameter is named).
        TypeError: a batch of another form.
        RuntimeError: vmap cannot batch the model.
    """
    asked = _Asked(labels, samples, chunk, generator)
    network = unwrapped(model)
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("model must have a parameter with requires_grad=True; got none")
    sums = {name: torch.zeros(w.shape, dtype=wide(w), device=w.device) for name, w in weights.items()}
    count = 0
    gradients = partial(_of_one if chunk == 1 else _of_many, grad(_surprise(network, labels)))
    total = len(loader) if isinstance(loader, Sized) and samples is None else None
    with (
        torch.compiler.set_stance("force_eager"),  # vmap cannot batch compiled layers
        evaluating(network),
        bar("Fisher information", total, shown=progress) as advance,
    ):
        for batch, targets in asked.parts(loader, next(network.parameters()).device, advance):
            for name, gradient in gradients(weights, batch, targets).items():
                sums[name] += gradient.to(sums[name].dtype).square().sum(dim=0)
            count += len(targets)
    return _means({own_name(name): squares for name, squares in sums.items()}, count)


@dataclass(frozen=True)
class _Asked:
    """Which samples are taken, and whose labels."""

    labels: str
    samples: int | None
    chunk: int
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if self.labels not in ("model", "data"):
            raise ValueError(f'labels must be "model" or "data"; got {self.labels!r}')
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be >= 1 or None; got {self.samples}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be >= 1; got {self.chunk}")

    def parts(
        self, loader: Iterable[Any], device: torch.device, advance: Callable[[], None]
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Chunks of batches, with their targets: labels, or the numbers in [0, 1) that they are drawn by."""
        left = sys.maxsize if self.samples is None else self.samples
        for found in loader:
            batch = _checked(Batch.of(found, device))
            size = min(left, batch.samples)
            targets = self._targets(batch, size)
            for at in range(0, size, self.chunk):
                rows = slice(at, min(at + self.chunk, size))
                yield batch.part(rows), targets[rows]
            advance()
            left -= size
            if left == 0:
                return

    def _targets(self, batch: Batch, size: int) -> Tensor:
        if self.labels == "data":
            return batch.labels[:size].long()
        source = self.generator.device if self.generator else "cpu"
        return torch.rand(size, generator=self.generator, device=source).to(batch.labels.device)


def _checked(batch: Batch) -> Batch:
    """The batch, if each sample has one label and one row of each tensor."""
    if not all(isinstance(value, Tensor) for value in batch.inputs):
        raise TypeError(f"loader must give inputs that are a tensor; got a {type(batch.inputs[0]).__name__}")
    labels = batch.labels
    shapes = [[*v.shape] for v in (*batch.inputs, *batch.keywords.values()) if isinstance(v, Tensor)]
    if labels.is_floating_point() or any(shape[:1] != [*labels.shape] for shape in shapes):
        raise ValueError(f"labels must be integers, one a sample; got {labels.dtype} {[*labels.shape]} for {shapes}")
    return batch


def _surprise(network: nn.Module, labels: str) -> Callable[..., Tensor]:
    def surprise(weights: dict[str, Tensor], inputs: Any, keywords: dict[str, Any], target: Tensor) -> Tensor:
        """``-log p(y|x)`` of a batch of one."""
        logits = _logits(functional_call(network, weights, inputs, keywords))
        return cross_entropy(logits, _drawn(logits, target) if labels == "model" else target)

    return surprise


def _of_one(slope: Slope, weights: dict[str, Tensor], batch: Batch, targets: Tensor) -> dict[str, Tensor]:
    """The gradient [1, *shape] of a batch of one, by parameter name."""
    return {name: g.unsqueeze(0) for name, g in slope(weights, batch.inputs, batch.keywords, targets).items()}


def _of_many(slope: Slope, weights: dict[str, Tensor], batch: Batch, targets: Tensor) -> dict[str, Tensor]:
    """The gradients [samples, *shape], by parameter name."""
    inputs = tuple(rows.unsqueeze(1) for rows in batch.inputs)
    keywords = {name: v.unsqueeze(1) if isinstance(v, Tensor) else v for name, v in batch.keywords.items()}
    dims = {name: 0 if isinstance(value, Tensor) else None for name, value in keywords.items()}
    try:
        return vmap(slope, in_dims=(None, 0, dims, 0))(weights, inputs, keywords, targets.unsqueeze(1))
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise RuntimeError("torch.func.vmap cannot batch this model; chunk=1 goes without it, slower") from error


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not (isinstance(logits, Tensor) and logits.dim() == 2):
        found = f"{[*logits.shape]} for a batch of one" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"model must give logits [batch, classes]; got {found}")
    return logits.to(wide(logits))


def _drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws a class by its probability, by a number in [0, 1): the first that the cumulated probability exceeds."""
    cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
    return (cumulated[:, :-1] <= uniform.unsqueeze(-1)).sum(dim=-1)  # without the last, which rounding may put below 1


def _means(sums: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    if count == 0:
        raise ValueError("loader must give at least one sample; got none")
    for name, squares in sums.items():
        if not bool(squares.isfinite().all()):
            raise ValueError(f"the Fisher information must be finite; got NaN or infinity for {name}")
    return {name: squares / count for name, squares in sums.items()}
