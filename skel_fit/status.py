"""What became of a row, and why SMPL parameters are rejected: one vocabulary for labels and fits.

Readers add reasons of their own (`pipeline.row_checks`); a reason of this table has the same name
and the same threshold wherever a row is rejected for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_REJECTED = "rejected:"

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

MAX_ROTATION = 4.0 * np.pi
"""Radians: rotation vectors longer than two turns are corrupt labels."""
MAX_BETA = 5.0
"""Standard deviations: beyond this no human has the shape."""
MAX_TRANSLATION = 1000.0
"""Metres from the camera: beyond this float32 geometry loses millimetres."""


class Status(str):
    """What became of a row: `converged`, `limited`, `max_iter` or `rejected:<reason>`.

    It is the text that is stored, so it compares, sorts and travels as one.

    converged: the solver settled. limited: mean error above `FitConfig.limited_above` with active
    limits, so the target lies outside the joint limits. max_iter: neither. rejected: no fit; the
    row's results are NaN.

    Raises ValueError for any other text.
    """

    __slots__ = ()
    CONVERGED: Status
    LIMITED: Status
    MAX_ITER: Status

    def __new__(cls, text: str) -> Status:
        known = text in ("converged", "limited", "max_iter")
        if not known and not (text.startswith(_REJECTED) and len(text) > len(_REJECTED)):
            raise ValueError(
                f"{text!r} is no row status; expected converged, limited, max_iter or "
                "rejected:<reason>"
            )
        return super().__new__(cls, text)

    @classmethod
    def rejected(cls, reason: str) -> Status:
        """The status of a row that is rejected for `reason`."""
        return cls(f"{_REJECTED}{reason}")

    @property
    def reason(self) -> str:
        """Why the row was rejected; empty for a fitted row."""
        return self.removeprefix(_REJECTED) if self.is_rejected else ""

    @property
    def is_rejected(self) -> bool:
        return self.startswith(_REJECTED)


Status.CONVERGED, Status.LIMITED, Status.MAX_ITER = map(
    Status, ("converged", "limited", "max_iter")
)


def rejected_rows(status: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows of a status column (n,) of text have no fit."""
    return np.char.startswith(status, _REJECTED)


def rejection_reasons(status: np.ndarray) -> np.ndarray:
    """(n,) text: why each row of a status column was rejected; empty for fitted rows."""
    return np.array([Status(text).reason for text in status.tolist()], np.str_)


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
