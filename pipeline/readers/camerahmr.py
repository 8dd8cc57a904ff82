"""CameraHMR training labels, `*-release.npz`.

Source: docs/reference/label-formats.md#camerahmr. Keys: imgname, center, scale (box side / 200,
rank 1 or 2), pose_cam (camera frame), shape, trans_cam (zeros when absent), cam_int, gtkps.
"""

from __future__ import annotations

import numpy as np

from pipeline.readers.formats import SKIP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import missing, rows_first
from pipeline.readers.npz import NpzFile
from pipeline.readers.tables import Table

FORMAT = "camerahmr"
EXTRINSICS = "cam_ext"
_STEP = 65_536
REQUIRED = ("imgname", "center", "scale", "shape", "cam_int", "gtkps")
DESCRIBED = Format(
    name=FORMAT,
    title="CameraHMR labels",
    files="`*-release.npz`",
    body="SMPL, neutral",
    members=(
        Member("imgname", "(n) text", "below the image root"),
        Member("center", "(n, 2)", "middle of the box, pixels"),
        Member("scale", "(n) or (n, 2)", "side of the box / 200"),
        Member("pose_cam", "(n, 72)", "axis-angle, radians; the first 3 in the camera"),
        Member("shape", "(n, 10 or more)", "the first 10 count"),
        Member("cam_int", "(n, 3, 3)", "pixels of the whole picture"),
        Member("gtkps", "(n, 44 or more, 3)", "pixels and confidence"),
        Member("trans_cam", "(n, 3)", "metres, in the camera; absent: zeros", needed=False),
        Member("gender", "(n) text", "with `genders: {smpl: column}`", needed=False),
    ),
    gives="One row a person: every member",
    options=(
        ("pose_key", "name of the pose where it is not `pose_cam`, and in the camera"),
        SKIP,
    ),
    traps=(
        "`scale` in pixels, or boxes that are fractions of the picture, are refused.",
        "A `cam_ext` that moves the camera (BEDLAM) is refused here: bodies would lose the shift.",
    ),
    example="coco-release.npz",
)


def open_camerahmr(
    file: NpzFile, options: LabelOptions, *, pose_key: str = "", skip: str = ""
) -> LabelSource:
    """A CameraHMR label file.

    pose_key: name of the pose member when it is not `pose_cam`. A bare `pose` says nothing about
    its frame, so it has to be named here. skip: members to leave out, separated by commas.
    """
    pose = pose_key or "pose_cam"
    if pose not in file.members:
        hint = ""
        if not pose_key and "pose" in file.members:
            hint = (
                "; it has 'pose': if its first 3 values are the orientation in the camera frame, "
                "say so with the option pose_key: pose"
            )
        raise missing(file, pose, hint)
    for name in REQUIRED:
        if name not in file.members:
            raise missing(file, name)
    table = rows_first(file, pose, skip)
    _check_extrinsics(file, table)
    layout = Layout(
        poses=(pose,),
        betas="shape",
        transl="trans_cam" if "trans_cam" in table.specs else None,
        names="imgname",
        center="center",
        scale="scale",
        cam_int="cam_int",
        keypoints="gtkps",
    )
    return LabelSource(FORMAT, table, layout, options)


def _check_extrinsics(file: NpzFile, table: Table) -> None:
    """BEDLAM's files place bodies at trans_cam + cam_ext[:3, 3]: refused, lest the sum be lost."""
    if table.specs.get(EXTRINSICS) is None or table.specs[EXTRINSICS].shape != (4, 4):
        return
    for start in range(0, table.rows, _STEP):
        stop = min(start + _STEP, table.rows)
        moved = np.abs(table.read(start, stop, (EXTRINSICS,))[EXTRINSICS][:, :3, 3]).max(axis=1)
        if (moved > 0).any():
            row = start + int(np.argmax(moved > 0))
            raise file.error(
                EXTRINSICS,
                f"row {row} moves the camera, as in BEDLAM's files: bodies stand at trans_cam "
                "+ cam_ext[:3, 3]; expected zeros: add it to trans_cam and set it to 0",
            )
