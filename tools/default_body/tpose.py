"""MakeHuman's A pose to SMPL's T pose, by linear blend skinning with MakeHuman's own rig."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import axis_angle, rotation_between
from .makehuman import Rig

X, Z = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
# Share of the roll that turns the palm down, spread along the arm so that the skin does not wring.
ROLL = {"upperarm01": 0.1, "upperarm02": 0.2, "lowerarm01": 0.45, "lowerarm02": 0.8}


@dataclass(frozen=True)
class Posed:
    """vertices: (n, 3) the asked body vertices; heads, tails: (163, 3). T pose, metres."""

    vertices: np.ndarray
    heads: np.ndarray
    tails: np.ndarray


def _global_rotations(rig: Rig, shaped: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """(163, 3, 3) global rotation of each bone from the A pose to the T pose."""
    out = np.tile(np.eye(3), (len(rig.names), 1, 1))

    def joint_cube(name: str) -> np.ndarray:
        return shaped[rig.cubes[name]].mean(0)

    for sign, side in ((1, "L"), (-1, "R")):

        def head(name: str, side: str = side) -> np.ndarray:
            return heads[rig.index[f"{name}.{side}"]]

        def turn(name: str, rotation: np.ndarray, side: str = side) -> None:
            out[rig.index[f"{name}.{side}"]] = rotation

        # The girdle takes part of the elevation, as in a living shoulder.
        turn("clavicle", axis_angle(Z, sign * np.deg2rad(8)))
        turn("shoulder01", axis_angle(Z, sign * np.deg2rad(16)))
        shoulder, elbow, wrist = head("upperarm01"), head("lowerarm01"), head("wrist")
        knuckles = {k: joint_cube(f"joint-{side.lower()}-finger-{k}-1") for k in (2, 3, 5)}
        upper = rotation_between(elbow - shoulder, np.array([sign, -0.03, -0.10]))
        fore = rotation_between(upper @ (wrist - elbow), np.array([sign, 0.02, 0])) @ upper
        hand = rotation_between(fore @ (knuckles[3] - wrist), np.array([sign, -0.03, 0])) @ fore
        across = hand @ (knuckles[2] - knuckles[5])
        roll = np.arctan2(across[1], across[2])  # brings the knuckle line to z: palm down
        for name, share in ROLL.items():
            turn(name, axis_angle(X, share * roll) @ (upper if name[0] == "u" else fore))
        out[rig.below(f"wrist.{side}")] = axis_angle(X, roll) @ hand

        hip, knee, ankle = head("upperleg01"), head("lowerleg01"), head("foot")
        thigh = rotation_between(knee - hip, np.array([sign * 0.04, -1, -0.01]))
        shin = rotation_between(thigh @ (ankle - knee), np.array([-sign * 0.03, -1, -0.08])) @ thigh
        for name, rotation in (("upperleg", thigh), ("lowerleg", shin)):
            turn(f"{name}01", rotation)
            turn(f"{name}02", rotation)
        foot = head("toe2-1") - ankle
        yaw = np.arctan2(foot[0], foot[2])
        flat = axis_angle([0, 1, 0], sign * np.deg2rad(8) - yaw)  # feet flat, 8 degrees out
        out[rig.below(f"foot.{side}")] = flat
    return out


def t_pose(rig: Rig, shaped: np.ndarray, keep: np.ndarray) -> Posed:
    """Pose a shaped mesh (19158, 3); `keep`: the body vertices to return."""
    heads, tails = rig.heads(shaped), rig.tails(shaped)
    rotation = _global_rotations(rig, shaped, heads)
    posed = heads.copy()
    for bone, parent in enumerate(rig.parent):
        if parent >= 0:
            posed[bone] = posed[parent] + rotation[parent] @ (heads[bone] - heads[parent])
    shift = posed - np.einsum("bij,bj->bi", rotation, heads)
    weights = rig.weights[keep]
    blended = (weights @ rotation.reshape(-1, 9)).reshape(-1, 3, 3)
    vertices = np.einsum("vij,vj->vi", blended, shaped[keep]) + weights @ shift
    return Posed(vertices, posed, np.einsum("bij,bj->bi", rotation, tails) + shift)
