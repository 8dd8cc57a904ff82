"""What the test processes of a session share: made once, by whoever comes first."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def made_once(base: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` in one process while the others wait for it.

    base: this process' `tmp_path_factory.getbasetemp()`; those of xdist's processes lie in one
    folder, which pytest removes. Nobody may write into what is shared.
    """
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = together / name, together / f"{name}.whole"
    with (together / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
