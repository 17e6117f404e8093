"""Advice in words and numbers."""

from __future__ import annotations

import textwrap

from pytl.advice.evidence import Evidence
from pytl.advice.rules import Recommendation
from pytl.analysis.scores import MEASURES
from pytl.plan import TransferPlan

_WIDTH = 100
_NOTE = (
    "Brackets: 95% intervals over draws of 4/5 of the samples; ±: one standard error of the gain, LogME over that of "
    "new weights."
)


def written(plan: TransferPlan, said: Recommendation, evidence: Evidence) -> str:
    """The verdict, the reasons, the evidence by block, and the plan."""
    lines = [said.verdict, ""]
    for reason in said.reasons:
        lines += textwrap.wrap(f"{reason.choice}: {reason.value}; {reason.why}.", _WIDTH, subsequent_indent="  ")
    lines += ["", *_by_block(evidence), "", *textwrap.wrap(f"{_about(evidence)} {_NOTE}", _WIDTH)]
    for name, score in {**evidence.source_head, **evidence.domain}.items():
        lines.append(f"{MEASURES[name].title}: {score}")
    return "\n".join([*lines, "", str(plan)])


def _about(evidence: Evidence) -> str:
    return (
        f"{evidence.samples} samples, {evidence.classes} classes; {evidence.references} network"
        f"{'s' if evidence.references > 1 else ''} with new weights."
    )


def _by_block(evidence: Evidence) -> list[str]:
    """One line a block: the gain, then each measure."""
    names = list(evidence.layers[0].scores)
    rows = [["block", "gain", *(MEASURES[name].title for name in names)]]
    rows += [[layer.block, str(layer.gain), *(str(layer.scores[name]) for name in names)] for layer in evidence.layers]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
