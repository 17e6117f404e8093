"""The targets in a few lines, one each: for a reader who sees the end of the output alone."""

from collections.abc import Sequence

from pytl.benchmark.case import Case
from pytl.benchmark.contenders import CONTENDERS
from pytl.benchmark.pairing import Pairing
from pytl.benchmark.records import Comparison, NotTimed

MOST_LINES = 15
_LONGEST_REASON = 40


def lines(
    selected: Sequence[tuple[Case, Pairing]], comparisons: Sequence[Comparison], not_timed: Sequence[NotTimed]
) -> list[str]:
    """One line a target, with what was found on each list of shapes; before them, how many failed to be timed."""
    targets: dict[tuple[str, str, str], list[str]] = {}
    for case, pairing in selected:
        if pairing.target:
            line = (str(pairing.target), pairing.ours, pairing.rival)
            targets.setdefault(line, []).append(_found(case, pairing, comparisons, not_timed))
    faults = sum(one.is_failure for one in not_timed)
    head = f"targets, of {len(comparisons)} timed pairings; not timed: {len(not_timed)}, {faults} by a fault"
    return [head, *(_line(*target, found) for target, found in targets.items())][:MOST_LINES]


def _line(target: str, ours: str, rival: str, found: Sequence[str]) -> str:
    verdict = next((word for word in ("MISSED", "NOT TIMED") if any(word in one for one in found)), "met")
    pair = f"{CONTENDERS[ours].words} / {CONTENDERS[rival].words}"
    return f"{verdict:9} {target:25} {pair}: {'; '.join(found)}"


def _found(case: Case, pairing: Pairing, comparisons: Sequence[Comparison], not_timed: Sequence[NotTimed]) -> str:
    for one in comparisons:
        if (one.case, one.ours.name, one.rival.name) == (case.name, pairing.ours, pairing.rival) and one.verdict:
            return f"{one.words} {one.verdict.found}{' MISSED' * (not one.verdict.met)}"
    words = CONTENDERS[pairing.ours].words, CONTENDERS[pairing.rival].words
    reasons = [one.reason for one in not_timed if (one.case, one.ours, one.rival) == (case.name, *words)]
    return f"{case.words} NOT TIMED{''.join(f', {reason[:_LONGEST_REASON]}' for reason in reasons)}"
