"""Label files for other people's code: the HMR-SKEL npz that SKEL-CF's training reads.

Source: docs/reference/label-formats.md#hmr-skel and #hmr-skel-training. The file holds every
original column under its own name and with its own bytes, then `skel_poses`, `skel_betas`,
`skel_trans` and, where the labels have none, `keypoints3d`. It is written column by column, so
memory does not grow with the rows, and holds no time: the same dataset gives the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import RESULT_COLUMNS, SKEL_COLUMNS
from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.exporters.base import Exported, ExportOptions, Selection
from pipeline.output_files import published
from pipeline.paths import stays_inside
from skel_fit.keypoints import NUM_KEYPOINTS

KEYPOINTS = "keypoints3d"
BLOCK = 64
"""Rows of one call of a `Keypoints` function; constant, so that no row depends on the others."""
TRAINING_COLUMNS = ("imgname", "center", "scale", "gtkps", "cam_int")
"""Original columns that the SKEL-CF training reader cannot do without."""
_ZIP64_BYTES = 1 << 31

Keypoints = Callable[[NDArray, NDArray, NDArray], NDArray]
"""(poses (64, 46), betas (64, 10), skel genders (64,)) -> keypoints (64, 44, 3), metres."""


class HmrSkelOptions(ExportOptions):
    """keypoints3d: `add` makes them where the labels have none, `replace` always, `none` never."""

    keypoints3d: Literal["add", "replace", "none"] = "add"


@dataclass(frozen=True)
class HmrSkelNpz:
    """The format `hmr-skel-npz`.

    keypoints: (dataset, models as the user gave them) -> what makes the keypoints of its bodies.
    """

    keypoints: Callable[[Dataset, Path | None], Keypoints]
    name: ClassVar[str] = "hmr-skel-npz"
    options: ClassVar[type[ExportOptions]] = HmrSkelOptions

    def write(
        self, dataset: Dataset, path: Path, options: HmrSkelOptions, models: Path | None
    ) -> Exported:
        wanted = options.keypoints3d != "none"
        keypoints = self.keypoints(dataset, models) if wanted else None
        return export_hmr_skel(dataset, path, options, keypoints)


def export_hmr_skel(
    dataset: Dataset,
    path: Path,
    options: HmrSkelOptions,
    keypoints: Keypoints | None = None,
) -> Exported:
    """Write an HMR-SKEL label file.

    Args:
        dataset: a complete conversion.
        path: the file; an older one is replaced in one step.
        options: `rejected: drop` because the training reader filters nothing: one NaN row spoils a
            batch.
        keypoints: makes `keypoints3d` (rows, 44, 4): metres, camera-frame axes, no translation,
            confidence 1; None writes none but the labels' own.

    Raises:
        InputError: an original column cannot have its name in an npz file.
        OutputError: the file cannot be written.
    """
    selection = Selection.of(dataset, options)
    written = {i.source: i for i in dataset.plan.fields if i.source not in SKEL_COLUMNS}
    if keypoints is not None and KEYPOINTS in written:
        if options.keypoints3d == "replace":
            del written[KEYPOINTS]
        else:
            keypoints = None
    for name in written:
        if not stays_inside(name):
            raise InputError(f"{dataset.directory}: column {name!r} cannot be a member of an npz")
    columns = (*written, *SKEL_COLUMNS, *([KEYPOINTS] if keypoints else []))
    with published(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archived = partial(_write_member, archive, rows=selection.rows)
        for name, item in written.items():
            archived(name, np.dtype(item.dtype), item.shape, _column(selection, item.stored))
        for name in SKEL_COLUMNS:
            column = RESULT_COLUMNS[name]
            archived(name, np.dtype(column.dtype), column.shape, _column(selection, name))
        if keypoints:
            parts = _keypoints(selection, keypoints)
            archived(KEYPOINTS, np.dtype("<f4"), (NUM_KEYPOINTS, 4), parts)
    present = {*columns} | ({"gtkps"} if "keypoints_2d" in columns else set())
    missing = tuple(n for n in (*TRAINING_COLUMNS, KEYPOINTS) if n not in present)
    return Exported(
        path=path,
        rows=selection.rows,
        left_out=selection.left_out,
        columns=columns,
        missing=missing,
        attention=f"SKEL-CF's training needs {', '.join(missing)} too" if missing else "",
    )


def _column(selection: Selection, stored: str) -> Iterator[NDArray]:
    return (values for (values,) in selection.chunks(stored))


def _keypoints(selection: Selection, keypoints: Keypoints) -> Iterator[NDArray[np.float32]]:
    """Keypoints of the kept rows, in blocks of `BLOCK` in their order in the file."""
    poses, betas, genders = np.zeros((0, 46)), np.zeros((0, 10)), np.zeros(0, np.str_)
    for chunk in selection.chunks("skel_poses", "skel_betas", "skel_gender"):
        poses, betas, genders = map(_join, (poses, betas, genders), chunk)
        while len(poses) >= BLOCK:
            yield _with_confidence(poses[:BLOCK], betas[:BLOCK], genders[:BLOCK], keypoints)
            poses, betas, genders = poses[BLOCK:], betas[BLOCK:], genders[BLOCK:]
    if len(poses):
        yield _with_confidence(poses, betas, genders, keypoints)


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
    row_shape: tuple[int, ...],
    parts: Iterator[NDArray],
    *,
    rows: int,
) -> None:
    """One array of the npz, streamed."""
    shape = (rows, *row_shape)
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
