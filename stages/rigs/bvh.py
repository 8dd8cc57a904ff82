"""A rig as BVH text.

Convention: centimetres, y up, one hierarchy of 24 joints named as SKEL's bodies; rest pose is
SKEL's zero pose with every joint parallel to the body (x left, y up, z forward). Every joint has
`Xposition Yposition Zposition Zrotation Xrotation Yrotation`: spine and scapula joints shift as
well as turn. Positions are those of the joint in its parent (the root's in the world), rotations in
degrees are applied as R = Rz(Zrotation) Rx(Xrotation) Ry(Yrotation), local to the parent.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from skel_fit import JOINT_NAMES
from stages.rigs.rig import Rig

CHANNELS = "Xposition Yposition Zposition Zrotation Xrotation Yrotation"
_CENTIMETRES = 100.0


def bvh(rig: Rig) -> str:
    """The text of a .bvh file of a rig whose world is y up."""
    order: list[int] = []
    lines = ["HIERARCHY", *_joint(rig, 0, 0, order), "MOTION", f"Frames: {len(rig)}",
             f"Frame Time: {1 / rig.rate:.8f}"]  # fmt: skip
    rotations, translations = rig.local()
    frames, count = len(rig), len(order)
    turned = Rotation.from_matrix(rotations[:, order].reshape(-1, 3, 3)).as_euler("ZXY")
    angles = np.degrees(np.unwrap(turned.reshape(frames, count, 3), axis=0))
    values = np.concatenate([translations[:, order] * _CENTIMETRES, angles], axis=2)
    rows = values.reshape(frames, count * 6)
    lines += [" ".join(f"{value:.6f}" for value in row) for row in rows]
    return "\n".join(lines) + "\n"


def _joint(rig: Rig, joint: int, depth: int, order: list[int]) -> list[str]:
    order.append(joint)
    parent = rig.parents[joint]
    offset = (rig.rest[joint] - (rig.rest[parent] if parent >= 0 else rig.rest[joint])) * (
        _CENTIMETRES
    )
    indent = "\t" * depth
    word = "ROOT" if parent < 0 else "JOINT"
    lines = [
        f"{indent}{word} {JOINT_NAMES[joint]}",
        f"{indent}{{",
        f"{indent}\tOFFSET " + " ".join(f"{value:.6f}" for value in offset),
        f"{indent}\tCHANNELS 6 {CHANNELS}",
    ]
    children = [k for k, above in enumerate(rig.parents) if above == joint]
    for child in children:
        lines += _joint(rig, child, depth + 1, order)
    if not children:
        lines += [
            f"{indent}\tEnd Site",
            f"{indent}\t{{",
            f"{indent}\t\tOFFSET " + " ".join(f"{v:.6f}" for v in _tip(rig, joint)),
            f"{indent}\t}}",
        ]
    return [*lines, f"{indent}}}"]


def _tip(rig: Rig, joint: int) -> np.ndarray:
    """From a last joint to the far end of its bone at rest, centimetres."""
    own = rig.bones.weights.argmax(axis=1) == joint
    turned, moved = rig.bones.rotations[0, joint], rig.bones.translations[0, joint]
    rest = (rig.bones.vertices[0][own].astype(np.float64) - moved) @ turned
    away = rest - rig.rest[joint]
    if not len(away):
        return np.zeros(3)
    return away[np.argmax(np.linalg.norm(away, axis=1))] * _CENTIMETRES
