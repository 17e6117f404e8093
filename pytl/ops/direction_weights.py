"""Gram numbers to the weights of g and r, by tensor or for the whole network, and the norm of what they make."""

from __future__ import annotations

import torch
from torch import Tensor

from pytl.directions import Direction, find
from pytl.ops import core

GRANULARITIES = ("tensor", "global")


def direction_weights(gram: Tensor, direction: str | Direction = "dtnh", granularity: str = "tensor") -> Tensor:
    """The weights ``(c_g, c_r)`` of ``d = c_g * g + c_r * r`` for Gram numbers.

    Args:
        gram: float64 ``[n, 3]``: <g,g>, <g,r>, <r,r> of each tensor, as ``pytl.ops.gram`` gives them.
        direction: "sum", "dtnh", "grod", "pcgrad" or a ``pytl.Direction``.
        granularity: "tensor": each row for itself; "global": one pair of weights from the sums over all rows.

    Returns:
        float64 ``[n, 2]``. Where <g,g> is zero, subnormal or not finite, nothing is projected: ``c_g = 1``.

    Raises:
        ValueError: unknown direction or granularity, or a ``gram`` of another shape or dtype.
    """
    rule = find(direction)
    check_granularity(granularity)
    if gram.dim() != 2 or gram.shape[1] != 3 or gram.dtype != torch.float64:
        raise ValueError(f"gram must be float64 of shape [n, 3]; got {gram.dtype} of shape {[*gram.shape]}")
    if granularity == "global":
        return direction_weights(gram.sum(dim=0, keepdim=True), rule).expand(len(gram), 2)
    if rule.rule is None or core.missing or gram.device.type != "cpu":
        return rule(gram)
    gram = gram.contiguous()
    weights = torch.empty(len(gram), 2, dtype=torch.float64)
    core.module.direction_weights(core.rule_code(rule), gram.data_ptr(), len(gram), weights.data_ptr())
    return weights


def check_granularity(granularity: str) -> None:
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}; got {granularity!r}")


def squared_norm(gram: Tensor, weights: Tensor) -> Tensor:
    """``|d|^2 = c_g^2 <g,g> + 2 c_g c_r <g,r> + c_r^2 <r,r>`` of each tensor, without another look at it."""
    (gg, gr, rr), (c_g, c_r) = gram.unbind(-1), weights.unbind(-1)
    return (c_g**2 * gg + 2 * c_g * c_r * gr + c_r**2 * rr).clamp(min=0)


def clip_factor(squared_norms: Tensor, max_norm: float) -> Tensor:
    """What scales d so that its norm over all tensors is at most ``max_norm``; 0-dim, as ``clip_grad_norm_`` has it.

    Tensors whose norm is not finite are left out of the sum: they must not take the others with them.
    """
    norm = torch.where(squared_norms.isfinite(), squared_norms, 0.0).sum().sqrt()
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
