"""The mean loss of a network on fixed samples, as a function of its weights: value, gradient, Hessian times vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from pytl.analysis.batch_norm import fix_statistics
from pytl.analysis.micro_batches import MicroBatches
from pytl.architecture import unwrapped
from pytl.batch import Batch, evaluating
from pytl.digest import digest
from pytl.seeding import seeded, undisturbed

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) -> mean over the batch."""

MODES = ("eval", "fixed-bn")


@dataclass(frozen=True)
class Protocol:
    """How a measure was taken.

    Attributes:
        samples: the loss is the mean over them.
        mode: one of MODES.
        at_a_time: at most so many samples went through the network at a time.
        halvings: how often that was halved because memory ran out.
    """

    samples: int
    mode: str
    at_a_time: int
    halvings: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        short = f", halved {self.halvings} times because memory ran out" if self.halvings else ""
        return f"{self.samples} samples, {self.mode} mode, at most {self.at_a_time} at a time{short}"


class Objective:
    """``L(w)``, the mean loss over all samples, on copies of a model's weights: the model stays as it is, to the bit.

    Weights are given as lists of tensors in the order of `names`; all others stay the model's. Noise of the network's
    own draws the same numbers in each pass, and everybody else's random numbers go on as before.

    Args:
        model: any module; wrappers do not count.
        batches: as ``pytl.finetune`` takes them; read once, and kept on the model's device.
        loss: (logits, labels) -> mean over the batch.
        samples: how many of the batches' are taken, from the first on; None: all.
        mode: ``"eval"``: evaluation mode; ``"fixed-bn"``: the same, but BatchNorm has the statistics of these samples
            at the model's own weights (the mean over parts), once and for all.
        batch: at most so many samples at a time; None: as many as a batch has. Halved, with a warning, and counted,
            where memory runs out.
        dtype: of the computation; None: the model's, or float32 where that is 16-bit.
        frozen: parameters that are not trained are weights as well, and in evaluation mode BatchNorm's statistics.

    Attributes:
        names: of the weights.
        start: their values, no copies where the dtype is theirs.
        trained: the names of those parameters that are.

    Raises:
        ValueError: no batch, an unknown mode, or no parameter that is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Loss = cross_entropy,
        *,
        samples: int | None = None,
        mode: str = "eval",
        batch: int | None = None,
        dtype: torch.dtype | None = None,
        frozen: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        self._network, self._loss, self._dtype, self._mode = unwrapped(model), loss, dtype, mode
        parameters = dict(self._network.named_parameters())
        buffers = {name: b.clone() for name, b in self._network.named_buffers()}
        self.trained = {name for name, p in parameters.items() if p.requires_grad}
        if not self.trained:
            raise ValueError("model must have a parameter with requires_grad=True; got none")
        moving = [name for name in parameters if frozen or name in self.trained]
        if frozen and mode == "eval":
            moving += [name for name, b in buffers.items() if b.is_floating_point()]
        known = {name: self._cast(x.detach()) for name, x in (parameters | buffers).items()}
        self.names, self.start = moving, [known[name] for name in moving]
        self._fixed = {name: x for name, x in known.items() if name not in {*moving}}
        self.device = self.start[0].device
        self._data = MicroBatches(batches, self.device, samples, batch)
        if mode == "fixed-bn":
            with self._undisturbed():
                fix_statistics(self._network, self._fixed, self._data, lambda one: self._loss_on(one, self.start))

    @property
    def protocol(self) -> Protocol:
        """As things stand now."""
        return Protocol(self._data.samples, self._mode, self._data.at_a_time, self._data.halvings)

    @property
    def size(self) -> int:
        """How many weights."""
        return sum(w.numel() for w in self.start)

    def fingerprint(self) -> str:
        """What tells this function from others: weights, statistics, samples, loss and mode; 64 hexadecimal digits."""
        inputs = [(f"{i} {name}", x) for i, one in enumerate(self._data.batches) for name, x in _tensors(one)]
        weights = [*zip(self.names, self.start, strict=True), *self._fixed.items()]
        about = f"{getattr(self._loss, '__qualname__', type(self._loss).__name__)} {self._mode}"
        return digest([*weights, *inputs, (about, torch.empty(0))])

    def value(self, weights: Sequence[Tensor] | None = None) -> float:
        """L, at the model's own weights or at these; not finite where it is not."""
        at = self.start if weights is None else weights
        return float(self._mean(at, lambda value, _: [value], gradients=False)[0])

    def gradient(self, weights: Sequence[Tensor] | None = None) -> tuple[float, list[Tensor]]:
        """L and its gradient.

        Raises:
            ValueError: L is not finite.
        """
        value, *gradient = self._mean(self._leaves(weights), lambda value, at: [value, *_derivative(value, at)])
        return self._finite(value, gradient), gradient

    def hessian_product(self, vector: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """``H v``, the gradient of ``<dL/dw, v>``: two to three times a gradient's time and memory.

        Raises:
            ValueError: L is not finite.
        """

        def of(value: Tensor, at: Sequence[Tensor]) -> list[Tensor]:
            slopes = _derivative(value, at, create_graph=True)
            along = torch.stack([(slope * v).sum() for slope, v in zip(slopes, vector, strict=True)]).sum()
            return [value.detach(), *_derivative(along, at)]

        with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
            value, *product = self._mean(self._leaves(weights), of)
        self._finite(value, product)
        return product

    def _leaves(self, weights: Sequence[Tensor] | None) -> list[Tensor]:
        return [w.detach().requires_grad_() for w in (self.start if weights is None else weights)]

    def _mean(
        self,
        at: Sequence[Tensor],
        of: Callable[[Tensor, Sequence[Tensor]], list[Tensor]],
        gradients: bool = True,
    ) -> list[Tensor]:
        """The mean over samples of what `of` makes of a part's loss and the weights; scalars in float64."""
        sums: list[Tensor] = []
        with self._undisturbed(), torch.set_grad_enabled(gradients):
            for found, count in self._data.each(lambda one: of(self._loss_on(one, at), at)):
                if not sums:
                    sums = [torch.zeros_like(x, dtype=torch.float64 if x.dim() == 0 else x.dtype) for x in found]
                for total, x in zip(sums, found, strict=True):
                    total.add_(x.detach(), alpha=count / self._data.samples)
        return sums

    def _loss_on(self, one: Batch, at: Sequence[Tensor]) -> Tensor:
        named = {**dict(zip(self.names, at, strict=True)), **self._fixed}
        inputs, keywords = tuple(map(self._cast, one.inputs)), {k: self._cast(x) for k, x in one.keywords.items()}
        called = Batch(inputs, keywords, one.labels)
        return self._loss(called.logits(lambda *a, **k: functional_call(self._network, named, a, k)), one.labels)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        with torch.inference_mode(False), undisturbed(), seeded(0, [self.device]), evaluating(self._network):
            yield

    def _cast(self, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return value.to(self._dtype or torch.promote_types(value.dtype, torch.float32))

    def _finite(self, value: Tensor, derivative: Sequence[Tensor]) -> float:
        if not value.isfinite():
            raise ValueError(f"loss must be finite on the {self._data.samples} samples; got {float(value)}")
        if not all(bool(x.isfinite().all()) for x in derivative):
            raise ValueError(
                f"derivatives of the loss must be finite on the {self._data.samples} samples; some are not"
            )
        return float(value)


def _derivative(value: Tensor, at: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """With zeros for what the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(w) for w in at]
    return [*torch.autograd.grad(value, [*at], create_graph=create_graph, allow_unused=True, materialize_grads=True)]


def _tensors(one: Batch) -> Iterator[tuple[str, Any]]:
    yield from ((str(place), value) for place, value in enumerate(one.inputs))
    yield from one.keywords.items()
    yield "labels", one.labels
