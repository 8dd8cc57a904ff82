"""Points of a SKEL body that pictures show: where each is attached, and to which bone.

A point is a place in the rest pose, a weighted mean of skin vertices and joints, that either rides
rigidly on one bone or is carried as the skin is. Joints of limbs ride on a bone: a mean of skin
vertices around an elbow leaves the joint when it bends (docs/photo.md#points).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from skel_fit.anatomy import JOINT_NAMES, LANDMARKS
from skel_fit.keypoints import NAMES as KEYPOINT_NAMES

_VERTICES = 6890
_TORSO = ("left hip", "right hip", "left shoulder", "right shoulder")
SKIN = -1
"""Stands for a bone: the point is carried as the skin is."""


@dataclass(frozen=True)
class BodyPoints:
    """K points of a SKEL body.

    skin, joints: weights of rest vertices and rest joints that give a point's place at rest, sum 1
    together. shifts: m, how far from there the point is at rest (x to the left, y up, z forward),
    for points that ride on a bone. bone: the joint number whose bone carries it rigidly, or `SKIN`.
    weights: how much each counts beside the others. groups: points at one place of the body share a
    number: an error of a detector moves them together. torso: left hip, right hip, left shoulder,
    right shoulder. spans: pairs of points, from one to the next of a limb.
    """

    names: tuple[str, ...]
    skin: np.ndarray  # (K, 6890)
    joints: np.ndarray  # (K, 24)
    shifts: np.ndarray  # (K, 3) m
    bone: np.ndarray  # (K,) int64
    weights: np.ndarray  # (K,)
    groups: np.ndarray  # (K,) int64
    torso: tuple[int, int, int, int]
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # (S, 2)

    def __post_init__(self) -> None:
        count = len(self.names)
        shapes = {
            "skin": (count, _VERTICES),
            "joints": (count, len(JOINT_NAMES)),
            "shifts": (count, 3),
            **dict.fromkeys(("bone", "weights", "groups"), (count,)),
        }
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"BodyPoints.{name}: expected {shape}, found {found}")
        rigid = self.bone != SKIN
        if self.joints[~rigid].any() or self.shifts[~rigid].any():
            raise ValueError("BodyPoints: a point that is carried as the skin has skin alone")
        total = self.skin.sum(1) + self.joints.sum(1)
        if rigid.any() and np.abs(total[rigid] - 1.0).max() > 1e-6:
            raise ValueError("BodyPoints: weights of a point that rides on a bone must have sum 1")
        if not ((self.bone >= SKIN) & (self.bone < len(JOINT_NAMES))).all():
            raise ValueError(f"BodyPoints.bone: expected -1 to {len(JOINT_NAMES) - 1}")
        if not all(0 <= point < count for point in self.torso):
            raise ValueError("BodyPoints.torso: expected four numbers of points")
        ends = self.spans
        if ends.ndim != 2 or ends.shape[1] != 2 or not ((ends >= 0) & (ends < count)).all():
            raise ValueError("BodyPoints.spans: expected pairs of numbers of points")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def origin(self) -> np.ndarray:
        """(K,) weights of the middle of the hips, which relative 3D points are measured from."""
        weights = np.zeros(len(self))
        weights[list(self.torso[:2])] = 0.5
        return weights


#: The 33 landmarks of BlazePose in its order (docs/photo.md#points).
BLAZEPOSE_NAMES: tuple[str, ...] = (
    "nose", "left eye inner", "left eye", "left eye outer", "right eye inner", "right eye",
    "right eye outer", "left ear", "right ear", "mouth left", "mouth right", "left shoulder",
    "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist", "left pinky",
    "right pinky", "left index", "right index", "left thumb", "right thumb", "left hip",
    "right hip", "left knee", "right knee", "left ankle", "right ankle", "left heel", "right heel",
    "left foot index", "right foot index",
)  # fmt: skip
_FACE, _HAND = 0.35, 0.5
_KNUCKLE = {"pinky": 0.55, "index": 0.55, "thumb": 0.6}
"""Where the knuckle is on the way from the wrist's centre to the tip of the finger."""
# Joint of a limb: the joint whose centre it is, and the bone that carries it.
_LIMB_JOINTS = {
    "shoulder": ("humerus", "scapula"),
    "elbow": ("ulna", "humerus"),
    "wrist": ("hand", "radius"),
    "hip": ("femur", "pelvis"),
    "knee": ("tibia", "femur"),
    "ankle": ("talus", "tibia"),
}
_SPANS = (("shoulder", "elbow"), ("elbow", "wrist"))
_FEATURES = {"heel": ("heel", "calcn"), "foot index": ("big_toe", "toes")}
# From there to where the network puts the landmark, mm at rest of a left one: to the left, up,
# forward. Measured on rendered pictures of the train actors by `tools/landmark_shifts.py`.
_SHIFTS: dict[str, tuple[int, int, int]] = {
    "nose": (0, 24, -26),
    "eye": (-13, 12, -23),
    "ear": (-44, -3, 45),
    "shoulder": (-20, 13, -6),
    "elbow": (-12, -6, 21),
    "wrist": (7, 4, 7),
    "pinky": (2, 7, 25),
    "index": (-11, 7, -4),
    "thumb": (4, 23, -24),
    "hip": (2, 7, 24),
    "knee": (-16, 5, -2),
    "ankle": (10, 34, 3),
    "heel": (6, 24, 30),
    "foot index": (12, 15, -39),
}


def blazepose_points(*, shifted: bool = True) -> BodyPoints:
    """The 33 landmarks of BlazePose by joints and numbered vertices, for any SKEL body.

    Limbs' joints start from SKEL's joint centres, knuckles from between the wrist and the tip of
    the finger, the others from skin vertices that every body of SMPL's topology has in this place;
    all ride on a bone. shifted: moved from there to where the network puts them, centimetres away
    (`_SHIFTS`); False: for landmarks of others. Corners of eyes and mouth repeat the eyes and count
    nothing unless they are given weights.
    """
    made = _Maker()
    for name in BLAZEPOSE_NAMES:
        side, _, part = name.partition(" ")
        shift = np.array(_SHIFTS.get(part or name, (0, 0, 0))) * 1e-3 * shifted
        if side == "right":
            shift[0] = -shift[0]
        if name == "nose":
            made.rigid(name, {"nose": 1.0}, {}, "head", _FACE, shift)
        elif name.startswith("mouth"):
            made.rigid(name, {"nose": 1.0}, {}, "head", 0.0, shift, group="nose")
        elif part.startswith("eye "):
            made.rigid(name, {f"{side}_eye": 1.0}, {}, "head", 0.0, shift, group=f"{side} eye")
        elif part in ("eye", "ear"):
            made.rigid(name, {f"{side}_{part}": 1.0}, {}, "head", _FACE, shift)
        elif part in _KNUCKLE:
            share, hand = _KNUCKLE[part], f"hand_{side[0]}"
            made.rigid(name, {f"{side}_{part}": share}, {hand: 1.0 - share}, hand, _HAND, shift)
        elif part in _FEATURES:
            vertex, bone = _FEATURES[part]
            made.rigid(name, {f"{side}_{vertex}": 1.0}, {}, joint_of(bone, side), 1.0, shift)
        else:
            centre, bone = (joint_of(joint, side) for joint in _LIMB_JOINTS[part])
            made.rigid(name, {}, {centre: 1.0}, bone, 1.0, shift)
    return made.points(_TORSO)


def joint_of(name: str, side: str) -> str:
    """SKEL's name of a joint on a side (`left`, `right`); the pelvis has none."""
    return name if name in JOINT_NAMES else f"{name}_{side[0]}"


class _Maker:
    """Collects points by name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.skin: list[np.ndarray] = []
        self.joints: list[np.ndarray] = []
        self.shifts: list[np.ndarray] = []
        self.bone: list[int] = []
        self.weights: list[float] = []
        self.groups: list[str] = []

    def rigid(
        self,
        name: str,
        vertices: dict[str, float],
        joints: dict[str, float],
        bone: str,
        weight: float,
        shift: np.ndarray,
        group: str | None = None,
    ) -> None:
        skin, centres = np.zeros(_VERTICES), np.zeros(len(JOINT_NAMES))
        for vertex, share in vertices.items():
            skin[LANDMARKS[vertex]] += share
        for joint, share in joints.items():
            centres[JOINT_NAMES.index(joint)] += share
        self.names.append(name)
        self.skin.append(skin)
        self.joints.append(centres)
        self.shifts.append(shift)
        self.bone.append(JOINT_NAMES.index(bone))
        self.weights.append(weight)
        self.groups.append(group or name)

    def points(self, torso: Sequence[str]) -> BodyPoints:
        known = sorted(set(self.groups), key=self.groups.index)
        left_hip, right_hip, left_shoulder, right_shoulder = map(self.names.index, torso)
        return BodyPoints(
            tuple(self.names),
            np.stack(self.skin),
            np.stack(self.joints),
            np.stack(self.shifts),
            np.array(self.bone, np.int64),
            np.array(self.weights),
            np.array([known.index(group) for group in self.groups], np.int64),
            (left_hip, right_hip, left_shoulder, right_shoulder),
            np.array([
                [self.names.index(f"{side} {name}") for name in pair]
                for side in ("left", "right") for pair in _SPANS
            ], np.int64),
        )  # fmt: skip


# The 44 keypoints of labels: joints of limbs ride on a bone where they are joints of SMPL (0-14),
# and are carried as the skin where they are means of its vertices (25-43). Measured on converted
# demo rows (docs/photo.md#points): the other way round they are 1 to 3 % of a person's size off.
_LABEL_BONES = {
    "neck": "thorax", "mid hip": "pelvis", "shoulder": "scapula", "elbow": "humerus",
    "wrist": "radius", "hip": "pelvis", "knee": "femur", "ankle": "tibia",
}  # fmt: skip
# What one look at a picture places together.
_SAME_PLACE = {
    "pelvis (MPII)": "mid hip", "thorax (MPII)": "neck", "head (H36M)": "head top",
    "jaw (H36M)": "nose", "left small toe": "left toes", "left big toe": "left toes",
    "right small toe": "right toes", "right big toe": "right toes",
}  # fmt: skip


def label_points(matrix: np.ndarray) -> BodyPoints:
    """The 44 keypoints of `keypoints.NAMES` on a SKEL body.

    matrix: (44, 6890) weights of the skin, `keypoints.keypoint_matrix`. Points at one place (the
    same joint by OpenPose and by LSP) share a group, and their weights: two of them count as one.
    """
    skin = np.array(matrix, np.float64)
    bone = np.full(len(KEYPOINT_NAMES), SKIN, np.int64)
    groups = []
    for point, name in enumerate(KEYPOINT_NAMES):
        plain = name.removesuffix(" (LSP)")
        groups.append(_SAME_PLACE.get(name, plain))
        side, _, part = plain.partition(" ")
        carrier = _LABEL_BONES.get(part if side in ("left", "right") else plain)
        if carrier is not None and plain == name:
            bone[point] = JOINT_NAMES.index(joint_of(carrier, side))
    known = sorted(set(groups), key=groups.index)
    numbers = np.array([known.index(group) for group in groups], np.int64)
    rigid = bone != SKIN
    skin[rigid] /= skin[rigid].sum(1, keepdims=True)
    torso = [KEYPOINT_NAMES.index(f"{name} (LSP)") for name in _TORSO]
    return BodyPoints(
        KEYPOINT_NAMES,
        skin,
        np.zeros((len(KEYPOINT_NAMES), len(JOINT_NAMES))),
        np.zeros((len(KEYPOINT_NAMES), 3)),
        bone,
        1.0 / np.bincount(numbers)[numbers],
        numbers,
        (torso[0], torso[1], torso[2], torso[3]),
    )
