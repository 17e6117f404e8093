"""``metrics.jsonl``: a run in numbers, a line each; what a kill leaves of a line is passed over."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from pytl.files import json_ready, replacing

Record = dict[str, float | int | None]


def read(path: Path) -> list[Record]:
    """The file's records; none where there is no file. A last line that is not whole is left out.

    Raises:
        ValueError: another line is no record.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a {type(record).__name__}")
            found.append(record)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path} must have a record on each line; line {number}: {error}") from error
    return found


def append(path: Path, records: Iterable[Record]) -> None:
    """Adds lines at the end; what a kill has left of a line goes, as in `read`."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        if file.read() in (b"", b"\n"):
            file.writelines(map(_line, records))
            return
    rewrite(path, [*read(path), *records])


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Puts these records in the place of all."""
    with replacing(path) as file:
        file.writelines(map(_line, records))


def finite(value: float) -> float | None:
    """JSON knows no nan."""
    return float(value) if math.isfinite(value) else None


def _line(record: Record) -> bytes:
    return json.dumps(json_ready(record)).encode() + b"\n"
