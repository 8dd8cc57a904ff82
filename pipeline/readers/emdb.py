"""EMDB: one pickle a sequence, one person in a world, a moving camera.

Source: docs/reference/label-formats.md#emdb.
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

FORMAT = "emdb"
RATE = 30.0
"""Frames a second of the videos."""
DESCRIBED = Format(
    name=FORMAT,
    title="EMDB",
    files="`P*/NN_name/P*_NN_name_data.pkl`, or a folder of them",
    body="SMPL, gendered",
    members=(
        Member("smpl.poses_root", "(F, 3)", "axis-angle, radians, in the world"),
        Member("smpl.poses_body", "(F, 69)", "axis-angle, radians"),
        Member("smpl.trans", "(F, 3)", "metres, in the world"),
        Member("smpl.betas", "(10)", "of the gendered model"),
        Member("camera.extrinsics", "(F, 4, 4)", "world to camera, metres"),
        Member("camera.intrinsics", "(3, 3)", "pixels"),
        Member("gender", "text", "`male` or `female`"),
        Member("good_frames_mask", "(F)", "0: rejected as `no_smpl_pose`", needed=False),
        Member("kp2d", "(F, 24, 2)", "pixels, SMPL's joints", needed=False),
        Member("bboxes.bboxes", "(F, 4)", "pixels, x0 y0 x1 y1", needed=False),
    ),
    gives=(
        "One row a frame: `poses_root`, `poses_body`, `betas`, `trans`, `gender`, `cam_ext`, "
        "`cam_int`, `good_frames_mask`, `kp2d`, `bboxes`, `imgname`, `fps`, `sequence`, `track`, "
        "`frame`"
    ),
    options=(FRAME, PATTERN, UP),
    traps=(
        "Labels are of the world, bodies come in the camera of their frame, as with 3DPW.",
        "`frame: world` makes a motion of 30 frames a second.",
    ),
    example="P2_23_outdoor_hug_tree_data.pkl",
)


def fits(content: Mapping[str, Any]) -> bool:
    """Whether a pickled dictionary is of this format."""
    return isinstance(content.get("smpl"), dict) and isinstance(content.get("camera"), dict)


def open_emdb(
    path: Path,
    options: LabelOptions,
    *,
    frame: str = "camera",
    pattern: str = "**/*",
    up: str = "",
) -> LabelSource:
    """A sequence of EMDB, or a folder of them."""
    check_frame(path, frame)
    in_camera = frame == "camera"
    table = folder_table(path, pattern, partial(_load, camera=in_camera))
    layout = Layout(
        poses=("poses_root", "poses_body"),
        betas="betas",
        transl="trans",
        names="imgname",
        cam_int="cam_int",
        cam_ext="cam_ext" if in_camera else None,
        has_pose="good_frames_mask",
    )
    source = LabelSource(FORMAT, table, layout, options)
    source.up = stated_up(path, up, in_camera=in_camera)
    return source


def _load(path: Path, *, root: Path, camera: bool) -> MemoryTable:
    content = read_content(path)
    frames = frame_count(path, content, "smpl.poses_root")
    cameras = member(path, content, "camera.extrinsics", (4, 4), frames=frames)
    if camera:
        check_world_to_camera(path, "camera.extrinsics", cameras)
    gender = found(path, content, "gender")
    if not isinstance(gender, str | bytes):
        raise InputError(f"{path}: member 'gender': expected male or female")
    folder = path.parent.relative_to(root).as_posix()
    pictures = "images" if folder == "." else f"{folder}/images"
    columns = {
        "poses_root": member(path, content, "smpl.poses_root", (3,), frames=frames),
        "poses_body": member(path, content, "smpl.poses_body", (69,), frames=frames),
        "trans": member(path, content, "smpl.trans", (3,), frames=frames),
        "cam_ext": cameras,
        "good_frames_mask": np.ones(frames, np.int64),
        "imgname": np.array([f"{pictures}/{i:05d}.jpg" for i in range(frames)]),
    }
    if "good_frames_mask" in content:
        mask = member(path, content, "good_frames_mask", (), frames=frames)
        columns["good_frames_mask"] = mask.astype(np.int64)
    if "kp2d" in content:
        columns["kp2d"] = member(path, content, "kp2d", (24, 2), frames=frames)
    boxes = content.get("bboxes")
    if isinstance(boxes, dict) and "bboxes" in boxes:
        columns["bboxes"] = member(path, content, "bboxes.bboxes", (4,), frames=frames)
    constants = {
        "betas": member(path, content, "smpl.betas", (10,)),
        "gender": np.array(gender),
        "cam_int": member(path, content, "camera.intrinsics", (3, 3)),
        "fps": np.array(RATE),
    }
    return tracks_table(path, root, [Track("0", columns, constants)])
