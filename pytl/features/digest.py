"""What samples and networks are recognised by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pytl.architecture import named_layers, unwrapped
from pytl.digest import digest

_INPUTS = (Tensor, str, int, float, type(None))
_FEW, _MANY = (1 << 15) - 1, 1 << 22
"""Products at a time, on the CPU and elsewhere. So few stay in the cache, and torch does not share them out among its
threads, for which it would wait where data loaders use the cores; a GPU's launches cost more than its memory."""
_BETWEEN_INPUTS = -0x61C8864680B583EB  # splitmix64's step, as int64


def sample_digests(inputs: Mapping[str, Any], samples: int) -> Tensor:
    """What differs where samples' inputs differ in a bit, in shape, dtype or name; by chance it does not in 2^-32.

    The inputs' bytes are read as 32-bit integers w_i; the digest is the sum of m_i w_i mod 2^64 with fixed odd 64-bit
    m_i (multilinear hashing, Lemire & Kaser 2014), over all inputs. It is no protection against forgery.

    Args:
        inputs: by name, tensors of any dtype and plain values. A tensor whose first dimension is ``samples`` long has a
            row for each; all others belong to each sample.
        samples: the batch's size.

    Returns:
        int64 [samples], on the CPU; the same on every device.

    Raises:
        TypeError: an input is of another type.
    """
    total = torch.zeros(samples, dtype=torch.int64, device="cpu")
    for name, value in sorted(inputs.items()):
        if not isinstance(value, _INPUTS):
            kind = type(value).__name__
            raise TypeError(f"inputs must be tensors or plain values for a cached source; got {kind} for {name!r}")
        about = f"{name} {value!r}"
        total = total * _BETWEEN_INPUTS
        if isinstance(value, Tensor):
            rows = value.detach() if value.dim() and len(value) in (1, samples) else value.detach()[None]
            about = f"{name} {rows.dtype} {[*rows.shape[1:]]}"
            total = total + _row_sums(rows).cpu()
        total = total + int.from_bytes(hashlib.sha256(about.encode()).digest()[:8], "little", signed=True)
    return total


def _row_sums(rows: Tensor) -> Tensor:
    """int64 [rows], on the tensor's device."""
    raw = rows.contiguous()[..., None].flatten(1).view(torch.uint8)
    if raw.shape[1] % 4 or raw.storage_offset() % 4:
        raw = nn.functional.pad(raw, (0, -raw.shape[1] % 4))  # always a copy, which begins at a multiple of 4
    words = raw.view(torch.int32)
    factors = _odd_numbers(words.shape[1], words.device)
    total = torch.zeros(len(words), dtype=torch.int64, device=words.device)
    columns = max(1, (_FEW if words.device.type == "cpu" else _MANY) // len(words))
    for some, their in zip(words.split(columns, 1), factors.split(columns), strict=True):
        total += (some * their).sum(1)
    return total


@lru_cache(maxsize=16)
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """splitmix64's first numbers, made odd: int64 [count], the same on every device and in every version of torch."""
    z = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31) | 1


def _shifted(z: Tensor, shift: int) -> Tensor:
    """To the right, with zeros coming in, where torch's own shift brings the sign."""
    return z >> shift & (1 << 64 - shift) - 1


def network_digest(network: nn.Module) -> str:
    """The digest of all parameters and buffers, by their names without wrappers."""
    return digest(_named_tensors(network))


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for layer, module in named_layers(network):
        inner = unwrapped(module)
        for name, tensor in (*inner.named_parameters(recurse=False), *inner.named_buffers(recurse=False)):
            yield f"{layer}.{name}", tensor
