"""From evidence to a plan: the rules that `pytl.advise` goes by. What they rest on is in docs/transfer.md.

A rule of your own is a function of `Evidence` that returns a `Recommendation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pytl.advice.evidence import Evidence
from pytl.plan import Rules

WEIGHT_DECAY = SP_DECAY = 0.03  # plain's and L2-SP's best on the digits: benchmarks/tune_digits.py
_NEAR = 0.5  # of what there is to know of the labels, told by the source head
_MOST_RENEWED = 0.5  # of the blocks: beyond, 90 images could not teach new ones on any of the digit tasks


@dataclass(frozen=True)
class Reason:
    """One choice: what it is about, what was chosen, and why, in words and figures."""

    choice: str
    value: str
    why: str


@dataclass(frozen=True)
class Recommendation:
    """What rules say.

    Attributes:
        rules: the plan in numbers.
        verdict: in one sentence.
        reasons: one a choice.
    """

    rules: Rules
    verdict: str
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


AdviceRules = Callable[[Evidence], Recommendation]


def default_rules(evidence: Evidence) -> Recommendation:
    """The deepest blocks that bring nothing are renewed; low ones are held to the start where the source is near."""
    renewed, blocks = _renewed(evidence)
    boundary, pulls = _pulls(evidence, len(evidence.layers) - renewed, near=_is_near(evidence, renewed))
    rules = Rules(
        new_blocks=renewed + 1,
        boundary=boundary,
        sp_decay=SP_DECAY if boundary else 0.0,
        weight_decay=WEIGHT_DECAY,
    )
    rates = Reason("rates", "one for all", "no evidence for others: on the digits slower low blocks were no better")
    return Recommendation(rules, _verdict(evidence, renewed), (blocks, pulls, rates))


def _renewed(evidence: Evidence) -> tuple[int, Reason]:
    """How many of the deepest blocks are re-initialised: those above the deepest one where the source clearly helps."""
    layers = evidence.layers
    most = int(_MOST_RENEWED * len(layers))
    useless = next((i for i, layer in enumerate(reversed(layers)) if layer.gain.clear), len(layers))
    count = min(useless, most)
    top = layers[len(layers) - 1 - count]
    if not count:
        why = f"LogME of the source's features at {top.block} is above that of new weights by {top.gain}"
    else:
        gone = ", ".join(f"{layer.block} {layer.gain}" for layer in layers[len(layers) - count :])
        why = f"LogME over that of new weights is not clearly above 0 at {gone}"
        if useless > most:
            why += f"; no more than {_MOST_RENEWED:.0%} of the blocks are renewed, for the lowest learn slowest"
        else:
            why += f", and is at {top.block}: {top.gain}"
    return count, Reason("blocks", f"{len(layers) - count} of {len(layers)} transferred", why)


def _is_near(evidence: Evidence, renewed: int) -> bool:
    if evidence.label_information is None:
        return not renewed
    return evidence.label_information >= _NEAR


def _pulls(evidence: Evidence, kept: int, near: bool) -> tuple[int, Reason]:
    """How many of the lowest blocks are pulled to the start."""
    known = evidence.label_information
    if known is None:
        seen = "all blocks bring something" if near else "some blocks bring nothing"
    else:
        seen = f"the source head's answers tell {known:.0%} of the labels"
    if near:
        low = (kept + 1) // 2
        value = f"L2-SP {SP_DECAY:g} on the lowest {low}, L2 {WEIGHT_DECAY:g} on the others"
        return low, Reason("pulls", value, f"the source is near: {seen}")
    return 0, Reason("pulls", f"L2 {WEIGHT_DECAY:g}", f"the source is far: {seen}")


def _verdict(evidence: Evidence, renewed: int) -> str:
    top, most = evidence.layers[-1], int(_MOST_RENEWED * len(evidence.layers))
    if not renewed:
        return "Transfer all blocks: the source helps up to the head."
    if renewed < most:
        return f"Transfer less: the deepest {renewed} of {len(evidence.layers)} blocks bring nothing."
    worse = "fit the target worse than" if top.gain.harmful else "fit the target no better than"
    return f"Transfer less: the source is unsuitable, its deepest features {worse} new weights'."
