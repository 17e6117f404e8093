"""The command line: ``pytl finetune``, ``advise``, ``search``, ``analyze``, ``bench`` and ``doctor``."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from pytl.commands import advise, analyze, finetune, search

_INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C ended
_RESUMABLE = {"finetune": ["--resume"], "search": ["--resume"], "analyze": []}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0, 1 after an error (printed without a traceback), 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(arguments).parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'stopped'}{_resuming(arguments)}", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        print(f"pytl: {error}", file=sys.stderr)
        return 1


def _resuming(arguments: Sequence[str]) -> str:
    if arguments[0] not in _RESUMABLE:
        return ""
    more = [] if "--resume" in arguments else _RESUMABLE[arguments[0]]
    return f"; to go on:\n  {shlex.join(['pytl', *arguments, *more])}"


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pytl", description="Fine-tuning that keeps what the network knows.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (finetune, advise, search, analyze):
        command.add(commands)
    bench = commands.add_parser("bench", help="time optimizers or feature operations against their rivals here")
    bench.set_defaults(run=lambda options: import_module("pytl.benchmark").run(options))
    if [*arguments[:1]] == ["bench"]:  # the other commands need not import it
        import_module("pytl.benchmark").add_arguments(bench)
    doctor = commands.add_parser("doctor", help="say which code runs for which device and dtype here, and why")
    doctor.set_defaults(run=lambda options: print(import_module("pytl.doctor").doctor()))
    return parser
