"""Label files for other people's code: the HMR-SKEL npz that SKEL-CF's training reads.

Source: reference/datasets.md 2.3 and 2.4. The file holds every original column under its own name
and with its own bytes, then `skel_poses`, `skel_betas`, `skel_trans` and, where the labels have
none, `keypoints3d`. It is written column by column, so memory does not grow with the rows, and
holds no time: the same dataset gives the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import published
from pipeline.columns import RESULT_COLUMNS, SKEL_COLUMNS
from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.paths import stays_inside
from skel_fit.status import rejected_rows

KEYPOINTS = "keypoints3d"
NUM_KEYPOINTS = 44
BLOCK = 64
"""Rows of one call of a `Keypoints` function; constant, so that no row depends on the others."""
TRAINING_COLUMNS = ("imgname", "center", "scale", "gtkps", "cam_int")
"""Original columns that the SKEL-CF training reader cannot do without."""
_ZIP64_BYTES = 1 << 31

Keypoints = Callable[[NDArray, NDArray, NDArray], NDArray]
"""(poses (64, 46), betas (64, 10), skel genders (64,)) -> keypoints (64, 44, 3), metres."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the file.
        rows: rows in it.
        left_out: reason -> rows that are not in it.
        columns: names, in file order.
        missing: columns that the training reader needs and the labels do not have.
    """

    path: Path
    rows: int
    left_out: Mapping[str, int]
    columns: tuple[str, ...]
    missing: tuple[str, ...]


def export_hmr_skel(
    dataset: Dataset,
    path: Path,
    *,
    keypoints: Keypoints | None = None,
    existing_keypoints: Literal["keep", "replace"] = "keep",
    rejected: Literal["drop", "keep"] = "drop",
    max_error: float | None = None,
) -> Exported:
    """Write an HMR-SKEL label file.

    Args:
        dataset: a complete conversion.
        path: the file; an older one is replaced in one step.
        keypoints: makes `keypoints3d` (rows, 44, 4): metres, camera-frame axes, no translation,
            confidence 1; None writes none.
        existing_keypoints: what to do when the labels have a `keypoints3d` already.
        rejected: `drop` leaves rows out that have no SKEL fit (the training reader filters
            nothing: one NaN row spoils a batch); `keep` writes them with NaN.
        max_error: metres; rows whose mean vertex error is larger are left out too.

    Raises:
        InputError: an original column cannot have its name in an npz file.
        OutputError: the file cannot be written.
    """
    kept, left_out = _kept_rows(dataset, rejected, max_error)
    originals = {item.source: item for item in dataset.plan.fields}
    written = {name: item for name, item in originals.items() if name not in SKEL_COLUMNS}
    with_keypoints = keypoints is not None
    if KEYPOINTS in written and with_keypoints:
        if existing_keypoints == "replace":
            del written[KEYPOINTS]
        else:
            with_keypoints = False
    for name in written:
        if not stays_inside(name):
            raise InputError(f"{dataset.directory}: column {name!r} cannot be a member of an npz")
    rows = int(kept.sum())
    columns = (*written, *SKEL_COLUMNS, *([KEYPOINTS] if with_keypoints else []))
    with published(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, item in written.items():
            shape = (rows, *item.shape)
            parts = _column(dataset, item.stored, kept)
            _write_member(archive, name, np.dtype(item.dtype), shape, parts)
        for name in SKEL_COLUMNS:
            column = RESULT_COLUMNS[name]
            parts = _column(dataset, name, kept)
            _write_member(archive, name, np.dtype(column.dtype), (rows, *column.shape), parts)
        if with_keypoints:
            assert keypoints is not None
            shape = (rows, NUM_KEYPOINTS, 4)
            parts = _keypoints(dataset, kept, keypoints)
            _write_member(archive, KEYPOINTS, np.dtype("<f4"), shape, parts)
    present = {*columns} | ({"gtkps"} if "keypoints_2d" in columns else set())
    return Exported(
        path=path,
        rows=rows,
        left_out=left_out,
        columns=columns,
        missing=tuple(n for n in (*TRAINING_COLUMNS, KEYPOINTS) if n not in present),
    )


def _kept_rows(
    dataset: Dataset, rejected: str, max_error: float | None
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    kept = np.ones(len(dataset), bool)
    left_out: Counter[str] = Counter()
    start = 0
    for chunk in dataset.chunks(["status", "vertex_error_mean"]):
        rows = slice(start, start + len(chunk["status"]))
        start = rows.stop
        bad = rejected_rows(chunk["status"])
        if rejected == "drop":
            kept[rows] &= ~bad
            left_out.update(chunk["status"][bad].tolist())
        if max_error is not None:
            far = ~bad & (chunk["vertex_error_mean"] > max_error)
            kept[rows] &= ~far
            left_out.update({f"mean error above {max_error * 1000:g} mm": int(far.sum())})
    return kept, {reason: n for reason, n in sorted(left_out.items()) if n}


def _column(dataset: Dataset, stored: str, kept: NDArray[np.bool_]) -> Iterator[NDArray]:
    start = 0
    for chunk in dataset.chunks([stored]):
        values = chunk[stored]
        yield values[kept[start : start + len(values)]]
        start += len(values)


def _keypoints(
    dataset: Dataset, kept: NDArray[np.bool_], keypoints: Keypoints
) -> Iterator[NDArray[np.float32]]:
    """Keypoints of the kept rows, in blocks of `BLOCK` in their order in the file."""
    names = ("skel_poses", "skel_betas", "skel_gender")
    columns = zip(*(_column(dataset, name, kept) for name in names), strict=True)
    held: tuple[NDArray, ...] | None = None
    for chunk in columns:
        held = chunk if held is None else tuple(map(_join, held, chunk))
        while len(held[0]) >= BLOCK:
            yield _with_confidence(*(part[:BLOCK] for part in held), keypoints)
            held = tuple(part[BLOCK:] for part in held)
    if held is not None and len(held[0]):
        yield _with_confidence(*held, keypoints)


def _join(first: NDArray, second: NDArray) -> NDArray:
    return np.concatenate([first, second])


def _with_confidence(
    poses: NDArray, betas: NDArray, genders: NDArray, keypoints: Keypoints
) -> NDArray[np.float32]:
    """(n, 44, 4) for n <= BLOCK rows; NaN and confidence 0 where there is no fit."""
    n = len(poses)
    fitted = np.isfinite(poses).all(axis=1)
    full = [np.zeros((BLOCK, poses.shape[1])), np.zeros((BLOCK, betas.shape[1]))]
    full[0][:n], full[1][:n] = (np.where(fitted[:, None], v, 0.0) for v in (poses, betas))
    padded = np.concatenate([genders, np.full(BLOCK - n, genders[0])])
    result = np.ones((n, NUM_KEYPOINTS, 4), np.float32)
    result[:, :, :3] = keypoints(full[0], full[1], padded)[:n]
    result[~fitted] = (np.nan, np.nan, np.nan, 0.0)
    return result


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    parts: Iterator[NDArray],
) -> None:
    """One array of the npz, streamed."""
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    size = int(np.prod(shape)) * dtype.itemsize
    written = 0
    with archive.open(info, "w", force_zip64=size > _ZIP64_BYTES) as member:
        member.write(header.getvalue())
        for part in parts:
            data = np.ascontiguousarray(part, dtype)
            if data.shape[1:] != shape[1:]:
                raise InputError(f"column '{name}' has rows of {data.shape[1:]}, not {shape[1:]}")
            member.write(data.tobytes())
            written += data.nbytes
    if written != size:
        raise RuntimeError(f"column '{name}': {written} bytes written, {size} announced")


def describe(exported: Exported) -> dict[str, Any]:
    """An export as JSON values."""
    return {
        "path": str(exported.path),
        "rows": exported.rows,
        "left_out": dict(exported.left_out),
        "columns": list(exported.columns),
        "missing": list(exported.missing),
    }
