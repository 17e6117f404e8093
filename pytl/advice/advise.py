"""`advise`: a source network and a target's data in; a plan, its reasons and its evidence out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytl.advice import figure, table
from pytl.advice.evidence import Evidence
from pytl.advice.gathering import Classifier, Question, gather
from pytl.advice.rules import AdviceRules, Recommendation, default_rules
from pytl.architecture import Head
from pytl.files import json_ready, replacing, writable_folder
from pytl.plan import TransferPlan
from pytl.plan.renewal import Fresh


@dataclass(frozen=True)
class Advice:
    """What to transfer, and why.

    Attributes:
        plan: for ``plan.apply(model)`` and ``pytl.finetune(plan=...)``.
        recommendation: the plan in numbers, a verdict, and a reason for each choice.
        evidence: what was measured.
    """

    plan: TransferPlan
    recommendation: Recommendation
    evidence: Evidence

    def __str__(self) -> str:
        return table.written(self.plan, self.recommendation, self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "plan": self.plan.to_dict(),
            "recommendation": self.recommendation.to_dict(),
            "evidence": self.evidence.to_dict(),
        }

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: how source and new weights fit the target, block by block, and what is transferred."""
        figure.draw(self.plan, self.evidence, Path(path))

    def save(self, folder: str | Path) -> Path:
        """Writes ``plan.yaml``, ``advice.json``, ``advice.txt`` and ``advice.png``; returns the plan's path."""
        folder = writable_folder(folder)
        for name, text in (
            ("advice.json", json.dumps(json_ready(self.to_dict()), indent=2)),
            ("advice.txt", str(self)),
        ):
            with replacing(folder / name) as file:
                file.write(f"{text}\n".encode())
        self.plot(folder / "advice.png")
        self.plan.save(folder / "plan.yaml")
        return folder / "plan.yaml"


def advise(
    model: nn.Module,
    data: Iterable[Any],
    *,
    head: Head | None = None,
    source_model: Classifier | None = None,
    source_data: Iterable[Any] | None = None,
    lr: float | None = None,
    rules: AdviceRules = default_rules,
    fresh: Fresh | None = None,
    references: int = 3,
    bootstrap: int = 30,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Advice:
    """How much of a source network to transfer, from what its features say of the target before any training.

    One pass of the network gives the features of every block (maps and tokens averaged, as heads see them), and each of
    ``references`` networks with new weights takes another. LogME, H-score, TransRate and kNN are measured by block.
    What decides is LogME over that of new weights, with its standard error over draws of the samples. Nothing is
    trained, and the model, its statistics and all random numbers stay as they are.

    Cost: 1 + ``references`` passes, and for each block about ``2 n d^2`` operations and the eigenvalues of a d x d
    matrix, ``1 + references`` times; draws are made of 256 directions at most. Memory: n times all widths, float32, as
    often, and two copies of the network.

    Args:
        model: the source network, with a new head for the target's classes.
        data: batches of the target's training data, as ``pytl.finetune`` takes them, without augmentation; never the
            test data.
        head: as in ``pytl.param_groups``.
        source_model: the source network with its own head, or a function of a batch's inputs: LEEP and NCE tell how
            near the source is.
        source_data: batches of the source: domain similarity, centroid distance and MMD, for the reader.
        lr: the plan's rate; None: the optimizer's.
        rules: evidence -> recommendation; see docs/transfer.md for the default ones and what they rest on.
        fresh: as in `pytl.plan.renew`.
        references: networks with new weights, >= 1.
        bootstrap: draws for standard errors, >= 2.
        seed: of new weights and draws.
        device: where to compute; None: where the model is.
        progress: a bar on a terminal.

    Raises:
        ValueError: labels outside of the model's classes, a class without samples, a loader that shuffles by a
            generator of its own, blocks without an output or an initialiser; arguments out of range.
    """
    if references < 1:
        raise ValueError(f"references must be >= 1; got {references}")
    if bootstrap < 2:
        raise ValueError(f"bootstrap must be >= 2; got {bootstrap}")
    place = torch.device(device) if device is not None else next((p.device for p in model.parameters()), None)
    if place is None:
        raise ValueError("model must have parameters; got none")
    model.to(place)
    asked = Question(model, data, head, source_model, source_data, fresh, references, bootstrap, seed, place, progress)
    evidence = gather(asked)
    said = rules(evidence)
    if lr is not None:
        said = replace(said, rules=replace(said.rules, lr=lr))
    return Advice(TransferPlan.from_rules(model, said.rules, head=head), said, evidence)
