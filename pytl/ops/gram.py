from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pytl.directions import find
from pytl.ops.operands import GroupOptions, Operands
from pytl.ops.step import look
from pytl.ops.tensor_list import TensorList, place


def gram(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    starts: Sequence[Tensor | None] | None = None,
    penalties: Sequence[Tensor | None] | None = None,
    *,
    sp_decay: float = 0.0,
    weight_decay: float = 0.0,
    fused: bool | None = None,
) -> Tensor:
    """The Gram numbers <g,g>, <g,r>, <r,r> of each tensor, in one read of the operands.

    ``r = sp_decay * (w - w0) + weight_decay * w + h`` with w of ``params``, g of ``grads``, w0 of ``starts`` and h of
    ``penalties``; what is absent (None) contributes nothing.

    Args:
        params: weights in float32, bfloat16, float16 or float64; any shape, dense or not.
        grads: gradients of the task's loss, shapes and dtypes as ``params``.
        starts: starting points, shapes as ``params``, any floating dtype.
        penalties: gradients of feature penalties, shapes and dtypes as ``params``.
        fused: True: the compiled core; False: PyTorch; None: the core where it serves the tensors.

    Returns:
        float64 ``[n, 3]``, summed in float64 in an order that does not depend on the number of threads.

    Raises:
        ValueError, TypeError, RuntimeError: operands that disagree in number, shape, dtype or device.
    """
    operands = Operands.lists(params, grads, start=starts, penalty=penalties)
    group = GroupOptions(0.0, sp_decay, weight_decay, False, find("sum"), "tensor", 1.0)
    tensors = TensorList(operands, on_core=place(operands, fused))
    look(tensors, [group])
    return tensors.rows[:, :3].contiguous()
