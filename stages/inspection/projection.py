"""Whether the 2D keypoints of a label file are where its bodies are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.manifest import MODELS_VARIABLE
from pipeline.readers import AnnotationRows, LabelSource
from pipeline.readers.labels import as_float64, box_sides
from skel_fit.errors import ModelFileError
from skel_fit.keypoints import EXTRA_FILES, SmplKeypoints, find_regressor

_PROJECTED_ROWS = 512
_PROJECTION_SHARE = 0.1  # of the box side; half a head
_MODELS = "models"


def misplaced_keypoints(source: LabelSource, directory: Path | None) -> tuple[int, np.ndarray]:
    """Rows compared, and those of them whose keypoints are not where the body is.

    At most 512 accepted rows, evenly spread. Nothing is compared without models, camera,
    translation, boxes or keypoints.
    """
    layout = source.layout
    complete = (layout.transl, layout.cam_int, layout.keypoints, layout.scale)
    if directory is None or not all(complete):
        return 0, np.empty(0, int)
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


def keypoint_models(given: Path | None) -> Path | None:
    """The folder with SMPL models and the regressor of the keypoints: `given`, else
    HMR_SKEL_MODELS, else ./models; None where the last two hold none.

    Raises:
        InputError: `given` holds none.
    """
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
