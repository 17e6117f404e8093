"""A loss on a grid of weights, kept in a file as it is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from operator import index
from pathlib import Path
from typing import Any

from torch import Tensor

from pytl.analysis.objective import Objective
from pytl.analysis.weight_space import moved
from pytl.digest import digest
from pytl.files import number, read_json, replacing, writable_folder


class Grid:
    """The losses at the points, in a file, if any, which is saved whatever ends the computation.

    Args:
        objective: the loss.
        along: one direction or two, by name.
        first, second: how far along each.
        path: of the file.

    Attributes:
        losses: by place in ``first`` and ``second``: what is known so far.

    Raises:
        ValueError: the loss at the weights themselves is not finite; the file is of another grid, or broken.
    """

    def __init__(
        self,
        objective: Objective,
        along: Sequence[tuple[str, Sequence[Tensor]]],
        first: Sequence[float],
        second: Sequence[float],
        path: Path | None,
    ) -> None:
        self._objective, self._first, self._second = objective, first, second
        self._along = [direction for _, direction in along]
        self._path = path
        if not math.isfinite(centre := objective.value()):
            raise ValueError(f"loss must be finite at the model's weights; got {centre}")
        ends = digest([(name, d) for name, direction in along for d in direction])
        self._about = f"{objective.fingerprint()} {centre:.4g} {ends} {first} {second}"
        """With the loss itself: two losses may have one name."""
        self.losses = {} if path is None else self._read(path)

    def complete(self, advance: Callable[[], None]) -> None:
        """Computes what is missing, row by row."""
        try:
            for i, j in product(range(len(self._first)), range(len(self._second))):
                if (i, j) not in self.losses:
                    steps = zip((self._first[i], self._second[j]), self._along, strict=False)
                    self.losses[i, j] = self._objective.value(moved(self._objective.start, *steps))
                    advance()
                if j == len(self._second) - 1:
                    self._save()
        finally:
            self._save()

    def _read(self, path: Path) -> dict[tuple[int, int], float]:
        writable_folder(path.parent, "cache")
        if not path.exists():
            return {}
        try:
            found = read_json(path, "cache")
            about, losses = found["about"], {(index(i), index(j)): _loss(loss) for i, j, loss in found["losses"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cache must be a file of this function's; {path} is not, or broken: {error}") from error
        if about != self._about:
            raise ValueError(f"cache must be of these weights, samples and options; {path} is of others")
        return losses

    def _save(self) -> None:
        if self._path is not None:
            losses = [[i, j, str(loss)] for (i, j), loss in self.losses.items()]  # JSON knows no infinity
            with replacing(self._path) as file:
                file.write(json.dumps({"about": self._about, "losses": losses}).encode())


def _loss(kept: Any) -> float:
    """Text, as it is kept, or a number."""
    return float(kept) if isinstance(kept, str) else number(kept)
