"""The operations on features as they are written in PyTorch.

All take features x and the source's of one shape, and weights of the channels, which not all of them need.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pytl.ops.features import channel_dim_of
from pytl.ops.mmd import WIDTHS

TEMPERATURE = 4.0


def distance(x: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    dim = channel_dim_of(x)
    along = weights.view([-1 if d == dim else 1 for d in range(x.dim())])
    return 0.5 * (along * (x - source) ** 2).sum() / len(x)


def attention(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        theirs = _attention_map(source)
    return (_attention_map(x) - theirs).pow(2).mean()


def _attention_map(a: Tensor) -> Tensor:
    """As in the released code of Zagoruyko & Komodakis, whose positions are behind the channels."""
    return functional.normalize(a.pow(2).mean(channel_dim_of(a)).flatten(1))


def distillation(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    log_q, p = (x / TEMPERATURE).log_softmax(-1), (source / TEMPERATURE).softmax(-1)
    return functional.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def mmd(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    """All differences at once, [2n, 2n, d]: how the released code of deep adaptation networks has it."""
    points, n = torch.cat([x, source]), len(x)
    squared = ((points[None] - points[:, None]) ** 2).sum(2)
    scale = squared.detach().sum() / (len(points) * (len(points) - 1))
    kernel = torch.stack([torch.exp(-squared / (width * scale)) for width in WIDTHS]).sum(0)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def svd(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    """As in the released code of batch spectral shrinkage."""
    return torch.svd(x)[1][-1] ** 2


def svdvals(x: Tensor, source: Tensor, _: Tensor) -> Tensor:
    return torch.linalg.svdvals(x)[-1] ** 2
