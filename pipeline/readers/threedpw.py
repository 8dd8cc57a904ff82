"""3DPW: one pickle a sequence, one or two people in a world, a moving camera.

Source: docs/reference/label-formats.md#threedpw.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.formats import FRAME, PATTERN, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.reloaded import read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import (
    Track,
    check_frame,
    check_world_to_camera,
    found,
    frame_count,
    member,
    tracks_table,
)

FORMAT = "3dpw"
RATE = 30.0
"""Frames a second of `poses`: the video's, half of `poses_60Hz`."""
DESCRIBED = Format(
    name=FORMAT,
    title="3DPW",
    files="`.pkl` of `sequenceFiles/` (written by Python 2), or the folder",
    body="SMPL, gendered",
    members=(
        Member("poses", "list of (F, 72)", "axis-angle, radians; the first 3 in the world"),
        Member("betas", "list of (10 or more)", "the first 10 count"),
        Member("trans", "list of (F, 3)", "metres, in the world"),
        Member("genders", "list of text", "`m` or `f`"),
        Member("cam_poses", "(F, 4, 4)", "world to camera, metres"),
        Member("cam_intrinsics", "(3, 3)", "pixels"),
        Member("campose_valid", "list of (F)", "0: the camera pose is not aligned", needed=False),
        Member("sequence", "text", "name of the folder of pictures", needed=False),
        Member("poses2d", "list of (F, 3, 18)", "pixels and confidence, COCO", needed=False),
    ),
    gives=(
        "One row a person and frame: `poses`, `betas`, `trans`, `gender`, `cam_ext`, `cam_int`, "
        "`campose_valid`, `imgname`, `fps`, `sequence`, `track`, `frame`"
    ),
    options=(FRAME, PATTERN, UP),
    traps=(
        "Labels are of the world; bodies come in the camera of their frame. SMPL turns about its "
        "own pelvis J, so the translation is R (J + t) + T - J, with J of the model and betas.",
        "Rows whose camera pose is not valid are rejected as `no_camera_pose`; `frame: world` "
        "keeps them and makes a motion of 30 frames a second.",
        "`poses_60Hz`, clothed templates and textures are left out.",
    ),
    example="downtown_walking_00.pkl",
)


def fits(content: Mapping[str, Any]) -> bool:
    """Whether a pickled dictionary is of this format."""
    own = content.keys() & {"cam_poses", "genders", "campose_valid", "poses_60Hz"}
    return bool(own) and isinstance(content.get("poses"), list)


def open_threedpw(
    path: Path,
    options: LabelOptions,
    *,
    frame: str = "camera",
    pattern: str = "**/*",
    up: str = "",
) -> LabelSource:
    """A sequence of 3DPW, or a folder of them."""
    check_frame(path, frame)
    table = folder_table(path, pattern, partial(_load, camera=frame == "camera"))
    in_camera = frame == "camera"
    layout = Layout(
        poses=("poses",),
        betas="betas",
        transl="trans",
        names="imgname",
        cam_int="cam_int",
        cam_ext="cam_ext" if in_camera else None,
        has_camera="campose_valid" if in_camera else None,
    )
    source = LabelSource(FORMAT, table, layout, options)
    source.up = stated_up(path, up, in_camera=in_camera)
    return source


def _load(path: Path, *, root: Path, camera: bool) -> MemoryTable:
    content = read_content(path)
    people = found(path, content, "poses")
    if not isinstance(people, list) or not people:
        raise InputError(f"{path}: member 'poses': expected a list with one array a person")
    frames = frame_count(path, content, "poses.0")
    cameras = member(path, content, "cam_poses", (4, 4), frames=frames)
    if camera:
        check_world_to_camera(path, "cam_poses", cameras)
    name = str(content.get("sequence", path.stem))
    shared = {
        "cam_ext": cameras,
        "imgname": np.array([f"imageFiles/{name}/image_{i:05d}.jpg" for i in range(frames)]),
    }
    constants = {
        "cam_int": member(path, content, "cam_intrinsics", (3, 3)),
        "fps": np.array(RATE),
    }
    tracks = [
        _person(path, content, person, frames, shared, constants) for person in range(len(people))
    ]
    return tracks_table(path, root, tracks)


def _person(
    path: Path,
    content: dict[str, Any],
    person: int,
    frames: int,
    shared: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
) -> Track:
    gender = found(path, content, f"genders.{person}")
    if not isinstance(gender, str | bytes):
        raise InputError(f"{path}: member 'genders.{person}': expected m or f")
    betas = member(path, content, f"betas.{person}", (None,))
    if len(betas) < 10:
        raise InputError(f"{path}: member 'betas.{person}': {len(betas)} numbers, expected 10")
    columns = {
        "poses": member(path, content, f"poses.{person}", (72,), frames=frames),
        "trans": member(path, content, f"trans.{person}", (3,), frames=frames),
        "campose_valid": np.ones(frames, np.int64),
    }
    if "campose_valid" in content:
        valid = member(path, content, f"campose_valid.{person}", (), frames=frames)
        columns["campose_valid"] = valid.astype(np.int64)
    if "poses2d" in content:
        columns["poses2d"] = member(path, content, f"poses2d.{person}", (3, 18), frames=frames)
    own = {"betas": betas[:10], "gender": np.array(gender)}
    return Track(str(person), {**columns, **shared}, {**own, **constants})
