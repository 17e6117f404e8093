from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytl.directions import Direction
from pytl.ops import adamw
from pytl.optim.base import Optimizer
from pytl.optim.options import number_or_tensor
from pytl.optim.start import Source, StartingPoint


class AdamW(Optimizer):
    """AdamW with L2-SP and a direction rule, in one read of the weights and one write. A drop-in for
    ``torch.optim.AdamW``.

    With g the task's gradient, ``r = sp_decay * (w - w0) + weight_decay * w`` and h the gradient of the penalties taken
    by ``take_penalty``:

    - decoupled (default): g and h feed the moments, and ``lr`` times r moves the weight beside them; h and r are joined
      with g each on its own;
    - coupled: ``d = c_g * g + c_r * (r + h)`` feeds the moments.

    Then ``w -= lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)``. The direction gives c_g and c_r. Moments are
    kept in float32 for 16-bit weights.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, fused, capturable, differentiable: as in
            torch; ``fused`` is the compiled core, ``foreach`` plain PyTorch, None the core where it serves the tensor.
            Every option is read from its group at each step. ``capturable`` changes nothing: steps on CUDA are.
        sp_decay: strength of the pull to the starting point (L2-SP: Li et al., ICML 2018, arXiv:1802.01483).
        decoupled: whether the pull stays out of the moments (Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101).
        direction, granularity, max_grad_norm, start, start_dtype, start_device, save_start, moments, compensated: as in
            ``pytl.SGD``.

    Raises:
        ValueError, TypeError, RuntimeError: as torch does, before anything is changed.
    """

    _run = staticmethod(adamw.run)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        sp_decay: float = 0,
        decoupled: bool = True,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
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
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def _options(self, group: dict[str, Any], gradient_factor: float) -> adamw.AdamWOptions:
        beta1, beta2 = group["betas"]
        return adamw.AdamWOptions(
            **self._common_options(group, gradient_factor),
            beta1=number_or_tensor(beta1),
            beta2=number_or_tensor(beta2),
            eps=group["eps"],
            amsgrad=group["amsgrad"],
        )
