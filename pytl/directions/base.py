"""What a direction rule is: Gram numbers in, the weights of ``d = c_g * g + c_r * r`` out."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_NORMAL = torch.finfo(torch.float64).tiny


def share(dot: Tensor, square: Tensor) -> Tensor:
    """``dot / square``: how much of a vector of squared norm ``square`` lies in another.

    0 where that says nothing: a square that is zero, subnormal or not finite, or a quotient beyond float64.
    """
    quotient = dot / square
    known = (square >= _SMALLEST_NORMAL) & square.isfinite() & quotient.isfinite()
    return torch.where(known, quotient, 0.0)


class Direction:
    """A rule that joins the task's gradient g and the regulariser's r into one direction ``d = c_g * g + c_r * r``.

    A rule of your own is a subclass with one method; give an instance as ``direction=`` to ``pytl.SGD`` or
    ``pytl.AdamW``, for all parameters or for one group:

        class Cautious(pytl.Direction):
            "Takes the regulariser only where it does not oppose the task."
            def weights(self, gg, gr, rr):
                return torch.ones_like(gg), (gr >= 0).double()
    """

    rule: str | None = None
    """The name of the same formula in the compiled core, where it has one."""

    def __init_subclass__(cls) -> None:
        if "weights" in vars(cls) and "rule" not in vars(cls):
            cls.rule = None  # another formula than the one it inherits

    @property
    def name(self) -> str:
        """What reports and checkpoints call this rule."""
        return self.rule or type(self).__name__

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        """The weights ``(c_g, c_r)`` for the sums <g,g>, <g,r>, <r,r>: float64 ``[n]`` each, in and out."""
        raise TypeError(f"{type(self).__name__} must define weights(gg, gr, rr); Direction itself is no rule")

    def __call__(self, gram: Tensor) -> Tensor:
        """The weights for Gram numbers ``[n, 3]`` as float64 ``[n, 2]``; 1 where the rule gives no finite number."""
        weights = torch.stack(self.weights(*gram.unbind(-1)), dim=-1)
        if weights.shape != (len(gram), 2):
            raise ValueError(
                f"{self.name}.weights must give two tensors of shape [{len(gram)}]; got {[*weights.shape[:-1]]}"
            )
        return torch.where(weights.isfinite(), weights, 1.0).to(gram)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
