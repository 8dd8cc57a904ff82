"""Results of WHAM: one file of joblib, people by their track number.

Source: docs/reference/label-formats.md#wham.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.readers.formats import FRAME, PATTERN, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.reloaded import read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import Track, check_frame, frame_count, member, tracks_table

FORMAT = "wham"
_NEEDED = {"pose", "trans", "betas"}
DESCRIBED = Format(
    name=FORMAT,
    title="WHAM",
    files="`wham_output.pkl` (joblib, not compressed)",
    body="SMPL, neutral",
    members=(
        Member("ID.pose", "(F, 72)", "axis-angle, radians; the first 3 in the camera"),
        Member("ID.trans", "(F, 3)", "metres, in the camera"),
        Member("ID.betas", "(F, 10)", "one shape a frame"),
        Member("ID.pose_world", "(F, 72)", "the same in the world", needed=False),
        Member("ID.trans_world", "(F, 3)", "metres, in the world", needed=False),
        Member("ID.frame_ids", "(F)", "frame of the video", needed=False),
    ),
    gives="One row a person and frame: `poses`, `betas`, `trans`, `sequence`, `track`, `frame`",
    options=(FRAME, PATTERN, UP),
    traps=(
        "`verts` are left out: they follow from the parameters, and stay in the file unread.",
        "The file states no frame rate, and the shape changes with the frame: rows on their own.",
        "Compressed joblib files and other classes are refused; save their arrays with "
        "`numpy.savez`.",
    ),
    example="wham_output.pkl",
)


def fits(content: Mapping[str, Any]) -> bool:
    """Whether a pickled dictionary is of this format."""
    people = list(content.values())
    return bool(people) and all(
        isinstance(person, dict) and person.keys() >= _NEEDED for person in people
    )


def open_wham(
    path: Path,
    options: LabelOptions,
    *,
    frame: str = "camera",
    pattern: str = "**/*",
    up: str = "",
) -> LabelSource:
    """A result of WHAM, or a folder of them."""
    check_frame(path, frame)
    in_camera = frame == "camera"
    table = folder_table(path, pattern, partial(_load, suffix="" if in_camera else "_world"))
    source = LabelSource(FORMAT, table, Layout(("poses",), "betas", "trans"), options)
    source.up = stated_up(path, up, in_camera=in_camera)
    return source


def _load(path: Path, *, root: Path, suffix: str) -> MemoryTable:
    content = read_content(path)
    tracks = [_person(path, content, name, suffix) for name in content]
    return tracks_table(path, root, tracks)


def _person(path: Path, content: dict[str, Any], name: str, suffix: str) -> Track:
    frames = frame_count(path, content, f"{name}.pose")
    columns = {
        "poses": member(path, content, f"{name}.pose{suffix}", (72,), frames=frames),
        "trans": member(path, content, f"{name}.trans{suffix}", (3,), frames=frames),
        "betas": member(path, content, f"{name}.betas", (10,), frames=frames),
    }
    if "frame_ids" in content[name]:
        ids = member(path, content, f"{name}.frame_ids", (), frames=frames)
        columns["frame"] = ids.astype(np.int64)
    return Track(name, columns)
