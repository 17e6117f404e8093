"""The sums of channel scores on the disk, for a run that was interrupted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from pytl.files import read_tensors, writable_folder, write_tensors

SECONDS = 5.0
"""Between two savings, which wait for the disk: a few milliseconds each."""

_KIND = "sums of channel scores"
_ROW = "sums."


@dataclass(frozen=True)
class Sums:
    """What has been added up; never changed, so that an interruption finds it whole.

    Attributes:
        done: how many numbers were added, over all batches.
        samples: how many the sums run over.
        rows: name -> sums, float64 [C] on the CPU.
    """

    done: int
    samples: int
    rows: dict[str, Tensor]


class Ledger:
    """Keeps the sums; with a path, an error or Ctrl-C leaves them there, and finishing removes the file.

    Args:
        path: None keeps them in memory only.
        counts: name -> how many sums.
        about: what the run depends on, in words; a file that says otherwise is another run's.

    Raises:
        ValueError: the file is no whole file of these sums, or another run's; it is left as it is.
        OSError: the folder cannot be written to.
    """

    def __init__(self, path: str | Path | None, counts: Mapping[str, int], about: Mapping[str, str]) -> None:
        self.path = None if path is None else writable_folder(Path(path).parent, "resume") / Path(path).name
        self.about = about
        zeros = {name: torch.zeros(count, dtype=torch.float64, device="cpu") for name, count in counts.items()}
        self.sums = _resumed(self.path, about, counts) if self.path and self.path.exists() else Sums(0, 0, zeros)
        self._saved_at = time.monotonic()

    def add(self, name: str, start: int, row: Tensor, samples: int) -> None:
        """Adds to a row's numbers from `start` on; saves where the last saving is `SECONDS` ago."""
        sums = self.sums.rows[name].clone()
        sums[start : start + len(row)] += row
        self.sums = Sums(self.sums.done + len(row), self.sums.samples + samples, self.sums.rows | {name: sums})
        if time.monotonic() - self._saved_at >= SECONDS:
            self._save()

    def _save(self) -> None:
        if self.path and self.sums.done:
            rows = {_ROW + name: row for name, row in self.sums.rows.items()}
            about = {"done": str(self.sums.done), "samples": str(self.sums.samples), **self.about}
            write_tensors(self.path, _KIND, rows, about)
        self._saved_at = time.monotonic()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._save()
        elif self.path:
            self.path.unlink(missing_ok=True)


def _resumed(path: Path, about: Mapping[str, str], counts: Mapping[str, int]) -> Sums:
    tensors, saved = read_tensors(path, _KIND)
    differences = [
        f"{name}: saved {saved.get(name)}, now {now}" for name, now in about.items() if saved.get(name) != now
    ]
    if differences:
        raise ValueError("\n  ".join([f"resume: {path} is another run's and is left as it is:", *differences]))
    rows = {name: tensors.get(_ROW + name) for name in counts}
    for name, row in rows.items():
        if row is None or row.shape != (counts[name],) or row.dtype != torch.float64:
            found = "nothing" if row is None else f"{row.dtype} {[*row.shape]}"
            raise ValueError(f"resume: {path} must hold torch.float64 [{counts[name]}] for {name!r}; found {found}")
    whole = {name: row for name, row in rows.items() if row is not None}
    return Sums(_count(path, saved, "done"), _count(path, saved, "samples"), whole)


def _count(path: Path, saved: Mapping[str, str], name: str) -> int:
    text = saved.get(name, "nothing")
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) > 0):
        raise ValueError(f"resume: {path} must hold an int64 >= 1 for {name}; found {text[:40]!r}")
    return int(text)
