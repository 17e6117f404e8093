"""Fine-tuning methods by name: each is a few options of an optimizer, and ``+`` joins them.

A new method is a line in `METHODS`. ``l2sp+dtnh`` takes what each part sets.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pytl.optim.adamw import AdamW
from pytl.optim.groups import param_groups
from pytl.optim.sgd import SGD

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": partial(SGD, momentum=0.9), "adamw": AdamW}


@dataclass(frozen=True)
class Method:
    """What a method asks of the optimizer; None leaves an option to the other parts, and then to the defaults.

    Attributes:
        name: as written on the command line.
        summary: in plain words, for tables and reports.
        direction: how the gradients of the task and of the regulariser are joined; ``"sum"`` by default.
        sp_decay: strength of the pull to the starting point (L2-SP), on transferred weights; 0 by default.
        weight_decay: strength of the pull to zero (L2), on transferred weights; 0 by default.
        head_weight_decay: the same for the new head; `weight_decay` by default.
    """

    name: str
    summary: str = ""
    direction: str | None = None
    sp_decay: float | None = None
    weight_decay: float | None = None
    head_weight_decay: float | None = None

    def options(self) -> dict[str, float | str]:
        """What the method sets, by option."""
        values = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name: value for name, value in values.items() if value is not None}

    def optimizer(self, model: nn.Module, kind: str, lr: float, head: str | None = None) -> Optimizer:
        """The optimizer that takes this method's steps.

        Args:
            model: its parameters that require a gradient are trained.
            kind: ``"sgd"`` (momentum 0.9; the pull passes through the momentum) or ``"adamw"`` (decoupled).
            lr: learning rate of all parameters.
            head: name of the new head's module; None: found by `pytl.param_groups`.
        """
        if kind not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {kind!r}")
        groups = param_groups(
            model,
            head=head,
            sp_decay=self.sp_decay or 0.0,
            weight_decay=self.weight_decay or 0.0,
            head_weight_decay=self.head_weight_decay,
            verbose=False,
        )
        return OPTIMIZERS[kind](groups, lr, direction=self.direction or "sum")


# Chosen on the digits, on seeds and images that no reported run uses: benchmarks/tune_digits.py. Weight decay is
# plain's best, and every method's on the head, so that methods differ only in what they do to transferred weights.
_WEIGHT_DECAY = 0.03
_SP_DECAY = 0.01
_PULL: dict[str, Any] = {"sp_decay": _SP_DECAY, "head_weight_decay": _WEIGHT_DECAY}

METHODS = {
    method.name: method
    for method in (
        Method("plain", "pulled to zero as usual, by weight decay", direction="sum", weight_decay=_WEIGHT_DECAY),
        Method("l2", "pulled to zero, with any direction", weight_decay=_WEIGHT_DECAY),
        Method("l2sp", "pulled to the starting point", **_PULL),
        Method("dtnh", "pulled to the starting point, but never against the task", direction="dtnh", **_PULL),
        Method("grod", "pulled to the starting point, only across the task's gradient", direction="grod", **_PULL),
        Method("pcgrad", "task and pull each projected off the other", direction="pcgrad", **_PULL),
    )
}


def parse(text: str) -> Method:
    """The method called `text`, one of `METHODS` or several joined by ``+``.

    Where two parts give a strength the left one's holds; two different directions are an error.

    Raises:
        ValueError: an unknown name, or parts that ask for different directions.
    """
    parts = [_known(name) for name in text.split("+")]
    directions = {part.direction for part in parts} - {None}
    if len(directions) > 1:
        raise ValueError(f"method must have one direction; got {text!r} with {', '.join(sorted(map(str, directions)))}")
    joined: dict[str, float | str] = {}
    for part in parts:
        joined = {**part.options(), **joined}
    return replace(Method(text, ", and ".join(part.summary for part in parts)), **joined)  # type: ignore[arg-type]


def parse_all(texts: Iterable[str]) -> tuple[Method, ...]:
    """`parse` for each text; a method that is named twice is taken once."""
    return tuple(parse(text) for text in dict.fromkeys(texts))


def _known(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, or several joined by '+'; got {name!r}")
    return METHODS[name]
