"""DTNH with L2-SP and AdamW in plain PyTorch, as good as we can write it. All compute what pytl.AdamW computes:

r = sp_decay * (w - w0);  r' = r - min(0, <g,r>) / <g,g> * g  for each tensor;  w -= lr * r'  beside AdamW fed with g
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pytl.benchmark.parameters import ParameterSet
from pytl.benchmark.timing import Step

LR = 1e-3
SP_DECAY = 1e-2
MAX_GRAD_NORM = 0.5  # below the norm of every gradient list here with more than one element a tensor
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def _shares(gradients: list[Tensor], pulls: Sequence[Tensor]) -> list[Any]:
    """min(0, <g,r>) / <g,g> of each tensor: numbers, or on a GPU 0-dim tensors, so that nothing waits.

    A dot reads its operands once and writes nothing; foreach has none. On a GPU each dot is two launches, and foreach's
    norm a few for all tensors.
    """
    gr = torch.stack([torch.dot(g.view(-1), r.view(-1)) for g, r in zip(gradients, pulls, strict=True)])
    if _is_on_gpu(gradients):
        gg = torch.stack(torch._foreach_norm(gradients)).square()
        return [*torch.where(gg > 0, gr.clamp(max=0) / gg, 0.0).unbind()]
    gg = torch.stack([torch.dot(g.view(-1), g.view(-1)) for g in gradients])
    return torch.where(gg > 0, gr.clamp(max=0) / gg, 0.0).tolist()


def _is_on_gpu(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].is_cuda


def best_eager(p: ParameterSet) -> Step:
    """Foreach L2-SP, one dot a tensor, fused AdamW; g is added in place, and on a CPU only where it is in conflict."""
    adamw = torch.optim.AdamW(p.weights, lr=LR, weight_decay=0, fused=True)

    @torch.no_grad()
    def step() -> None:
        gradients = p.gradients
        distances = torch._foreach_sub(p.weights, p.starts)
        shares = _shares(gradients, distances)
        torch._foreach_add_(p.weights, distances, alpha=-LR * SP_DECAY)
        if _is_on_gpu(gradients):
            torch._foreach_addcmul_(p.weights, gradients, shares, value=LR * SP_DECAY)
        else:
            _add_in_conflict(p.weights, gradients, shares)
        adamw.step()

    return step


def _add_in_conflict(weights: Sequence[Tensor], gradients: Sequence[Tensor], shares: Sequence[float]) -> None:
    for w, g, share in zip(weights, gradients, shares, strict=True):
        if share:
            w.add_(g, alpha=LR * SP_DECAY * share)


def all_foreach(p: ParameterSet) -> Step:
    """Foreach wherever there is one: L2-SP, projection and AdamW; dots in a loop."""
    adamw = torch.optim.AdamW(p.weights, lr=LR, weight_decay=0, foreach=True)

    @torch.no_grad()
    def step() -> None:
        gradients = p.gradients
        pulls = torch._foreach_sub(p.weights, p.starts)
        torch._foreach_mul_(pulls, SP_DECAY)
        along = torch._foreach_mul(gradients, _shares(gradients, pulls))
        torch._foreach_sub_(pulls, along)
        torch._foreach_add_(p.weights, pulls, alpha=-LR)
        adamw.step()

    return step


def autograd(p: ParameterSet) -> Step:
    """The penalty through autograd, the projection tensor by tensor, clipping by global norm, then AdamW (fused)."""
    adamw = torch.optim.AdamW(p.weights, lr=LR, weight_decay=0, fused=True)

    def step() -> None:
        squares = [((w - w0) ** 2).sum() for w, w0 in zip(p.weights, p.starts, strict=True)]
        pulls = torch.autograd.grad(SP_DECAY / 2 * torch.stack(squares).sum(), p.weights)
        with torch.no_grad():
            for w, g, r in zip(p.weights, p.gradients, pulls, strict=True):
                dot = (g * r).sum()
                w.sub_(LR * (r - dot / (g * g).sum() * g if dot < 0 else r))
        clip_grad_norm_(p.weights, MAX_GRAD_NORM)
        adamw.step()

    return step


def compiled(p: ParameterSet) -> Step:
    """All of the step in one function under torch.compile: its second read makes r anew, so nothing is stored between.

    Faster than compiling the foreach form beside an AdamW of its own. What changes from step to step comes in tensors,
    else each step would be compiled anew.
    """
    weights = [w.detach() for w in p.weights]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    step_all = torch.compile(_step_all)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        size = torch.tensor(LR / (1 - _BETA1**count), device=p.device)
        root = torch.tensor((1 - _BETA2**count) ** -0.5, device=p.device)
        step_all([*zip(weights, p.gradients, p.starts, moments, strict=True)], size, root)

    return step


def _step_all(
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]], size: Tensor, root: Tensor
) -> None:
    for w, g, w0, (m, v) in tensors:
        r = w - w0
        gg = (g * g).sum()
        share = torch.where(gg > 0, (g * r).sum().clamp(max=0) / gg, 0.0)
        m.lerp_(g, 1 - _BETA1)
        v.mul_(_BETA2).addcmul_(g, g, value=1 - _BETA2)
        w.sub_(LR * SP_DECAY * (r - share * g) + size * m / (v.sqrt() * root + _EPS))
