"""Plans as files: YAML or JSON, written whole, read without executing anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pytl.extras import require
from pytl.files import replacing

_KIND = "transfer plan"
_MOST_BYTES = 1 << 20  # of a plan; a thousand blocks take a tenth

T = TypeVar("T")


def write(path: str | Path, values: Mapping[str, Any]) -> None:
    """Writes JSON where the name ends in ``.json``, YAML elsewhere."""
    path, whole = Path(path), {"pytl": _KIND, **values}
    written = json.dumps(whole, indent=2) if path.suffix == ".json" else _yaml(whole)
    with replacing(path) as file:
        file.write(written.encode() + b"\n" * (path.suffix == ".json"))


def _yaml(values: Mapping[str, Any]) -> str:
    yaml = require("yaml", "cli")
    lines = [yaml.safe_dump({key: value}, sort_keys=False) for key, value in values.items() if key != "blocks"]
    blocks = yaml.safe_dump({"blocks": values["blocks"]}, sort_keys=False, default_flow_style=None, width=200)
    return "".join([*lines, blocks])


def parsed(path: str | Path, make: Callable[[dict[str, Any]], T]) -> T:
    """Reads a file and makes of its values what ``make`` does; its errors name the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, holds something else, or ``make`` refuses it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"plan must be a file; {path} is none")
    try:
        values = _values(path)
        if not isinstance(values, dict) or values.pop("pytl", None) != _KIND:
            raise ValueError(f"it must hold a mapping with 'pytl: {_KIND}'")
        return make(values)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no plan: {error}") from error


def _values(path: Path) -> Any:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"it must have <= {_MOST_BYTES} bytes; got {size}")
    written = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(written)
    yaml = require("yaml", "cli")
    try:
        return yaml.safe_load(written)
    except Exception as error:  # of a tag whose value it is not, the loader raises anything: IndexError, KeyError, ...
        raise ValueError(f"it is no YAML: {error}") from error
