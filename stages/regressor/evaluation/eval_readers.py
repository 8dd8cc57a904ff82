"""Evaluation label files -> `EvalRows`, whatever they call their columns.

Source: docs/reference/label-formats.md#traps. Files of the same name come in several flavours with
other keys and units, so nothing is guessed from a name: the protocol says format and scale unit,
and boxes that cannot be right in that unit are refused. Files are untrusted: members with Python
objects are read as data (`pipeline.readers.pickles`), never unpickled.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import open_dataset
from pipeline.atomic import make_directory, write_bytes
from pipeline.errors import InputError
from pipeline.manifest import data_root as find_data_root
from pipeline.readers.labels import genders
from pipeline.readers.npz import NpzFile
from pipeline.readers.pickles import load_object_member, object_column
from pipeline.row_checks import (
    Verdicts,
    check_boxes,
    check_keypoints,
    check_names,
    good_cameras,
    image_name,
)
from skel_fit.status import rejection_reasons
from stages.regressor.evaluation.protocols import EvaluationProtocol

ScaleUnit = Literal["px", "200px"]
UNITS: Mapping[ScaleUnit, float] = {"px": 1.0, "200px": 200.0}
SMALLEST_BOX = 8.0
LARGEST_BOX_DIAGONALS = 4.0
_MIXED_UP = 0.5  # share of impossible boxes from which on the unit must be wrong
_BODY_POINTS, _EXTRA_POINTS = 25, 19


@dataclass(frozen=True)
class EvalRows:
    """Rows to evaluate; absent columns are None. Pixels are those of the full image.

    row: (N,) int64 position in the file. name: (N,) image names. center, box: (N, 2) box centre
    and (w, h). sequence: (N,) video or folder, the unit of the bootstrap. gender: (N,) of the SMPL
    body, '' if unknown. cam_int: (N, 3, 3), NaN rows where not given. poses (N, 72), betas (N, 10),
    transl (N, 3): SMPL in the camera frame. keypoints_2d: (N, 44, 3) pixels and confidence.
    keypoints_3d: (N, 44, 3) metres. skel_poses (N, 46), skel_betas (N, 10), skel_trans (N, 3),
    skel_gender: SKEL labels. reason: (N,) why a row is skipped, '' if it is not.
    files: path -> SHA-256; images: their folder or tar file, None if not known.
    """

    row: np.ndarray
    name: np.ndarray
    center: np.ndarray
    box: np.ndarray
    sequence: np.ndarray
    gender: np.ndarray
    cam_int: np.ndarray
    reason: np.ndarray
    files: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    poses: np.ndarray | None = None
    betas: np.ndarray | None = None
    transl: np.ndarray | None = None
    keypoints_2d: np.ndarray | None = None
    keypoints_3d: np.ndarray | None = None
    skel_poses: np.ndarray | None = None
    skel_betas: np.ndarray | None = None
    skel_trans: np.ndarray | None = None
    skel_gender: np.ndarray | None = None
    models: Path | None = None
    """Folder of the body models that made the rows (shards)."""
    standin: bool | None = None
    """These are the licence-free stand-in; None: not known, as for label files."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: np.ndarray) -> EvalRows:
        """Some rows (indices or mask), in order."""
        changes = {
            item.name: value[chosen]
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), np.ndarray)
        }
        return replace(self, **changes)


def read_eval_rows(
    protocol: EvaluationProtocol, path: Path, images: Path | None = None
) -> EvalRows:
    """The rows of a protocol from its label file or shard directory.

    images: folder or tar file of the images; None: as the shards record, otherwise not known.

    Raises:
        InputError: missing or broken file or column, boxes that contradict the scale unit.
    """
    source = protocol.source
    if source.format == "shards":
        rows = read_shards(path, split=source.split, scale_unit=source.scale_unit, images=images)
    else:
        read: Callable[..., EvalRows] = {
            "hmr2": read_hmr2, "camerahmr": read_camerahmr, "moyo": read_moyo,
        }[source.format]  # fmt: skip
        rows = replace(read(path, scale_unit=source.scale_unit), images=images)
    for name, needed in (
        ("SMPL poses", protocol.truth.body == "smpl" and rows.poses is None),
        ("SKEL poses", protocol.truth.body == "skel" and rows.skel_poses is None),
        ("3D keypoints", protocol.truth.body == "keypoints" and bool(protocol.alignment)
         and rows.keypoints_3d is None),
        ("2D keypoints", protocol.pck is not None and rows.keypoints_2d is None),
    ):  # fmt: skip
        if needed:
            raise InputError(
                f"{path}: no {name}, which protocol {protocol.name} compares with; is this the "
                f"{source.format} flavour of the file?"
            )
    verdicts = Verdicts(rows.reason.copy())
    if protocol.truth.body == "keypoints" and rows.keypoints_3d is not None and protocol.alignment:
        used = set(protocol.joints.pick or range(44)).union(*(r.joints for r in protocol.roots))
        broken = ~np.isfinite(rows.keypoints_3d[:, sorted(used)]).all((1, 2))
        verdicts.reject(broken, "non_finite_keypoints")
    if protocol.pck is not None:
        assert rows.keypoints_2d is not None
        check_keypoints(verdicts, rows.keypoints_2d)
    return replace(rows, reason=verdicts.reasons)


# --- HMR2 ----------------------------------------------------------------------------------------


def read_hmr2(path: Path, *, scale_unit: ScaleUnit) -> EvalRows:
    """4D-Humans' evaluation npz: keypoints of the 44-point layout in two columns
    (label-formats.md#eval-hmr2)."""
    columns = _Columns(path)
    # An absent half is NaN in 3D and unseen (confidence 0) in 2D.
    keypoints_3d = _layout_44(columns, "3d", 4, np.nan)
    keypoints_2d = _layout_44(columns, "2d", 3, 0.0)
    verdicts = Verdicts.empty(columns.rows)
    if keypoints_3d is not None:
        keypoints_3d = keypoints_3d[..., :3]  # the evaluators ignore the confidence
    return _assembled(
        columns, verdicts, scale_unit,
        keypoints_2d=keypoints_2d, keypoints_3d=keypoints_3d,
    )  # fmt: skip


def _layout_44(columns: _Columns, kind: str, width: int, absent: float) -> np.ndarray | None:
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


# --- CameraHMR -----------------------------------------------------------------------------------


def read_camerahmr(path: Path, *, scale_unit: ScaleUnit) -> EvalRows:
    """CameraHMR's evaluation npz: SMPL parameters in the camera frame
    (label-formats.md#eval-camerahmr).

    SMPL-X poses (66 values, RICH) are refused: they need another body model.
    """
    columns = _Columns(path)
    n = columns.rows
    verdicts = Verdicts.empty(n)
    body: dict[str, np.ndarray] = {}
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
        _check_body(verdicts, body)
    keypoints = None
    for name in ("gtkps", "body_keypoints_2d"):
        if name in columns:
            points = columns.numbers(name, None)
            keypoints = _padded_44(columns, name, points)
            break
    return _assembled(columns, verdicts, scale_unit, keypoints_2d=keypoints, **body)


def _padded_44(columns: _Columns, name: str, points: np.ndarray) -> np.ndarray:
    """(N, 44, 3): first 44 of (N, K, 2 or 3) points; absent ones and confidences filled in."""
    if points.ndim != 3 or points.shape[2] not in (2, 3) or points.shape[1] < 25:
        raise columns.error(name, f"expected (rows, 25 or more, 3), found {points.shape}")
    result = np.zeros((len(points), 44, 3))
    count = min(points.shape[1], 44)
    result[:, :count, : points.shape[2]] = points[:, :count]
    if points.shape[2] == 2:
        result[:, :count, 2] = 1.0
    return result


# --- MOYO ----------------------------------------------------------------------------------------

_MOYO = {"imgname": "img_paths", "center": "centers", "scale": "scales"}


def read_moyo(path: Path, *, scale_unit: ScaleUnit) -> EvalRows:
    """HSMR's MOYO npz: neutral SMPL in a dict (label-formats.md#eval-moyo). Sequences are its
    `names`."""
    columns = _Columns(path, spelling=_MOYO)
    n = columns.rows
    smpl = columns.mapping("smpl")
    orient, pose, betas = (
        _dict_column(columns, smpl, key, n, width)
        for key, width in (("global_orient", 3), ("body_pose", 69), ("betas", 10))
    )
    body = {"poses": np.concatenate((orient, pose), 1), "betas": betas, "transl": np.zeros((n, 3))}
    verdicts = Verdicts.empty(n)
    _check_body(verdicts, body)
    return _assembled(columns, verdicts, scale_unit, sequence=columns.texts("names"), **body)


def _dict_column(columns: _Columns, smpl: dict, key: str, rows: int, width: int) -> np.ndarray:
    value = smpl.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        raise columns.error("smpl", f"entry '{key}' is missing or not an array of numbers")
    if value.size != rows * width or len(value) != rows:
        raise columns.error(
            "smpl", f"entry '{key}': expected ({rows}, {width}), found {value.shape}"
        )
    return value.reshape(rows, width).astype(np.float64)


# --- our shards ----------------------------------------------------------------------------------


def read_shards(
    directory: Path, *, split: str | None, scale_unit: ScaleUnit, images: Path | None = None
) -> EvalRows:
    """Rows of a converted dataset, one split of it if asked: SMPL labels and SKEL results."""
    dataset = open_dataset(directory)

    def column(name: str) -> np.ndarray:
        if name not in dataset:
            raise InputError(
                f"{directory}: column '{name}' is missing; evaluation needs shards made from "
                "CameraHMR-like labels"
            )
        return np.asarray(dataset[name])

    chosen = np.arange(len(dataset))
    if split is not None:
        chosen = np.flatnonzero(_decoded(column("split")) == split)
        if not len(chosen):
            there = sorted(set(_decoded(column("split")).tolist()))
            raise InputError(f"{directory}: no row of split '{split}'; there are {there}")

    def numbers(name: str) -> np.ndarray:
        return column(name)[chosen].astype(np.float64)

    n = len(chosen)
    verdicts = Verdicts.empty(n)
    # What the conversion rejected stays rejected, for the same reason.
    status = _decoded(column("status")[chosen])
    reason = rejection_reasons(status)
    scale = numbers("scale").reshape(n, -1)
    points = numbers("gtkps")[:, :44] if "gtkps" in dataset else None
    center, cam_int = numbers("center"), numbers("cam_int")
    box = _boxes(str(directory), "scale", scale, center, cam_int, scale_unit, verdicts)
    sequence = column("segment")[chosen] if "segment" in dataset else None
    names = _decoded(column("imgname")[chosen])
    recorded = dataset.attrs["data_root"]
    root = Path(recorded) if recorded else find_data_root(None)
    models = dataset.attrs["models_directory"]
    return EvalRows(
        row=column("source_row")[chosen].astype(np.int64),
        name=names,
        center=center,
        box=box,
        sequence=_folders(names) if sequence is None else _decoded(sequence).astype(np.str_),
        gender=_decoded(column("smpl_gender")[chosen]),
        cam_int=cam_int,
        reason=np.where(reason != "", reason, verdicts.reasons),
        files={str(directory): str(dataset.attrs["digest"])},
        images=images or root / dataset.plan.image_root,
        poses=numbers("pose_cam").reshape(n, -1)[:, :72],
        betas=numbers("shape").reshape(n, -1)[:, :10],
        transl=numbers("trans_cam").reshape(n, 3),
        keypoints_2d=points,
        skel_poses=numbers("skel_poses"),
        skel_betas=numbers("skel_betas"),
        skel_trans=numbers("skel_trans"),
        skel_gender=_decoded(column("skel_gender")[chosen]),
        models=Path(models) if models else None,
        standin=bool(dataset.attrs["standin"]) if dataset.plan.models else None,
    )


# --- MOYO-HARD -----------------------------------------------------------------------------------

MOYO_HARD_ROWS = 9725
MOYO_HARD_SEQUENCES = 29
Rounding = Literal["floor", "ceil", "nearest", "slice"]
ROUNDINGS: tuple[Rounding, ...] = ("floor", "ceil", "nearest", "slice")


@dataclass(frozen=True)
class MoyoHard:
    """What was built. counts: rows that each rounding gives for the chosen camera."""

    rows: np.ndarray
    sequences: int
    cameras: tuple[str, ...]
    counts: Mapping[Rounding, int]


def select_moyo_hard(
    names: Sequence[str], images: Sequence[str], *, camera: str, rounding: Rounding
) -> MoyoHard:
    """Rows of MOYO-HARD: one camera, the middle half of every video, in frame order.

    names, images: sequence name and image path `<sequence>/<camera>/<frame>.jpg` of each row. The
    paper (SKEL-CF supplement) says "camera #1" and "first and last 25 %" and no more, so both are
    options. rounding of a cut at n / 4 frames: `floor`, `ceil` or `nearest` (halves up) frames off
    either end; `slice`: frames floor(n/4) to floor(3n/4), as an index range would.

    Raises:
        InputError: no image of that camera, or a path that is not of this form.
    """
    videos: dict[str, list[tuple[tuple[int, str], int]]] = {}
    cameras: set[str] = set()
    for row, (name, image) in enumerate(zip(names, images, strict=True)):
        parts = image.split("/")
        if len(parts) < 3:
            raise InputError(
                f"row {row}: image path '{image}', expected <sequence>/<camera>/<frame>"
            )
        cameras.add(parts[-2])
        if parts[-2] == camera:
            videos.setdefault(name, []).append((_frame_key(parts[-1]), row))
    if not videos:
        raise InputError(
            f"no image of camera '{camera}'; the file has {', '.join(sorted(cameras))}"
        )
    kept: dict[Rounding, list[int]] = {}
    for how in ROUNDINGS:
        kept[how] = [
            row
            for name in sorted(videos)
            for _, row in sorted(videos[name])[slice(*middle_half(len(videos[name]), how))]
        ]
    return MoyoHard(
        rows=np.array(kept[rounding], np.int64),
        sequences=len(videos),
        cameras=tuple(sorted(cameras)),
        counts={how: len(rows) for how, rows in kept.items()},
    )


def middle_half(frames: int, rounding: Rounding) -> tuple[int, int]:
    """First frame kept and first one dropped after it, of a video of `frames` frames."""
    if rounding == "slice":
        return frames // 4, 3 * frames // 4
    cut = {"floor": frames // 4, "ceil": -(-frames // 4), "nearest": (frames + 2) // 4}[rounding]
    return cut, max(cut, frames - cut)


def build_moyo_hard(
    source: Path,
    destination: Path,
    *,
    camera: str = "YOGI_Cam_01",
    rounding: Rounding = "floor",
    expected_rows: int | None = MOYO_HARD_ROWS,
) -> MoyoHard:
    """Write the rows of MOYO-HARD out of a MOYO npz, every column as it was.

    expected_rows: the published count as a check; None: any count will do.

    Raises:
        InputError: broken source, or another count than expected; then nothing is written.
    """
    columns = _Columns(source, spelling=_MOYO)
    chosen = select_moyo_hard(
        columns.texts("names").tolist(), columns.texts("imgname").tolist(),
        camera=camera, rounding=rounding,
    )  # fmt: skip
    if expected_rows is not None and len(chosen.rows) != expected_rows:
        counts = ", ".join(f"{how} {count}" for how, count in chosen.counts.items())
        raise InputError(
            f"{source}: {len(chosen.rows)} rows of {chosen.sequences} sequences with camera "
            f"{camera}, expected {expected_rows} of {MOYO_HARD_SEQUENCES}; roundings give "
            f"{counts}; cameras are {', '.join(chosen.cameras)}; choose others, or pass "
            "--expected 0 to write it all the same"
        )
    smpl = columns.mapping("smpl")

    def kept(value: Any) -> Any:
        per_row = isinstance(value, np.ndarray) and value.shape[:1] == (columns.rows,)
        return value[chosen.rows] if per_row else value

    arrays: dict[str, np.ndarray] = {}
    for name, member in columns.members.items():
        if name == "smpl":
            values: Any = {key: kept(value) for key, value in smpl.items()}
        elif member.dtype.hasobject and not member.shape:
            values = columns.content(name)
        else:
            values = kept(columns.raw(name))
        arrays[name] = values if isinstance(values, np.ndarray) else np.array(values, object)
    _save_npz(destination, arrays)
    return chosen


def _frame_key(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name.rpartition(".")[0] if c.isdigit())
    return (int(digits) if digits else -1, name)


def _save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz file, whole or absent, the same bytes for the same arrays."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            # Protocol of the published files; the dict of arrays needs pickling to be written.
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=True)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    make_directory(path.parent)
    write_bytes(path, content.getvalue())


# --- shared --------------------------------------------------------------------------------------


class _Columns:
    """Row columns of an npz file under their common names."""

    def __init__(self, path: Path, spelling: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._spelling = dict(spelling or {})
        self._file = NpzFile(path)
        self.members = self._file.members
        first = self._member("imgname")
        shape = self.members[first].shape
        if len(shape) != 1:
            raise self.error("imgname", f"expected one name a row, found shape {shape}")
        self.rows = shape[0]

    def __contains__(self, name: str) -> bool:
        return self._spelling.get(name, name) in self.members

    def _member(self, name: str) -> str:
        name = self._spelling.get(name, name)
        if name not in self.members:
            there = ", ".join(sorted(self.members))
            raise InputError(f"{self.path}: member '{name}' is missing; the file has {there}")
        return name

    def error(self, name: str, problem: str) -> InputError:
        return self._file.error(self._spelling.get(name, name), problem)

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
        return _decoded(values)

    def content(self, name: str) -> Any:
        """What a member of Python objects holds, as plain values."""
        return load_object_member(self._file, self._member(name))

    def mapping(self, name: str) -> dict:
        """The dict in a 0-d object member."""
        value = self.content(name)
        if not isinstance(value, dict):
            raise self.error(name, f"expected a dict, found {type(value).__name__}")
        return value


def _assembled(
    columns: _Columns,
    verdicts: Verdicts,
    scale_unit: ScaleUnit,
    *,
    sequence: np.ndarray | None = None,
    **values: np.ndarray | None,
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
    box = _boxes(label, columns._spelling.get("scale", "scale"), scale, center, cam_int,
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
        sequence=_folders(names) if sequence is None else sequence,
        gender=gender,
        cam_int=cam_int,
        reason=verdicts.reasons,
        files={label: _sha256(columns.path)},
        **values,
    )


def _boxes(
    label: str,
    member: str,
    scale: np.ndarray,
    center: np.ndarray,
    cam_int: np.ndarray,
    unit: ScaleUnit,
    verdicts: Verdicts,
) -> np.ndarray:
    """(N, 2) boxes in pixels. Single impossible ones skip the row, many refuse the file."""
    if scale.shape[1] not in (1, 2):
        raise InputError(
            f"{label}: member '{member}': expected one or two numbers a row, found {scale.shape[1]}"
        )
    box = np.broadcast_to(scale * UNITS[unit], (len(scale), 2)).copy()
    side = box.max(1)
    known = np.isfinite(side)
    finite = center[np.isfinite(center).all(1)]
    # No image size in these files: box centres lie in the image, so it reaches at least so far.
    reach = np.hypot(*(2 * finite.max(0))) if len(finite) else np.inf
    with np.errstate(invalid="ignore"):
        small = side < SMALLEST_BOX
        large = side > LARGEST_BOX_DIAGONALS * reach
        for bad, what in (
            (small, f"below {SMALLEST_BOX:g} px"),
            (large, f"beyond {LARGEST_BOX_DIAGONALS:g} image diagonals"),
        ):
            if bad.sum() > _MIXED_UP * known.sum():
                other = "200px" if unit == "px" else "px"
                raise InputError(
                    f"{label}: member '{member}': read in units of {unit}, {int(bad.sum())} of "
                    f"{int(known.sum())} boxes are {what}; its unit is probably {other} "
                    "(source.scale_unit of the protocol)"
                )
        verdicts.reject(small, "box_too_small")
        verdicts.reject(large, "box_too_large")
    intrinsics = cam_int if np.isfinite(cam_int).any() else None
    check_boxes(verdicts, center, side, intrinsics)
    return box


def _check_body(verdicts: Verdicts, body: Mapping[str, np.ndarray]) -> None:
    """Finite is enough: the published evaluators keep every row, also shapes that a conversion
    would refuse, and so do we, or the averages would be over other rows.
    """
    for name, what in (("poses", "pose"), ("betas", "betas"), ("transl", "transl")):
        verdicts.reject(~np.isfinite(body[name]).all(1), f"non_finite_{what}")


def _decoded(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "S":
        return values
    return np.array([image_name(value) for value in values.tolist()], np.str_)


def _folders(names: np.ndarray) -> np.ndarray:
    """Folder of each image; with all images in one folder, each image by itself."""
    folders = np.array([name.rpartition("/")[0] for name in names.tolist()], np.str_)
    return names if len(set(folders.tolist())) < 2 else folders


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
