"""The rows of a protocol: from its label file or from converted shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import Dataset, open_dataset
from pipeline.errors import InputError
from pipeline.row_checks import Verdicts, check_keypoints
from skel_fit.status import rejection_reasons
from stages.regressor.data.shards import column, recorded_images
from stages.regressor.evaluation.eval_rows import EvalRows, ScaleUnit, boxes_of, folders_of
from stages.regressor.evaluation.label_files import read_camerahmr, read_hmr2, read_moyo
from stages.regressor.evaluation.protocols import EvaluationProtocol

_NEEDED_FOR = "evaluation needs shards made from CameraHMR-like labels"


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
    return replace(rows, reason=_reasons(protocol, rows))


def _reasons(protocol: EvaluationProtocol, rows: EvalRows) -> np.ndarray:
    """Why rows are skipped: those of the reader, then keypoints that the protocol cannot use."""
    verdicts = Verdicts(rows.reason.copy())
    if protocol.truth.body == "keypoints" and rows.keypoints_3d is not None and protocol.alignment:
        used = set(protocol.joints.pick or range(44)).union(*(r.joints for r in protocol.roots))
        broken = ~np.isfinite(rows.keypoints_3d[:, sorted(used)]).all((1, 2))
        verdicts.reject(broken, "non_finite_keypoints")
    if protocol.pck is not None:
        assert rows.keypoints_2d is not None
        check_keypoints(verdicts, rows.keypoints_2d)
    return verdicts.reasons


def read_shards(
    directory: Path, *, split: str | None, scale_unit: ScaleUnit, images: Path | None = None
) -> EvalRows:
    """Rows of a converted dataset, one split of it if asked: SMPL labels and SKEL results."""
    dataset = open_dataset(directory)
    chosen = _of_split(dataset, split)
    n = len(chosen)

    def values(name: str) -> np.ndarray:
        return column(dataset, name, _NEEDED_FOR)[chosen]

    def numbers(name: str) -> np.ndarray:
        return values(name).astype(np.float64)

    verdicts = Verdicts.empty(n)
    center, cam_int, names = numbers("center"), numbers("cam_int"), values("imgname")
    box = boxes_of(
        str(directory), "scale", numbers("scale").reshape(n, -1), center, cam_int, scale_unit,
        verdicts,
    )  # fmt: skip
    # What the conversion rejected stays rejected, for the same reason.
    reason = rejection_reasons(values("status"))
    models = dataset.attrs["models_directory"]
    return EvalRows(
        row=values("source_row").astype(np.int64),
        name=names,
        center=center,
        box=box,
        sequence=values("segment").astype(np.str_) if "segment" in dataset else folders_of(names),
        gender=values("smpl_gender"),
        cam_int=cam_int,
        reason=np.where(reason != "", reason, verdicts.reasons),
        files={str(directory): str(dataset.attrs["digest"])},
        images=images or recorded_images(dataset),
        poses=numbers("pose_cam").reshape(n, -1)[:, :72],
        betas=numbers("shape").reshape(n, -1)[:, :10],
        transl=numbers("trans_cam").reshape(n, 3),
        keypoints_2d=numbers("gtkps")[:, :44] if "gtkps" in dataset else None,
        skel_poses=numbers("skel_poses"),
        skel_betas=numbers("skel_betas"),
        skel_trans=numbers("skel_trans"),
        skel_gender=values("skel_gender"),
        models=Path(models) if models else None,
        standin=bool(dataset.attrs["standin"]) if dataset.plan.models else None,
    )


def _of_split(dataset: Dataset, split: str | None) -> np.ndarray:
    """Indices of the rows of a split, of all rows if None."""
    if split is None:
        return np.arange(len(dataset))
    stored = column(dataset, "split", _NEEDED_FOR)
    chosen = np.flatnonzero(stored == split)
    if not len(chosen):
        there = sorted(set(stored.tolist()))
        raise InputError(f"{dataset.directory}: no row of split '{split}'; there are {there}")
    return chosen
