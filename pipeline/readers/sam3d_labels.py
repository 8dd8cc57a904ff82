"""SAM 3D Body's data set: parquet files of MHR parameters, one row a person in a picture.

Source: docs/reference/label-formats.md#sam-3d-labels. The parameters are posed here, by MHR's
TorchScript model, which the user has and names; the file is part of the source. Added columns:
`imgname`, and `center` and `scale` where `bbox` and `bbox_format` say the box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import row_checks
from pipeline.errors import InputError
from pipeline.paths import check_regular, stays_inside
from pipeline.readers.bodies import VERTICES, BodyLayout, BodySource
from pipeline.readers.formats import Format, Member
from pipeline.readers.labels import UNIT_200PX, LabelOptions, Layout, as_float64
from pipeline.readers.parquet import ParquetTable, WithColumns
from pipeline.readers.sam3d import BODY, BODY_VERTICES
from pipeline.readers.tables import JoinedTable, Table
from pipeline.row_checks import Verdicts
from skel_fit.errors import ModelFileError
from skel_fit.rejections import MAX_TRANSLATION

FORMAT = "sam-3d-body-labels"
_POSE, _SHAPE, _VALID = "model_params", "shape_params", "mhr_valid"
_NEEDED = {_POSE: _POSE, _SHAPE: _SHAPE, "cam_int": "cam_int"}
_WANTED = {
    "image": "imgname",
    **{name: name for name in (_VALID, "dataset", "person_id", "subject_idx", "bbox", "bbox_format",
                               "keypoints_2d", "date")},
}  # fmt: skip
_WIDTHS = {_POSE: 204, _SHAPE: 45}
_UNIT = 10.0
"""Translations in `model_params` are in units of 10 cm."""
_LARGEST = 1e4
"""Parameters beyond are none, whatever MHR would make of them."""
_TRIED = 4
_BESIDE = 0.05
"""Share of the box that keypoints may be beside the mesh."""
_SIDES = ("xyxy", "xywh")
DESCRIBED = Format(
    name=FORMAT,
    title="SAM 3D Body's data set",
    files="`.parquet`, or a folder of them; needs `pip install 'hmr-skel[parquet]'`",
    body="MHR, as parameters; posed by MHR's own TorchScript model",
    members=(
        Member(_POSE, "(n, 204)", "the first 3 the translation, in units of 10 cm"),
        Member(_SHAPE, "(n, 45)", "MHR's shape"),
        Member("cam_int", "(n, 3, 3)", "pixels"),
        Member(_VALID, "(n) bool", "false: rejected as `mhr_invalid`", needed=False),
        Member("image", "(n) text", "below the image root; becomes `imgname`", needed=False),
        Member("bbox", "(n, 4)", "pixels; with `bbox_format` gives `center` and `scale`", False),
        Member("bbox_format", "(n) text", "`xyxy` or `xywh`", needed=False),
        Member("keypoints_2d", "(n, k, 2 or 3)", "pixels, confidence", needed=False),
    ),
    gives="One row a person: these members, `dataset`, `person_id`, `subject_idx`, `date`, "
    "`center`, `scale`",
    options=(
        ("mhr", "needed: MHR's TorchScript file (`mhr_model.pt` of MHR's assets), from the folder "
         "of the labels; TorchScript is code and is run"),
        ("pattern", "which files of a folder, e.g. `**/*.parquet`"),
    ),
    traps=(
        "Nobody of us has had a file of the data set: its columns are taken from the published "
        "code. So the first bodies are projected with `cam_int`, and the file is refused where "
        "`keypoints_2d` are not where they are.",
        "The data set has no tracks: another person in every row, tenths of a second a row for "
        "the shape, and MHR's own evaluation besides, one row at a time.",
        "Masks and `keypoints_3d` are left out.",
    ),
    example="000000.parquet",
    asks=" --option mhr=mhr_model.pt",
)  # fmt: skip


def open_sam3d_labels(
    path: Path, options: LabelOptions, *, mhr: str = "", pattern: str = "**/*.parquet"
) -> BodySource:
    """Labels of SAM 3D Body's data set.

    mhr: MHR's TorchScript file, relative to the folder of the labels. pattern: which files of a
    folder. Raises InputError: one line with file and column.
    """
    files = _files(path, pattern)
    table: Table = JoinedTable(path, [ParquetTable(file, _NEEDED, _WANTED) for file in files])
    if not mhr:
        raise InputError(
            f"{path}: parameters of MHR; name MHR's TorchScript model, which is run, with --option "
            "mhr=FILE (mhr_model.pt of MHR's assets), or pose them yourself and save an npz of "
            "vertices, body='mhr', identity (docs/inputs.md#vertices)"
        )
    model = (path if path.is_dir() else path.parent) / mhr
    check_regular(model)
    if not model.is_file():
        raise InputError(f"{path}: option mhr: no file {model}")
    if {"bbox", "bbox_format"} <= table.specs.keys():
        box, kind = table.specs["bbox"], table.specs["bbox_format"]
        if box.shape != (4,) or box.dtype.kind not in "iuf" or kind.dtype.kind != "U":
            raise InputError(
                f"{path}: member 'bbox': {box.dtype} of shape {box.shape} a row, expected (4) "
                "pixels, and a text in 'bbox_format'"
            )
        table = WithColumns(table, _boxes)
    picture = {
        part: name
        for part, name in (("names", "imgname"), ("center", "center"), ("scale", "scale"))
        if name in table.specs
    }
    layout = BodyLayout(
        body=BODY,
        columns=dict(_WIDTHS),
        parameters=_Posed(model),
        vertices=BODY_VERTICES,
        picture=Layout(poses=(), betas=None, cam_int="cam_int", **picture),
    )
    return _Labels(FORMAT, table, layout, options, model)


class _Labels(BodySource):
    """The source, with MHR's model among its files; its check looks at the pictures' points."""

    def __init__(
        self, format: str, table: Table, layout: BodyLayout, options: LabelOptions, model: Path
    ) -> None:
        super().__init__(format, table, layout, options)
        self.files = (*table.files, model)

    def _check_columns(self) -> None:
        super()._check_columns()
        if _VALID in self.fields and self.fields[_VALID].shape:
            raise self._wrong(_VALID, "one truth value a row")
        points = self.fields.get("keypoints_2d")
        if points and (len(points.shape) != 2 or points.shape[1] not in (2, 3)):
            raise self._wrong("keypoints_2d", "(rows, k, 2 or 3)")
        if points:
            self._numeric("keypoints_2d")

    def check(self) -> None:
        super().check()
        if "keypoints_2d" in self.fields:
            self._check_projection()

    def _check_projection(self) -> None:
        """Raises InputError where bodies are not where the points of their pictures are: then the
        translation, the axes or the camera are not what they are taken for."""
        beside = []
        for row in range(min(self.rows, 64)):
            read = self.read(row, row + 1)
            if read.reasons[0] or read.other is None:
                continue
            mesh = read.other.parameters[VERTICES][0]
            found = _beside(mesh, *(read.fields[n][0] for n in ("cam_int", "keypoints_2d")))
            if found is not None:
                beside.append(found)
            if len(beside) == _TRIED:
                break
        if beside and not np.median(beside) <= _BESIDE:
            raise InputError(
                f"{self.path}: member 'keypoints_2d': they lie beside the projected bodies by "
                f"{np.median(beside):.0%} of the box, expected at most {_BESIDE:.0%}; "
                "translation (10 cm), axes (y up) or cam_int are not what they are taken for"
            )


@dataclass(frozen=True)
class _Posed:
    """`bodies.ParametersOf`: meshes by the model."""

    model: Path

    def __call__(
        self, fields: Mapping[str, np.ndarray], verdicts: Verdicts
    ) -> dict[str, np.ndarray]:
        from skel_fit.bodies.mhr import mhr_meshes

        n = len(fields[_POSE])
        numbers = [as_float64(fields[name]).reshape(n, _WIDTHS[name]) for name in (_POSE, _SHAPE)]
        if _VALID in fields:
            verdicts.reject(~(fields[_VALID] > 0), "mhr_invalid")
        with np.errstate(invalid="ignore"):
            largest = np.max([np.abs(values).max(axis=1) for values in numbers], axis=0)
            far = np.linalg.norm(numbers[0][:, :3] / _UNIT, axis=1) > MAX_TRANSLATION
        verdicts.reject(~np.isfinite(largest), "non_finite_parameter")
        verdicts.reject(far, "transl_out_of_range")
        verdicts.reject(largest > _LARGEST, "pose_out_of_range")
        good = np.flatnonzero(verdicts.reasons == "")
        meshes = np.full((n, BODY_VERTICES, 3), np.nan)
        try:
            meshes[good] = mhr_meshes(self.model, *(values[good] for values in numbers))
        except ModelFileError as error:
            raise InputError(f"{error}") from error
        return {VERTICES: meshes}


def _files(path: Path, pattern: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not stays_inside(pattern):
        raise InputError(f"{path}: pattern '{pattern}' leads out of the folder")
    files = sorted(file for file in path.glob(pattern) if file.is_file())
    if not files:
        raise InputError(f"{path}: no file matches '{pattern}'")
    return files


def _boxes(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Centre and side / 200 of the boxes; NaN where the format of a box is not known."""
    box, known = columns["bbox"], np.char.lower(columns["bbox_format"])
    first, second = as_float64(box[:, :2]), as_float64(box[:, 2:])
    last = np.where((known == "xywh")[:, None], first + second, second)
    last[~np.isin(known, _SIDES)] = np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        return {"center": (first + last) / 2, "scale": (last - first).max(axis=1) / UNIT_200PX}


def _beside(mesh: np.ndarray, camera: np.ndarray, points: np.ndarray) -> float | None:
    """How far visible points lie beside the rectangle around a projected mesh, as a share of its
    side, their median; of points that fill less than a quarter of it, 1. None: no points."""
    points = as_float64(points)
    seen = np.isfinite(points).all(axis=1)
    if points.shape[1] == 3:
        seen &= points[:, 2] > 0
    if seen.sum() < 3 or not row_checks.good_cameras(as_float64(camera)[None])[0]:
        return None
    pixels = mesh @ as_float64(camera).T
    if not (pixels[:, 2] > 0).all():
        return 1.0
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    shown = points[seen, :2]
    outside = np.maximum(np.maximum(low - shown, shown - high), 0.0)
    side = float((high - low).max())
    if not side > 0 or np.ptp(shown, axis=0).max() < side / 4:
        return 1.0
    return float(np.median(np.linalg.norm(outside, axis=1)) / side)
