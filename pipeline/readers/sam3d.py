"""SAM 3D Body outputs: npz files of one person each, or a folder of them.

Members: pred_vertices (18439, 3) and pred_cam_t (3), metres; their sum is in the camera frame
x right, y down, z forward. Focal length and principal point follow from the 70 pairs of
pred_keypoints_3d and pred_keypoints_2d; focal_length, where it is there, must agree. Members of
Python objects (`mask`) are left out unread. Added columns: `sequence` (name of the file), `frame`,
`cam_int`, `center`, `scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.bodies import VERTICES, BodyLayout, BodySource
from pipeline.readers.formats import Format, Member
from pipeline.readers.labels import UNIT_200PX, LabelOptions, Layout
from pipeline.readers.members import listed
from pipeline.readers.npz import NpzFile
from pipeline.readers.sequences import folder_table, with_place
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import member
from pipeline.row_checks import Verdicts

FORMAT = "sam-3d-body"
BODY, BODY_VERTICES = "mhr", 18_439
_MESH, _MOVE = "pred_vertices", "pred_cam_t"
REQUIRED = frozenset((_MESH, _MOVE))
DESCRIBED = Format(
    name=FORMAT,
    title="SAM 3D Body outputs",
    files="`.npz`, one person each, or a folder of them",
    body="MHR, as meshes of 18,439 vertices; no MHR model file is needed",
    members=(
        Member("pred_vertices", "(18439, 3)", "metres"),
        Member("pred_cam_t", "(3)", "metres, added to the mesh: camera frame"),
        Member(
            "pred_keypoints_3d", "(70, 3)", "metres; with the next one they give `cam_int`", False
        ),
        Member("pred_keypoints_2d", "(70, 2)", "pixels", needed=False),
        Member("focal_length", "number", "pixels; must agree with the keypoints", needed=False),
        Member("bbox", "(4)", "x, y, x, y of the box, pixels: `center` and `scale`", needed=False),
    ),
    gives="One row a file; columns `sequence` (name of the file), `frame`, `cam_int`, `center`, "
    "`scale` and every member but `pred_vertices`",
    options=(
        ("pattern", "which files of a folder, e.g. `**/*.npz`"),
        ("identity", "`file` (default): another person in every file; `one`: the same in all"),
    ),
    traps=(
        "Meshes, joints and keypoints are in the camera's axes; `global_rot`, `pred_global_rots` "
        "and `mhr_model_params` are not: they are carried as they are.",
        "MHR says no gender: both SKEL bodies are tried, once a person, and the nearer one is "
        "taken (`--skel-gender` names one).",
        "`mask` holds Python objects and is left out unread. Write a list of several people to "
        "files of their own first: `np.savez(name, **outputs[k])`.",
    ),
    example="img_subj00.npz",
)
_POINTS_3D, _POINTS_2D = "pred_keypoints_3d", "pred_keypoints_2d"
_MOST_BYTES = 64 << 20
_REPROJECTION = 2.0
"""Pixels: largest rms of the keypoints' projection with the camera that was found."""


def open_sam3d(
    path: Path, options: LabelOptions, *, pattern: str = "**/*.npz", identity: str = "file"
) -> BodySource:
    """A SAM 3D Body output, or all in a folder.

    pattern: which files of a folder. identity: `file`: a person of its own in every file (these
    outputs have no tracks); `one`: the same person in all.

    Raises InputError: one line with file and member.
    """
    if identity not in ("file", "one"):
        raise InputError(f"{path}: option identity {identity!r}, expected file or one")
    table = folder_table(path, pattern, _load)
    picture = {
        part: name
        for part, name in (("center", "center"), ("scale", "scale"), ("cam_int", "cam_int"))
        if name in table.specs
    }
    layout = BodyLayout(
        body=BODY,
        columns={_MESH: 3 * BODY_VERTICES, _MOVE: 3},
        parameters=_meshes,
        vertices=BODY_VERTICES,
        identity="" if identity == "one" else None,
        left_out=(_MESH,),
        picture=Layout(poses=(), betas=None, **picture),
    )
    return BodySource(FORMAT, table, layout, options)


def _meshes(fields: Mapping[str, np.ndarray], verdicts: Verdicts) -> dict[str, np.ndarray]:
    meshes = fields[_MESH].astype(np.float64) + fields[_MOVE].astype(np.float64)[:, None]
    return {VERTICES: meshes}


def _load(path: Path, *, root: Path) -> MemoryTable:
    file = NpzFile(path)
    for name in sorted(REQUIRED - file.members.keys()):
        raise file.error(name, f"missing; the file has {listed(file.members)}")
    plain = {n: m for n, m in file.members.items() if not m.dtype.hasobject}
    if sum(member.size for member in plain.values()) > _MOST_BYTES:
        raise file.error("", f"more than {_MOST_BYTES >> 20} MB, expected one person")
    content = {name: file.whole(name) for name in plain}
    for name, shape in ((_MESH, (BODY_VERTICES, 3)), (_MOVE, (3,))):
        if name not in content:
            raise file.error(name, "Python objects, expected plain numbers")
        if content[name].shape != shape or content[name].dtype.kind != "f":
            raise file.error(
                name, f"{content[name].dtype} of shape {content[name].shape}, expected {shape}, "
                "one person a file; write list entries to files of their own",
            )  # fmt: skip
    columns = {name: value[None] for name, value in content.items()}
    camera = _camera(file, content)
    if camera is not None:
        columns["cam_int"] = camera[None]
    if "bbox" in content and "center" not in content:
        corners = member(path, content, "bbox", (4,)).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            columns["center"] = (corners[:2] + corners[2:])[None] / 2
            columns["scale"] = np.array([(corners[2:] - corners[:2]).max() / UNIT_200PX])
    return with_place(path, root, 1, columns, {})


def _camera(file: NpzFile, content: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Intrinsics (3, 3): from the pairs of keypoints, checked against focal_length where that is
    there. None: nothing says them.

    Raises InputError: keypoints that no pinhole camera projects.
    """
    if _POINTS_3D not in content or _POINTS_2D not in content:
        return None
    points = member(file.path, content, _POINTS_3D, (None, 3))
    pixels = member(file.path, content, _POINTS_2D, (len(points), 2))
    focal, centre, rms = pinhole(points + content[_MOVE], pixels)
    if not (rms <= _REPROJECTION and focal > 0.0):
        raise file.error(
            _POINTS_2D,
            f"{_POINTS_3D} + {_MOVE} project {rms:.0f} px (rms) beside it with the best camera "
            f"(focal length {focal:.0f} px); they are not of one camera, or y and z are not those "
            "of the outputs",
        )
    if "focal_length" in content:
        given = content["focal_length"]
        if given.size != 1 or given.dtype.kind not in "iuf":
            raise file.error(
                "focal_length", f"{given.dtype} of shape {given.shape}, expected one number"
            )
        if not abs(float(given.ravel()[0]) / focal - 1) <= 0.01:
            raise file.error(
                "focal_length",
                f"{float(given.ravel()[0]):.1f} px, the keypoints say {focal:.1f} px",
            )
    return np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])


def pinhole(points: np.ndarray, pixels: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Focal length, principal point (2,) and rms error in pixels of the camera that takes points
    (k, 3) in the camera frame to pixels (k, 2): linear least squares, float64."""
    points, pixels = points.astype(np.float64), pixels.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rays = points[:, :2] / points[:, 2:]
    if not (np.isfinite(rays).all() and np.isfinite(pixels).all() and len(points) >= 3):
        return float("nan"), np.full(2, np.nan), float("nan")
    ones, zeros = np.ones(len(rays)), np.zeros(len(rays))
    across = np.stack((rays[:, 0], ones, zeros), axis=1)
    down = np.stack((rays[:, 1], zeros, ones), axis=1)
    matrix, wanted = np.concatenate((across, down)), pixels.T.reshape(-1)
    found, *_ = np.linalg.lstsq(matrix, wanted, rcond=None)
    off = (matrix @ found - wanted).reshape(2, -1)
    return float(found[0]), found[1:], float(np.sqrt((off**2).sum(axis=0).mean()))
