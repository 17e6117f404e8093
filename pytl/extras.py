"""Optional packages: imported where they are used, and named exactly when they are missing."""

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`, which the optional dependency set `extra` brings.

    Raises:
        ImportError: it is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as missing:
        package = module.partition(".")[0]
        raise ImportError(f'{package} is needed here and not installed: pip install "pytl[{extra}]"') from missing
