"""SKEL labels that a file has, taken as they are: what a row needs, and what is said of it.

`hmr-skel convert --no-fit`: nothing is fitted. A row's status comes from comparing its SKEL body
with its SMPL body, and its angles with the joint limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skel_fit.anatomy import PERIODIC
from skel_fit.joint_limits import LimitsName, excess, limits
from skel_fit.rejections import MAX_BETA, MAX_ROTATION, MAX_TRANSLATION
from skel_fit.status import Status

NOT_FITTED = "not_fitted"
"""What the plan of such data has in place of a fitter."""
MAX_DISTANCE = 0.06
"""Metres: labels with a vertex farther from the SMPL mesh are doubtful, the bound of HSMR's
training (docs/reference/label-formats.md#filters)."""
LIMIT_TOLERANCE = 1e-3
"""Radians beyond a limit that still count as on it."""
NON_FINITE, OUT_OF_RANGE = "non_finite_skel", "skel_out_of_range"
SKEL_REASONS = {
    NON_FINITE: "NaN or infinity in the SKEL label",
    OUT_OF_RANGE: "a SKEL angle beyond 4 pi, a shape coefficient beyond 5, or 1 km away",
}
"""Why SKEL labels are rejected -> what it means."""


@dataclass(frozen=True)
class GivenSkel:
    """SKEL labels of rows: poses (n, 46) radians, betas (n, 10), trans (n, 3) metres; float64.

    trans: None where a file has none: the closed form of the root places the body.
    """

    poses: NDArray[np.float64]
    betas: NDArray[np.float64]
    trans: NDArray[np.float64] | None

    def take(self, rows: NDArray) -> GivenSkel:
        """Some rows (indices or mask), in order."""
        trans = None if self.trans is None else self.trans[rows]
        return GivenSkel(self.poses[rows], self.betas[rows], trans)

    def rejections(self) -> dict[str, NDArray[np.bool_]]:
        """Reason -> (n,) bool."""
        parts = [(self.poses, MAX_ROTATION), (self.betas, MAX_BETA)]
        if self.trans is not None:
            parts.append((self.trans, MAX_TRANSLATION))
        finite = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part, _ in parts])
        with np.errstate(invalid="ignore"):
            beyond = [(np.abs(part) > bound).any(axis=1) for part, bound in parts]
        return {NON_FINITE: ~finite, OUT_OF_RANGE: finite & np.logical_or.reduce(beyond)}


def on_limits(poses: NDArray, table: LimitsName) -> NDArray[np.bool_]:
    """(n, 46) bool: angles (n, 46), radians, that lie on a limit or beyond it."""
    low, high = limits(table).T
    return excess(poses, low + LIMIT_TOLERANCE, high - LIMIT_TOLERANCE, PERIODIC) > 0


def given_status(poses: NDArray, largest: NDArray, table: LimitsName) -> NDArray[np.str_]:
    """(n,) `audited` or `doubtful`, of stored columns: angles (n, 46), radians, and the largest
    vertex distance (n,), metres.

    Doubtful: a vertex is farther than `MAX_DISTANCE`, or an angle beyond its limit.
    """
    low, high = limits(table).T
    beyond = (excess(poses, low, high, PERIODIC) > LIMIT_TOLERANCE).any(axis=1)
    doubtful = beyond | ~(largest <= MAX_DISTANCE)
    return np.where(doubtful, str(Status.DOUBTFUL), str(Status.AUDITED))
