"""Soft labels: the divergence of two networks' class probabilities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytl.ops import core
from pytl.ops.features import call, check_pair, compute_dtype, serves, wants_core


def distillation(x: Tensor, source: Tensor, temperature: float = 1.0, *, fused: bool | None = None) -> Tensor:
    """``T^2 KL(softmax(source / T) || softmax(x / T))``, the mean over rows (Hinton et al. 2015, arXiv:1503.02531).

    One read of both, and one write of the gradient where one is asked for.

    Args:
        x: logits of the network, [..., classes]; float64, float32, bfloat16 or float16.
        source: logits of the source network, of the same shape. No gradient flows into it.
        temperature: T > 0; T^2 keeps gradients at one size while T changes.
        fused: True: the compiled core; False: PyTorch; None: the core where it serves the tensors.

    Returns:
        0-dim, float64 for float64 logits, else float32; differentiable, also twice. 0 without rows. A class whose
        source logit is -inf has no part in it.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree, no classes, a temperature that is not > 0.
        RuntimeError: ``fused=True`` without the core.
    """
    check_pair(x, source)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and > 0; got {temperature}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have >= 1 class in its last dimension; got shape {[*x.shape]}")
    if not wants_core(x, fused):
        return _reference(x, source.detach(), temperature)
    with_gradient = torch.is_grad_enabled() and x.requires_grad
    return torch.ops.pytl.distillation(x, source.detach(), temperature, with_gradient)[0]


def _reference(x: Tensor, source: Tensor, temperature: float) -> Tensor:
    dtype = compute_dtype(x, source)
    log_q, log_p = ((t.to(dtype) / temperature).log_softmax(-1) for t in (x, source))
    p = log_p.exp()
    gap = torch.where(p == 0, 0.0, log_p - log_q)
    return temperature**2 * (p * gap).sum() / max(1, x.numel() // x.shape[-1])


def _reference_gradient(x: Tensor, source: Tensor, temperature: float) -> Tensor:
    dtype = compute_dtype(x, source)
    q, p = ((t.to(dtype) / temperature).softmax(-1) for t in (x, source))
    stored = x.dtype if x.dtype == source.dtype else dtype
    return (temperature * (q - p) / max(1, x.numel() // x.shape[-1])).to(stored).contiguous()


class _Logits(NamedTuple):
    """What the core reads."""

    s: int
    t: int
    rows: int
    columns: int
    temperature: float
    dtype: Any


torch.library.define(
    "pytl::distillation", "(Tensor x, Tensor source, float temperature, bool with_gradient) -> (Tensor, Tensor)"
)


@torch.library.impl("pytl::distillation", "default")
def _distillation(x: Tensor, source: Tensor, temperature: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
    if not serves(x):
        gradient = _reference_gradient(x, source, temperature) if with_gradient else x.new_empty(0)
        return _reference(x, source, temperature), gradient
    dtype = x.dtype if x.dtype == source.dtype else compute_dtype(x, source)
    s, t = x.to(dtype).contiguous(), source.to(dtype).contiguous()
    value = torch.empty((), dtype=torch.float64, device=x.device)
    gradient = torch.empty_like(s) if with_gradient else s.new_empty(0)
    columns = s.shape[-1]
    logits = _Logits(s.data_ptr(), t.data_ptr(), s.numel() // columns, columns, temperature, core.dtype_code(dtype))
    call("distillation", logits, x.device, value, gradient if with_gradient else None)
    return value.to(compute_dtype(s)), gradient


@torch.library.register_fake("pytl::distillation")
def _(x: Tensor, source: Tensor, temperature: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x, source)
    stored = x.dtype if x.dtype == source.dtype else dtype
    gradient = x.new_empty(x.shape, dtype=stored) if with_gradient else x.new_empty(0, dtype=stored)
    return x.new_empty((), dtype=dtype), gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, source, ctx.temperature, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, source, output[1])


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    x, source, own = ctx.saved_tensors
    if gradient is None:
        return None, None, None, None
    if torch.is_grad_enabled():  # create_graph
        value = _reference(x, source, ctx.temperature)
        return torch.autograd.grad(value, x, gradient, create_graph=True)[0], None, None, None
    is_last = type(own) is Tensor and not torch._C._autograd._get_current_graph_task_keep_graph()  # and no tracing
    scaled = own.mul_(gradient) if is_last else own * gradient
    return scaled.to(x.dtype), None, None, None


torch.library.register_autograd("pytl::distillation", _backward, setup_context=_save)
