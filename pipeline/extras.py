"""Packages that only some users need: imported late, and named in one line where one is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pipeline.errors import UsageError


def install_hint(extra: str) -> str:
    """How to get an extra."""
    return f"pip install 'hmr-skel[{extra}]'"


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an extra of the package.

    Raises:
        UsageError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; {install_hint(extra)}") from error
