"""Why SMPL parameters are rejected: one vocabulary for labels and fits.

Readers add reasons of their own (`pipeline.row_checks`); a reason of this table has the same name
and the same threshold wherever a row is rejected for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SMPL_REASONS = {
    "non_finite_pose": "NaN or infinity in the pose",
    "pose_out_of_range": "a rotation vector longer than 4 pi",
    "non_finite_betas": "NaN or infinity in the shape",
    "betas_out_of_range": "a shape coefficient beyond the limit (default 5)",
    "non_finite_transl": "NaN or infinity in the translation",
    "transl_out_of_range": "a translation longer than 1 km",
}
"""Why SMPL parameters are rejected -> what it means. The first that applies is a row's reason."""
NON_FINITE_VERTICES = "non_finite_vertices"
"""Why a bare mesh is rejected: NaN or infinity in its vertices or betas."""
VERTICES_OUT_OF_RANGE = "vertices_out_of_range"
"""Why a bare mesh is rejected: a vertex beyond `MAX_TRANSLATION` along an axis."""

MAX_ROTATION = 4.0 * np.pi
"""Radians: rotation vectors longer than two turns are corrupt labels."""
MAX_BETA = 5.0
"""Standard deviations: beyond this no human has the shape."""
MAX_TRANSLATION = 1000.0
"""Metres from the camera: beyond this float32 geometry loses millimetres."""


def smpl_rejections(
    poses: np.ndarray, betas: np.ndarray, transl: np.ndarray, max_beta: float = MAX_BETA
) -> Iterator[tuple[str, np.ndarray]]:
    """Each reason of `SMPL_REASONS`, in order, with the rows (n,) bool that it applies to.

    poses: (n, 72) radians; betas: (n, 10); transl: (n, 3) metres; float64. max_beta: larger |beta|
    is out of range.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        angles = np.linalg.norm(poses.reshape(len(poses), 24, 3), axis=2)
        distance = np.linalg.norm(transl, axis=1)
    yield "non_finite_pose", ~np.isfinite(poses).all(1)
    yield "pose_out_of_range", (angles > MAX_ROTATION).any(1)
    yield "non_finite_betas", ~np.isfinite(betas).all(1)
    yield "betas_out_of_range", (np.abs(betas) > max_beta).any(1)
    yield "non_finite_transl", ~np.isfinite(transl).all(1)
    yield "transl_out_of_range", distance > MAX_TRANSLATION
