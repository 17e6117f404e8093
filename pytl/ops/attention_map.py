"""Attention maps: where a layer's activations have their energy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytl.ops import core
from pytl.ops.features import call, compute_dtype, serves, wants_core


def attention_map(a: Tensor, *, fused: bool | None = None) -> Tensor:
    """``flatten(sum over channels of a^2)``, divided by its L2 norm, for each sample (Zagoruyko & Komodakis 2017).

    arXiv:1612.03928 takes the mean over channels, which the norm makes the same.

    Args:
        a: activations [B, C, H, W] in any memory format, or [B, T, D]; float64, float32, bfloat16, float16.
        fused: True: the compiled core; False: PyTorch; None: the core where it serves the tensor.

    Returns:
        [B, H * W] or [B, T], float64 for float64 activations, else float32; differentiable, also twice. Where all
        activations of a sample are 0, its map is 0.

    Raises:
        ValueError: ``a`` has no positions: it is not of 3 or 4 dimensions. TypeError: it is not of a floating dtype.
        RuntimeError: ``fused=True`` without the core.
    """
    if a.dim() not in (3, 4):
        raise ValueError(f"a must be maps [B, C, H, W] or tokens [B, T, D]; got shape {[*a.shape]}")
    if not a.is_floating_point():
        raise TypeError(f"a must be of a floating point dtype; got {a.dtype}")
    return torch.ops.pytl.attention_map(a)[0] if wants_core(a, fused) else _reference(a)


def attention_map_distance(a: Tensor, source: Tensor, *, fused: bool | None = None) -> Tensor:
    """The mean over samples and positions of ``(attention_map(a) - attention_map(source))^2``, 0-dim.

    Args:
        a: activations of the network, as in `attention_map`.
        source: those of the source network, with as many samples and positions; channels may differ. No gradient flows
            into it.

    Raises:
        ValueError: other numbers of samples or positions. Else as `attention_map`.
    """
    with torch.no_grad():
        theirs = attention_map(source, fused=fused)
    mine = attention_map(a, fused=fused)
    if mine.shape != theirs.shape:
        raise ValueError(f"source must have [samples, positions] as a, {[*mine.shape]}; got {[*theirs.shape]}")
    return torch.nn.functional.mse_loss(mine, theirs.to(mine.dtype)) if mine.numel() else mine.sum()


def _energy(a: Tensor) -> Tensor:
    squares = a.to(compute_dtype(a)) ** 2
    return squares.sum(1).flatten(1) if a.dim() == 4 else squares.sum(2)


def _reference(a: Tensor) -> Tensor:
    energy = _energy(a)
    square = (energy * energy).sum(1, keepdim=True)
    known = square != 0
    return torch.where(known, energy / torch.where(known, square, 1.0).sqrt(), 0.0)


def _reference_gradient(a: Tensor, map: Tensor, inverse_norms: Tensor, gradient: Tensor) -> Tensor:
    along = (map * gradient).sum(1, keepdim=True)
    slope = 2 * (gradient - map * along) * inverse_norms.to(map.dtype)[:, None]
    return (a * (slope.view(len(a), 1, *a.shape[2:]) if a.dim() == 4 else slope[:, :, None])).to(a.dtype)


class _Activations(NamedTuple):
    """What the core reads."""

    a: int
    samples: int
    channels: int
    positions: int
    channels_last: bool
    dtype: Any


def _activations(a: Tensor) -> _Activations:
    channel_dim = 1 if a.dim() == 4 else 2
    samples, channels = a.shape[0], a.shape[channel_dim]
    last = a.dim() == 3 or not a.is_contiguous()
    return _Activations(a.data_ptr(), samples, channels, _positions(a), last, core.dtype_code(a.dtype))


def _positions(a: Tensor) -> int:
    return a.shape[1] if a.dim() == 3 else a.shape[2] * a.shape[3]


def _in_order(a: Tensor) -> Tensor:
    """Channels first or channels last."""
    last = a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last)
    return a if last else a.contiguous()


torch.library.define("pytl::attention_map", "(Tensor a) -> (Tensor, Tensor)")
torch.library.define(
    "pytl::attention_map_gradient", "(Tensor a, Tensor map, Tensor inverse_norms, Tensor gradient) -> Tensor"
)


@torch.library.impl("pytl::attention_map", "default")
def _map(a: Tensor) -> tuple[Tensor, Tensor]:
    if not serves(a):
        norms = _energy(a).double().norm(dim=1)
        return _reference(a), torch.where(norms == 0, 0.0, 1 / norms)
    a = _in_order(a)
    result = torch.empty(len(a), _positions(a), dtype=compute_dtype(a), device=a.device)
    inverse_norms = torch.empty(len(a), dtype=torch.float64, device=a.device)
    call("attention_map", _activations(a), a.device, result, inverse_norms)
    return result, inverse_norms


@torch.library.impl("pytl::attention_map_gradient", "default")
def _gradient(a: Tensor, map: Tensor, inverse_norms: Tensor, gradient: Tensor) -> Tensor:
    if not serves(a):
        return _reference_gradient(a, map, inverse_norms, gradient)
    a = _in_order(a)
    to = torch.empty_like(a)
    call("attention_map_gradient", _activations(a), a.device, map, inverse_norms, gradient.contiguous(), to)
    return to


@torch.library.register_fake("pytl::attention_map")
def _(a: Tensor) -> tuple[Tensor, Tensor]:
    return a.new_empty(len(a), _positions(a), dtype=compute_dtype(a)), a.new_empty(len(a), dtype=torch.float64)


@torch.library.register_fake("pytl::attention_map_gradient")
def _(a: Tensor, map: Tensor, inverse_norms: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(_in_order(a))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], *output)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> Tensor | None:
    a, map, inverse_norms = ctx.saved_tensors
    if gradient is None:
        return None
    if torch.is_grad_enabled():  # create_graph
        return torch.autograd.grad(_reference(a), a, gradient, create_graph=True)[0]
    return torch.ops.pytl.attention_map_gradient(a, map, inverse_norms, gradient)


torch.library.register_autograd("pytl::attention_map", _backward, setup_context=_save)
