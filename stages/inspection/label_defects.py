"""Defects in a label file that are known from the published ones.

Errors are what `convert` refuses or rejects, and labels that contradict themselves. Warnings are
what upstream training filters away (docs/reference/label-formats.md#filters) or what a trainer
silently gets wrong (label-formats.md#traps).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.readers import AnnotationRows, LabelSource, open_source
from pipeline.readers.base import SMPL
from pipeline.readers.labels import as_float64, box_sides, flat
from pipeline.row_checks import REASONS, good_cameras, image_name
from stages.inspection.projection import keypoint_models, misplaced_keypoints
from stages.inspection.repeats import later_copies, row_hashes

ERROR, WARNING = "error", "warning"
_BLOCK = 8192
_EXAMPLES = 5

# Pictures that 4D-Humans and HSMR skip by name (label-formats.md#corrupt-aic).
CORRUPT_AIC = frozenset((
    "0a047f0124ae48f8eee15a9506ce1449ee1ba669", "1a703aa174450c02fbc9cfbf578a5435ef403689",
    "0394e6dc4df78042929b891dbc24f0fd7ffb6b6d", "5c032b9626e410441544c7669123ecc4ae077058",
    "ca018a7b4c5f53494006ebeeff9b4c0917a55f07", "4a77adb695bef75a5d34c04d589baf646fe2ba35",
    "a0689017b1065c664daef4ae2d14ea03d543217e", "39596a45cbd21bed4a5f9c2342505532f8ec5cbb",
    "3d33283b40610d87db660b62982f797d50a7366b",
))  # fmt: skip

CHECKS: dict[str, tuple[str, str]] = {
    "scale_unit": (ERROR, "scale is not box side / 200 in most rows"),
    "corrupt_aic_image": (ERROR, "one of the nine AIC pictures that are damaged"),
    "keypoints_normalised": (ERROR, "2D keypoints in crop units instead of pixels"),
    "confidence_out_of_range": (ERROR, "keypoint confidence outside 0 to 1"),
    "projection_mismatch": (
        ERROR, "keypoints further than a tenth of the box from the projected body, on average"
    ),
    "behind_camera": (ERROR, "the translation puts the body at or behind the camera"),
    "duplicate_row": (WARNING, "the same pose, shape and translation in the same image again"),
    "repeated_pose": (WARNING, "exactly the pose of an earlier row, in another image"),
    "zero_pose": (WARNING, "a pose of zeros only: a placeholder"),
    "beta_over_3": (WARNING, "|beta| above 3: upstream training does not trust the shape"),
    "box_below_8px": (WARNING, "box side below 8 px"),
    "off_centre_principal_point": (
        WARNING, "the principal point is not the image centre, which box conditioning assumes"
    ),
    "unequal_focal": (WARNING, "two focal lengths or skew: trainers use the first focal length"),
    "keypoints_outside_image": (WARNING, "a visible keypoint outside the image"),
    "keypoints_outside_box": (WARNING, "fewer than half of the visible keypoints inside the box"),
    "few_keypoints": (WARNING, "at most 4 visible keypoints: upstream training drops the row"),
    "reprojection_loss": (WARNING, "stored reprojection loss of 31,000 or more: dropped upstream"),
    "skel_fit_error": (WARNING, "stored SKEL fit error of 6 cm or more: not used upstream"),
    "no_translation": (WARNING, "no translation column: bodies cannot be placed in the camera"),
    "no_3d_keypoints": (WARNING, "no keypoints3d, which SKEL-CF training demands"),
}  # fmt: skip
"""Code -> level and meaning. Rejected rows have the codes of `pipeline.row_checks.REASONS`."""


@dataclass
class Finding:
    """One defect: how many rows have it (0: the file as a whole) and the first few of them."""

    code: str
    level: str
    message: str
    rows: int = 0
    first: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class LintReport:
    """What `lint_file` found. `projected`: rows whose keypoints were compared with the body."""

    file: str
    format: str
    rows: int
    rejected: int
    projected: int
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """No finding of level error."""
        return not any(finding.level == ERROR for finding in self.findings)


def lint_file(file: Path, models: Path | None = None) -> LintReport:
    """Look at every row of a label file.

    models: folder with SMPL models and SMPL_to_J19.pkl; None: HMR_SKEL_MODELS or ./models if that
    exists. Raises InputError: not readable, damaged, a given folder without those files.
    ModelFileError: a broken model file.
    """
    directory = keypoint_models(models)
    source = open_source(file)
    columns = source.fields
    if "gender" in columns and columns["gender"].dtype.kind in "SU":
        source = open_source(file, smpl_gender="column")
    source.check_bytes()
    found = _Findings()
    try:
        source.check_unit()
    except InputError as error:
        found.whole("scale_unit", str(error).split(": ", 1)[-1])
    _look_at_columns(source, found)
    copies = _Copies()
    rejected = 0
    for start in range(0, source.rows, _BLOCK):
        rows = source.read(start, min(start + _BLOCK, source.rows))
        rejected += int((rows.reasons != "").sum())
        for code, bad in _look_at_rows(source, rows):
            found.add(code, rows.source_row[bad])
        copies.add(source, rows)
    for code, which in copies.repeated():
        found.add(code, which)
    projected, off = misplaced_keypoints(source, directory)
    found.add("projection_mismatch", off)
    return LintReport(str(file), source.format, source.rows, rejected, projected, found.in_order())


class _Findings:
    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def add(self, code: str, rows: np.ndarray) -> None:
        if len(rows) == 0:
            return
        level, message = CHECKS[code] if code in CHECKS else (ERROR, REASONS[code])
        finding = self._found.setdefault(code, Finding(code, level, message))
        finding.rows += len(rows)
        room = _EXAMPLES - len(finding.first)
        finding.first += [int(row) for row in rows[: max(room, 0)]]

    def whole(self, code: str, message: str | None = None) -> None:
        level, meaning = CHECKS[code]
        self._found[code] = Finding(code, level, message or meaning)

    def in_order(self) -> list[Finding]:
        """Errors first, then by number of rows."""
        return sorted(self._found.values(), key=lambda f: (f.level != ERROR, -f.rows, f.code))


# ---- checks of one block ------------------------------------------------------------------------

_Look = Iterator[tuple[str, np.ndarray]]


def _look_at_columns(source: LabelSource, found: _Findings) -> None:
    layout = source.layout
    pictures = layout.names is not None and source.format != "webdataset"
    if pictures and layout.transl is None and source.body == SMPL:
        found.whole("no_translation")
    if source.format == "hmr-skel" and not {"keypoints3d", "keypoints_3d"} & source.fields.keys():
        found.whole("no_3d_keypoints")


def _look_at_rows(source: LabelSource, rows: AnnotationRows) -> _Look:
    """(code, (n,) bool) of every check that applies to the format."""
    for reason in np.unique(rows.reasons):
        if reason:
            yield str(reason), rows.reasons == reason
    layout, fields = source.layout, rows.fields
    with np.errstate(all="ignore"):
        yield from _look_at_bodies(source, rows)
        if layout.names:
            stems = [_stem(name) for name in fields[layout.names].tolist()]
            yield "corrupt_aic_image", np.array([stem in CORRUPT_AIC for stem in stems])
        if layout.scale:
            side = box_sides(fields[layout.scale])
            yield "box_below_8px", (side >= 1) & (side < 8)
        if layout.cam_int:
            yield from _look_at_cameras(source, fields)
        if layout.keypoints:
            yield from _look_at_keypoints(source, fields)
        loss = fields.get("extra_info.fitting_loss.reprojection_loss")
        if loss is not None:
            yield "reprojection_loss", flat(as_float64(loss)).max(1) >= 31_000
        if "orig_pve_max" in fields:
            yield "skel_fit_error", ~(flat(as_float64(fields["orig_pve_max"])).max(1) < 0.06)


def _look_at_bodies(source: LabelSource, rows: AnnotationRows) -> _Look:
    betas = rows.betas
    if rows.other is not None:
        betas = rows.other.parameters.get("betas", np.zeros((len(rows.reasons), 1)))
    yield "beta_over_3", (np.abs(betas) > 3).any(1)
    # Root alone may be zero: a body that stands along the axes of a motion capture room.
    yield "zero_pose", (rows.poses == 0).all(1)
    if source.layout.transl and source.layout.cam_int and rows.cameras is None:
        yield "behind_camera", rows.transl[:, 2] <= 0


def _look_at_cameras(source: LabelSource, fields: dict[str, np.ndarray]) -> _Look:
    cam_int = as_float64(fields[source.layout.cam_int or ""])
    good = good_cameras(cam_int)
    focal = cam_int[:, 0, 0]
    unequal = np.abs(cam_int[:, 1, 1] - focal) > 1e-3 * focal
    yield "unequal_focal", good & (unequal | (cam_int[:, 0, 1] != 0) | (cam_int[:, 1, 0] != 0))
    double = 2 * cam_int[:, :2, 2]
    if "image_size" in fields and fields["image_size"].shape[1:] == (2,):
        off = np.abs(double - as_float64(fields["image_size"])) > 2
    else:
        # The centre of an image lies at a half or a whole pixel.
        off = np.abs(double - np.rint(double)) > 0.02
    yield "off_centre_principal_point", good & (off | (double <= 0)).any(1)


def _look_at_keypoints(source: LabelSource, fields: dict[str, np.ndarray]) -> _Look:
    layout = source.layout
    points = as_float64(fields[layout.keypoints or ""])
    place, confidence = points[:, :, :2], points[:, :, 2]
    seen = confidence > 0
    count = seen.sum(1)
    yield "confidence_out_of_range", np.any((confidence < 0) | (confidence > 1.001), axis=1)
    yield "few_keypoints", count <= 4
    inside_unit = (np.abs(place) <= 1.5).all(2)
    yield "keypoints_normalised", (count > 4) & (inside_unit | ~seen).all(1)
    if layout.cam_int:
        size = 2 * as_float64(fields[layout.cam_int])[:, :2, 2]
        outside = np.any((place < -1) | (place > size[:, None] + 1), axis=2)
        yield "keypoints_outside_image", (outside & seen).any(1)
    if layout.center and layout.scale:
        half = box_sides(fields[layout.scale])[:, None, None] / 2
        offset = np.abs(place - as_float64(fields[layout.center])[:, None])
        inside = (offset <= half).all(2) & seen
        yield "keypoints_outside_box", (count > 0) & (2 * inside.sum(1) < count)


def _stem(name: str | bytes) -> str:
    return image_name(name).rpartition("/")[2].partition(".")[0]


def _numbers(rows: AnnotationRows) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the poses of rows are, and all numbers of their labels."""
    if rows.other is None:
        return [rows.poses], [rows.poses, rows.betas, rows.transl]
    parameters = rows.other.parameters
    own = [parameters[name] for name in sorted(parameters) if parameters[name].dtype.kind == "f"]
    poses = [
        parameters[name]
        for name in sorted(parameters)
        if name == "vertices" or name.endswith(("_pose", "_orient"))
    ]
    return poses or own, own


class _Copies:
    """Rows that repeat: all labels with the image, or the pose alone."""

    def __init__(self) -> None:
        self._row: list[np.ndarray] = []
        self._pose: list[np.ndarray] = []
        self._usable: list[np.ndarray] = []

    def add(self, source: LabelSource, rows: AnnotationRows) -> None:
        poses, columns = _numbers(rows)
        if source.layout.names:
            columns.append(rows.fields[source.layout.names])
        sequence = "sequence" in rows.fields
        if sequence:  # held poses repeat from frame to frame
            columns.append(rows.fields["frame"])
        self._row.append(row_hashes(columns))
        self._pose.append(row_hashes(poses))
        still = np.all([(part.reshape(len(part), -1) == 0).all(1) for part in poses], axis=0)
        self._usable.append((rows.reasons == "") & ~still & (not sequence))

    def repeated(self) -> _Look:
        """(code, rows) of the second and later copies."""
        usable = np.flatnonzero(np.concatenate(self._usable))
        again = later_copies(np.concatenate(self._row), usable)
        yield "duplicate_row", again
        posed = later_copies(np.concatenate(self._pose), usable)
        yield "repeated_pose", np.setdiff1d(posed, again)
