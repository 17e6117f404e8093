"""What tensors are recognised by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, object]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, 64 hexadecimal digits; what is no tensor is left out.

    Costs about a second a gigabyte.
    """
    sha = hashlib.sha256()
    for name, tensor in tensors:
        if isinstance(tensor, Tensor):
            sha.update(f"{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
            sha.update(tensor.detach().cpu().contiguous()[..., None].flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
