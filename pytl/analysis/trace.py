"""What a `pytl.Recorder` wrote, by block and step: distance, gradients and conflict over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytl import metrics, pictures
from pytl.depth import HEAD

QUANTITIES = {
    "distance": "|w - w0|",
    "gradient": "gradient norm",
    "cosine": "cosine of task and regulariser",
    "penalty_cosine": "cosine of task and penalty",
}


@dataclass(frozen=True)
class Trace:
    """A run's recorded steps.

    Attributes:
        steps: of the lines, ascending.
        loss: of each step's batch.
        values: quantity -> block -> one number a step; nan where none was recorded. Blocks from the input on.
    """

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    values: dict[str, dict[str, tuple[float, ...]]]

    def total(self, quantity: str) -> tuple[float, ...]:
        """Of a norm, over all blocks but the head, at each step."""
        body = [values for block, values in self.values[quantity].items() if block != HEAD]
        return tuple(math.hypot(*at_one) for at_one in zip(*body, strict=True))

    def conflict(self) -> dict[str, float]:
        """Block -> the share of recorded steps in which regulariser and task are opposed; nan where there are none."""
        found = {}
        for block, cosines in self.values.get("cosine", {}).items():
            felt = [cosine for cosine in cosines if math.isfinite(cosine)]
            found[block] = sum(cosine < 0 for cosine in felt) / len(felt) if felt else math.nan
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def plot(self, path: str | Path, quantity: str = "cosine") -> None:
        """Draws a PNG: a heat map, blocks by steps."""
        with pictures.drawing(path, 1.4 + 0.28 * len(self.values.get(quantity, ()))) as figure:
            heat_map(figure, figure.subplots(), self, quantity)


def read_trace(run: str | Path) -> Trace:
    """The recorded steps of a run's folder, or of a ``metrics.jsonl``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, a step is no number of one, or there are no recorded steps.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"run must be a folder with metrics.jsonl, or such a file; {path} does not exist")
    records = [record for record in metrics.read(path) if "step" in record]
    if not records:
        raise ValueError(f"run must be recorded, by finetune(record=10) or a Recorder; {path} has no steps")
    keys = list(dict.fromkeys(key for record in records for key in record if "/" in key))
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    for quantity in QUANTITIES:
        for key in (key for key in keys if key.startswith(f"{quantity}/")):
            values.setdefault(quantity, {})[key.partition("/")[2]] = tuple(_number(record, key) for record in records)
    return Trace(tuple(_step(r, path) for r in records), tuple(_number(r, "loss") for r in records), values)


def _step(record: Mapping[str, float | int | None], path: Path) -> int:
    step = record["step"] or 0
    if not math.isfinite(step):
        raise ValueError(f"run must have a finite number for each step; {path} has {step}")
    return int(step)


def _number(record: Mapping[str, float | int | None], key: str) -> float:
    value = record.get(key)
    return math.nan if value is None else float(value)


def heat_map(figure: Any, axes: Any, trace: Trace, quantity: str) -> None:
    """Blocks by steps; cosines from -1, in conflict, to 1.

    Raises:
        ValueError: the quantity was not recorded.
    """
    if quantity not in trace.values:
        raise ValueError(f"quantity must be one of those recorded, {', '.join(trace.values)}; got {quantity!r}")
    rows = trace.values[quantity]
    signed = quantity.endswith("cosine")
    look = {"cmap": "RdBu", "vmin": -1, "vmax": 1} if signed else {"cmap": "Blues"}
    mesh = axes.pcolormesh([0, *trace.steps], range(len(rows) + 1), [[*row] for row in rows.values()], **look)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], [*rows])
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.set_ylabel("block")
    axes.grid(visible=False)
    axes.set_title("Gradients, in conflict where red" if signed else "By block and step")
    figure.colorbar(mesh, ax=axes, label=QUANTITIES[quantity])
