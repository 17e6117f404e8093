"""What the last step saw, by tensor and in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pytl.ops.operands import compute_dtype
from pytl.optim.members import Member
from pytl.optim.plan import Plan
from pytl.optim.sharding import RankSums, here


@dataclass(frozen=True)
class Report:
    """The numbers of one step; lists are in parameter order."""

    names: list[str]
    cosine: list[float]
    """cos(g, r) of each tensor, in [-1, 1]; NaN where g or r is 0."""
    conflict_rate: float
    """Share of the tensors with r != 0 whose <g,r> < 0; NaN where there are none."""
    penalty: float
    """``sum of sp_decay/2 |w - w0|^2 + weight_decay/2 |w|^2`` over all tensors, at the weights of now."""
    distance: list[float]
    """|w - w0| of each tensor, at the weights of now; 0 where there is no starting point."""
    nonfinite: int
    """How many tensors had a gradient that is not finite."""
    start_bytes: int
    """Memory that the starting points take, on this rank."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        share = "no regulariser" if self.conflict_rate != self.conflict_rate else f"conflict {self.conflict_rate:.0%}"
        total = sum(d * d for d in self.distance) ** 0.5
        numbers = f"penalty {self.penalty:.4g}, |w - w0| {total:.4g}, {self.nonfinite} not finite"
        return f"{len(self.names)} tensors: {share}, {numbers}"


@torch.no_grad()
def make_report(
    plan: Plan,
    members: Sequence[Member],
    groups: Sequence[Mapping[str, Any]],
) -> Report:
    """One synchronisation: everything is gathered on the device and read at once."""
    gg, gr, rr = plan.gram[:, :3].unbind(1)
    pulled = rr > 0
    starts = [plan.starts.get(i) for i in range(len(members))]
    numbers = [_numbers(p, start, plan.gram.device) for (_, _, p), start in zip(members, starts, strict=True)]
    squares = torch.stack(numbers)
    RankSums([p for _, _, p in members]).over(squares)
    distance, norm = squares.sqrt().unbind(1)
    sp_decay = norm.new_tensor([float(groups[k]["sp_decay"]) for k, _, _ in members])
    weight_decay = norm.new_tensor([float(groups[k]["weight_decay"]) for k, _, _ in members])
    return Report(
        names=[name for _, name, _ in members],
        cosine=(gr / (gg.sqrt() * rr.sqrt())).tolist(),
        conflict_rate=float((gr[pulled] < 0).double().mean()),
        penalty=float((sp_decay * distance**2 + weight_decay * norm**2).sum() / 2),
        distance=distance.tolist(),
        nonfinite=int((~gg.isfinite()).sum()),
        start_bytes=sum(start.nbytes for start in starts if start is not None),
    )


def _numbers(p: Tensor, start: Tensor | None, device: torch.device) -> Tensor:
    """``[|w - w0|^2, |w|^2]`` of the parameter's part on this rank."""
    w = here(p).to(compute_dtype(p.dtype))
    apart = w - start.to(w) if start is not None else w.new_zeros(())
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in (apart, w)]
    return torch.stack(norms).square().to(device)
