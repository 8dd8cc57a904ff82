"""SMPL's 24 joints, skinning weights and joint regressor on the MakeHuman body."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from skel_fit.anatomy import SMPL_MIRROR, SMPL_PARENTS

from .makehuman import Rig

# Where SMPL's neutral template has its pelvis, so that translations mean the same.
PELVIS = np.array([0.0, -0.22, 0.03])
# MakeHuman's hip joints lie too far out: share of their distance from the middle.
HIP_WIDTH = 0.72
CANDIDATES = 500  # vertices a regressor row may use
MAX_BONES = 4


def smpl_joints(rig: Rig, heads: np.ndarray) -> np.ndarray:
    """(24, 3) joints from posed rig heads (163, 3)."""

    def head(name: str) -> np.ndarray:
        return heads[rig.index[name]]

    out = np.zeros((24, 3))
    hips = [head("upperleg01.L"), head("upperleg01.R")]
    middle = (hips[0] + hips[1]) / 2
    out[0] = 0.55 * middle + 0.45 * head("spine04")
    out[1], out[2] = (middle + HIP_WIDTH * (hip - middle) for hip in hips)
    out[3] = 0.5 * head("spine04") + 0.5 * head("spine03")
    out[6] = 0.3 * head("spine03") + 0.7 * head("spine02")
    out[9] = 0.6 * head("spine02") + 0.4 * head("spine01")
    out[12], out[15] = head("neck01"), head("head")
    for right, side in enumerate("LR"):
        out[4 + right] = head(f"lowerleg01.{side}")
        out[7 + right] = head(f"foot.{side}")
        out[10 + right] = np.mean([head(f"toe{k}-1.{side}") for k in (2, 3)], axis=0)
        out[13 + right] = 0.5 * head(f"clavicle.{side}") + 0.5 * head(f"shoulder01.{side}")
        out[16 + right] = head(f"upperarm01.{side}")
        out[18 + right] = head(f"lowerarm01.{side}")
        out[20 + right] = head(f"wrist.{side}")
        out[22 + right] = np.mean([head(f"finger{k}-1.{side}") for k in (2, 3, 4, 5)], axis=0)
    return out


# Rig bone (by the start of its name) -> SMPL joint of the left side; the first match counts.
_JOINT_OF_BONE = (
    (("root", "pelvis"), 0),
    (("upperleg",), 1),
    (("lowerleg",), 4),
    (("foot",), 7),
    (("toe",), 10),
    (("spine05", "spine04"), 3),
    (("spine03",), 6),
    (("spine02", "spine01", "breast"), 9),
    (("clavicle", "shoulder01"), 13),
    (("upperarm",), 16),
    (("lowerarm",), 18),
    (("wrist", "metacarpal", "finger1-1"), 20),
    (("finger",), 22),
    (("neck",), 12),
)


def _joint_of_bone(name: str) -> int:
    for prefixes, joint in _JOINT_OF_BONE:
        if name.startswith(prefixes):
            return int(SMPL_MIRROR[joint]) if name.endswith(".R") else joint
    return 15  # the head and every bone of the face


def smpl_weights(rig: Rig, keep: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """(6890, 24): rig weights summed into SMPL's joints, about four bones a vertex, symmetric."""
    weights = np.zeros((len(keep), 24))
    for name, bone in rig.index.items():
        weights[:, _joint_of_bone(name)] += rig.weights[keep, bone]
    return strongest(weights, MAX_BONES, mirror, SMPL_MIRROR)


def strongest(
    weights: np.ndarray, count: int, mirror: np.ndarray, joint_mirror: np.ndarray
) -> np.ndarray:
    """Symmetric weights with the `count` largest entries of each row, rows summing to 1."""
    weights = (weights + weights[mirror][:, joint_mirror]) / 2
    order = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    kept = np.zeros_like(weights)
    np.put_along_axis(kept, order, np.take_along_axis(weights, order, 1), 1)
    kept[kept < 1e-3] = 0
    # A tie at the cut may keep different joints on the two sides: average once more.
    kept = (kept + kept[mirror][:, joint_mirror]) / 2
    return kept / kept.sum(1, keepdims=True)


def fit_regressor(
    vertices: np.ndarray,
    joints: np.ndarray,
    near: np.ndarray,
    mirror: np.ndarray,
    joint_mirror: np.ndarray,
) -> np.ndarray:
    """(24, 6890) regressor: not negative, rows sum to 1, symmetric.

    vertices: (S, 6890, 3) bodies; joints: (S, 24, 3) their joints; near: (6890, 24) whether a
    vertex may be used for a joint. Each row is a non-negative least-squares fit over all bodies on
    the nearest allowed vertices, with a weak pull towards small coefficients.
    """
    mean, where = vertices.mean(0), joints.mean(0)
    out = np.zeros((24, len(mean)))
    for joint in range(24):
        if joint_mirror[joint] < joint:
            continue
        allowed = np.flatnonzero(near[:, joint])
        distance = np.linalg.norm(mean[allowed] - where[joint], axis=1)
        used = allowed[np.argsort(distance, kind="stable")[:CANDIDATES]]
        wanted = joints[:, joint].reshape(-1)
        scale = np.sqrt(len(wanted))
        system = np.r_[
            vertices[:, used].transpose(0, 2, 1).reshape(-1, len(used)),
            30 * scale * np.ones((1, len(used))),
            1e-2 * scale * np.eye(len(used)),
        ]
        row, _ = nnls(system, np.r_[wanted, 30 * scale, np.zeros(len(used))], maxiter=8000)
        out[joint, used] = row / row.sum()
        twin = joint_mirror[joint]
        if twin == joint:
            out[joint] = (out[joint] + out[joint, mirror]) / 2
        else:
            out[twin, mirror[used]] = row / row.sum()
    return out


def smpl_near(weights: np.ndarray) -> np.ndarray:
    """(6890, 24) vertices that move with the joint or with its parent."""
    part = weights > 0.05
    near = part | part[:, np.maximum(SMPL_PARENTS, 0)]
    near[:, 0] = weights[:, 0] > 0
    return near
