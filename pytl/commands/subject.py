"""The arguments that say what a command works on."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pytl.data.digits import TASKS
from pytl.extras import require
from pytl.study.subject import Subject

Commands = Any  # argparse names the type of its subparsers privately


def add_command(commands: Commands, name: str, summary: str, about: str, examples: str) -> argparse.ArgumentParser:
    """A command's parser, whose help ends with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def add_data(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(title)
    group.add_argument("--data", required=True, help=f"digits, digits:TASK ({', '.join(TASKS)}), or a folder of images")
    group.add_argument("--model", help="for a folder of images: module:function, or a local Hugging Face folder")
    group.add_argument("--head", help="name of the model's new head (default: found)")
    group.add_argument("--share", type=float, metavar="X", help="of the digits' target images (default: %(default)s)")
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="for folders (default: %(default)s)")
    return group


def add_rate(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lr", type=float, help="at the start, then along a cosine to 0 (default: 0.03 on digits, 0.01 on folders)"
    )


def add_place(parser: argparse.ArgumentParser, out: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("where")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    group.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: %(default)s)")
    group.add_argument("--out", type=Path, metavar="DIR", help=f"folder of the results (default: {out})")
    return group


def set_defaults(parser: argparse.ArgumentParser, kind: type[Subject]) -> None:
    """Those of the dataclass that the options become."""
    parser.set_defaults(**{field.name: field.default for field in fields(kind) if field.default is not MISSING})


def out_of(options: argparse.Namespace, command: str) -> Path:
    return options.out or Path("runs", f"{command}-{Path(options.data).name.replace(':', '-')}")


def values_of(options: argparse.Namespace, kind: type[Subject]) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(kind)}


def require_all(*needed: tuple[str, str]) -> None:
    """Asks for optional packages before anything is computed."""
    for module, extra in needed:
        require(module, extra)
