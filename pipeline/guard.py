"""Outputs never destroy inputs: what a verb reads, and the refusal to write over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.appended import FOLDER as APPENDED
from pipeline.errors import UsageError
from pipeline.rundir import FOLDERS, RunDirectory

_RECORDS = ("plan.json", "summary.json", "run.json", ".lock")


class Inputs:
    """Files that a verb reads; a folder stands for all that lies in it, None for nothing.

    Files are told by what they are on the disk, so that a link or another spelling of a name is
    the same file.
    """

    def __init__(self, *paths: Path | None) -> None:
        self._paths = tuple(path for path in paths if path is not None)

    def and_dataset(self, directory: Path) -> Inputs:
        """These and a converted dataset: its shards and records, its label file, its models."""
        run = RunDirectory(directory)
        places = run.places(run.plan()) if run.plan_path.is_file() else {}
        noted = (places.get("source"), places.get("models"))
        return self.and_files(
            *(directory / name for name in (*_RECORDS, *FOLDERS, APPENDED)),
            *(Path(place) for place in noted if place),
        )

    def and_files(self, *paths: Path) -> Inputs:
        """These and further files or folders."""
        return Inputs(*self._paths, *paths)

    def check(self, *outputs: Path) -> None:
        """Call before anything is computed, with every file that will be written.

        Raises:
            UsageError: one is there and is read by this verb, or belongs to a conversion.
        """
        there = [(output, found) for output in outputs if (found := _identity(output))]
        if not there:
            return
        for output, _ in there:
            if _belongs_to_a_run(output):
                raise UsageError(
                    f"{output}: belongs to a converted dataset and is not written over; give "
                    "another name"
                )
        read = {found: path for path in self._files() if (found := _identity(path))}
        for output, found in there:
            if found in read:
                also = "" if read[found] == output else f" (it is {read[found]})"
                raise UsageError(
                    f"{output}: is read here and is not written over{also}; give another name"
                )

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            yield path
            for folder, _, names in os.walk(path):
                yield from (Path(folder) / name for name in names)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file, links followed; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _belongs_to_a_run(path: Path) -> bool:
    """Whether it is a shard or a record of any conversion, under any spelling of its name."""
    real = path.resolve()
    if real.name in _RECORDS:
        return (real.parent / "plan.json").is_file()
    above = real.parent.parent
    if above.name == APPENDED:
        return (above.parent / "plan.json").is_file()
    return real.parent.name in FOLDERS and (above / "plan.json").is_file()
