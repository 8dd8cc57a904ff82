"""The ranges of the 46 joint angles, with their sources, and how far an angle lies outside.

Source of the published table: docs/reference/skel-model.md#limits. All angles are radians.

An angle is judged by the joint's position, so whole turns are taken off first: to [-pi, pi], as the
published evaluation does (docs/reference/evaluation.md#limit-rates), and an angle whose range
reaches across that seam is inside where any of its representatives is. Only bending and extension
of the spine are judged as they are, because they also slide their joint along an arc: for them a
whole turn is another position (`anatomy.PERIODIC`).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from skel_fit.anatomy import MIRROR_PERMUTATION, MIRROR_SIGNS, POSE_NAMES

if TYPE_CHECKING:
    from torch import Tensor

_TURN = 2 * math.pi
#: numpy and torch alike.
_Array = TypeVar("_Array", np.ndarray, "Tensor")


def excess(angles: _Array, lower: _Array, upper: _Array, turns: _Array | bool = True) -> _Array:
    """How far angles lie outside their ranges, radians; 0 inside. Differentiable.

    angles: (..., A); lower, upper: their ranges, broadcast; turns: where a whole turn changes
    nothing (`anatomy.PERIODIC` for the 46). All of one kind and on one device: numpy or torch.
    """
    # Exactly the angle itself where there is no turn to take off.
    angle = angles - (angles / _TURN).round() * turns * _TURN
    outside = (lower - angle).clip(0) + (angle - upper).clip(0)
    outside = outside * (outside > 0)  # torch's clip has a slope on the limit itself
    for other in (angle - _TURN, angle + _TURN):
        outside = outside * ~((other >= lower) & (other <= upper) & turns)
    return outside


@dataclass(frozen=True)
class Limit:
    """Range of one angle, radians, and where the numbers come from."""

    low: float
    high: float
    source: str


LimitsName = Literal["default", "published", "none"]

_HSMR = "HSMR limits (docs/reference/skel-model.md#limits)"
_BOTH = "SKEL and HSMR limits (docs/reference/skel-model.md#limits)"
_45 = 0.785398
_PUBLISHED: dict[str, Limit] = {
    "hip_flexion_r": Limit(-_45, 2.356194, _HSMR),
    "hip_adduction_r": Limit(-_45, 0.523599, _HSMR),
    "hip_rotation_r": Limit(-_45, _45, _HSMR),
    "knee_angle_r": Limit(0.0, 2.356194, _BOTH),
    "ankle_angle_r": Limit(-_45, _45, _BOTH),
    "subtalar_angle_r": Limit(-_45, _45, _BOTH),
    "mtp_angle_r": Limit(-_45, _45, _BOTH),
    "hip_flexion_l": Limit(-_45, 2.356194, _HSMR),
    "hip_adduction_l": Limit(-_45, 0.523599, _HSMR),
    "hip_rotation_l": Limit(-_45, _45, _HSMR),
    "knee_angle_l": Limit(0.0, 2.356194, _BOTH),
    "ankle_angle_l": Limit(-_45, _45, _BOTH),
    "subtalar_angle_l": Limit(-_45, _45, _BOTH),
    "mtp_angle_l": Limit(-_45, _45, _BOTH),
    "lumbar_bending": Limit(-0.523599, 0.523599, _BOTH),
    "lumbar_extension": Limit(-_45, _45, _BOTH),
    "lumbar_twist": Limit(-_45, _45, _BOTH),
    "thorax_bending": Limit(-_45, _45, _BOTH),
    "thorax_extension": Limit(-_45, _45, _BOTH),
    "thorax_twist": Limit(-_45, _45, _BOTH),
    "head_bending": Limit(-_45, _45, _BOTH),
    "head_extension": Limit(-_45, _45, _BOTH),
    "head_twist": Limit(-_45, _45, _BOTH),
    "scapula_abduction_r": Limit(-0.628, 0.628, _BOTH),
    "scapula_elevation_r": Limit(-0.4, -0.1, _BOTH),
    "scapula_upward_rot_r": Limit(-0.190, 0.319, _BOTH),
    "shoulder_r_x": Limit(-1.570796, 3.070796, _HSMR),
    "shoulder_r_y": Limit(-1.570796, 1.570796, _BOTH),
    "shoulder_r_z": Limit(-1.570796, 1.570796, _HSMR),
    "elbow_flexion_r": Limit(0.0, 2.356194, _BOTH),
    "pro_sup_r": Limit(-1.178097, 1.178097, _BOTH),
    "wrist_flexion_r": Limit(-1.570796, 1.570796, _BOTH),
    "wrist_deviation_r": Limit(-_45, _45, _BOTH),
    "scapula_abduction_l": Limit(-0.628, 0.628, _BOTH),
    "scapula_elevation_l": Limit(-0.4, -0.1, _BOTH + ", pair sorted"),
    "scapula_upward_rot_l": Limit(-0.210, 0.219, _BOTH),
    "shoulder_l_x": Limit(-3.070796, 1.570796, _HSMR),
    "shoulder_l_y": Limit(-1.570796, 1.570796, _HSMR),
    "shoulder_l_z": Limit(-1.570796, 1.570796, _HSMR),
    "elbow_flexion_l": Limit(0.0, 2.356194, _BOTH),
    "pro_sup_l": Limit(-1.570796, 1.570796, _BOTH),
    "wrist_flexion_l": Limit(-1.570796, 1.570796, _BOTH),
    "wrist_deviation_l": Limit(-_45, _45, _BOTH),
}

# `default`: human ranges of motion, wide enough for dance and yoga; every published range that is
# narrower is widened. Angles follow one another about fixed axes, so a range belongs to the
# coordinate, not to one clinical movement: at 90 degrees of hip flexion "adduction" turns the thigh
# about its own axis and "rotation" swings it sideways. Hip and shoulder therefore take the largest
# clinical range that the coordinate has to express. Signs: hip rotation +in, ankle +up, subtalar
# +inversion, toes +down, trunk and head extension +back, scapula upward rotation +up.
_AAOS = "AAOS 1994 / Norkin & White, Measurement of Joint Motion"
_RAJAGOPAL = "Rajagopal et al. 2016 OpenSim model"
_WIDEST = f"{_BOTH}, beyond the clinical range"
_SITTING = "external rotation 82 deg sitting: Ganokroj et al., BMC Musculoskelet Disord 22 (2021)"
_BRAMAN = "Braman et al., J Shoulder Elbow Surg 18 (2009) 960"
_LUMBAR = f"{_BOTH}; AAOS lumbar flexion 60, extension 25 deg"
_RIGHT_OR_MIDDLE: dict[str, Limit] = {
    "hip_flexion_r": Limit(
        -_45,
        2.617994,
        f"120 deg ({_AAOS}) and 30 for dancers: Steinberg et al., Am J Sports Med 34 (2006) 814",
    ),
    "hip_adduction_r": Limit(
        -1.570796, 1.221730, f"side split, 90 deg a leg; flexed thigh: {_SITTING}"
    ),
    "hip_rotation_r": Limit(-1.570796, 1.221730, f"straddle, 90 deg a leg; lotus: {_SITTING}"),
    "knee_angle_r": Limit(
        -0.1,
        2.8,
        "squat 157 +- 6 deg: Hemmerich et al., J Orthop Res 24 (2006) 770; hyperextension 5 deg",
    ),
    "ankle_angle_r": Limit(
        -1.4, _45, "pointe 77-89 deg: Russell et al., Foot Ankle Spec 3 (2010) 324; dorsiflexion 45"
    ),
    "subtalar_angle_r": Limit(-_45, _45, f"{_WIDEST}: inversion 35, eversion 15 deg ({_AAOS})"),
    "mtp_angle_r": Limit(
        -1.570796, _45, f"extension 70 deg ({_AAOS}), 90 on half pointe; flexion 45 deg"
    ),
    "lumbar_bending": Limit(-0.523599, 0.523599, f"{_BOTH}; AAOS lateral flexion 25 deg"),
    "lumbar_extension": Limit(-1.047198, _45, _LUMBAR),
    "lumbar_twist": Limit(-_45, _45, f"{_WIDEST}: trunk rotation 45 deg in all ({_AAOS})"),
    "thorax_bending": Limit(-_45, _45, f"{_WIDEST}: trunk bending 35 deg in all ({_AAOS})"),
    "thorax_extension": Limit(-_45, _45, f"{_WIDEST}: thoracolumbar flexion 80 deg ({_AAOS})"),
    "thorax_twist": Limit(-_45, _45, f"{_WIDEST}: trunk rotation 45 deg in all ({_AAOS})"),
    "head_bending": Limit(-_45, _45, f"{_BOTH}; cervical bending 45 deg ({_AAOS})"),
    "head_extension": Limit(
        -1.047198,
        1.221730,
        f"45 deg ({_AAOS}), more for the young: Swinkels et al., Spine 39 (2014) 362",
    ),
    "head_twist": Limit(
        -1.396263, 1.396263, f"60 deg ({_AAOS}), passive 80: Swinkels et al., Spine 39 (2014) 362"
    ),
    "scapula_abduction_r": Limit(
        -0.628, 0.628, f"{_BOTH}; Ludewig et al., J Bone Joint Surg Am 91 (2009) 378"
    ),
    # The published elevation pair contradicts the model's own mirror rule and excludes rest; the
    # mean pose of the sources (+0.220 right, -0.209 left) shows that the right range is wrong.
    "scapula_elevation_r": Limit(
        -0.1, 0.4, "mirrored and containing rest: docs/reference/skel-model.md#elevation-limits"
    ),
    "scapula_upward_rot_r": Limit(
        -0.523599, 0.698132, f"arm down to overhead, seen from T, 0.43 of the arm's: {_BRAMAN}"
    ),
    "shoulder_r_x": Limit(-2.094395, 3.070796, f"HSMR; arm_add to -120 deg: {_RAJAGOPAL}"),
    "shoulder_r_y": Limit(-1.570796, 1.570796, "whole range of a middle Euler angle"),
    "shoulder_r_z": Limit(
        -1.570796, 3.141593, f"flexion 180, extension 60, rotation 90 deg ({_AAOS})"
    ),
    "elbow_flexion_r": Limit(-0.1, 2.7, f"150 deg and soft tissue: {_RAJAGOPAL}, {_AAOS}"),
    "pro_sup_r": Limit(-1.570796, 1.570796, f"80 deg ({_AAOS}), 90 in {_RAJAGOPAL}"),
    "wrist_flexion_r": Limit(-1.570796, 1.570796, f"{_BOTH}; 80 and 70 deg ({_AAOS})"),
    "wrist_deviation_r": Limit(-_45, _45, f"{_BOTH}; ulnar 30, radial 20 deg ({_AAOS})"),
}


def _with_mirror(table: dict[str, Limit]) -> dict[str, Limit]:
    """The table with its left half, made by the model's mirror rule."""
    full = dict(table)
    for d, name in enumerate(POSE_NAMES):
        limit = table.get(name)
        if limit is None:
            continue
        ends = (MIRROR_SIGNS[d] * limit.low, MIRROR_SIGNS[d] * limit.high)
        mirrored = Limit(float(min(ends)), float(max(ends)), limit.source)
        full[POSE_NAMES[MIRROR_PERMUTATION[d]]] = mirrored
    return full


_DEFAULT: dict[str, Limit] = _with_mirror(_RIGHT_OR_MIDDLE)

LIMIT_TABLES: dict[str, dict[str, Limit]] = {
    "published": _PUBLISHED,
    "default": _DEFAULT,
    "none": {},
}


def limits(name: LimitsName) -> np.ndarray:
    """Joint limits `name` as (46, 2) float64: low, high in radians; -inf, inf where free.

    `published`: HSMR's 43, pairs sorted. `default`: human ranges with a source each, mirror
    symmetric, containing rest and, but for the scapula elevation, the published ranges.
    `none`: free.
    Raises ValueError for another name.
    """
    if name not in LIMIT_TABLES:
        raise ValueError(f"limits: expected one of {', '.join(LIMIT_TABLES)}; found {name!r}")
    table = LIMIT_TABLES[name]
    free = Limit(-math.inf, math.inf, "free")
    rows = [table.get(pose, free) for pose in POSE_NAMES]
    return np.array([[row.low, row.high] for row in rows], dtype=np.float64)
