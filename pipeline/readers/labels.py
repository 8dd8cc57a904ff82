"""From columns to labels: one source class for all formats; a `Layout` says what a column is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import row_checks
from pipeline.errors import InputError
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.readers.tables import Table
from pipeline.row_checks import Verdicts
from skel_fit.rejections import MAX_BETA

NUM_POSES, NUM_BETAS = 72, 10
UNIT_200PX = 200.0
"""`scale` is box side / 200 in every training label format (label-formats.md#scale-unit)."""

_GENDERS = {"m": "male", "male": "male", "f": "female", "female": "female",
            "n": "neutral", "neutral": "neutral"}  # fmt: skip
_GENDER_COLUMNS = ("skel_gender", "gender")
_UNIT_SAMPLE = 65_536
_MIXED_UP_BOX = 8.0
_UNIT_SHARE = 0.5


@dataclass(frozen=True)
class Layout:
    """Which column holds what. None: the format has no such column.

    poses: one column or several to be joined, together (n, 72) axis-angle; (n, 63 + 3), SMPL+H
    (n, 156), SMPL-X (n, 165) and rotation matrices are converted. Empty: no SMPL pose (every row
    is rejected).
    cam_ext: world -> camera (4, 4): poses and transl are of the world, bodies are wanted in the
    camera. has_pose, has_betas, has_camera: flags, 0 means that the label is not valid.
    shift: (4, 4) whose last column is added to transl (BEDLAM). kid: shape whose 11th number, where
    it is not 0, makes a child of the body. skel_poses, skel_betas, skel_trans: SKEL labels that the
    file already has; carried, never converted from.
    """

    poses: tuple[str, ...]
    betas: str | None
    transl: str | None = None
    names: str | None = None
    center: str | None = None
    scale: str | None = None
    cam_int: str | None = None
    keypoints: str | None = None
    has_pose: str | None = None
    has_betas: str | None = None
    cam_ext: str | None = None
    has_camera: str | None = None
    shift: str | None = None
    kid: str | None = None
    skel_poses: str | None = None
    skel_betas: str | None = None
    skel_trans: str | None = None

    def columns(self) -> tuple[str, ...]:
        """Every column that labels and checks need."""
        rest = (self.betas, self.transl, self.names, self.center, self.scale, self.cam_int,
                self.keypoints, self.has_pose, self.has_betas, self.cam_ext,
                self.has_camera, self.shift, self.kid)  # fmt: skip
        return (*self.poses, *(name for name in rest if name))


@dataclass(frozen=True)
class LabelOptions:
    """What the manifest says about a source.

    smpl_gender: neutral, male, female or column; skel_gender: male, female or column, for other
    bodies than SMPL also nearest. image_root: folder below the data root that image names start
    at. max_beta: largest |beta| accepted.
    """

    smpl_gender: str = "neutral"
    skel_gender: str = "male"
    image_root: Path | None = None
    max_beta: float = MAX_BETA


class LabelSource(AnnotationSource):
    """Rows of any format: a table, the layout of its columns, and the options."""

    def __init__(self, format: str, table: Table, layout: Layout, options: LabelOptions) -> None:
        self.format, self._table, self._layout, self._options = format, table, layout, options
        self.path, self.files, self.rows = table.path, table.files, table.rows
        self.fields = table.specs
        self.up: str | None = None
        self._check_columns()

    @property
    def layout(self) -> Layout:
        """Which column is what; for tools that look at labels, such as lint."""
        return self._layout

    def read(self, start: int, stop: int) -> AnnotationRows:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"{self.path}: rows {start} to {stop} of {self.rows}")
        fields = self._table.read(start, stop)
        verdicts = Verdicts.empty(stop - start)
        body = self._body(fields, verdicts, stop - start)
        genders = self._genders(fields, verdicts, stop - start)
        cameras = self._cameras(fields)
        row_checks.check_body(verdicts, *body, self._options.max_beta, cameras)
        if cameras is not None:
            row_checks.check_extrinsics(verdicts, cameras)
        self._check_picture(fields, verdicts)
        return AnnotationRows(
            np.arange(start, stop),
            *body,
            *genders,
            fields=fields,
            reasons=verdicts.reasons,
            cameras=cameras,
        )

    def gender_pairs(self) -> set[tuple[str, str]]:
        names = [name for name in _GENDER_COLUMNS if name in self.fields]
        pairs: set[tuple[str, str]] = set()
        for start in range(0, self.rows, _UNIT_SAMPLE):
            stop = min(start + _UNIT_SAMPLE, self.rows)
            fields = self._table.read(start, stop, names) if names else {}
            verdicts = Verdicts.empty(stop - start)
            smpl, skel = self._genders(fields, verdicts, stop - start)
            good = verdicts.reasons == ""
            pairs |= set(zip(smpl[good].tolist(), skel[good].tolist(), strict=True))
        return pairs

    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """One original column, rows start <= row < stop."""
        return self._table.read(start, stop, (name,))[name]

    def check(self) -> None:
        self.check_bytes()
        self.check_unit()

    def check_bytes(self) -> None:
        """The checksums' half of `check`."""
        self._table.check()

    # ---- bodies ----

    def _body(
        self, fields: Mapping[str, np.ndarray], verdicts: Verdicts, n: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        layout = self._layout
        flags = (
            (layout.has_pose, "no_smpl_pose"),
            (layout.has_betas, "no_smpl_betas"),
            (layout.has_camera, "no_camera_pose"),
        )
        for flag, reason in flags:
            if flag:
                verdicts.reject(~(np.asarray(fields[flag], np.float64).reshape(n) > 0), reason)
        if not layout.poses:
            verdicts.reject(np.ones(n, bool), "no_smpl_pose")
        poses = np.full((n, NUM_POSES), np.nan)
        if layout.poses:
            poses = smpl_poses([fields[name] for name in layout.poses], verdicts)
        betas = np.full((n, NUM_BETAS), np.nan)
        if layout.betas:
            # A few formats store betas as (n, 1, >= 10).
            betas = flat(as_float64(fields[layout.betas]))[:, :NUM_BETAS].copy()
        transl = np.zeros((n, 3))
        if layout.transl:
            transl = as_float64(fields[layout.transl]).reshape(n, 3)
        if layout.shift:
            transl = transl + as_float64(fields[layout.shift])[:, :3, 3]
        return poses, betas, transl

    def _genders(
        self, fields: Mapping[str, np.ndarray], verdicts: Verdicts, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        smpl, skel = self._options.smpl_gender, self._options.skel_gender
        smpl_column = gender_column(fields, _GENDER_COLUMNS[1:], smpl, n)
        skel_column = gender_column(fields, _GENDER_COLUMNS, skel, n)
        verdicts.reject(smpl_column == "", "unknown_gender")
        verdicts.reject((skel_column != "male") & (skel_column != "female"), "unknown_gender")
        return smpl_column, skel_column

    def _cameras(self, fields: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return as_float64(fields[self._layout.cam_ext]) if self._layout.cam_ext else None

    # ---- picture ----

    def _check_picture(self, fields: Mapping[str, np.ndarray], verdicts: Verdicts) -> None:
        layout = self._layout
        if layout.kid:
            verdicts.reject(as_float64(fields[layout.kid])[:, 10] != 0, "kid_shape")
        cam_int = as_float64(fields[layout.cam_int]) if layout.cam_int else None
        if cam_int is not None:
            row_checks.check_camera(verdicts, cam_int)
        if layout.center and layout.scale:
            center = as_float64(fields[layout.center])
            row_checks.check_boxes(verdicts, center, box_sides(fields[layout.scale]), cam_int)
        if layout.keypoints:
            row_checks.check_keypoints(verdicts, as_float64(fields[layout.keypoints]))
        if layout.names:
            row_checks.check_names(verdicts, fields[layout.names], self._options.image_root)

    def check_unit(self) -> None:
        """The other half: refuse a file whose `scale` cannot be box side / 200
        (label-formats.md#scale-unit)."""
        layout = self._layout
        if not layout.scale:
            return
        names = tuple(name for name in (layout.scale, layout.cam_int) if name)
        small = large = known = 0
        for start in range(0, self.rows, _UNIT_SAMPLE):
            fields = self._table.read(start, min(start + _UNIT_SAMPLE, self.rows), names)
            side = box_sides(fields[layout.scale])
            cam_int = as_float64(fields[layout.cam_int]) if layout.cam_int else None
            with np.errstate(invalid="ignore"):
                small += int((side < _MIXED_UP_BOX).sum())
                large += int((side > row_checks.largest_box(len(side), cam_int)).sum())
            known += int(np.isfinite(side).sum())
        for count, what, why in (
            (small, "below 8 px", "a fraction of the image or another unit"),
            (large, "beyond 4 image diagonals", "pixels"),
        ):
            if known and count > _UNIT_SHARE * known:
                raise InputError(
                    f"{self.path}: member '{layout.scale}': read as box side / 200, {count} of "
                    f"{known} boxes are {what}, so its unit is probably {why}; expected "
                    "scale = side in pixels / 200, convert it first"
                )

    # ---- columns ----

    def _check_columns(self) -> None:
        layout = self._layout
        for name in layout.columns():
            if name not in self.fields:
                raise InputError(f"{self.path}: member '{name}': needed, the option skip names it")
        for name in layout.poses:
            self._numeric(name)
        self._pose_width()
        rules = (
            (layout.betas, lambda s: s[-1:] >= (NUM_BETAS,) and np.prod(s[:-1]) == 1,
             "(rows, 10 or more)"),
            (layout.transl, lambda s: int(np.prod(s)) == 3, "(rows, 3)"),
            (layout.center, lambda s: s == (2,), "(rows, 2)"),
            (layout.scale, lambda s: s in ((), (1,), (2,)), "(rows), (rows, 1) or (rows, 2)"),
            (layout.cam_int, lambda s: s == (3, 3), "(rows, 3, 3)"),
            (layout.keypoints, lambda s: len(s) == 2 and s[0] >= 44 and s[1] == 3,
             "(rows, 44 or more, 3)"),
            (layout.skel_poses, lambda s: s == (46,), "(rows, 46)"),
            (layout.skel_betas, lambda s: len(s) == 1 and s[0] >= NUM_BETAS, "(rows, 10 or more)"),
            (layout.skel_trans, lambda s: s == (3,), "(rows, 3)"),
            (layout.has_pose, lambda s: int(np.prod(s)) == 1, "(rows)"),
            (layout.has_betas, lambda s: int(np.prod(s)) == 1, "(rows)"),
            (layout.cam_ext, lambda s: s == (4, 4), "(rows, 4, 4)"),
            (layout.has_camera, lambda s: int(np.prod(s)) == 1, "(rows)"),
            (layout.shift, lambda s: s == (4, 4), "(rows, 4, 4)"),
            (layout.kid, lambda s: s == (11,), "(rows, 11)"),
        )  # fmt: skip
        for column, fits, expected in rules:
            if column:
                flags = (layout.has_pose, layout.has_betas, layout.has_camera)
                self._numeric(column, flag=column in flags)
                if not fits(self.fields[column].shape):
                    raise self._wrong(column, f"shape {expected}")
        if layout.names and (
            self.fields[layout.names].dtype.kind not in "SU" or self.fields[layout.names].shape
        ):
            raise self._wrong(layout.names, "file names, one text a row")
        for option, name in (("smpl_gender", "gender"), ("skel_gender", "skel_gender")):
            if getattr(self._options, option) != "column":
                continue
            found = name if name in self.fields else "gender"
            if found not in self.fields:
                raise InputError(
                    f"{self.path}: member '{name}' is missing; the manifest takes "
                    f"the gender from it, write male or female there instead"
                )
            spec = self.fields[found]
            if spec.dtype.kind not in "SU" or spec.shape not in ((), (1,)):
                raise self._wrong(found, "male, female or neutral, one text a row")

    def _numeric(self, name: str, flag: bool = False) -> None:
        if self.fields[name].dtype.kind not in ("biuf" if flag else "iuf"):
            raise self._wrong(name, "real numbers")

    def _pose_width(self) -> None:
        specs = [self.fields[name].shape for name in self._layout.poses]
        if not specs:
            return
        parts = [_pose_part(shape) for shape in specs]
        bad = next((i for i, part in enumerate(parts) if part is None), None)
        if bad is not None:
            expected = f"axis-angle ({NUM_POSES} values a body) or rotation matrices"
            if specs[bad] == (46,):
                expected += "; 46 are SKEL's angles, under the name skel_poses"
            raise self._wrong(self._layout.poses[bad], expected)
        width = sum(part for part in parts if part)
        if width not in (66, NUM_POSES, 156, 165) or (len(specs) == 1 and width == 66):
            raise self._wrong(self._layout.poses[-1], "72 pose values a row (24 joints), "
                              f"{width} found together")  # fmt: skip

    def _wrong(self, name: str, expected: str) -> InputError:
        spec = self.fields[name]
        shape = ", ".join(str(n) for n in ("rows", *spec.shape))
        return InputError(
            f"{self.path}: member '{name}': {spec.dtype} of shape ({shape}), expected {expected}"
        )


def smpl_poses(parts: list[np.ndarray], verdicts: Verdicts) -> np.ndarray:
    """(n, 72) float64 SMPL axis-angle from the pose columns of a format, joined in order.

    Rotation matrices (n, ..., 3, 3) become rotation vectors. Of wider ones (SMPL+H 156, SMPL-X 165)
    the first 66 values stay and the two hand joints are zero (label-formats.md#sequences); a
    63-wide body likewise.
    """
    joined = np.concatenate([_axis_angle(as_float64(part), verdicts) for part in parts], axis=1)
    body = joined if joined.shape[1] == NUM_POSES else joined[:, :66]
    return np.pad(body, ((0, 0), (0, NUM_POSES - body.shape[1])))


def box_sides(scale: np.ndarray) -> np.ndarray:
    """(n,) box side in pixels from `scale` (n,), (n, 1) or (n, 2) in units of 200 px."""
    return flat(as_float64(scale)).max(1) * UNIT_200PX


def flat(values: np.ndarray) -> np.ndarray:
    """(n, ...) as (n, m); n may be 0."""
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def as_float64(values: np.ndarray) -> np.ndarray:
    """Native float64; a signalling or overflowing value warns nobody."""
    with np.errstate(all="ignore"):
        return values.astype(np.float64)


def genders(values: np.ndarray) -> np.ndarray:
    """(n,) male, female, neutral or '' from stored genders: text or bytes, m/f/n or words."""
    text = [row_checks.image_name(v).strip().lower() for v in values.reshape(len(values)).tolist()]
    return np.array([_GENDERS.get(value, "") for value in text], "<U7").reshape(len(values))


def gender_column(
    fields: Mapping[str, np.ndarray], names: tuple[str, ...], choice: str, n: int
) -> np.ndarray:
    """(n,) genders: `choice` for all, or those of the first of these columns that is there."""
    if choice != "column":
        return np.full(n, choice, "<U7")
    return genders(fields[next(name for name in names if name in fields)])


def _pose_part(shape: tuple[int, ...]) -> int | None:
    """Rotation-vector values of a pose column of this row shape; None: not a pose."""
    size = int(np.prod(shape))
    if not shape or size == 0:
        return None
    if shape[-2:] == (3, 3):
        return size // 3
    return size if size % 3 == 0 else None


def _axis_angle(values: np.ndarray, verdicts: Verdicts) -> np.ndarray:
    n = len(values)
    if values.shape[1:][-2:] != (3, 3):  # three rows of one vector are no matrix
        return flat(values)
    matrices = values.reshape(n, int(np.prod(values.shape[1:-2])), 3, 3)
    broken = Verdicts.empty(n)
    row_checks.check_rotations(broken, matrices)
    for reason in ("non_finite_pose", "pose_not_rotation"):
        verdicts.reject(broken.reasons == reason, reason)
    return _vectors(matrices, broken.reasons == "")


def rotation_vectors(matrices: np.ndarray) -> np.ndarray:
    """(n, J, 3, 3) rotations -> (n, 3 J) axis-angle float64; NaN in rows with one that is none."""
    matrices = as_float64(matrices)
    broken = Verdicts.empty(len(matrices))
    row_checks.check_rotations(broken, matrices)
    return _vectors(matrices, broken.reasons == "")


def _vectors(matrices: np.ndarray, good: np.ndarray) -> np.ndarray:
    vectors = np.full((len(matrices), matrices.shape[1], 3), np.nan)
    if good.any():
        from scipy.spatial.transform import Rotation  # late: few label files need it

        turned = Rotation.from_matrix(matrices[good].reshape(-1, 3, 3)).as_rotvec()
        vectors[good] = turned.reshape(-1, matrices.shape[1], 3)
    return flat(vectors)
