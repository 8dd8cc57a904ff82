"""Evaluation label files (npz) -> `EvalRows`, whatever they call their columns.

Source: docs/reference/label-formats.md#traps. Files of the same name come in several flavours with
other keys and units, so nothing is guessed from a name: the protocol says format and scale unit,
and boxes that cannot be right in that unit are refused. Files are untrusted: members with Python
objects are read as data (`pipeline.readers.pickles`), never unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.provenance import file_record
from pipeline.readers.labels import genders
from pipeline.readers.npz import NpzFile
from pipeline.readers.pickles import load_object_member, object_column
from pipeline.row_checks import Verdicts, check_names, good_cameras
from stages.regressor.data.shards import texts
from stages.regressor.evaluation.eval_rows import (
    EvalRows,
    ScaleUnit,
    boxes_of,
    check_body,
    folders_of,
)

_BODY_POINTS, _EXTRA_POINTS = 25, 19


class LabelFile:
    """Row columns of an npz file under their common names."""

    def __init__(self, path: Path, spelling: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.spelling = dict(spelling or {})
        self._file = NpzFile(path)
        self.members = self._file.members
        first = self._member("imgname")
        shape = self.members[first].shape
        if len(shape) != 1:
            raise self.error("imgname", f"expected one name a row, found shape {shape}")
        self.rows = shape[0]

    def __contains__(self, name: str) -> bool:
        return self.spelling.get(name, name) in self.members

    def _member(self, name: str) -> str:
        name = self.spelling.get(name, name)
        if name not in self.members:
            there = ", ".join(sorted(self.members))
            raise InputError(f"{self.path}: member '{name}' is missing; the file has {there}")
        return name

    def error(self, name: str, problem: str) -> InputError:
        return self._file.error(self.spelling.get(name, name), problem)

    def raw(self, name: str) -> np.ndarray:
        """A member as stored; one text or number a row where it holds objects."""
        member = self._member(name)
        if self.members[member].dtype.hasobject:
            return object_column(self._file, member)
        return self._file.whole(member)

    def numbers(self, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
        """(rows, *shape) float64; any row shape if None."""
        values = self.raw(name)
        if values.dtype.kind not in "iufb" or values.shape[:1] != (self.rows,):
            raise self.error(
                name, f"expected numbers for {self.rows} rows, found {values.dtype} of shape "
                f"{values.shape}"
            )  # fmt: skip
        if shape is not None and values.shape[1:] != shape:
            raise self.error(name, f"expected shape {(self.rows, *shape)}, found {values.shape}")
        return values.astype(np.float64)

    def texts(self, name: str) -> np.ndarray:
        """(rows,) str, from text or bytes."""
        values = self.raw(name)
        if values.dtype.kind not in "SU" or values.shape != (self.rows,):
            raise self.error(name, f"expected one text for each of {self.rows} rows")
        return texts(values)

    def content(self, name: str) -> Any:
        """What a member of Python objects holds, as plain values."""
        return load_object_member(self._file, self._member(name))

    def mapping(self, name: str) -> dict:
        """The dict in a 0-d object member."""
        value = self.content(name)
        if not isinstance(value, dict):
            raise self.error(name, f"expected a dict, found {type(value).__name__}")
        return value


def read_hmr2(path: Path, *, scale_unit: ScaleUnit) -> EvalRows:
    """4D-Humans' evaluation npz: keypoints of the 44-point layout in two columns
    (label-formats.md#eval-hmr2)."""
    columns = LabelFile(path)
    # An absent half is NaN in 3D and unseen (confidence 0) in 2D.
    keypoints_3d = _layout_44(columns, "3d", 4, np.nan)
    keypoints_2d = _layout_44(columns, "2d", 3, 0.0)
    verdicts = Verdicts.empty(columns.rows)
    if keypoints_3d is not None:
        keypoints_3d = keypoints_3d[..., :3]  # the evaluators ignore the confidence
    rows = _assembled(columns, verdicts, scale_unit)
    return replace(rows, keypoints_2d=keypoints_2d, keypoints_3d=keypoints_3d)


def _layout_44(columns: LabelFile, kind: str, width: int, absent: float) -> np.ndarray | None:
    """(N, 44, width) from the body and the extra column; None without either."""
    halves = ((f"body_keypoints_{kind}", _BODY_POINTS), (f"extra_keypoints_{kind}", _EXTRA_POINTS))
    if not any(name in columns for name, _ in halves):
        return None
    parts = [
        columns.numbers(name, (count, width))
        if name in columns
        else np.full((columns.rows, count, width), absent)
        for name, count in halves
    ]
    return np.concatenate(parts, 1)


def read_camerahmr(path: Path, *, scale_unit: ScaleUnit) -> EvalRows:
    """CameraHMR's evaluation npz: SMPL parameters in the camera frame
    (label-formats.md#eval-camerahmr).

    SMPL-X poses (66 values, RICH) are refused: they need another body model.
    """
    columns = LabelFile(path)
    n = columns.rows
    verdicts = Verdicts.empty(n)
    body: dict[str, Any] = {}
    if "pose_cam" in columns:
        poses = columns.numbers("pose_cam", None).reshape(n, -1)
        if poses.shape[1] < 72:
            raise columns.error(
                "pose_cam", f"expected 72 values a row (SMPL), found {poses.shape[1]}"
            )
        shape = columns.numbers("shape", None).reshape(n, -1)
        if shape.shape[1] < 10:
            raise columns.error("shape", f"expected 10 betas a row, found {shape.shape[1]}")
        body = {"poses": poses[:, :72], "betas": shape[:, :10], "transl": np.zeros((n, 3))}
        if "trans_cam" in columns:
            body["transl"] = columns.numbers("trans_cam", (3,))
        check_body(verdicts, body)
    keypoints = None
    for name in ("gtkps", "body_keypoints_2d"):
        if name in columns:
            points = columns.numbers(name, None)
            keypoints = _padded_44(columns, name, points)
            break
    return replace(_assembled(columns, verdicts, scale_unit), keypoints_2d=keypoints, **body)


def _padded_44(columns: LabelFile, name: str, points: np.ndarray) -> np.ndarray:
    """(N, 44, 3): first 44 of (N, K, 2 or 3) points; absent ones and confidences filled in."""
    if points.ndim != 3 or points.shape[2] not in (2, 3) or points.shape[1] < 25:
        raise columns.error(name, f"expected (rows, 25 or more, 3), found {points.shape}")
    result = np.zeros((len(points), 44, 3))
    count = min(points.shape[1], 44)
    result[:, :count, : points.shape[2]] = points[:, :count]
    if points.shape[2] == 2:
        result[:, :count, 2] = 1.0
    return result


MOYO_SPELLING = {"imgname": "img_paths", "center": "centers", "scale": "scales"}


def read_moyo(path: Path, *, scale_unit: ScaleUnit) -> EvalRows:
    """HSMR's MOYO npz: neutral SMPL in a dict (label-formats.md#eval-moyo). Sequences are its
    `names`."""
    columns = LabelFile(path, spelling=MOYO_SPELLING)
    n = columns.rows
    smpl = columns.mapping("smpl")
    orient, pose, betas = (
        _dict_column(columns, smpl, key, n, width)
        for key, width in (("global_orient", 3), ("body_pose", 69), ("betas", 10))
    )
    body: dict[str, Any] = {
        "poses": np.concatenate((orient, pose), 1),
        "betas": betas,
        "transl": np.zeros((n, 3)),
    }
    verdicts = Verdicts.empty(n)
    check_body(verdicts, body)
    return replace(_assembled(columns, verdicts, scale_unit, columns.texts("names")), **body)


def _dict_column(columns: LabelFile, smpl: dict, key: str, rows: int, width: int) -> np.ndarray:
    value = smpl.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        raise columns.error("smpl", f"entry '{key}' is missing or not an array of numbers")
    if value.size != rows * width or len(value) != rows:
        raise columns.error(
            "smpl", f"entry '{key}': expected ({rows}, {width}), found {value.shape}"
        )
    return value.reshape(rows, width).astype(np.float64)


def _assembled(
    columns: LabelFile,
    verdicts: Verdicts,
    scale_unit: ScaleUnit,
    sequence: np.ndarray | None = None,
) -> EvalRows:
    """`EvalRows` of an npz file: names, boxes, genders and cameras are read alike everywhere."""
    n = columns.rows
    names = columns.texts("imgname")
    center = columns.numbers("center", (2,))
    scale = columns.numbers("scale", None).reshape(n, -1)
    cam_int = np.full((n, 3, 3), np.nan)
    if "cam_int" in columns:
        cam_int = columns.numbers("cam_int", (3, 3))
        # The published evaluations do not use it, so a bad one is no reason to skip the row.
        cam_int = np.where(good_cameras(cam_int)[:, None, None], cam_int, np.nan)
    label = str(columns.path)
    box = boxes_of(label, columns.spelling.get("scale", "scale"), scale, center, cam_int,
                 scale_unit, verdicts)  # fmt: skip
    check_names(verdicts, names, None)
    gender = np.full(n, "", "<U7")
    if "gender" in columns:
        gender = genders(columns.texts("gender"))
    return EvalRows(
        row=np.arange(n),
        name=names,
        center=center,
        box=box,
        sequence=folders_of(names) if sequence is None else sequence,
        gender=gender,
        cam_int=cam_int,
        reason=verdicts.reasons,
        files={label: file_record(columns.path).sha256},
    )
