from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytl.directions import Direction
from pytl.ops import sgd
from pytl.optim.base import Optimizer
from pytl.optim.start import Source, StartingPoint


class SGD(Optimizer):
    """SGD with L2-SP and a direction rule, in one read of the weights and one write. A drop-in for ``torch.optim.SGD``.

    With g the task's gradient, ``r = sp_decay * (w - w0) + weight_decay * w`` and h the gradient of the penalties taken
    by ``take_penalty``:

    - coupled (default): ``d = c_g * g + c_r * (r + h)`` feeds the momentum;
    - decoupled: g and h do, and ``lr`` times r moves the weight beside it; h and r are joined with g each on its own.

    Then ``b = momentum * b + (1 - dampening) * d`` and ``w -= lr * b``. The direction gives c_g and c_r.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, fused, capturable, differentiable:
            as in torch; ``fused`` is the compiled core, ``foreach`` plain PyTorch, None the core where it serves the
            tensor. Every option is read from its group at each step. ``capturable`` changes nothing: steps on CUDA are.
        sp_decay: strength of the pull to the starting point (L2-SP: Li et al., ICML 2018, arXiv:1802.01483).
        decoupled: whether the pull stays out of the momentum.
        direction: "sum", "dtnh", "grod", "pcgrad" or a ``pytl.Direction``.
        granularity: "tensor" or "global": what the Gram numbers are summed over.
        max_grad_norm: bound on the norm of what feeds the momentum, over all groups.
        start: the starting point w0: None (the weights at the first step), a mapping from names to tensors, or a path.
        start_dtype: dtype of w0; "auto": bfloat16 where that is lossless.
        start_device: where w0 is kept; None: with the weights. "cpu" for weights on a GPU: in pinned memory, brought
            window by window ahead of the step. "disk": in the files of ``start``, which must not change meanwhile.
        save_start: whether ``state_dict`` holds w0; False, and for "disk": a resumed run reads it from ``start`` again,
            where it must have the norms that it had.
        moments: what they are kept in: "float32", "bfloat16" or "8bit" (blockwise: Dettmers et al., ICLR 2022,
            arXiv:2110.02861), rounded at random so that small changes count on average.
        compensated: Kahan summation; None: for 16-bit weights.

    Raises:
        ValueError, TypeError, RuntimeError: as torch does, before anything is changed.
    """

    _run = staticmethod(sgd.run)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        sp_decay: float = 0,
        decoupled: bool = False,
        direction: str | Direction = "sum",
        granularity: str = "tensor",
        max_grad_norm: float | None = None,
        start: Source = None,
        start_dtype: torch.dtype | str = "auto",
        start_device: torch.device | str | None = None,
        save_start: bool = True,
        moments: str = "float32",
        compensated: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "sp_decay": sp_decay,
            "decoupled": decoupled,
            "direction": direction,
            "granularity": granularity,
            "moments": moments,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(
            params,
            defaults,
            start=StartingPoint(start, start_dtype, start_device, save_start),
            compensated=compensated,
            max_grad_norm=max_grad_norm,
        )

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _options(self, group: dict[str, Any], gradient_factor: float) -> sgd.SGDOptions:
        return sgd.SGDOptions(
            **self._common_options(group, gradient_factor),
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
        )
