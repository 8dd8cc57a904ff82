"""Bare meshes of any mapped body: an npz of `vertices`, `body` and, if known, `identity`.

vertices: (n, V, 3) metres; body: its name, one text; identity: (n,) numbers or names of people,
absent: a person of its own in every row; gender: (n,) text or one for all; faces: (F, 3) triangles,
which must then be those of the map. A frame rate makes the rows of each person a motion, all rows
those of one person where there is no `identity`. Names of pictures, boxes, cameras and keypoints as
in CameraHMR's files; everything but `vertices` and `faces` is carried into the shards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.base import FRAME_RATES, SEQUENCE, SMPL
from pipeline.readers.bodies import VERTICES, BodyLayout, BodySource
from pipeline.readers.formats import SKIP, UP, Format, Member
from pipeline.readers.labels import LabelOptions, Layout
from pipeline.readers.members import checked_rates, rows_first
from pipeline.readers.npz import NpzFile, NpzTable
from pipeline.row_checks import Verdicts
from pipeline.up_axis import UPS
from skel_fit.bodies.map_files import SMPL_MESH

FORMAT = "vertices"
REQUIRED = frozenset((VERTICES, "body"))
_FACES = "faces"
_PICTURE = {
    "names": "imgname", "center": "center", "scale": "scale", "cam_int": "cam_int",
    "keypoints": "gtkps",
}  # fmt: skip
_LONGEST_NAME = 40
DESCRIBED = Format(
    name=FORMAT,
    title="Meshes of any mapped body",
    files="`.npz`",
    body="any that there is a map for",
    members=(
        Member("vertices", "(n, V, 3)", "metres"),
        Member(
            "body", "text", "name of the body: `smpl`, `smplx`, `mhr`, `anny`, `makehuman`, `soma`"
        ),
        Member("identity", "(n) numbers or names", "whose shape; absent: one a row", False),
        Member("gender", "(n) text, or one", "`male`, `female`, `neutral`", needed=False),
        Member(
            "fps | mocap_framerate | mocap_frame_rate | frame_rate | framerate",
            "number",
            "frames a second; makes the rows of a person a motion",
            needed=False,
        ),
        Member("sequence", "(n) text", "which rows are one motion; absent: `identity`", False),
        Member("faces", "(F, 3)", "triangles; must be those of the map", needed=False),
        Member("imgname", "(n) text", "below the image root", needed=False),
        Member("center", "(n, 2)", "middle of the box, pixels", needed=False),
        Member("scale", "(n) or (n, 2)", "side of the box / 200", needed=False),
        Member("cam_int", "(n, 3, 3)", "pixels", needed=False),
        Member("gtkps", "(n, 44 or more, 3)", "pixels and confidence", needed=False),
    ),
    gives="One row a mesh: every member but `vertices` and `faces`",
    options=(SKIP, UP),
    traps=(
        "Rows of one person share a shape: give `identity`, it is faster and steadier.",
        "With a frame rate and no `identity` all rows are one person. Rows of a motion follow one "
        "another; where people take turns row by row, rows stay on their own.",
        "Meshes in centimetres or millimetres are refused.",
    ),
    example="meshes.npz",
)


def open_vertices(
    file: NpzFile, options: LabelOptions, *, skip: str = "", up: str = ""
) -> BodySource:
    """A file of bare meshes. skip: members to leave out; up: which way is up, `z`, `y` or `y-down`.

    Raises InputError: one line with file and member.
    """
    if up and up not in UPS:
        raise InputError(f"{file.path}: option up {up!r}, expected {', '.join(UPS)}")
    for name in sorted(REQUIRED - file.members.keys()):
        raise file.error(name, "missing; a file of meshes has vertices (n, V, 3) and body")
    shape, dtype = file.members[VERTICES].shape, file.members[VERTICES].dtype
    if len(shape) != 3 or not shape[1] or shape[2] != 3 or dtype.kind != "f":
        raise file.error(VERTICES, f"{dtype} of shape {shape}, expected numbers (n, V, 3), metres")
    faces = _FACES if _FACES in file.members else ""
    table = rows_first(file, VERTICES, ",".join(name for name in (skip, faces) if name))
    picture = {part: name for part, name in _PICTURE.items() if name in table.specs}
    rates = [name for name in FRAME_RATES if name in table.specs]
    for name in rates:
        checked_rates(file.path, name, table.read(0, table.rows, (name,))[name])
    timed = bool(rates)
    nobody = "" if timed else None
    if timed and SEQUENCE not in table.specs:
        table = _with_motions(table)
    layout = BodyLayout(
        body=_body(file),
        columns={VERTICES: None},
        parameters=_meshes,
        vertices=shape[1],
        identity="identity" if "identity" in table.specs else nobody,
        left_out=(VERTICES,),
        picture=Layout(poses=(), betas=None, **picture),
    )
    source = BodySource(FORMAT, table, layout, options)
    source.up = up or None
    if _FACES in file.members:
        source.faces = _faces(file, shape[1])
    return source


def _with_motions(table: NpzTable) -> NpzTable:
    """The columns with `sequence`: the rows of each person, where they follow one another."""
    people = np.zeros(table.rows, np.int64)
    spec = table.specs.get("identity")
    if spec is not None:
        if spec.shape not in ((), (1,)):
            return table  # the layout says what is wrong with it
        people = table.read(0, table.rows, ("identity",))["identity"].reshape(table.rows)
    names, number = np.unique(people, return_inverse=True)
    if np.count_nonzero(np.diff(number)) != len(names) - 1:
        return table
    return table.with_column(SEQUENCE, people.astype(np.str_))


def _meshes(fields: Mapping[str, np.ndarray], verdicts: Verdicts) -> dict[str, np.ndarray]:
    return {VERTICES: fields[VERTICES]}


def _body(file: NpzFile) -> str:
    """Name of the body: one for all rows."""
    member = file.members["body"]
    if member.dtype.kind not in "SU":
        raise file.error("body", f"{member.dtype}, expected the name of a body, such as smplx")
    names = np.unique(file.whole("body"))
    text = names[0].decode("utf-8", "replace") if member.dtype.kind == "S" else str(names[0])
    name = text.strip().lower().replace("-", "").replace(" ", "_")
    if len(names) != 1 or not name.isidentifier() or len(name) > _LONGEST_NAME:
        raise file.error("body", f"{names[:3].tolist()}, expected one name, such as smplx or mhr")
    return SMPL_MESH if name == SMPL else name


def _faces(file: NpzFile, vertices: int) -> np.ndarray:
    faces = file.whole(_FACES)
    good = faces.ndim == 2 and faces.shape[1] == 3 and faces.dtype.kind in "iu" and len(faces)
    if not good or faces.min() < 0 or faces.max() >= vertices:
        raise file.error(_FACES, f"expected triangles (F, 3) of vertices 0 to {vertices - 1}")
    return faces.astype(np.int64)
