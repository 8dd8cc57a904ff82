"""CMU trial 01_01 (ASF skeleton, AMC frames) as SMPL pose parameters.

Global bone rotations are mapped first and parent-relative ones taken afterwards, so that the two
skeletons need not have the same chain (docs/reference/default-body.md#motion).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from skel_fit.anatomy import SMPL_PARENTS

from .geometry import rotation_between

SOURCE_FPS = 120
FPS = 30
# ASF lengths are in units of 0.45 inch (`length 0.45` in the header).
METRES_PER_UNIT = 0.0254 / 0.45

# SMPL joint <- CMU bone whose global rotation it takes.
SOURCE_BONE = {
    0: "root", 3: "lowerback", 6: "upperback", 9: "thorax", 12: "lowerneck", 15: "head",
    1: "lfemur", 4: "ltibia", 7: "lfoot", 10: "ltoes",
    2: "rfemur", 5: "rtibia", 8: "rfoot", 11: "rtoes",
    13: "lclavicle", 16: "lhumerus", 18: "lradius", 20: "lhand", 22: "lhand",
    14: "rclavicle", 17: "rhumerus", 19: "rradius", 21: "rhand", 23: "rhand",
}  # fmt: skip
# Limbs whose rest direction differs between the two T poses: joint -> the joint it points at.
LIMB_END = {1: 4, 2: 5, 4: 7, 5: 8, 16: 18, 17: 19, 18: 20, 19: 21, 20: 22, 21: 23, 22: 22, 23: 23}


@dataclass
class Bone:
    """One ASF bone; `direction` unit (3,), `axis` Euler xyz degrees (3,), `dof` and `length` as
    written."""

    direction: np.ndarray = field(default_factory=lambda: np.zeros(3))
    axis: np.ndarray = field(default_factory=lambda: np.zeros(3))
    dof: tuple[str, ...] = ()
    length: float = 0.0


def read_asf(path: Path) -> tuple[dict[str, Bone], dict[str, str]]:
    """Bones and the parent of each bone."""
    bones: dict[str, Bone] = {}
    parent: dict[str, str] = {}
    section, name, bone = "", "", Bone()
    for line in path.read_text().splitlines():
        words = line.split()
        if not words:
            continue
        if words[0].startswith(":"):
            section = words[0]
        elif section == ":bonedata":
            if words[0] == "begin":
                bone = Bone()
            elif words[0] == "end":
                bones[name] = bone
            elif words[0] == "name":
                name = words[1]
            elif words[0] == "dof":
                bone.dof = tuple(words[1:])
            elif words[0] == "length":
                bone.length = float(words[1])
            elif words[0] in ("direction", "axis"):
                setattr(bone, words[0], np.array([float(x) for x in words[1:4]]))
        elif section == ":hierarchy" and words[0] not in ("begin", "end"):
            parent.update(dict.fromkeys(words[1:], words[0]))
    return bones, parent


def read_amc(path: Path) -> list[dict[str, list[float]]]:
    """One dict (bone -> values in the order of its `dof`) a frame."""
    frames: list[dict[str, list[float]]] = []
    for line in path.read_text().splitlines():
        words = line.split()
        if not words or words[0][0] in "#:":
            continue
        if words[0].isdigit():
            frames.append({})
        else:
            frames[-1][words[0]] = [float(x) for x in words[1:]]
    return frames


def _bone_rotations(
    bones: dict[str, Bone], parent: dict[str, str], frames: list[dict[str, list[float]]]
) -> dict[str, Rotation]:
    """Global rotation of every bone: R_parent C Rz Ry Rx(angles) C^-1, C the bone's own axes."""

    def euler(degrees: np.ndarray) -> Rotation:
        return Rotation.from_euler("xyz", degrees, degrees=True)  # extrinsic: Rz Ry Rx

    done = {"root": euler(np.array([frame["root"][3:6] for frame in frames]))}

    def rotation(name: str) -> Rotation:
        if name not in done:
            bone = bones[name]
            angles = np.zeros((len(frames), 3))
            for column, dof in enumerate(bone.dof):
                if dof[0] == "r":  # 'tx' and 'l' degrees of freedom do not turn the bone
                    angles[:, "xyz".index(dof[1])] = [frame[name][column] for frame in frames]
            own_axes = euler(bone.axis)
            done[name] = rotation(parent[name]) * own_axes * euler(angles) * own_axes.inv()
        return done[name]

    return {name: rotation(name) for name in ("root", *bones)}


def smpl_motion(asf: Path, amc: Path, joints: np.ndarray) -> dict[str, np.ndarray]:
    """`trial` at 30 frames a second in float16, and `fps`."""
    poses, transl = trial(asf, amc, joints, SOURCE_FPS // FPS)
    return {
        "poses": poses.astype(np.float16),
        "transl": transl.astype(np.float16),
        "fps": np.array(FPS),
    }


def trial(
    asf: Path, amc: Path, joints: np.ndarray, every: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Every so many frames of a trial: poses (F, 72) axis-angle, radians; transl (F, 3) metres.

    joints: (24, 3) rest joints of the neutral stand-in, metres, body frame (x left, y up). The
    pelvis joint of a body with these joints stands where CMU's root does.
    """
    bones, parent = read_asf(asf)
    frames = read_amc(amc)[::every]
    source = _bone_rotations(bones, parent, frames)
    globals_ = np.empty((len(frames), 24, 3, 3))
    for joint, name in SOURCE_BONE.items():
        globals_[:, joint] = source[name].as_matrix()
        if joint in LIMB_END:
            start, end = (
                (20, 22) if joint == 22 else (21, 23) if joint == 23 else (joint, LIMB_END[joint])
            )
            globals_[:, joint] @= rotation_between(
                joints[end] - joints[start], bones[name].direction
            )
    local = globals_.copy()
    for joint in range(1, 24):
        local[:, joint] = globals_[:, SMPL_PARENTS[joint]].swapaxes(1, 2) @ globals_[:, joint]
    poses = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().reshape(len(frames), 72)
    root = np.array([frame["root"][:3] for frame in frames]) * METRES_PER_UNIT
    return poses, root - joints[0]
