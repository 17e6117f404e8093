"""What is measured of each run, and of source and target; kept in files, so that a stopped analysis goes on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from pytl import analysis
from pytl.analysis.objective import MODES
from pytl.data import batches, image_folder
from pytl.digest import digest
from pytl.features import head_input
from pytl.features.extraction import extract
from pytl.files import json_ready, read_json, replacing
from pytl.study import networks
from pytl.transferability.runs import Run

_BATCH = 64
_DIRECTIONS, RISE = 10, 0.5  # on which the loss's rise is measured, and how far out
_SEED = 0  # of the samples that are drawn: the same for all runs
SCRATCH = "scratch"

Measured = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How runs are measured.

    Attributes:
        samples: at most so many of the training images; the same ones for every run of a task and seed.
        mode: of the network, as in `pytl.analysis.Objective`.
        batch: at most so many at a time.
        trace: products with the Hessian that its trace may take.
        points: of a landscape's axis; 0: no landscapes.
    """

    samples: int = 512
    mode: str = "eval"
    batch: int | None = None
    trace: int = 30
    points: int = 21

    def __post_init__(self) -> None:
        least = {"samples": 4, "trace": 6, "batch": 1}
        for name, value in least.items():
            if (given := getattr(self, name)) is not None and given < value:
                raise ValueError(f"{name} must be >= {value}; got {given}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if self.points < 0 or (self.points and (self.points < 3 or self.points % 2 == 0)):
            raise ValueError(f"points must be 0, or odd and >= 3; got {self.points}")

    def loss(self, batch: int | None = None) -> dict[str, Any]:
        """What every measure of the loss is called with; `batch`: what memory has been found to hold."""
        return {"samples": None, "mode": self.mode, "batch": batch or self.batch, "progress": False}


class Kept:
    """A folder of results, each by the digest of what it was computed from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, about: str, compute: Callable[[], Measured]) -> Measured:
        """The result kept for this, or computed now and kept; with ``"failed"``, a reason, where it cannot be computed.

        A loss that is not finite, or memory that runs out for a single sample, are results; a later call tries again.
        """
        path = self._folder / f"{name}.json"
        found = _read(path)
        if found.get("about") == about and "failed" not in found:
            return found
        try:
            result = {"about": about, **compute()}
        except (ValueError, MemoryError) as error:
            result = {"about": about, "failed": str(error)}
            warnings.warn(f"{name} not measured: {error}", RuntimeWarning, stacklevel=2)
        with replacing(path) as file:
            file.write(json.dumps(json_ready(result)).encode())
        return _read(path)


def _read(path: Path) -> Measured:
    try:
        return read_json(path, "results")
    except (OSError, ValueError):
        return {}


def drawn(data: Dataset[Any], samples: int) -> Any:
    """Batches of at most so many samples, drawn without replacement, without augmentation; always the same."""
    data = image_folder.unaugmented(data)
    count = len(data)  # type: ignore[arg-type]
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))[:samples].sort().values
    some: Dataset[Any]
    if isinstance(data, TensorDataset):
        some = TensorDataset(*(tensor[chosen] for tensor in data.tensors))
    else:
        some = Subset(data, chosen.tolist())
    return batches(some, _BATCH, shuffle=False)


def about(run: Run, protocol: Protocol) -> str:
    """What a result of a run depends on: its weights, their samples, and how they are measured."""
    files = [
        (path.name, torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)) for _, path in run.path
    ]
    return f"{digest(files)} {run.data.name} {run.seed} {asdict(protocol)}"


def of_run(run: Run, protocol: Protocol) -> Measured:
    """Distance from the start; sharpness and rise at the end; smoothness along the way; the first gradient's energy."""
    data = [*drawn(run.data.train, protocol.samples)]
    head = run.study.head_name
    start, end = run.network(run.start), run.network(run.end)
    sharpness = analysis.sharpness(end, data, trace=protocol.trace, **protocol.loss())
    loss = protocol.loss(sharpness.protocol.at_a_time)
    found: Measured = {
        "distance": analysis.distance(end, start, head=head).to_dict(),
        "sharpness": sharpness.to_dict(),
        "rise": fmean(_rise(end, data, loss, seed) for seed in range(_DIRECTIONS)),
        "energy": analysis.gradient_energy(start, data, head=head, **loss).to_dict(),
        "path": [
            {"at": name, **analysis.smoothness(run.network(path), data, **loss).to_dict()} for name, path in run.path
        ],
    }
    if run.data.source is not None and run.method != SCRATCH:
        source = source_network(run)
        found["forgetting"] = analysis.forgetting(
            source, end, drawn(run.data.source, protocol.samples), head=head, progress=False
        ).to_dict()
    return found


def _rise(model: nn.Module, data: Any, loss: Mapping[str, Any], seed: int) -> float:
    """The loss at both ends of a random filter-normalised direction of half the weights' length, minus that between."""
    found = analysis.loss_landscape(model, data, dimensions=1, points=3, reach=RISE, seed=seed, **loss)
    (low,), (centre,), (high,) = found.losses
    return (low + high) / 2 - centre


def source_network(run: Run) -> nn.Module:
    """The digits' source with its own head."""
    network = networks.source_digits(run.data, run.seed, run.study.out / "sources")
    return network.to(run.study.place).eval()


def landscape(run: Run, protocol: Protocol, cache: Path) -> analysis.Landscape:
    """Around the run's end; what is computed of it is kept in the file."""
    return analysis.loss_landscape(
        run.network(run.end),
        [*drawn(run.data.train, protocol.samples)],
        points=protocol.points,
        cache=cache,
        **protocol.loss(),
    )


def similarity(run: Run, protocol: Protocol) -> Measured:
    """Of source and target, as the source network sees them.

    Raises:
        ValueError: the source's data or its head are not known.
    """
    if run.data.source is None:
        raise ValueError("the source's data and head are not known for a folder of images")
    network, place = source_network(run), torch.device(run.study.place)
    layer = head_input(network, run.study.head_name)
    target, source = (
        extract(network, [layer], drawn(data, protocol.samples), place) for data in (run.data.train, run.data.source)
    )
    inputs = analysis.input_similarity(target.layers[layer], source.layers[layer])
    labels = analysis.label_similarity(target.logits.argmax(1), target.labels)
    return {"inputs": inputs.to_dict(), "labels": labels.to_dict()}


def stage_accuracies(run: Run, stages: Path, measure: str, train: Callable[[nn.Module], float]) -> Measured:
    """The measure of the target for each checkpoint of the source.

    Args:
        run: for the target's data and head.
        stages: a folder of the source's checkpoints.
        measure: ``"finetune"``: accuracy on held-out images after fine-tuning; ``"linear"``: of a linear probe.
        train: fine-tunes a network and gives its accuracy.
    """
    head = run.study.head_name
    linear = analysis.linear_transfer(
        batches(image_folder.unaugmented(run.data.train), _BATCH, shuffle=False),
        batches(run.data.test, _BATCH, shuffle=False),
        head=head,
    )

    def make() -> nn.Module:
        return run.study.network(run.data, run.seed, run.study.out / "sources").to(run.study.place)

    sweep = analysis.stage_sweep(
        stages, make, train if measure == "finetune" else linear, name=measure, head=head, progress=False
    )
    return sweep.to_dict()
