"""The anatomy of SKEL and SMPL as data: trees, names, axes, mirrors, groups and landmarks.

Source: docs/reference/skel-model.md#joints (tree, names, axes), #correctives and #mirror;
docs/reference/fitting.md#start (start joints). All angles are radians. Everything here is a
constant of the models, not of a file; `model_files` refuses a file with another tree. The ranges of
the angles are in `joint_limits`, the 44 keypoints in `keypoints`.
"""

import math
from dataclasses import dataclass

import numpy as np

NUM_JOINTS = 24
NUM_POSES = 46
NUM_BETAS = 10


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


def _other_side(name: str) -> str:
    """femur_r -> femur_l, shoulder_l_x -> shoulder_r_x, right_knee -> left_knee."""
    swap = {"r": "l", "l": "r", "right": "left", "left": "right"}
    return "_".join(swap.get(part, part) for part in name.split("_"))


def _mirror(names: tuple[str, ...]) -> np.ndarray:
    return _read_only(np.array([names.index(_other_side(name)) for name in names]))


#: SKEL joint on the other side of the body (itself on the midline).
SKEL_MIRROR: np.ndarray = _mirror(JOINT_NAMES)

# Left-right mirror: mirrored = poses[..., MIRROR_PERMUTATION] * MIRROR_SIGNS
# (docs/reference/skel-model.md#mirror).
MIRROR_PERMUTATION: np.ndarray = _mirror(POSE_NAMES)
# The mirror turns a rotation about (x, y, z) by q into one about (-x, -y, z) by q (bone space).
MIRROR_SIGNS: np.ndarray = _read_only(
    np.sign((AXES * (-1, -1, 1) * AXES[MIRROR_PERMUTATION]).sum(axis=1))
)

# ---- groups -------------------------------------------------------------------------------------

NUM_PARAMETERS = NUM_POSES + 3
"""The 46 angles, then the root translation."""
PARAMETER_GROUPS: dict[str, range] = {
    "root": range(0, 3),
    "lower_body": range(3, 17),
    "upper_body": range(17, NUM_POSES),
    "translation": range(NUM_POSES, NUM_PARAMETERS),
}
"""Names for ranges of the parameters of a fit."""


def _named(*starts: str) -> tuple[int, ...]:
    return tuple(d for d, name in enumerate(POSE_NAMES) if name.startswith(starts))


#: Angles of lumbar body, thorax and head, and of the two scapulae.
SPINE_DOFS: tuple[int, ...] = _named("lumbar", "thorax", "head")
SCAPULA_DOFS: tuple[int, ...] = _named("scapula")
#: (46,) bool: a whole turn of the angle changes nothing. Bending and extension of the spine slide
#: their joint along an arc, whose length goes on growing with the angle.
PERIODIC: np.ndarray = _read_only(
    np.array([d not in SPINE_DOFS or "twist" in name for d, name in enumerate(POSE_NAMES)])
)

#: Joints by their number of angles.
BALL_JOINTS: tuple[int, ...] = tuple(j for j, dofs in enumerate(DOFS) if len(dofs) == 3)
HAND_JOINTS: tuple[int, ...] = tuple(j for j, dofs in enumerate(DOFS) if len(dofs) == 2)
HINGE_JOINTS: tuple[int, ...] = tuple(j for j, dofs in enumerate(DOFS) if len(dofs) == 1)
#: The only joints that the model does not mirror: see `CORRECTED_LEFT_ANKLE_AXIS`.
ANKLE_JOINTS: tuple[int, ...] = (JOINT_NAMES.index("talus_r"), JOINT_NAMES.index("talus_l"))

REGIONS = ("lower_body", "torso", "arms", "head")
"""Parts of the skin that errors are reported for."""
#: Index into `REGIONS` of each joint's skin.
REGION_OF_JOINT: tuple[int, ...] = (0,) * 11 + (1, 1, 3) + (1, 2, 2, 2, 2) * 2

# ---- SMPL ---------------------------------------------------------------------------------------

SMPL_JOINT_NAMES: tuple[str, ...] = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar",
    "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist",
    "right_wrist", "left_hand", "right_hand",
)  # fmt: skip
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
#: SMPL joint on the other side of the body (itself on the midline).
SMPL_MIRROR: np.ndarray = _mirror(SMPL_JOINT_NAMES)

# Vertices that other programs address by number, on SMPL's and SKEL's common skin. The builder of
# the stand-in orders its mesh so that the number means the same place (numbers only: no geometry is
# taken from anywhere).
#   smplx and the 44 keypoints (docs/reference/evaluation.md#keypoints-44): face, finger tips, toes
#   and heels.
#   SKEL's bone scaling: it divides by the distance of the two vertices of a
#   pair along one axis, so the pair must be well apart along it: 410/384 z and 414/384 y of the
#   head, 196/3708 x of the head, 6179/6137 y and 5670/5906 x of the right hand, 3027/3495 and
#   3027/3506 z of the chest.
LANDMARKS: dict[str, int] = {
    "nose": 332, "right_eye": 6260, "left_eye": 2800, "right_ear": 4071, "left_ear": 583,
    "right_thumb": 6191, "right_index": 5782, "right_middle": 5905, "right_ring": 6016,
    "right_pinky": 6133,
    "left_thumb": 2746, "left_index": 2319, "left_middle": 2445, "left_ring": 2556,
    "left_pinky": 2673,
    "left_big_toe": 3216, "left_small_toe": 3226, "left_heel": 3387,
    "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
    "face_front": 410, "skull_back": 384, "head_top": 414, "left_temple": 196,
    "right_temple": 3708, "right_hand_back": 6179, "right_hand_palm": 6137,
    "right_wrist_top": 5670, "right_middle_end": 5906,
    "thorax_back": 3027, "breastbone": 3495, "breastbone_upper": 3506,
}  # fmt: skip
