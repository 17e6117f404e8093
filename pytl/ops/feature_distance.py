"""Weighted distance of features: DELTA's, and feature distillation's without weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytl.ops import core
from pytl.ops.features import alike, call, channel_dim_of, check_pair, compute_dtype, serves, wants_core


def feature_distance(
    x: Tensor,
    source: Tensor,
    weights: Tensor | None = None,
    *,
    channel_dim: int | None = None,
    fused: bool | None = None,
) -> Tensor:
    """``1/(2B) sum over samples, channels c and positions of weights_c (x - source)^2``.

    DELTA's term of a layer (Li et al. 2019, arXiv:1901.09229) has ``weights_c = C a_c / (h w)``; without weights it is
    half of FitNets' hint (Romero et al. 2015, arXiv:1412.6550). One read of both tensors; the gradient is computed in
    another, with one write.

    Args:
        x: features of the network, [B, C, ...] in any memory format or [B, T, D]; float64, float32, bfloat16, float16.
        source: those of the source network, of the same shape. No gradient flows into it.
        weights: [C], >= 0; None: all 1.
        channel_dim: where the channels are; None: 1, but the last dimension of tokens [B, T, D].
        fused: True: the compiled core; False: PyTorch; None: the core where it serves the tensors.

    Returns:
        0-dim, float64 for float64 features, else float32; differentiable, also twice. 0 for an empty ``x``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree. RuntimeError: ``fused=True`` without the core.
    """
    dim = _checked(x, source, weights, channel_dim)
    if wants_core(x, fused):
        return torch.ops.pytl.feature_distance(x, source.detach(), weights, dim)
    return _reference(x, source.detach(), weights, dim)


def tapped_feature_distance(
    x: Tensor, source: Tensor, weights: Tensor | None = None, *, channel_dim: int | None = None
) -> tuple[Tensor, Tensor]:
    """``x`` itself, to go on with, and ``feature_distance(x, source, weights)``.

    The backward pass adds the distance's gradient to the one that comes back through ``x``, in one pass over the
    features: 4 instead of 6 reads and writes.

    Returns:
        ``(x, value)``, both differentiable, once. Arguments and errors: as ``feature_distance``.
    """
    dim = _checked(x, source, weights, channel_dim)
    return _Tapped.apply(x, source.detach(), weights, dim)


def _checked(x: Tensor, source: Tensor, weights: Tensor | None, channel_dim: int | None) -> int:
    check_pair(x, source)
    dim = channel_dim_of(x) if channel_dim is None else channel_dim
    if not -x.dim() < dim < x.dim() or dim == 0:
        raise ValueError(f"channel_dim must be a dimension of x, which has {x.dim()}, behind the samples; got {dim}")
    if weights is not None and weights.shape != (x.shape[dim],):
        raise ValueError(f"weights must be of shape [{x.shape[dim]}], the channels of x; got {[*weights.shape]}")
    return dim % x.dim()


def _along(weights: Tensor, x: Tensor, dim: int) -> Tensor:
    return weights.view([-1 if d == dim else 1 for d in range(x.dim())])


def _weighted(difference: Tensor, weights: Tensor | None, dim: int) -> Tensor:
    return difference if weights is None else difference * _along(weights.to(difference.dtype), difference, dim)


def _reference(x: Tensor, source: Tensor, weights: Tensor | None, dim: int) -> Tensor:
    dtype = compute_dtype(x, source)
    difference = x.to(dtype) - source.to(dtype)
    return (_weighted(difference, weights, dim) * difference).sum() / (2 * max(1, len(x)))


def _reference_gradient(
    x: Tensor, source: Tensor, weights: Tensor | None, factor: Tensor, task: Tensor | None, dim: int
) -> Tensor:
    dtype = compute_dtype(x, source)
    gradient = factor.to(dtype) * _weighted(x.to(dtype) - source.to(dtype), weights, dim)
    return (gradient if task is None else task.to(dtype) + gradient).to(x.dtype)


class _Pair(NamedTuple):
    """What the core reads; addresses, or 0."""

    x: int
    source: int
    weights: int
    outer: int
    channels: int
    inner: int
    dtype: Any


def _pair(x: Tensor, source: Tensor, weights: Tensor | None, dim: int) -> _Pair:
    channels = 1 if weights is None else x.shape[dim]
    inner = x.stride(dim) if channels > 1 else 1  # of a dense tensor: the elements of a channel that lie together
    address = 0 if weights is None else weights.data_ptr()
    outer = x.numel() // max(1, channels * inner)
    return _Pair(x.data_ptr(), source.data_ptr(), address, outer, channels, inner, core.dtype_code(x.dtype))


def _weights_for(x: Tensor, weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.detach().to(x.device, compute_dtype(x)).contiguous()


torch.library.define("pytl::feature_distance", "(Tensor x, Tensor source, Tensor? weights, int channel_dim) -> Tensor")
torch.library.define(
    "pytl::feature_distance_gradient",
    "(Tensor x, Tensor source, Tensor? weights, Tensor factor, Tensor? task, int channel_dim) -> Tensor",
)


@torch.library.impl("pytl::feature_distance", "default")
def _distance(x: Tensor, source: Tensor, weights: Tensor | None, channel_dim: int) -> Tensor:
    if not serves(x):
        return _reference(x, source, weights, channel_dim)
    x, source = alike(x, source)
    weights = _weights_for(x, weights)
    value = torch.empty((), dtype=torch.float64, device=x.device)
    call("feature_distance", _pair(x, source, weights, channel_dim), x.device, value)
    return (value / max(1, len(x))).to(compute_dtype(x))


@torch.library.impl("pytl::feature_distance_gradient", "default")
def _gradient(
    x: Tensor, source: Tensor, weights: Tensor | None, factor: Tensor, task: Tensor | None, channel_dim: int
) -> Tensor:
    if not serves(x):
        return _reference_gradient(x, source, weights, factor, task, channel_dim)
    dtype = x.dtype
    x, source, *tasks = alike(x, source, *([] if task is None else [task]))
    weights, factor, to = _weights_for(x, weights), factor.double(), torch.empty_like(x)
    given = tasks[0] if tasks else None
    call("feature_distance_gradient", _pair(x, source, weights, channel_dim), x.device, given, factor, to)
    return to.to(dtype)


@torch.library.register_fake("pytl::feature_distance")
def _(x: Tensor, source: Tensor, weights: Tensor | None, channel_dim: int) -> Tensor:
    return x.new_empty((), dtype=compute_dtype(x, source))


@torch.library.register_fake("pytl::feature_distance_gradient")
def _(
    x: Tensor, source: Tensor, weights: Tensor | None, factor: Tensor, task: Tensor | None, channel_dim: int
) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, source, weights, ctx.channel_dim = inputs
    ctx.save_for_backward(x, source, weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    x, source, weights = ctx.saved_tensors
    return gradient_of(x, source, weights, gradient, None, ctx.channel_dim), None, None, None


def gradient_of(
    x: Tensor, source: Tensor, weights: Tensor | None, gradient: Tensor, task: Tensor | None, channel_dim: int
) -> Tensor:
    """The distance's gradient for x, times ``gradient``, with the task's added; differentiable under create_graph."""
    formula = _reference_gradient if torch.is_grad_enabled() else torch.ops.pytl.feature_distance_gradient
    return formula(x, source, weights, gradient / max(1, len(x)), task, channel_dim)


torch.library.register_autograd("pytl::feature_distance", _backward, setup_context=_save)


class _Tapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, weights: Tensor | None, channel_dim: int) -> tuple[Tensor, Tensor]:
        ctx.channel_dim = channel_dim
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, source, weights)
        return x.view_as(x), torch.ops.pytl.feature_distance(x, source, weights, channel_dim)

    @staticmethod
    def backward(ctx: Any, task: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        x, source, weights = ctx.saved_tensors
        if gradient is None:
            return task, None, None, None
        return gradient_of(x, source, weights, gradient, task, ctx.channel_dim), None, None, None
