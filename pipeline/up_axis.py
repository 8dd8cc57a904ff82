"""Which way is up in a source, and the turn that a conversion gives it; cameras of its rows.

Pelvis angles are heading about y, list about x, tilt about z: an upright person is far from their
gimbal lock (list = +-90 degrees) where y is vertical, and in it where z is. So a world with z up is
turned before the fit; the plan says so in the source's option `up`, and everything that poses rows
asks here (docs/sequences.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.plan import Plan

if TYPE_CHECKING:
    from pipeline.readers.base import AnnotationRows

OPTION = "up"
UPS = ("z", "y", "y-down")
"""What a source may state. y-down: a camera's axes."""
_Z_UP_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def turn_of(plan: Plan) -> NDArray[np.float64] | None:
    """Rotation (3, 3) from the axes of the label file to those of `skel_poses` and `skel_trans`;
    None where they are the same."""
    return _Z_UP_TO_Y_UP.copy() if plan.source_options.get(OPTION) == "z" else None


def moved_points(points: Any, turn: Any) -> Any:
    """Points (n, V, 3) turned as `turned` says: `turn` (3, 3), or (n, 3, 4); tensors or arrays."""
    if turn.ndim == 2:
        return points @ turn.T
    return points @ turn[:, :, :3].swapaxes(1, 2) + turn[:, None, :, 3]


def turned(plan: Plan, rows: AnnotationRows, chosen: NDArray | slice) -> dict[str, NDArray]:
    """What a fitter has to know of the axes of some rows: `turn`, or nothing.

    turn: (3, 3) for all, or (n, 3, 4) a rotation and a shift in metres a row, from the axes of the
    labels to those of `skel_poses` and `skel_trans`.
    """
    if rows.cameras is not None:
        return {"turn": rows.cameras[chosen, :3]}
    turn = turn_of(plan)
    return {} if turn is None else {"turn": turn}


def y_is_up(plan: Plan) -> bool:
    """Whether y is up in `skel_poses` and `skel_trans`, as far as the source states it."""
    return plan.source_options.get(OPTION) in ("y", "z")
