"""How kernels are compiled, and where their machine code is kept.

numba keeps machine code with a digest of the file that defines a function, but what the function
calls in other files is compiled into it: an edit there would leave old code at work, under the new
code's digest in a plan. So the folder is named by the content of every kernel's file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba

OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
"""Sums may use fused multiply-add, division by zero is no error, and other threads run beside it:
kernels of the fit have no threads of their own, blocks of rows are spread instead (`crew`)."""
_FOLDER = "kernels-"
_CONSTANTS = ("anatomy.py", "skeleton.py", "solver/tables.py")
"""Other files with what is compiled into kernels."""

_CONFIG: Any = numba.config
"""Its attributes are made when it is imported."""


def kernel(**changes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compile with numba when first called; machine code is kept where a folder can be
    written, else in memory only."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        with _cache_at(cache_folder()) as kept:
            made: Callable[..., Any] = numba.njit(cache=kept, **(OPTIONS | changes))(function)
        return made

    return compiled


@cache
def cache_folder() -> Path | None:
    """Writable folder for the machine code of these very sources, or None.

    It lies in NUMBA_CACHE_DIR where that is set, else beside the sources, else in the user's cache.
    """
    name = _FOLDER + sources_digest(Path(__file__).parent)[:16]
    own = Path(__file__).parent / "__pycache__"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmr-skel"
    for base in (Path(_CONFIG.CACHE_DIR),) if _CONFIG.CACHE_DIR else (own, user):
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def sources_digest(folder: Path) -> str:
    """SHA-256 over the files below a folder that kernels and the constants in them come from."""
    digest = hashlib.sha256()
    constants = [path for name in _CONSTANTS for path in folder.glob(name)]
    for path in sorted([*folder.rglob("numba_*.py"), *constants]):
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextmanager
def _cache_at(folder: Path | None) -> Iterator[bool]:
    """numba chooses the folder while it decorates; whether there is one."""
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = "" if folder is None else str(folder)
    try:
        yield folder is not None
    finally:
        _CONFIG.CACHE_DIR = before
