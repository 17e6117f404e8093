"""What stage one found: a disentangler for each layer, and what speaks for and against it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pytl.files import mapping, parse_json, read_tensors, write_tensors
from pytl.regularizers.tred import figure
from pytl.regularizers.tred.disentangler import Disentangler
from pytl.regularizers.tred.guards import Guards

_KIND = "a feature split"
_COLUMNS = ("|F_p|/|F_o|", "|F_n|/|F_o|", "error", "probe F_o", "F_p", "F_n", "chance", "at step")


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """What `disentangle` found, for ``pytl.TRED``.

    Attributes:
        disentanglers: of each layer; frozen.
        guards: of each layer.
        criterion: "max-mmd", "min-mi" or "both".
    """

    disentanglers: dict[str, Disentangler]
    guards: dict[str, Guards]
    criterion: str

    @property
    def layers(self) -> list[str]:
        return [*self.disentanglers]

    @torch.no_grad()
    def relevant(self, layer: str, features: Tensor) -> Tensor:
        """F_p of a layer's features; on their device, where the disentangler is moved."""
        found: Tensor = self.disentanglers[layer].to(features.device)(features)[0]
        return found

    def warnings(self) -> list[str]:
        """Why a layer's split is trivial, where it is."""
        return [f"{layer}: {text}" for layer, guards in self.guards.items() for text in guards.warnings()]

    def report(self) -> str:
        """A table of the guards, a line a layer, and the warnings below it."""
        wide = max(len("layer"), *(len(layer) for layer in self.layers))
        lines = [f"split by {self.criterion}", f"{'layer':{wide}}  " + _row(_COLUMNS)]
        for layer, found in self.guards.items():
            numbers = (f"{found.relevant_share:.2f}", f"{found.rest_share:.2f}", f"{found.reconstruction_error:.1%}")
            probes = (found.source_probe, found.relevant_probe, found.rest_probe, found.chance)
            cells = (*numbers, *(f"{probe:.1%}" for probe in probes), str(found.steps))
            lines.append(f"{layer:{wide}}  {_row(cells)}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings())])

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: each layer's curves of stage one, on held-out samples, and its probes."""
        figure.draw(self.guards, self.criterion, Path(path))

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, or leaves what was there.

        Raises:
            OSError: the disk is full or not writable.
        """
        tensors = {
            f"{index}.{name}": tensor.contiguous()
            for index, layer in enumerate(self.layers)
            for name, tensor in self.disentanglers[layer].state_dict().items()
        }
        guards = {layer: found.to_dict() for layer, found in self.guards.items()}
        write_tensors(path, _KIND, tensors, {"criterion": self.criterion, "guards": json.dumps(guards)})

    @classmethod
    def load(cls, path: str | Path) -> FeatureSplit:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated, other bits than were written, or holds something else.
        """
        tensors, about = read_tensors(path, _KIND)
        try:
            saved = mapping(parse_json(about["guards"]))
            guards = {layer: Guards.from_dict(mapping(found)) for layer, found in saved.items()}
            disentanglers = {layer: _disentangler(tensors, f"{index}.") for index, layer in enumerate(guards)}
            return cls(disentanglers, guards, about["criterion"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} must hold a disentangler and its guards for each layer: {error!r}") from error


def _row(cells: Sequence[str]) -> str:
    widths = (max(len(name), len("100.0%")) for name in _COLUMNS)
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _disentangler(tensors: dict[str, Tensor], prefix: str) -> Disentangler:
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    others = [f"{name} {tensor.dtype}" for name, tensor in state.items() if not tensor.is_floating_point()]
    if others:
        raise ValueError(f"its tensors must be floating point; got {', '.join(others)}")
    width, channels = state["code.0.weight"].shape
    made = Disentangler(channels, width)
    made.load_state_dict(state)
    return made.requires_grad_(False).eval()
