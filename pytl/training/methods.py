"""Fine-tuning methods by name: a few options of an optimizer, regularisers beside it, and ``+`` joins them.

A new method is a line in `METHODS`. ``delta+dtnh`` takes what each part sets.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pytl.optim.adamw import AdamW
from pytl.optim.groups import param_groups
from pytl.optim.sgd import SGD
from pytl.plan import ALL, Rules, TransferPlan

GIVEN = "given"
_ON_WEIGHTS = {"l1sp", "grouplassosp", "l2spfisher"}
_OPTIONS = ("direction", "sp_decay", "weight_decay", "head_weight_decay", "periods", "cycles")

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": partial(SGD, momentum=0.9), "adamw": AdamW}


@dataclass(frozen=True)
class Method:
    """What a method asks for; None leaves an option to the other parts, and then to the defaults.

    Attributes:
        name: as written on the command line.
        summary: in plain words, for tables and reports.
        direction: how the gradients of the task and of the regulariser are joined; ``"sum"`` by default.
        sp_decay: strength of the pull to the starting point (L2-SP), on transferred weights; 0 by default.
        weight_decay: strength of the pull to zero (L2), on transferred weights; 0 by default.
        head_weight_decay: the same for the new head; `weight_decay` by default.
        periods: of RIFLE, at the end of each but the last the head is re-initialised; 1 by default.
        cycles: of the learning rate, which restarts at the beginning of each; 1 by default.
        penalties: strengths of the regularisers beside the optimizer's, by their names.
        noise: probabilities of what is dropped or disturbed in training, by their names.
        plan: what is transferred, block by block, with rates and pulls in place of those above; ``"given"``: the one
            that a run is given.
    """

    name: str
    summary: str = ""
    direction: str | None = None
    sp_decay: float | None = None
    weight_decay: float | None = None
    head_weight_decay: float | None = None
    periods: int | None = None
    cycles: int | None = None
    penalties: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    plan: TransferPlan | Rules | str | None = None

    def options(self) -> dict[str, float | str]:
        """What the method sets, by option."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: values[name] for name in _OPTIONS if values[name] is not None}

    @property
    def pulls(self) -> bool:
        """Whether it pulls transferred weights, to zero or to their start."""
        return bool(self.sp_decay or self.weight_decay or self.penalties.keys() & _ON_WEIGHTS)

    @property
    def strengths(self) -> dict[str, float | str]:
        """All that it sets, for a reader."""
        strengths = {f"strength of {name}": value for name, value in self.penalties.items()}
        return self.options() | strengths | {f"probability of {name}": p for name, p in self.noise.items()}

    def with_plan(self, plan: TransferPlan | None) -> "Method":
        """The method with the plan that a run is given, where it asks for one.

        Raises:
            ValueError: it asks for one and there is none, or the other way round.
        """
        if (plan is not None) != (self.plan == GIVEN):
            given = "none" if plan is None else "one"
            raise ValueError(
                f"plan and a method that takes it, as 'plan' or 'plan+dtnh', go together; got {given} "
                f"with method {self.name!r}"
            )
        if plan is not None and None not in (plan.direction, self.direction) and plan.direction != self.direction:
            raise ValueError(f"method must have the plan's direction, {plan.direction}; got {self.name!r}")
        return self if plan is None else replace(self, plan=plan)

    def optimizer(self, model: nn.Module, kind: str, lr: float, head: str | None = None, seed: int = 0) -> Optimizer:
        """The optimizer that takes this method's steps; blocks that the method's plan renews are renewed.

        Args:
            model: its parameters that require a gradient are trained.
            kind: ``"sgd"`` (momentum 0.9; the pull passes through the momentum) or ``"adamw"`` (decoupled).
            lr: learning rate of all parameters, where a plan does not say otherwise.
            head: name of the new head's module; None: found by `pytl.param_groups`.
            seed: of new weights.
        """
        if kind not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {kind!r}")
        if self.plan is None:
            groups = param_groups(
                model,
                head=head,
                sp_decay=self.sp_decay or 0.0,
                weight_decay=self.weight_decay or 0.0,
                head_weight_decay=self.head_weight_decay,
                verbose=False,
            )
        else:
            plan = TransferPlan.from_rules(model, self.plan, head=head) if isinstance(self.plan, Rules) else self.plan
            assert isinstance(plan, TransferPlan), "with_plan puts in the one that is given"
            groups = plan.apply(model, head=head, seed=seed, verbose=False)
        return OPTIMIZERS[kind](groups, lr, direction=self.direction or "sum")


# Chosen on the digits, on seeds and images that no reported run uses: benchmarks/tune_digits.py. Weight decay is
# plain's best, and every method's on the head, so that methods differ only in what they do to transferred weights.
_WEIGHT_DECAY = 0.03
_SP_DECAY = 0.03
_HEAD: dict[str, Any] = {"head_weight_decay": _WEIGHT_DECAY}


def _held(name: str, summary: str, strength: float) -> Method:
    return Method(name, summary, penalties={name: strength}, **_HEAD)


def _noisy(name: str, summary: str, p: float) -> Method:
    return Method(name, summary, noise={name: p}, **_HEAD)


METHODS = {
    method.name: method
    for method in (
        Method("plain", "pulled to zero as usual, by weight decay", direction="sum", weight_decay=_WEIGHT_DECAY),
        Method("l2", "pulled to zero, with any direction", weight_decay=_WEIGHT_DECAY),
        Method("l2sp", "pulled to the starting point", sp_decay=_SP_DECAY, **_HEAD),
        Method("dtnh", "never against the task", direction="dtnh", **_HEAD),
        Method("grod", "only across the task's gradient", direction="grod", **_HEAD),
        Method("pcgrad", "task and regulariser each projected off the other", direction="pcgrad", **_HEAD),
        Method("scratch", "all weights new, free of pulls", plan=Rules(ALL)),
        Method("plan", "as its plan says, block by block", plan=GIVEN),
        Method("rifle", "the head re-initialised half-way", periods=2, **_HEAD),
        Method("cycliclr", "the learning rate restarted three times on the way", cycles=4, **_HEAD),
        _noisy("dropout", "pooled features dropped", 0.2),
        _noisy("dropconnect", "weights of the head dropped", 0.2),
        _noisy("stochasticdepth", "residual branches dropped, the more often the deeper", 0.1),
        _noisy("disturblabel", "labels drawn anew", 0.05),
        _held("delta", "features held, channel by channel as it matters for the task", 0.01),
        _held("delta-first-order", "as delta, with an estimate of how channels matter", 0.01),
        _held("at", "attention maps held", 10.0),
        _held("distillation", "features of the stages held", 0.01),
        _held("tred", "features held to what the target needs of the source's, by Max-MMD and Min-MI", 0.001),
        _held("tred-max-mmd", "as tred, by Max-MMD", 0.001),
        _held("tred-min-mi", "as tred, by Min-MI", 0.001),
        _held("l1sp", "pulled to the starting point by the L1 norm", 1e-4),
        _held("grouplassosp", "pulled to the starting point filter by filter", 1e-5),
        _held("l2spfisher", "pulled to the starting point as each weight matters for the start's answers", 10.0),
        Method(
            "bss",
            "pulled to zero, and the smallest singular values of the features taken away",
            weight_decay=_WEIGHT_DECAY,
            penalties={"bss": 0.3},
        ),
    )
}


def parse(text: str) -> Method:
    """The method called `text`, one of `METHODS` or several joined by ``+``.

    Where two parts give a strength the left one's holds; two different directions are an error. A direction without a
    regulariser to direct gets the pull to the starting point: ``dtnh`` is ``l2sp+dtnh``, ``delta+dtnh`` has no pull.
    What asks for nothing on the weights gets plain's weight decay: ``rifle`` is ``l2+rifle``. ``plan`` and ``scratch``
    have pulls of their own.

    Raises:
        ValueError: an unknown name, parts that ask for different directions, or pulls beside a plan's.
    """
    parts = [_known(name) for name in text.split("+")]
    plans = [part for part in parts if part.plan is not None]
    if plans and (others := [part.name for part in parts if part.pulls or part in plans[1:]]):
        raise ValueError(
            f"method must have one set of pulls; got {text!r}: {plans[0].name} has its own beside {', '.join(others)}"
        )
    directions = {part.direction for part in parts} - {None}
    if len(directions) > 1:
        raise ValueError(f"method must have one direction; got {text!r} with {', '.join(sorted(map(str, directions)))}")
    joined: dict[str, Any] = {}
    penalties: dict[str, float] = {}
    noise: dict[str, float] = {}
    for part in parts:
        joined = {**part.options(), **joined}
        penalties = {**penalties, **part.penalties, **penalties}
        noise = {**noise, **part.noise, **noise}
    if plans:
        return replace(
            Method(text, _summary(parts, joined, penalties)),
            **joined,
            penalties=penalties,
            noise=noise,
            plan=plans[0].plan,
        )
    if directions - {"sum"} and not penalties:
        joined.setdefault("sp_decay", _SP_DECAY)
    if not penalties and not {"sp_decay", "weight_decay"} & joined.keys():
        joined["weight_decay"] = _WEIGHT_DECAY
    return replace(Method(text, _summary(parts, joined, penalties)), **joined, penalties=penalties, noise=noise)


def _summary(parts: Iterable[Method], joined: Mapping[str, Any], penalties: Mapping[str, float]) -> str:
    parts = list(parts)
    alone = "sp_decay" in joined and not any(part.sp_decay for part in parts)
    texts = ["pulled to the starting point"] * alone + [part.summary for part in parts]
    return ", and ".join(texts) if len(parts) > 1 else ", but ".join(texts)


def parse_all(texts: Iterable[str]) -> tuple[Method, ...]:
    """`parse` for each text; a method that is named twice is taken once."""
    return tuple(parse(text) for text in dict.fromkeys(texts))


def _known(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, or several joined by '+'; got {name!r}")
    return METHODS[name]
