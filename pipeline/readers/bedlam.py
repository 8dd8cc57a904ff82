"""BEDLAM, BEDLAM2 and AGORA in their layout: SMPL-X (or SMPL) labels of pictures, an npz a scene.

Source: docs/reference/label-formats.md#bedlam. A body stands in the camera at its parameters plus
the shift of `cam_ext`.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.bodies import BodyLayout, BodySource
from pipeline.readers.family import SMPLX, FamilyColumns
from pipeline.readers.formats import SKIP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import missing, rows_first
from pipeline.readers.npz import NpzFile
from pipeline.readers.tables import Table

FORMAT = "bedlam"
EXTRINSICS = "cam_ext"
_NEEDED = ("imgname", "pose_cam", "shape", "trans_cam", EXTRINSICS)
_OBJECTS = ("motion_info",)
_COUNTS = (10, 11, 16)
_STEP = 65_536
DESCRIBED = Format(
    name=FORMAT,
    title="BEDLAM, BEDLAM2, AGORA",
    files="`.npz` of a scene; AGORA's as BEDLAM gives them (`agora*.npz`)",
    body="SMPL-X (165 pose values) or SMPL (72), gendered or neutral",
    members=(
        Member("imgname", "(n) text", "below the image root"),
        Member("pose_cam", "(n, 165) or (n, 72)", "axis-angle, radians; the first 3 in the camera"),
        Member("shape", "(n, 10), (n, 11) or (n, 16)", "all of them count"),
        Member("trans_cam", "(n, 3)", "metres; the shift of `cam_ext` is added"),
        Member("cam_ext", "(n, 4, 4)", "world to camera; its shift, metres, is in the last column"),
        Member("cam_int", "(n, 3, 3)", "pixels", needed=False),
        Member("center", "(n, 2)", "middle of the box, pixels", needed=False),
        Member("scale", "(n)", "side of the box / 200", needed=False),
        Member("gtkps", "(n, k, 2 or 3)", "pixels; carried, SMPL-X's points, not checked", False),
        Member("gender", "(n) text", "`male`, `female`, `neutral`, or `m`, `f`", needed=False),
        Member("sub", "(n) text", "the person; absent: one a row", needed=False),
    ),
    gives="One row a person: every member but `motion_info`",
    options=(
        (
            "eleventh",
            "`component` (BEDLAM's neutral labels) or `kid` (AGORA): what the 11th of 11 numbers "
            "of `shape` is; `kid` rejects rows of children as `kid_shape`",
        ),
        SKIP,
    ),
    traps=(
        "Bodies stand at `trans_cam` + `cam_ext[:3, 3]`: 10 numbers are SMPL-X v1.1's, 16 those of "
        "the locked-head models of BEDLAM2.",
        "Labels of `closeup` and `portrait` scenes are of the picture turned by 90 degrees.",
        "A ragged file, whose members are Python objects, is refused by the name of the member.",
        "AGORA's own `Cam/*.pkl` are pickles of pandas, which nothing can read as data. Take "
        "BEDLAM's `agora*.npz`, or save the columns that you need where pandas is: "
        "`numpy.savez(FILE, **{name: numpy.stack(df[name]) for name in df})`.",
    ),
    example="scene_6fps.npz",
)


def fits(file: NpzFile) -> bool:
    """Whether an npz is of this format: a moved camera, or SMPL-X's poses of pictures."""
    pose = file.members.get("pose_cam")
    if pose is None or "imgname" not in file.members:
        return False
    return EXTRINSICS in file.members or pose.shape[1:] == (165,)


def open_bedlam(
    file: NpzFile, options: LabelOptions, *, eleventh: str = "", skip: str = ""
) -> LabelSource:
    """Labels of a scene."""
    for name in _NEEDED:
        if name not in file.members:
            raise missing(file, name)
        if file.members[name].dtype.hasobject and name != "imgname":
            raise file.error(name, "Python objects (rows of different lengths?), expected numbers")
    skipped = [skip, *(name for name in _OBJECTS if name in file.members)]
    table = rows_first(file, "pose_cam", ",".join(name for name in skipped if name))
    place = table.specs["trans_cam"]
    if place.shape != (3,) or place.dtype.kind not in "iuf":
        raise file.error("trans_cam", f"{place.dtype} of {place.shape} a row, expected (rows, 3)")
    _check_extrinsics(file, table)
    count = math.prod(table.specs["shape"].shape)
    used = _betas_used(file, table, count, eleventh)
    specs = table.specs
    points = specs.get("gtkps")
    picture = {
        "names": "imgname",
        "center": "center" if "center" in specs else None,
        "scale": "scale" if "scale" in specs else None,
        "cam_int": "cam_int" if "cam_int" in specs else None,
        "keypoints": "gtkps" if points is not None and points.shape == (44, 3) else None,
    }
    kid = "shape" if eleventh == "kid" and count == 11 else None
    width = int(np.prod(file.members["pose_cam"].shape[1:]))
    if width == 72:
        if count > 10 and used != 10:
            raise file.error("shape", f"{count} numbers, but SMPL's poses; expected 10")
        layout = Layout(("pose_cam",), "shape", "trans_cam", shift=EXTRINSICS, kid=kid, **picture)
        return LabelSource(FORMAT, table, layout, options)
    if width != 165:
        raise file.error("pose_cam", f"{width} values a row, expected 165 (SMPL-X) or 72 (SMPL)")
    columns = FamilyColumns(
        SMPLX, "shape", "trans_cam", full="pose_cam", shift=EXTRINSICS, betas_used=used
    )
    layout = Layout(poses=(), betas=None, kid=kid, **picture)
    identity = "sub" if "sub" in specs else None
    body = BodyLayout(SMPLX, columns.sizes, columns, identity=identity, picture=layout)
    return BodySource(FORMAT, table, body, options)


def _betas_used(file: NpzFile, table: Table, count: int, eleventh: str) -> int:
    """How many numbers of `shape` count."""
    if eleventh not in ("", "component", "kid"):
        raise InputError(f"{file.path}: option eleventh {eleventh!r}, expected component or kid")
    spec = table.specs["shape"]
    if spec.shape != (count,) or count not in _COUNTS or spec.dtype.kind not in "iuf":
        raise file.error(
            "shape",
            f"{spec.dtype} of shape {file.members['shape'].shape}, expected numbers (rows, 10), "
            "(rows, 11) or (rows, 16)",
        )
    if count != 11 or eleventh == "component":
        return count
    if not eleventh and any(part.any() for part in _columns(table, "shape", 10)):
        raise file.error(
            "shape",
            "11 numbers, of two meanings: an ordinary component in BEDLAM's neutral labels, how "
            "much of a child in AGORA's; say which with --option eleventh=component or "
            "--option eleventh=kid",
        )
    return 10


def _columns(table: Table, name: str, column: int):
    for start in range(0, table.rows, _STEP):
        yield table.read(start, min(start + _STEP, table.rows), (name,))[name][:, column]


def _check_extrinsics(file: NpzFile, table: Table) -> None:
    """Raises InputError where `cam_ext` is no shift in the last column."""
    spec = table.specs[EXTRINSICS]
    if spec.shape != (4, 4) or spec.dtype.kind not in "iuf":
        raise file.error(EXTRINSICS, f"{spec.dtype} of shape {spec.shape} a row, expected (4, 4)")
    for start in range(0, table.rows, _STEP):
        stop = min(start + _STEP, table.rows)
        last = table.read(start, stop, (EXTRINSICS,))[EXTRINSICS][:, 3, :3]
        if (last != 0).any():
            row = start + int(np.argmax((last != 0).any(axis=1)))
            raise file.error(
                EXTRINSICS,
                f"transposed (row {row} has its shift in the last row); expected world to camera "
                "with the shift in the last column",
            )
