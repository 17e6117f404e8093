"""L2-SP-Fisher, or elastic weight consolidation: what mattered to the source stays nearest to where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pytl.architecture import Head, unwrapped
from pytl.regularizers.weights import WeightRegularizer, changes, check_pairs, matching, total


def l2_sp_fisher(weights: Sequence[Tensor], starts: Sequence[Tensor], fisher: Sequence[Tensor]) -> Tensor:
    """``1/2 * sum F * (w - w0)^2`` over all elements of all tensors, F the diagonal Fisher information at w0.

    L2-SP-Fisher in Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018,
    arXiv:1802.01483; elastic weight consolidation (EWC) in Kirkpatrick et al., "Overcoming catastrophic forgetting in
    neural networks", PNAS 2017, arXiv:1612.00796. The released code of L2-SP adds a constant to F or clips it; do so
    to `fisher` beforehand if you want it. With F = 1 this is L2-SP, which the optimizers' ``sp_decay`` has for nothing.

    Args:
        weights: floating point tensors of any shape.
        starts: w0, one for each weight, of its shape and on its device; any floating point dtype.
        fisher: F, likewise; meant to be >= 0, which is not checked here.

    Returns:
        0-dim, on the first weight's device; float32, or float64 where a weight is.

    Raises:
        ValueError: numbers or shapes of tensors disagree.
        TypeError: a tensor that is not floating point.
    """
    check_pairs(weights, fisher, "fisher")
    pairs = zip(changes(weights, starts), fisher, strict=True)
    return total([0.5 * (f.to(change.dtype) * change.square()).sum() for change, f in pairs])


class L2SPFisher(WeightRegularizer):
    """``strength`` times ``l2_sp_fisher`` over the transferred weights.

    ``fisher_diagonal`` gives a mean over samples; with a sum over N samples the same strength weighs N times more.

    Args:
        fisher: F by parameter name, of the weights' shapes, finite and >= 0; of any device, copied. What it holds for
            the head is left alone.
        model, strength, start, head, decay_norm_and_bias: as in ``WeightRegularizer``.

    Raises:
        ValueError: as in ``WeightRegularizer``, for `fisher` too; a negative or not finite element of `fisher`.
        TypeError: a start or a `fisher` that is no mapping to tensors.
    """

    name = "l2spfisher"
    formula = staticmethod(l2_sp_fisher)

    def __init__(
        self,
        model: nn.Module,
        fisher: Mapping[str, Tensor],
        strength: float,
        *,
        start: Mapping[str, Tensor] | None = None,
        head: Head | None = None,
        decay_norm_and_bias: bool = False,
    ) -> None:
        super().__init__(model, strength, start=start, head=head, decay_norm_and_bias=decay_norm_and_bias)
        self.operands.append(matching(self.weights, fisher, "fisher", unwrapped(model)))
        for name, information in self.operands[1].items():
            if not bool((information.isfinite() & (information >= 0)).all()):
                raise ValueError(f"fisher must be finite and >= 0; got {_worst(information)} in {name}")


def _worst(information: Tensor) -> float:
    """An element that is not finite, or else the least."""
    odd = information[~information.isfinite()]
    return (odd[0] if odd.numel() else information.min()).item()
