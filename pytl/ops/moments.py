"""How moments are kept in fewer than 32 bits: what csrc/formulas/moments.h says, on whole tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pytl.ops import core

BLOCK = 256
"""Elements that share a scale."""

_NAMES = {torch.bfloat16: "bfloat16", torch.uint8: "eight_bits"}
_LOW_32 = 0xFFFFFFFF
_MANTISSA = {False: (3, 127), True: (4, 255)}  # of codes, and the highest code; by `squares`


def code(dtype: torch.dtype) -> Any:
    """The core's code for moments of this dtype."""
    return getattr(core.module.MomentFormat, _NAMES.get(dtype, "full"))


def blocks(elements: int) -> int:
    return -(-elements // BLOCK)


def load(stored: Tensor, scales: Tensor | None, squares: bool) -> Tensor:
    """The moments, in the order of what is stored: float32 (float64 as it is).

    Args:
        stored: float64, float32, bfloat16; or uint8, codes with a scale a block.
        scales: float32 ``[ceil(n / 256)]`` for uint8.
        squares: whether they are means of squares, whose codes are of the roots.
    """
    if stored.dtype != torch.uint8:
        return stored.float() if stored.dtype == torch.bfloat16 else stored
    assert scales is not None
    mantissa, highest = _MANTISSA[squares]
    codes = _flat(stored).int()
    numbers = codes & 127 if not squares else codes
    bits = (numbers + (127 << mantissa) - highest) << (23 - mantissa)
    magnitudes = torch.where(numbers == 0, 0.0, bits.view(torch.float32))
    values = scales.repeat_interleave(BLOCK)[: len(codes)] * magnitudes
    values = values * values if squares else torch.where(codes > 127, -values, values)
    loaded = torch.empty_like(stored, dtype=torch.float32)
    _flat(loaded).copy_(values)
    return loaded


def store(moments: Tensor, stored: Tensor, scales: Tensor | None, squares: bool, step: int, state: int) -> None:
    """Rounds moments into ``stored``, which has their order: up or down, so that the mean is right.

    What is rounded at random depends on the number of the step, of the state and of the element alone. Those that are
    kept whole are not rounded.
    """
    if stored.dtype == torch.uint8:
        assert scales is not None
        _store_codes(moments, stored, scales, squares, _random(stored.numel(), step, state, stored.device))
    elif stored.dtype == torch.bfloat16 and moments.dtype != torch.bfloat16:
        values = _flat(moments)
        bits = values.view(torch.int32).long() & _LOW_32
        rounded = (bits + (_random(len(values), step, state, stored.device) & 0xFFFF)) & 0xFFFF0000
        values = torch.where(values.isfinite(), _from_bits(rounded), values)
        _flat(stored).copy_(values)
    elif stored is not moments:
        stored.copy_(moments)


def _store_codes(moments: Tensor, stored: Tensor, scales: Tensor, squares: bool, random: Tensor) -> None:
    mantissa, highest = _MANTISSA[squares]
    shift = 23 - mantissa
    kept = _flat(moments)
    if squares:
        kept = kept.double().sqrt().float()  # torch's root of floats is not always the nearest
    scales.copy_(pad(kept.abs(), (0, -len(kept) % BLOCK)).view(-1, BLOCK).amax(1))
    scale = scales.repeat_interleave(BLOCK)[: len(kept)]
    share = torch.where(scale == 0, 0.0, kept.abs() / scale)
    rounded = (share.view(torch.int32).long() & _LOW_32) + (random & ((1 << shift) - 1))
    codes = ((rounded >> shift) - ((127 << mantissa) - highest)).clamp(0, highest)
    if squares:
        codes = torch.where((codes == 0) & (kept != 0) & (scale != 0), 1, codes)
    else:
        codes = codes | (kept.signbit().long() << 7)
    _flat(stored).copy_(codes)


def _random(count: int, step: int, state: int, device: torch.device) -> Tensor:
    """32 random bits for each element, int64; the same on every device and in every order."""
    seed = _mixed(torch.tensor((3 * step + state) & _LOW_32))
    return _mixed((torch.arange(count, device=device) * 0x9E3779B1 + int(seed)) & _LOW_32)


def _mixed(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _LOW_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _LOW_32
    return x ^ (x >> 16)


def _from_bits(bits: Tensor) -> Tensor:
    return torch.where(bits > 0x7FFFFFFF, bits - (1 << 32), bits).int().view(torch.float32)


def _flat(dense: Tensor) -> Tensor:
    """Its elements as they lie in memory."""
    return dense.as_strided((dense.numel(),), (1,))
