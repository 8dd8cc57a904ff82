"""Coordinates of the exported model: which angle turns about which axis, in which order.

OpenSim's CustomJoint is R = Rot(axis1, t1) Rot(axis2, t2) Rot(axis3, t3): the first rotation is the
outermost. SKEL applies its first angle innermost. The same bodies can therefore be written in two
conventions: `skel` keeps SKEL's numbers and lists the axes backwards; `opensim` lists the axes of
pelvis, hips and shoulders in SKEL's order, as gait models do, and computes new angles. Spine and
scapulae keep SKEL's order in both, because their translations are functions of SKEL's angles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skel_fit import anatomy, joint_limits
from skel_fit.anatomy import DOFS, JOINT_NAMES, NUM_JOINTS, NUM_POSES, PARENTS, POSE_NAMES

Angles = Literal["opensim", "skel"]
ANGLES: tuple[Angles, ...] = ("opensim", "skel")

TRANSLATIONS = ("pelvis_tx", "pelvis_ty", "pelvis_tz")
COORDINATES = (*POSE_NAMES[:3], *TRANSLATIONS, *POSE_NAMES[3:])
#: Column of `COORDINATES` of every pose parameter, and of the three translations.
POSE_COLUMNS = (0, 1, 2, *range(6, NUM_POSES + 3))
TRANSLATION_COLUMNS = (3, 4, 5)

#: Joints whose angles are computed anew in the convention `opensim`: pelvis, hips, shoulders.
REORDERED = (0, 1, 6, 15, 20)

JOINT_LABELS = (
    "ground_pelvis", "hip_r", "knee_r", "ankle_r", "subtalar_r", "mtp_r", "hip_l", "knee_l",
    "ankle_l", "subtalar_l", "mtp_l", "lumbar", "thoracic_spine", "neck", "scapulothoracic_r",
    "glenohumeral_r", "elbow_r", "radioulnar_r", "wrist_r", "scapulothoracic_l", "glenohumeral_l",
    "elbow_l", "radioulnar_l", "wrist_l",
)  # fmt: skip

#: Below this |cosine of the middle angle| the outer two are hardly told apart: a flagged frame.
GIMBAL_COSINE = 0.05
#: Below this one they are not told apart at all by numbers of double precision.
_LOCKED_COSINE = 1e-7


@dataclass(frozen=True)
class JointAxes:
    """One joint: its pose parameters, outermost first, and their signed unit axes.

    Attributes:
        joint: index of the SKEL joint (and body).
        dofs: pose parameters in OpenSim's order (first: outermost).
        axes: (len(dofs), 3), one a parameter, in the joint frame.
    """

    joint: int
    dofs: tuple[int, ...]
    axes: NDArray[np.float64]

    @property
    def name(self) -> str:
        """Name of the joint in the file."""
        return JOINT_LABELS[self.joint]

    @property
    def body(self) -> str:
        """Name of the body that it moves."""
        return JOINT_NAMES[self.joint]

    @property
    def parent(self) -> int:
        """Index of the parent body; -1: ground."""
        return PARENTS[self.joint]


def joint_axes(angles: Angles, *, corrected_left_ankle: bool = False) -> tuple[JointAxes, ...]:
    """The 24 joints in the convention `angles`."""
    if angles not in ANGLES:
        raise ValueError(f"angles: expected one of {', '.join(ANGLES)}; found {angles!r}")
    axes = anatomy.axes(corrected_left_ankle=corrected_left_ankle)
    rows = []
    for joint in range(NUM_JOINTS):
        first_outermost = angles == "opensim" and joint in REORDERED
        dofs = DOFS[joint] if first_outermost else DOFS[joint][::-1]
        rows.append(JointAxes(joint, dofs, np.array([axes[d] for d in dofs])))
    return tuple(rows)


def rotation_about(axis: NDArray, angle: NDArray) -> NDArray[np.float64]:
    """Rotations about one unit `axis` (3,) by `angle` (n,), radians: (n, 3, 3)."""
    x, y, z = np.asarray(axis, np.float64)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sine, half = np.sin(angle)[:, None, None], np.sin(np.asarray(angle) / 2)[:, None, None]
    return np.eye(3) + sine * cross + 2 * half * half * (cross @ cross)


def compose(angles: NDArray, axes: NDArray) -> NDArray[np.float64]:
    """Rot(axes[0], angles[:, 0]) Rot(axes[1], angles[:, 1]) ...: (n, k), (k, 3) -> (n, 3, 3)."""
    result = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for column, axis in enumerate(axes):
        result = result @ rotation_about(axis, angles[:, column])
    return result


def decompose(rotation: NDArray, axes: NDArray) -> NDArray[np.float64]:
    """Inverse of `compose` for three orthogonal axes: (n, 3, 3) -> (n, 3), principal branch.

    The middle angle is in [-90, 90] degrees. Rows are taken as one sequence in one respect only:
    where the middle angle is exactly 90 degrees the third angle is that of the row before.
    """
    parity = np.linalg.det(axes)
    # In the basis of the axes the three factors are Rx, Ry, Rz of the angles (or of minus them).
    turned = axes @ rotation @ axes.T
    cosine = np.hypot(turned[:, 0, 0], turned[:, 0, 1])
    middle = np.arctan2(turned[:, 0, 2], cosine)
    last = np.arctan2(-turned[:, 0, 1], turned[:, 0, 0])
    last = _from_row_before(last, cosine > _LOCKED_COSINE)
    # The first angle is what the other two leave: right also where they are not unique.
    rest = turned @ rotation_about(_Z, -last) @ rotation_about(_Y, -middle)
    first = np.arctan2(rest[:, 2, 1] - rest[:, 1, 2], rest[:, 1, 1] + rest[:, 2, 2])
    return parity * np.stack((first, middle, last), 1)


_Y, _Z = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])


def _from_row_before(values: NDArray, defined: NDArray[np.bool_]) -> NDArray:
    """`values`, those not defined replaced by the last defined one before (0 at the start)."""
    latest = np.maximum.accumulate(np.where(defined, np.arange(len(values)), -1))
    return np.where(latest >= 0, values[np.maximum(latest, 0)], 0.0)


def continuous(angles: NDArray) -> NDArray[np.float64]:
    """The same rotations with angles (n, 3) that do not jump from row to row.

    Of the two solutions (t1, t2, t3) and (t1 + 180, 180 - t2, t3 + 180 degrees) the one nearer to
    the row before is taken, and whole turns are added where that is nearer still.
    """
    if len(angles) < 2:
        return np.array(angles, np.float64)
    other = np.stack((angles[:, 0] + np.pi, np.pi - angles[:, 1], angles[:, 2] + np.pi), 1)
    stay = np.square(_wrapped(angles[1:] - angles[:-1])).sum(1)
    change = np.square(_wrapped(other[1:] - angles[:-1])).sum(1)
    # Both solutions move alike, so a change of branch is a property of the step, not of the branch.
    changed = np.concatenate(([False], np.logical_xor.accumulate(change < stay)))
    return np.unwrap(np.where(changed[:, None], other, angles), axis=0)


def _wrapped(angle: NDArray) -> NDArray:
    """`angle` plus whole turns, in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def within(angles: NDArray, low: NDArray, high: NDArray) -> NDArray[np.float64]:
    """The same rotations, the whole sequence moved to the branch and turns nearest to its ranges.

    angles: (n, 3) of one continuous sequence; low, high: (3,), infinite where free.
    """
    other = np.stack((angles[:, 0] + np.pi, np.pi - angles[:, 1], angles[:, 2] + np.pi), 1)
    best, least = angles, np.inf
    for branch in (angles, other):
        bounded = np.isfinite(low) & np.isfinite(high)
        middle = np.where(bounded, (np.where(bounded, low, 0) + np.where(bounded, high, 0)) / 2, 0)
        turns = np.round((branch - middle).mean(0) / (2 * np.pi))
        moved = branch - 2 * np.pi * turns
        excess = np.maximum(low - moved, 0) + np.maximum(moved - high, 0)
        if (total := float(np.square(excess).sum())) < least - 1e-9:
            best, least = moved, total
    return best


def near_gimbal(middle: NDArray) -> NDArray[np.bool_]:
    """Rows whose middle angle (n,), radians, leaves the outer two ill determined."""
    return np.abs(np.cos(middle)) < GIMBAL_COSINE


@dataclass(frozen=True)
class RootFrame:
    """What turns SKEL's root numbers into the pelvis body of OpenSim.

    Attributes:
        ground: (3, 3) from the axes of the data to OpenSim's ground.
        orientation: (3, 3) K_0, pelvis axes in the body frame at rest.
        apose: (3, 3) Ra_0.
        rest: (3,) J_0, pelvis at rest in the body frame, metres.
    """

    ground: NDArray[np.float64]
    orientation: NDArray[np.float64]
    apose: NDArray[np.float64]
    rest: NDArray[np.float64]

    def position(self, trans: NDArray) -> NDArray[np.float64]:
        """pelvis_tx, ty, tz of `trans` (n, 3): (n, 3) metres."""
        return (np.asarray(trans, np.float64) + self.rest) @ self.ground.T

    def trans(self, position: NDArray) -> NDArray[np.float64]:
        """Inverse of `position`."""
        return np.asarray(position, np.float64) @ self.ground - self.rest


def coordinates(
    poses: NDArray, trans: NDArray, root: RootFrame, angles: Angles, *, sequence: bool = True
) -> NDArray[np.float64]:
    """SKEL poses (n, 46) and trans (n, 3) as the model's coordinates (n, 49): radians, metres.

    sequence: rows follow one another in time; angles are then unwrapped and stay on one branch.
    Without it every row is alone: the principal branch, and independent of the other rows.
    """
    given = np.asarray(poses, np.float64)
    # A copy: the caller's angles stay as they are.
    result = np.empty((len(given), len(COORDINATES)))
    result[:, list(POSE_COLUMNS)] = np.unwrap(given, axis=0) if sequence else given
    result[:, list(TRANSLATION_COLUMNS)] = root.position(trans)
    if angles == "opensim":
        inner, outer = joint_axes("skel"), joint_axes("opensim")
        for joint in REORDERED:
            rotation = compose(given[:, list(inner[joint].dofs)], inner[joint].axes)
            if joint == 0:
                rotation = _to_ground(rotation, root)
            result[:, _columns(outer[joint].dofs)] = _angles_of(
                rotation, outer[joint].axes, sequence
            )
    return result


def skel_parameters(
    values: NDArray, root: RootFrame, angles: Angles, *, sequence: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse of `coordinates`: (n, 49) -> poses (n, 46) radians, trans (n, 3) metres.

    The angles are those of the branch and whole turns that fit the model's ranges best.
    """
    poses = np.asarray(values, np.float64)[:, list(POSE_COLUMNS)]
    trans = root.trans(values[:, list(TRANSLATION_COLUMNS)])
    if angles == "opensim":
        inner, outer = joint_axes("skel"), joint_axes("opensim")
        limits = joint_limits.limits("default")
        for joint in REORDERED:
            rotation = compose(poses[:, list(outer[joint].dofs)], outer[joint].axes)
            if joint == 0:
                rotation = _from_ground(rotation, root)
            found = _angles_of(rotation, inner[joint].axes, sequence)
            low, high = limits[list(inner[joint].dofs)].T
            poses[:, list(inner[joint].dofs)] = within(found, low, high) if sequence else found
    return poses, trans


def _angles_of(rotation: NDArray, axes: NDArray, sequence: bool) -> NDArray[np.float64]:
    if sequence:
        return continuous(decompose(rotation, axes))
    # Row by row: a locked row must not look at the one before it.
    found = decompose(rotation, axes)
    locked = np.abs(np.cos(found[:, 1])) <= 2 * _LOCKED_COSINE
    for row in np.flatnonzero(locked):
        found[row] = decompose(rotation[row : row + 1], axes)[0]
    return found


def _to_ground(rotation: NDArray, root: RootFrame) -> NDArray:
    """Pelvis axes in ground, of the pelvis joint rotation Rp (n, 3, 3)."""
    return root.ground @ root.orientation @ root.apose.T @ rotation @ root.apose


def _from_ground(rotation: NDArray, root: RootFrame) -> NDArray:
    return root.apose @ root.orientation.T @ root.ground.T @ rotation @ root.apose.T


def gimbal_rows(values: NDArray, angles: Angles) -> dict[str, NDArray[np.int64]]:
    """Joint name -> rows of `coordinates` (n, 49) in which its three angles are ill determined."""
    found = {}
    for row in joint_axes(angles):
        if len(row.dofs) == 3:
            middle = values[:, POSE_COLUMNS[row.dofs[1]]]
            rows = np.flatnonzero(near_gimbal(middle))
            if len(rows):
                found[row.name] = rows
    return found


def ranges(angles: Angles) -> NDArray[np.float64]:
    """(49, 2): low and high of every coordinate, radians; metres for the translations.

    `default` joint limits of the pose table. Angles of another order have other ranges, so the
    reordered joints get whole turns, and a quarter turn to both sides for the middle angle.
    """
    table = np.empty((len(COORDINATES), 2))
    limits = joint_limits.limits("default")
    turn, quarter = (-np.pi, np.pi), (-np.pi / 2, np.pi / 2)
    table[list(POSE_COLUMNS)] = np.where(np.isfinite(limits), limits, turn)
    table[list(TRANSLATION_COLUMNS)] = (-50.0, 50.0)
    for row in joint_axes(angles):
        if row.joint == 0 or (angles == "opensim" and row.joint in REORDERED):
            table[_columns(row.dofs)] = (turn, quarter, turn)
    return table


def _columns(dofs: Sequence[int]) -> list[int]:
    return [POSE_COLUMNS[d] for d in dofs]
