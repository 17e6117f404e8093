"""``metrics.jsonl``: a run in numbers, a line each; what a kill leaves of a line is passed over."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from pytl.files import json_ready, mapping, naming, number, parse_json, replacing

Record = dict[str, float | int | None]


def read(path: Path) -> list[Record]:
    """The file's records; none where there is no file. A last line that is no record, as a kill leaves it, is left out.

    Raises:
        ValueError: another line is no mapping to numbers and nulls.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = []
    for place, line in enumerate(lines, 1):
        try:
            found.append(_record(line))
        except ValueError as error:
            if place < len(lines):
                raise ValueError(f"{path} must have a record on each line; line {place}: {error}") from error
    return found


def append(path: Path, records: Iterable[Record]) -> None:
    """Adds lines at the end; what a kill has left of a line goes, as in `read`.

    Raises:
        OSError: the disk is full or not writable; it names the file.
    """
    with naming(path), open(path, "ab+") as file:
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


def _record(line: bytes) -> Record:
    found = mapping(parse_json(line))
    for value in found.values():
        if value is not None:
            number(value)
    return found


def _line(record: Record) -> bytes:
    return json.dumps(json_ready(record)).encode() + b"\n"
