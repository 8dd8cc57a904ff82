"""`hmr-skel lint`: defects in a label file that are known from the published ones.

Errors are what `convert` refuses or rejects, and labels that contradict themselves. Warnings are
what upstream training filters away or what a trainer silently gets wrong. Sources: reference/
datasets.md 1.4, 1.5, 1.7, 3.2, 4.4 and 8; each check names its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.readers import AnnotationRows, LabelSource, open_source
from pipeline.readers.labels import as_float64, box_sides, flat
from pipeline.row_checks import REASONS, good_cameras, image_name

ERROR, WARNING = "error", "warning"
_BLOCK = 8192
_EXAMPLES = 5
_PROJECTED_ROWS = 512
_PROJECTION_SHARE = 0.1  # of the box side; half a head
_MODELS = "models"

# datasets.md 1.7: pictures of AIC that 4D-Humans and HSMR skip by name.
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


def lint(file: Path, json: bool = False, models: Path | None = None) -> None:
    """Print what is wrong with a label file.

    JSON keys: ok, file, format, rows, rejected, projected, findings (code, level, message, rows,
    first). Keypoints are compared with the projected body when the body models are there:
    `models`, else HMR_SKEL_MODELS or ./models.

    Raises InputError: the file or `models` cannot be read, or there are findings of level error
    (after printing).
    """
    report = lint_file(file, models)
    print(_as_json(report) if json else _as_text(report))
    if not report.ok:
        errors = [finding.code for finding in report.findings if finding.level == ERROR]
        raise InputError(f"{file}: label defects: {', '.join(errors)}")


def lint_file(file: Path, models: Path | None = None) -> LintReport:
    """Look at every row of a label file.

    models: folder with SMPL models and SMPL_to_J19.pkl; None: HMR_SKEL_MODELS or ./models if that
    exists. Raises InputError: not readable, damaged, a given folder without those files.
    ModelFileError: a broken model file.
    """
    directory = _models(models)
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
    digests = _Digests()
    rejected = 0
    for start in range(0, source.rows, _BLOCK):
        rows = source.read(start, min(start + _BLOCK, source.rows))
        rejected += int((rows.reasons != "").sum())
        for code, bad in _look_at_rows(source, rows):
            found.add(code, rows.source_row[bad])
        digests.add(source, rows)
    for code, which in digests.repeated():
        found.add(code, which)
    projected, off = _look_at_projection(source, directory)
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
    if pictures and layout.transl is None:
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
    yield "beta_over_3", (np.abs(rows.betas) > 3).any(1)
    # Root alone may be zero: a body that stands along the axes of a motion capture room.
    yield "zero_pose", (rows.poses == 0).all(1)
    if source.layout.transl and source.layout.cam_int:
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


# ---- repeated rows ------------------------------------------------------------------------------


class _Digests:
    """Two 64-bit hashes a row: all labels with the image, and the pose alone."""

    def __init__(self) -> None:
        self._row: list[np.ndarray] = []
        self._pose: list[np.ndarray] = []
        self._usable: list[np.ndarray] = []

    def add(self, source: LabelSource, rows: AnnotationRows) -> None:
        n = len(rows.source_row)
        parts = [rows.poses, rows.betas, rows.transl]
        if source.layout.names:
            names = [image_name(v) for v in rows.fields[source.layout.names].tolist()]
            parts.append(np.array([_text_hash(name) for name in names], np.uint64).reshape(n, 1))
        if "sequence" in rows.fields:  # held poses repeat from frame to frame
            parts.append(as_float64(rows.fields["frame"]).reshape(n, 1))
        self._row.append(_hash_rows(parts))
        self._pose.append(_hash_rows([rows.poses]))
        sequence = "sequence" in rows.fields
        self._usable.append((rows.reasons == "") & ~(rows.poses == 0).all(1) & (not sequence))

    def repeated(self) -> _Look:
        """(code, rows) of the second and later copies."""
        row, pose = np.concatenate(self._row), np.concatenate(self._pose)
        usable = np.concatenate(self._usable)
        again = _later_copies(row, usable)
        yield "duplicate_row", again
        posed = np.setdiff1d(_later_copies(pose, usable), again)
        yield "repeated_pose", posed


def _later_copies(digests: np.ndarray, usable: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(usable)
    _, first = np.unique(digests[rows], return_index=True)
    return np.setdiff1d(rows, rows[first])


def _hash_rows(parts: list[np.ndarray]) -> np.ndarray:
    """(n,) uint64, a polynomial in an odd 64-bit base of the bits of each row, then mixed."""
    joined = np.concatenate([part.view(np.uint64) for part in map(np.ascontiguousarray, parts)], 1)
    result = np.zeros(len(joined), np.uint64)
    for column in joined.T:
        result = (result ^ _mixed(column)) * np.uint64(0x9E3779B97F4A7C15)
        result ^= result >> np.uint64(29)
    return result


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)


def _text_hash(text: str) -> int:
    import hashlib

    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


# ---- projection ---------------------------------------------------------------------------------


def _look_at_projection(source: LabelSource, directory: Path | None) -> tuple[int, np.ndarray]:
    """Rows compared, and those of them whose keypoints are not where the body is.

    At most 512 accepted rows, evenly spread. Nothing is compared without models, camera,
    translation, boxes or keypoints.
    """
    layout = source.layout
    complete = (layout.transl, layout.cam_int, layout.keypoints, layout.scale)
    if directory is None or not all(complete):
        return 0, np.empty(0, int)
    from skel_fit.keypoints import SmplKeypoints

    chosen = [source.read(row, row + 1) for row in range(0, source.rows, _step(source.rows))]
    chosen = [rows for rows in chosen if not rows.reasons[0]]
    compared, off = 0, []
    for gender in sorted({str(rows.smpl_gender[0]) for rows in chosen}):
        group = [rows for rows in chosen if rows.smpl_gender[0] == gender]
        points = SmplKeypoints.load(directory, gender).keypoints(
            np.concatenate([rows.poses for rows in group]).reshape(-1, 24, 3),
            np.concatenate([rows.betas for rows in group]),
        )
        for rows, body in zip(group, points, strict=True):
            error = _mean_distance(source, rows, body + rows.transl)
            compared += error is not None
            side = box_sides(rows.fields[layout.scale or ""])[0]
            if error is not None and not error <= _PROJECTION_SHARE * side:
                off.append(int(rows.source_row[0]))
    return compared, np.array(sorted(off), int)


def _step(rows: int) -> int:
    return -(-rows // _PROJECTED_ROWS)


def _mean_distance(source: LabelSource, rows: AnnotationRows, points: np.ndarray) -> float | None:
    """Mean distance in pixels over the visible keypoints; None without one."""
    keypoints = as_float64(rows.fields[source.layout.keypoints or ""])[0, :44]
    seen = keypoints[:, 2] > 0
    if not seen.any():
        return None
    cam_int = as_float64(rows.fields[source.layout.cam_int or ""])[0]
    with np.errstate(all="ignore"):
        pixels = points @ cam_int.T
        distance = np.linalg.norm(pixels[:, :2] / pixels[:, 2:] - keypoints[:, :2], axis=1)
    return float(distance[seen].mean())


def _models(given: Path | None) -> Path | None:
    import os

    from pipeline.manifest import MODELS_VARIABLE
    from skel_fit.errors import ModelFileError
    from skel_fit.keypoints import EXTRA_FILES, find_regressor

    path = Path(given or os.environ.get(MODELS_VARIABLE) or _MODELS)
    try:
        find_regressor(path, EXTRA_FILES)
    except ModelFileError:
        if given is None:
            return None
        raise InputError(
            f"{given}: expected a folder with SMPL models and {EXTRA_FILES[0]}, found "
            f"{'none in it' if given.is_dir() else 'no such folder'}; 'hmr-skel default-body --out "
            "DIR' writes one with the licence-free body, or leave --models out to check all but "
            "the keypoints"
        ) from None
    return path


# ---- printing -----------------------------------------------------------------------------------


def _as_json(report: LintReport) -> str:
    return json.dumps({"ok": report.ok, **asdict(report)}, sort_keys=True)


def _as_text(report: LintReport) -> str:
    lines = [
        f"{report.file}: {report.format}, {report.rows} rows, {report.rejected} rejected, "
        + (
            f"keypoints of {report.projected} compared with the body"
            if report.projected
            else "keypoints not compared with the body (no body models: --models; or columns are "
            "missing)"
        )
    ]
    for finding in report.findings:
        where = ""
        if finding.rows:
            more = ", ..." if finding.rows > len(finding.first) else ""
            where = f" [rows {', '.join(map(str, finding.first))}{more}]"
        count = f"{finding.rows}" if finding.rows else "file"
        lines.append(f"{finding.level:<8} {count:>9}  {finding.code}: {finding.message}{where}")
    if not report.findings:
        lines.append("nothing found")
    return "\n".join(lines)
