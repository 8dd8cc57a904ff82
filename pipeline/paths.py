"""The one rule for names and paths that others wrote: none of them leads out of its root."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from pipeline.errors import InputError


def stays_inside(name: str) -> bool:
    """Whether a relative name cannot leave the folder it is joined to; the disk is not asked."""
    return (
        name != ""
        and not name.startswith("/")
        and ".." not in name.split("/")
        and "\\" not in name
        and "\0" not in name
    )


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, symbolic links followed, lies below `root`."""
    return path.resolve().is_relative_to(root.resolve())


def check_inside(path: Path, root: Path) -> None:
    """Raise `InputError` for a source file that lies outside the data root."""
    if not is_inside(path, root):
        raise InputError(
            f"{path}: leads out of the data root {root}; copy the file there or give another "
            "--data-root"
        )


def check_regular(path: Path) -> None:
    """Raise `InputError` for what is there but is no file: a pipe, say, which would never end."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{path}: {what}; expected one file that can be read again")


class Root:
    """A folder that no name leaves, not by a symbolic link either. Nothing is opened.

    What a folder below it links to is looked up once: label files name millions of pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._folders: dict[str, bool] = {}

    def holds(self, name: str) -> bool:
        """Whether `name`, existing or not, lies below the root."""
        if not stays_inside(name):
            return False
        folder, _, _ = name.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = (self.path / folder).resolve().is_relative_to(self.path)
        if not self._folders[folder]:
            return False
        path = f"{self.path}/{name}"
        # A plain string is ten times faster than a Path.
        link = os.path.islink(path)  # noqa: PTH114
        return not link or Path(path).resolve().is_relative_to(self.path)


def _checked(value: str) -> str:
    if not stays_inside(value):
        raise ValueError("expected a path relative to the data root, without '..'")
    return value


InsidePath = Annotated[str, AfterValidator(_checked)]
"""A path in a configuration file that cannot leave the root it is joined to."""
InsideFolder = Annotated[str, AfterValidator(lambda value: value and _checked(value))]
"""The same; empty is the root itself."""
