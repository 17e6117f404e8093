"""One batch, whether that is (inputs, labels) or a dict as Hugging Face's collators make it, and a model's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and what it should answer; all on one device.

    Attributes:
        inputs, keywords: the model's arguments. Tensors with as many rows as there are labels have one row a sample.
        labels: [B, ...].
        ids: of the samples, [B], where the data set gives them.
    """

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    labels: Tensor
    ids: Tensor | None = None

    @classmethod
    def of(cls, found: Any, device: torch.device | str) -> Batch:
        """Moves a loader's batch to the device.

        Args:
            found: ``(inputs, labels)``, ``(inputs, labels, ids)``, or a mapping with ``"labels"`` and perhaps ``"ids"``
                whose other entries are the model's keywords.
            device: where the batch is moved.

        Raises:
            TypeError: it is none of these, or labels are no tensor.
        """
        if isinstance(found, Mapping) and isinstance(found.get("labels"), Tensor):
            keywords = {name: _moved(value, device) for name, value in found.items()}
            return cls((), keywords, keywords.pop("labels"), keywords.pop("ids", None))
        if isinstance(found, tuple | list) and len(found) in (2, 3) and isinstance(found[1], Tensor):
            inputs, labels, *ids = (_moved(value, device) for value in found)
            return cls((inputs,), {}, labels, *ids)
        holds = f" with {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
        expected = (
            "loader must give (inputs, labels), tensors, or with ids behind, or a mapping with 'labels', a tensor"
        )
        raise TypeError(f"{expected}; got a {type(found).__name__}{holds}")

    @property
    def samples(self) -> int:
        return len(self.labels)

    def logits(self, model: Callable[..., Any]) -> Tensor:
        """What the model answers: logits, or an object with `logits`.

        Raises:
            TypeError: it answers something else.
        """
        output = model(*self.inputs, **self.keywords)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise TypeError(f"model must return logits, or an object with logits; got a {type(logits).__name__}")
        return logits

    def repeated(self, times: int) -> Batch:
        """`times` over: one whole batch after another."""
        return self._with_rows(lambda rows: rows.repeat(times, *[1] * (rows.dim() - 1)))

    def part(self, rows: slice) -> Batch:
        """Some of the samples."""
        return self._with_rows(lambda all_rows: all_rows[rows])

    def _with_rows(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(value: Any) -> Any:
            by_sample = isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.samples
            return change(value) if by_sample else value

        keywords = {name: changed(value) for name, value in self.keywords.items()}
        return Batch(tuple(map(changed, self.inputs)), keywords, changed(self.labels), changed(self.ids))


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's answer to a tensor, to a tuple of arguments, or to a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _moved(value: Any, device: torch.device | str) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, in which BatchNorm's statistics stay; each module's own mode comes back whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
