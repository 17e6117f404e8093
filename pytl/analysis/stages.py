"""How well a source network transfers by how long it was trained: one measure over the checkpoints of a folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytl import pictures
from pytl.architecture import Head, differing, head_names, unwrapped
from pytl.features import head_input, linear_probe
from pytl.features.extraction import extract
from pytl.progress import bar
from pytl.seeding import undisturbed
from pytl.weight_files import open_weights, read_weights, some

_FIRST, _LAST = ("start",), ("checkpoint", "final", "last")
_NUMBER = re.compile(r"(\d+)(?!.*\d)")  # the last one in a name: "step-000120", "checkpoint-500", "epoch=3"
_OF_A_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True)
class StageSweep:
    """A measure by the stage of pre-training.

    Attributes:
        stages: checkpoints' names, from the first to the last.
        values: of the measure, one for each stage.
        measure: what it is.
    """

    stages: tuple[str, ...]
    values: tuple[float, ...]
    measure: str

    @property
    def best(self) -> int:
        """The place of the highest value."""
        return max(range(len(self.values)), key=self.values.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"best": self.stages[self.best]}

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: the measure by stage."""
        with pictures.drawing(path, 3.4) as figure:
            axes = figure.subplots()
            axes.plot(range(len(self.values)), self.values, "o-", color=pictures.COLOURS[1], linewidth=2)
            axes.plot(self.best, self.values[self.best], "o", color=pictures.COLOURS[2], markersize=9)
            pictures.name_places(axes, self.stages, "checkpoint of the source")
            axes.set(ylabel=self.measure, title="By stage of pre-training")


def stage_files(folder: str | Path) -> list[Path]:
    """A folder's checkpoints, from the first to the last.

    Files of weights and Hugging Face folders ("checkpoint-500"), those in ``snapshots/`` among them, by the last number
    in their names; "start" comes first, "checkpoint", "final" and "last" without a number come last.

    Raises:
        FileNotFoundError: it is no folder, or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"stages must be a folder of checkpoints; got {str(folder)!r}")
    found = [path for path in (*folder.iterdir(), *folder.glob("snapshots/*")) if _is_checkpoint(path)]
    if not found:
        raise FileNotFoundError(f"stages must hold checkpoints ({', '.join(_SUFFIXES)}); {folder} holds none")
    return sorted(found, key=lambda path: (_order(path), str(path)))


def _is_checkpoint(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any((path / name).exists() for name in _OF_A_FOLDER)
    return path.suffix in _SUFFIXES and (path.stem in (*_FIRST, *_LAST) or bool(_NUMBER.search(path.stem)))


def _order(path: Path) -> tuple[int, int]:
    name = path.name if path.is_dir() else path.stem
    number = _NUMBER.search(name)
    place = 0 if name in _FIRST else 2 if name in _LAST else 1
    return place, int(number[1]) if number else 0


def stage_sweep(
    stages: str | Path | Sequence[Path],
    make: Callable[[], nn.Module],
    measure: Callable[[nn.Module], float],
    *,
    name: str = "",
    head: Head | None = None,
    progress: bool = True,
) -> StageSweep:
    """A measure of each source checkpoint, as ``linear_transfer``'s accuracy, or that of a short fine-tuning.

    Liu et al. 2019 (arXiv:1909.12031) find that transferability rises with the stage of pre-training and then falls.
    Cost: that of the measure, for each checkpoint. A checkpoint that cannot be read is left out, with a warning.

    Args:
        stages: a folder, see `stage_files`, or files in order.
        make: gives a network with the target's head, always the same; a checkpoint's weights are put into its body.
        measure: of that network; the higher, the better.
        name: of the measure, for the figure; "": the function's.
        head: as in ``pytl.param_groups``.
        progress: a bar on a terminal.

    Raises:
        FileNotFoundError: no checkpoints.
        ValueError: a checkpoint of another architecture, or none that can be read.
    """
    files = [*stages] if not isinstance(stages, str | Path) else stage_files(stages)
    readable = [*_readable(files, make(), head)]
    if not readable:
        raise ValueError(f"stages must hold a checkpoint that can be read; none of {len(files)} can")
    values = []
    with bar(f"stages: {len(readable)} checkpoints", len(readable), shown=progress) as advance:
        for path in readable:
            network = make()
            _put_body(network, read_weights(path), head, path)
            values.append(measure(network))
            advance()
    names = tuple(path.stem if path.is_file() else path.name for path in readable)
    return StageSweep(names, tuple(values), name or getattr(measure, "__name__", "measure"))


def _readable(files: Sequence[Path], network: nn.Module, head: Head | None) -> Iterator[Path]:
    """Those that are whole; asked before anything is measured. Raises ValueError for another architecture."""
    for path in files:
        try:
            entries, _ = open_weights(path, "stages")
        except (OSError, ValueError, TypeError) as error:
            warnings.warn(f"left out, not readable as a checkpoint: {error}", RuntimeWarning, stacklevel=2)
            continue
        _refuse_others({name: entry.shape for name, entry in entries.items()}, network, head, path)
        yield path


def _put_body(
    network: nn.Module, weights: Mapping[str, Tensor], head: Head | None = None, path: Path | None = None
) -> None:
    """Loads all but the head from a checkpoint.

    Raises:
        ValueError: the checkpoint is of another architecture; the first tensors are named, and nothing is changed.
    """
    _refuse_others({name: tensor.shape for name, tensor in weights.items()}, network, head, path)
    own = unwrapped(network)
    state = own.state_dict()
    body = {name: weights[name] for name in state if name in weights and name not in head_names(own, head)}
    own.load_state_dict({**state, **body})


def _refuse_others(shapes: Mapping[str, torch.Size], network: nn.Module, head: Head | None, path: Path | None) -> None:
    own = unwrapped(network)
    heads = head_names(own, head)
    body = {name: tensor.shape for name, tensor in own.state_dict().items() if name not in heads}
    if differ := differing(body, shapes):
        where = f" {path}" if path else ""
        raise ValueError(f"checkpoint{where} is of another architecture; {len(differ)} tensors differ: {some(differ)}")


def linear_transfer(
    train: Iterable[Any], held_out: Iterable[Any], *, head: Head | None = None
) -> Callable[[nn.Module], float]:
    """A measure of a network: the accuracy of a linear classifier on its pooled features, `pytl.features.linear_probe`.

    Args:
        train, held_out: batches of the target, as ``pytl.finetune`` takes them.
        head: as in ``pytl.param_groups``; features are what it is called with.
    """
    with undisturbed(train), undisturbed(held_out):
        both = [*train], [*held_out]

    def linear_accuracy(model: nn.Module) -> float:
        layer, device = head_input(model, head), next(model.parameters()).device
        seen, unseen = (extract(model, [layer], batches, device) for batches in both)
        return linear_probe(seen.layers[layer], seen.labels, unseen.layers[layer], unseen.labels)

    return linear_accuracy
