"""What a model answers to a batch, whether that is (inputs, labels) or a dict as Hugging Face's collators make it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def predict(model: nn.Module, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Calls the model on a batch.

    Args:
        model: returns logits, or an object with `logits`.
        batch: ``(inputs, labels)``, or a mapping with ``"labels"`` whose other entries are the model's keywords.
        device: where the batch is moved.

    Returns:
        (logits, labels), on `device`.
    """
    if isinstance(batch, Mapping):
        inputs = {name: _moved(value, device) for name, value in batch.items()}
        labels = inputs.pop("labels")
        output = model(**inputs)
    else:
        inputs, labels = (_moved(value, device) for value in batch)
        output = model(inputs)
    return getattr(output, "logits", output), labels


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
