"""People over frames, as datasets and trackers store them -> one table of rows.

Rows are one person after the other, frames in order. Columns that are added: `sequence` (name of
the file below the folder, then the person where there are several), `track` (the person) and
`frame`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.members import NO_ROWS, listed
from pipeline.readers.reloaded import as_array
from pipeline.readers.tables import MemoryTable

FRAMES = ("camera", "world")


@dataclass(frozen=True)
class Track:
    """One person. columns: name -> (frames, ...); constants: name -> what holds for all frames."""

    name: str
    columns: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


def tracks_table(path: Path, root: Path, tracks: Sequence[Track]) -> MemoryTable:
    """Rows of all tracks of a file. Raises InputError: no frames, columns that do not fit."""
    if not tracks or not all(len(next(iter(track.columns.values()))) for track in tracks):
        raise InputError(f"{path}: {NO_ROWS}")
    place = path.relative_to(root).with_suffix("").as_posix()
    parts = [_with_place(track, place, several=len(tracks) > 1) for track in tracks]
    columns: dict[str, np.ndarray] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        for value in values:
            if value.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{path}: member '{name}': {value.shape[1:]} a frame for one person, "
                    f"{first.shape[1:]} for another"
                )
        columns[name] = np.concatenate(values)
    return MemoryTable(path, sum(len(part["frame"]) for part in parts), columns)


def member(
    path: Path,
    content: Any,
    name: str,
    shape: tuple[int | None, ...],
    *,
    frames: int | None = None,
) -> np.ndarray:
    """A member as numbers of a shape; dots lead into dictionaries and lists.

    shape: of a frame; None fits any length. frames: how many rows of it; None: it has none.
    Raises InputError that names the member, what it is and what it should be.
    """
    array = as_array(f"{path}", name, found(path, content, name))
    wanted = shape if frames is None else (frames, *shape)
    fits = len(array.shape) == len(wanted) and all(
        want is None or want == have for want, have in zip(wanted, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        text = ", ".join("any" if n is None else str(n) for n in wanted)
        raise InputError(
            f"{path}: member '{name}': {array.dtype} of shape {array.shape}, expected numbers of "
            f"shape ({text})"
        )
    return array


def found(path: Path, content: Any, name: str) -> Any:
    """A member; dots lead into dictionaries, numbers into lists. Raises InputError: missing."""
    value, seen = content, ""
    for part in name.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, dict) and part.isdecimal() and int(part) in value:
            value = value[int(part)]
        else:
            there = listed(map(str, value)) if isinstance(value, dict) else "nothing of that name"
            where = f"'{seen[:-1]}' has" if seen else "the file has"
            raise InputError(f"{path}: member '{name}': missing; {where} {there}")
        seen += f"{part}."
    return value


def frame_count(path: Path, content: Any, name: str) -> int:
    """Frames of a member. Raises InputError: no array, or none."""
    array = as_array(f"{path}", name, found(path, content, name))
    if not array.ndim or not len(array):
        raise InputError(f"{path}: member '{name}': {NO_ROWS}")
    return len(array)


def check_frame(path: Path, frame: str) -> None:
    """Raises InputError where the option `frame` is neither of its values."""
    if frame not in FRAMES:
        raise InputError(f"{path}: option frame {frame!r}, expected {' or '.join(FRAMES)}")


def check_world_to_camera(path: Path, name: str, cameras: np.ndarray) -> None:
    """(n, 4, 4). Raises InputError where most are transposed or no rigid motions at all: then it is
    the file that is wrong, not a row."""
    last_row = (cameras[:, 3] == (0, 0, 0, 1)).all(1)
    last_column = (cameras[:, :, 3] == (0, 0, 0, 1)).all(1)
    if (last_column & ~last_row).any():
        row = int(np.argmax(last_column & ~last_row))
        raise InputError(
            f"{path}: member '{name}': transposed (frame {row} has its shift in the last row); "
            "expected world to camera with the shift in the last column"
        )


def _with_place(track: Track, place: str, *, several: bool) -> dict[str, np.ndarray]:
    frames = len(next(iter(track.columns.values())))
    constants = dict(track.constants)
    constants["sequence"] = np.array(f"{place}/{track.name}" if several else place)
    constants["track"] = np.array(track.name)
    columns = {name: np.asarray(values) for name, values in track.columns.items()}
    for name, value in constants.items():
        columns[name] = np.broadcast_to(value, (frames, *value.shape))
    columns.setdefault("frame", np.arange(frames))
    return columns
