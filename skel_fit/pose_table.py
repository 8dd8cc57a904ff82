"""The 46 SKEL pose parameters as data.

Source: docs/reference/skel-model.md#joints (tree, names, axes), #correctives, #limits and #mirror;
docs/reference/fitting.md#start (start joints). All angles are radians. Everything here is a
constant of the model, not of a file; `model_files` refuses a file with another tree.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

NUM_JOINTS = 24
NUM_POSES = 46


@dataclass(frozen=True)
class Dof:
    """One angle: its name and the signed unit axis (bone space) that it turns about."""

    name: str
    axis: tuple[float, float, float]


@dataclass(frozen=True)
class Joint:
    """One joint. `dofs` in the order of application: the first one is the rightmost factor.

    `smpl`: SMPL joint whose corrective directions it drives (0: none).
    `start`: SMPL joint whose global rotation is the start of this bone.
    """

    name: str
    parent: int
    smpl: int
    start: int
    dofs: tuple[Dof, ...]


_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _negative(axis: tuple[float, float, float]) -> tuple[float, float, float]:
    return (0.0 - axis[0], 0.0 - axis[1], 0.0 - axis[2])


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    # The oblique axes of the sources have norm 1 to 1e-8; unit here, which changes a rotation
    # by at most 3e-8 rad and makes every matrix orthonormal in float64.
    n = math.sqrt(x * x + y * y + z * z)
    return (x / n, y / n, z / n)


def _pin(e1: float, e2: float) -> tuple[float, float, float]:
    """Third column of Rx(e1) Ry(e2) Rz(e3): the axis of a pin joint."""
    return (math.sin(e2), -math.sin(e1) * math.cos(e2), math.cos(e1) * math.cos(e2))


# The file format's left ankle has the right one's axis (not mirrored): kept by default because
# released fits and networks use it; the mirrored axis is the option `corrected_left_ankle`.
_TALUS = _pin(0.175895, -0.105208)
CORRECTED_LEFT_ANKLE_AXIS = _pin(-0.175895, 0.105208)
LEFT_ANKLE_DOF = 14


def _dofs(*pairs: tuple[str, tuple[float, float, float]]) -> tuple[Dof, ...]:
    return tuple(Dof(name, axis) for name, axis in pairs)


JOINTS: tuple[Joint, ...] = (
    Joint(
        "pelvis", -1, 0, 0, _dofs(("pelvis_tilt", _Z), ("pelvis_list", _X), ("pelvis_rotation", _Y))
    ),
    Joint(
        "femur_r",
        0,
        2,
        2,
        _dofs(("hip_flexion_r", _Z), ("hip_adduction_r", _X), ("hip_rotation_r", _Y)),
    ),
    Joint("tibia_r", 1, 5, 5, _dofs(("knee_angle_r", _negative(_Z)))),
    Joint("talus_r", 2, 8, 8, _dofs(("ankle_angle_r", _TALUS))),
    Joint("calcn_r", 3, 8, 8, _dofs(("subtalar_angle_r", _pin(-1.76818999, 0.906223)))),
    Joint("toes_r", 4, 11, 11, _dofs(("mtp_angle_r", _pin(-3.141589999, 0.619901)))),
    Joint(
        "femur_l",
        0,
        1,
        1,
        _dofs(
            ("hip_flexion_l", _Z),
            ("hip_adduction_l", _negative(_X)),
            ("hip_rotation_l", _negative(_Y)),
        ),
    ),
    Joint("tibia_l", 6, 4, 4, _dofs(("knee_angle_l", _negative(_Z)))),
    Joint("talus_l", 7, 7, 7, _dofs(("ankle_angle_l", _TALUS))),
    Joint("calcn_l", 8, 7, 7, _dofs(("subtalar_angle_l", _pin(1.768189999, -0.906223)))),
    Joint("toes_l", 9, 10, 10, _dofs(("mtp_angle_l", _pin(-3.141589999, -0.619901)))),
    Joint(
        "lumbar_body",
        0,
        3,
        3,
        _dofs(("lumbar_bending", _X), ("lumbar_extension", _Z), ("lumbar_twist", _Y)),
    ),
    Joint(
        "thorax",
        11,
        6,
        9,
        _dofs(("thorax_bending", _X), ("thorax_extension", _Z), ("thorax_twist", _Y)),
    ),
    Joint(
        "head", 12, 15, 15, _dofs(("head_bending", _X), ("head_extension", _Z), ("head_twist", _Y))
    ),
    Joint(
        "scapula_r",
        12,
        14,
        14,
        _dofs(
            ("scapula_abduction_r", _Y),
            ("scapula_elevation_r", _negative(_Z)),
            ("scapula_upward_rot_r", _negative(_X)),
        ),
    ),
    Joint(
        "humerus_r",
        14,
        17,
        17,
        _dofs(("shoulder_r_x", _X), ("shoulder_r_y", _Y), ("shoulder_r_z", _Z)),
    ),
    Joint("ulna_r", 15, 19, 19, _dofs(("elbow_flexion_r", _unit(0.0494, 0.0366, 0.99810825)))),
    Joint("radius_r", 16, 0, 21, _dofs(("pro_sup_r", _unit(-0.01716099, 0.99266564, -0.11966796)))),
    Joint(
        "hand_r", 17, 21, 21, _dofs(("wrist_flexion_r", _X), ("wrist_deviation_r", _negative(_Z)))
    ),
    Joint(
        "scapula_l",
        12,
        13,
        13,
        _dofs(
            ("scapula_abduction_l", _Y), ("scapula_elevation_l", _Z), ("scapula_upward_rot_l", _X)
        ),
    ),
    Joint(
        "humerus_l",
        19,
        16,
        16,
        _dofs(("shoulder_l_x", _X), ("shoulder_l_y", _Y), ("shoulder_l_z", _Z)),
    ),
    Joint("ulna_l", 20, 18, 18, _dofs(("elbow_flexion_l", _unit(-0.0494, -0.0366, 0.99810825)))),
    Joint("radius_l", 21, 0, 20, _dofs(("pro_sup_l", _unit(0.01716099, -0.99266564, -0.11966796)))),
    Joint(
        "hand_l",
        22,
        20,
        20,
        _dofs(("wrist_flexion_l", _negative(_X)), ("wrist_deviation_l", _negative(_Z))),
    ),
)

JOINT_NAMES: tuple[str, ...] = tuple(joint.name for joint in JOINTS)
PARENTS: tuple[int, ...] = tuple(joint.parent for joint in JOINTS)
#: The tree of SMPL, which has as many joints; -1: the root.
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
POSE_NAMES: tuple[str, ...] = tuple(dof.name for joint in JOINTS for dof in joint.dofs)
JOINT_OF_DOF: tuple[int, ...] = tuple(j for j, joint in enumerate(JOINTS) for _ in joint.dofs)


def _dofs_per_joint() -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(d for d, owner in enumerate(JOINT_OF_DOF) if owner == j) for j in range(NUM_JOINTS)
    )


#: Pose indices of each joint in the order of application (first = rightmost factor):
#: Rp_j = Rot(AXES[d3], q[d3]) Rot(AXES[d2], q[d2]) Rot(AXES[d1], q[d1]), fixed bone-space axes.
DOFS: tuple[tuple[int, ...], ...] = _dofs_per_joint()

#: SMPL joint whose corrective directions each SKEL joint drives. Where two SKEL joints share one
#: (talus and calcaneus), the later one wins.
SMPL_JOINT_FOR_SKEL: tuple[int, ...] = tuple(joint.smpl for joint in JOINTS)

#: SMPL joint whose global rotation starts each SKEL bone (docs/reference/fitting.md#start).
START_SMPL_JOINT: tuple[int, ...] = tuple(joint.start for joint in JOINTS)


def _pose_feature_sources() -> tuple[int, ...]:
    last = {smpl: j for j, smpl in enumerate(SMPL_JOINT_FOR_SKEL)}
    return tuple(last.get(smpl, -1) for smpl in range(1, NUM_JOINTS))


#: For SMPL joints 1..23: the SKEL joint whose local rotation feeds the correctives, -1 = identity.
POSE_FEATURE_SOURCES: tuple[int, ...] = _pose_feature_sources()


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def axes(*, corrected_left_ankle: bool = False) -> np.ndarray:
    """Signed unit axes of the 46 angles, (46, 3) float64, bone space (x forward, y up, z right)."""
    table = np.array([dof.axis for joint in JOINTS for dof in joint.dofs], dtype=np.float64)
    if corrected_left_ankle:
        table[LEFT_ANKLE_DOF] = CORRECTED_LEFT_ANKLE_AXIS
    return table


#: (46, 3) signed unit axes, flips applied, left ankle as in the published model.
AXES: np.ndarray = _read_only(axes())

# Left-right mirror: mirrored = poses[..., MIRROR_PERMUTATION] * MIRROR_SIGNS
# (docs/reference/skel-model.md#mirror).
_NEGATED_BY_MIRROR = (1, 2, 17, 19, 20, 22, 23, 25, 26, 27, 29, 30, 36, 37, 39, 40)


def _mirror_permutation() -> np.ndarray:
    order = np.arange(NUM_POSES)
    order[3:10], order[10:17] = np.arange(10, 17), np.arange(3, 10)
    order[26:36], order[36:46] = np.arange(36, 46), np.arange(26, 36)
    return order


MIRROR_PERMUTATION: np.ndarray = _read_only(_mirror_permutation())
MIRROR_SIGNS: np.ndarray = _read_only(
    np.array([-1.0 if d in _NEGATED_BY_MIRROR else 1.0 for d in range(NUM_POSES)])
)


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
        -0.1,
        0.4,
        "mirrored and containing rest: docs/reference/skel-model.md#elevation-limits",
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
