"""Results of PromptHMR: people in a video, SMPL-X, in a file of joblib.

Source: docs/reference/label-formats.md#prompthmr.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.bodies import BodyLayout, BodySource
from pipeline.readers.family import SMPLX, FamilyColumns
from pipeline.readers.formats import FRAME, PATTERN, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, rotation_vectors
from pipeline.readers.reloaded import read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import Track, check_frame, found, frame_count, member, tracks_table

FORMAT = "prompthmr"
DESCRIBED = Format(
    name=FORMAT,
    title="PromptHMR",
    files="`results.pkl` (joblib, not compressed; tensors of torch may be in it)",
    body="SMPL-X, neutral, 10 betas",
    members=(
        Member("people.ID.smplx_cam.rotmat", "(F, 55, 3, 3)", "the root in the camera"),
        Member("people.ID.smplx_cam.shape", "(F, 10)", "of SMPL-X"),
        Member("people.ID.smplx_cam.trans", "(F, 3)", "metres, in the camera"),
        Member("people.ID.smplx_world", "dictionary", "`pose` (F, 165), `shape`, `trans`", False),
        Member("people.ID.frames", "(F)", "frame of the video", needed=False),
    ),
    gives="One row a person and frame: `poses`, `betas`, `trans`, `sequence`, `track`, `frame`",
    options=(FRAME, PATTERN, UP),
    traps=(
        "`pose` of `smplx_cam` has 75 values, the matrices have all joints: these are taken.",
        "The file states no frame rate: rows on their own.",
    ),
    example="results.pkl",
)


def fits(content: Mapping[str, Any]) -> bool:
    """Whether a pickled dictionary is of this format."""
    people = content.get("people")
    if not isinstance(people, dict) or not people:
        return False
    return all(isinstance(one, dict) and {"smplx_cam", "smplx_world"} & one.keys()
               for one in people.values())  # fmt: skip


def open_prompthmr(
    path: Path, options: LabelOptions, *, frame: str = "camera", pattern: str = "**/*", up: str = ""
) -> LabelSource:
    """A result of PromptHMR, or a folder of them."""
    check_frame(path, frame)
    in_camera = frame == "camera"
    table = folder_table(path, pattern, partial(_load, camera=in_camera))
    columns = FamilyColumns(SMPLX, "betas", "trans", full="poses")
    layout = BodyLayout(SMPLX, columns.sizes, columns, identity="sequence")
    source = BodySource(FORMAT, table, layout, options)
    source.up = stated_up(path, up, in_camera=in_camera)
    return source


def _load(path: Path, *, root: Path, camera: bool) -> MemoryTable:
    content = read_content(path)
    people = found(path, content, "people")
    if not isinstance(people, dict):
        raise InputError(f"{path}: member 'people': expected a dictionary")
    return tracks_table(path, root, [_person(path, content, name, camera) for name in people])


def _person(path: Path, content: dict[str, Any], name: Any, camera: bool) -> Track:
    place = f"people.{name}"
    group = f"{place}.{'smplx_cam' if camera else 'smplx_world'}"
    frames = frame_count(path, content, f"{group}.trans")
    if camera:
        matrices = member(path, content, f"{group}.rotmat", (55, 3, 3), frames=frames)
        poses = rotation_vectors(matrices)
    else:
        poses = member(path, content, f"{group}.pose", (165,), frames=frames)
    columns = {
        "poses": poses,
        "betas": member(path, content, f"{group}.shape", (10,), frames=frames),
        "trans": member(path, content, f"{group}.trans", (3,), frames=frames),
    }
    person = found(path, content, place)
    if isinstance(person, dict) and "frames" in person:
        numbers = member(path, content, f"{place}.frames", (), frames=frames)
        columns["frame"] = numbers.astype(np.int64)
    return Track(str(name), columns)
