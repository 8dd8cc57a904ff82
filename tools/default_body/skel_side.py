"""SKEL's anatomical joints, skin weights and bone frames on the MakeHuman body.

The joints differ from SMPL's by millimetres to centimetres on purpose, as in the real pair.
"""

from __future__ import annotations

import numpy as np

from skel_fit.anatomy import PARENTS, SKEL_MIRROR

from .geometry import axis_angle
from .makehuman import Rig
from .smpl_side import strongest
from .topology import FLIP

# Bone space (x forward, y up, z right) -> body frame (x left, y up, z forward).
NOMINAL = np.array([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]])
HIP_WIDTH = 0.80
PRONATION = np.deg2rad(85)  # Rajagopal's forearm hangs palm forward; the T pose has palms down
MAX_BONES = 6


def skel_joints(rig: Rig, heads: np.ndarray) -> np.ndarray:
    """(24, 3) anatomical joints from posed rig heads (163, 3), metres."""

    def head(name: str) -> np.ndarray:
        return heads[rig.index[name]]

    out = np.zeros((24, 3))
    hips = {side: head(f"upperleg01.{side}") for side in "LR"}
    middle = (hips["L"] + hips["R"]) / 2
    leg = np.linalg.norm(hips["L"] - head("lowerleg01.L")) / 0.40
    out[0] = middle + np.array([0, 0.055, 0.010]) * leg
    out[11] = 0.6 * head("spine04") + 0.4 * head("spine03")
    out[12] = 0.5 * head("spine03") + 0.5 * head("spine02")
    out[13] = 0.4 * head("neck02") + 0.6 * head("neck03")
    for lateral, side, femur, scapula in ((-1, "R", 1, 14), (1, "L", 6, 19)):
        ankle, toe = head(f"foot.{side}"), head(f"toe2-1.{side}")
        foot = np.linalg.norm(ankle - toe) / 0.16
        out[femur] = middle + HIP_WIDTH * (hips[side] - middle)
        out[femur + 1] = head(f"lowerleg01.{side}") + np.array([0, 0, -0.004])
        out[femur + 2] = ankle
        out[femur + 3] = ankle + np.array([lateral * 0.008, -0.038, -0.040]) * foot
        out[femur + 4] = np.mean([head(f"toe{k}-1.{side}") for k in (1, 2, 3, 4)], axis=0)
        elbow, wrist = head(f"lowerarm01.{side}"), head(f"wrist.{side}")
        out[scapula] = head(f"shoulder01.{side}")
        out[scapula + 1] = head(f"upperarm01.{side}") - [0, 0.006, 0]
        out[scapula + 2] = elbow
        out[scapula + 3] = elbow + 0.05 * (wrist - elbow) + np.array([0, 0.004, 0.010])
        out[scapula + 4] = wrist
    return (out + out[SKEL_MIRROR] * FLIP) / 2


# Rig bone (by the start of its name) -> shares of SKEL joints of the left side; first match counts.
_SHARES: tuple[tuple[tuple[str, ...], dict[int, float]], ...] = (
    (("root", "pelvis"), {0: 1}),
    (("upperleg",), {6: 1}),
    (("lowerleg",), {7: 1}),
    (("foot",), {9: 0.85, 8: 0.15}),
    (("toe",), {10: 1}),
    (("spine05",), {0: 0.35, 11: 0.65}),
    (("spine04",), {11: 1}),
    (("spine03",), {11: 0.45, 12: 0.55}),
    (("spine02", "spine01", "breast"), {12: 1}),
    (("clavicle",), {19: 0.6, 12: 0.4}),
    (("shoulder01",), {19: 0.85, 12: 0.15}),
    (("upperarm",), {20: 1}),
    (("lowerarm01",), {21: 0.75, 22: 0.25}),
    (("lowerarm02",), {21: 0.2, 22: 0.8}),
    (("wrist", "metacarpal", "finger"), {23: 1}),
    (("neck01",), {12: 0.7, 13: 0.3}),
    (("neck02",), {12: 0.4, 13: 0.6}),
)


def _shares(name: str) -> dict[int, float]:
    for prefixes, shares in _SHARES:
        if name.startswith(prefixes):
            if name.endswith(".R"):
                return {int(SKEL_MIRROR[joint]): share for joint, share in shares.items()}
            return shares
    return {13: 1}  # upper neck, head, face


def skel_weights(rig: Rig, keep: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """(6890, 24) skinning weights, at most about six bones a vertex, symmetric."""
    weights = np.zeros((len(keep), 24))
    for name, bone in rig.index.items():
        for joint, share in _shares(name).items():
            weights[:, joint] += share * rig.weights[keep, bone]
    return strongest(weights, MAX_BONES, mirror, SKEL_MIRROR)


def skel_near(weights: np.ndarray) -> np.ndarray:
    """(6890, 24) vertices that move with the joint or with its parent."""
    part = weights > 0.03
    return part | part[:, np.maximum(PARENTS, 0)]


def bone_frames(joints: np.ndarray) -> np.ndarray:
    """`per_joint_rot` (24, 3, 3): bone space -> body frame in the T pose.

    Trunk and legs as they stand; the hanging arm turned up to the side; forearm and hand rolled
    about the radius so that the radius is shown pronated.
    """
    out = np.tile(NOMINAL, (24, 1, 1))
    arm = axis_angle([0, 0, 1], -np.pi / 2) @ NOMINAL
    out[15] = out[16] = arm
    out[17] = out[18] = forearm_roll(joints, 1.0) @ arm
    # The other side: mirror in the body frame (x) and in bone space (z).
    for right in (15, 16, 17, 18):
        out[SKEL_MIRROR[right]] = np.diag(FLIP) @ out[right] @ np.diag([1.0, 1, -1])
    return out


def forearm_roll(joints: np.ndarray, share: float) -> np.ndarray:
    """(3, 3) roll of the right forearm about radius -> hand, by a share of the pronation."""
    return axis_angle(joints[18] - joints[17], -share * PRONATION)
