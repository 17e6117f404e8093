"""A method's noise, placed in a model while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from pytl.noise import DropConnect, Dropout, Noise, StochasticDepth, disturbed
from pytl.training.methods import Method

Loss = Callable[[Tensor, Tensor], Tensor]

NOISE: dict[str, Callable[[nn.Module, float, str | None], Noise]] = {
    "dropout": lambda model, p, head: Dropout(model, p, head=head),
    "dropconnect": lambda model, p, head: DropConnect(model, p, head=head),
    "stochasticdepth": lambda model, p, head: StochasticDepth(model, p),
}
_LABELS = "disturblabel"


@contextmanager
def of(method: Method, model: nn.Module, head: str | None, loss: Loss) -> Iterator[Loss]:
    """Places the noise, and takes it away in the end.

    Yields:
        The loss to train with; labels are disturbed in it.
    """
    with ExitStack() as placed:
        for name, p in method.noise.items():
            if name != _LABELS:
                placed.enter_context(NOISE[name](model, p, head))
        yield disturbed(loss, method.noise[_LABELS]) if _LABELS in method.noise else loss
