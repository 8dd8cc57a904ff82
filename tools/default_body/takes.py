"""Free CMU takes of other actors as SMPL poses: `python -m tools.default_body.takes FOLDER`.

FOLDER holds `amp_cmu.npz` (clips of a humanoid of 15 bodies: AMP assets of IsaacGymEnvs without
their pickles), `11.asf` and `11_01.amc` (NOTICE says where both are from). Writes
`pipeline/demo_takes.npz`, read by `pipeline/takes.py`. Rotations are mapped as in `motion.py`:
global ones first, against both T poses (docs/reference/default-body.md#takes).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from skel_fit.anatomy import SMPL_PARENTS
from skel_fit.default_body import default_body_directory
from skel_fit.models import BodyModels

from .geometry import rotation_between
from .motion import METRES_PER_UNIT, SOURCE_FPS, read_asf, trial

OUT = Path(__file__).parents[2] / "pipeline/demo_takes.npz"
STEP = 1e-4
"""Radians of one unit of the stored poses."""

CLIPS = ("walk", "run", "hop", "dance", "cartwheel", "backflip")
# The humanoid has x forward, y left, z up; SMPL x left, y up, z forward.
_AXES = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
# SMPL joint -> humanoid body whose global rotation it takes. Joints between take shares of both.
_BODY = {
    0: "pelvis", 9: "torso", 15: "head",
    1: "left_thigh", 4: "left_shin", 7: "left_foot",
    2: "right_thigh", 5: "right_shin", 8: "right_foot",
    16: "left_upper_arm", 18: "left_lower_arm",
    17: "right_upper_arm", 19: "right_lower_arm",
}  # fmt: skip
# SMPL joint -> (from, to, share of the turn between them)
_BETWEEN = {3: (0, 9, 1 / 3), 6: (0, 9, 2 / 3), 12: (9, 15, 0.5)}
_RIGID = {10: 7, 11: 8, 20: 18, 21: 19, 22: 20, 23: 21}
"""Toes and hands, which the humanoid does not move."""
_LIMB_END = {1: 4, 2: 5, 4: 7, 5: 8, 16: 18, 17: 19, 18: 20, 19: 21}
_COLLARS = {13: 16, 14: 17}
_COLLAR_SHARE = 0.15
"""Of the arm's way from the T pose, which the humanoid's shoulder makes alone."""


def humanoid_take(clip: dict[str, np.ndarray], joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One clip: poses (F, 72) axis-angle, radians; transl (F, 3) metres, y up.

    clip: local_rotations_xyzw (F, 15, 4), root_translation (F, 3), tpose (15, 4), node_names,
    parents, local_translation (15, 3). joints: (24, 3) rest joints of the neutral stand-in, metres.
    """
    number = {str(name): k for k, name in enumerate(clip["node_names"])}
    moving = _globals(clip["local_rotations_xyzw"], clip["parents"])
    rest = _globals(clip["tpose"][None], clip["parents"])[0]
    turned = _AXES @ moving @ rest.swapaxes(-1, -2) @ _AXES.T
    frames = len(turned)
    out = np.empty((frames, 24, 3, 3))
    for joint, name in _BODY.items():
        out[:, joint] = turned[:, number[name]]
        if joint in _LIMB_END:
            ours = joints[_LIMB_END[joint]] - joints[joint]
            out[:, joint] @= rotation_between(ours, _rest_direction(clip, rest, number, name))
    for joint, (start, end, share) in _BETWEEN.items():
        between = Rotation.from_matrix(out[:, start].swapaxes(1, 2) @ out[:, end])
        part = Rotation.from_rotvec(share * between.as_rotvec()).as_matrix()
        out[:, joint] = out[:, start] @ part
    for joint, arm in _COLLARS.items():
        along = joints[_LIMB_END[arm]] - joints[arm]
        aims = (out[:, 9].swapaxes(1, 2) @ out[:, arm]) @ along
        swings = np.stack([rotation_between(along, aim) for aim in aims])
        part = Rotation.from_rotvec(_COLLAR_SHARE * Rotation.from_matrix(swings).as_rotvec())
        out[:, joint] = out[:, 9] @ part.as_matrix()
    for joint, parent in _RIGID.items():
        out[:, joint] = out[:, parent]
    local = out.copy()
    for joint in range(1, 24):
        local[:, joint] = out[:, SMPL_PARENTS[joint]].swapaxes(1, 2) @ out[:, joint]
    poses = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().reshape(frames, 72)
    legs = clip["local_translation"][[number["left_shin"], number["left_foot"]]]
    scale = _leg(joints) / np.linalg.norm(legs, axis=1).sum()
    return poses, scale * clip["root_translation"] @ _AXES.T - joints[0]


def _globals(quaternions: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """(F, 15, 3, 3) from parent-relative quaternions (F, 15, 4), xyzw."""
    local = Rotation.from_quat(quaternions.reshape(-1, 4)).as_matrix()
    out = local.reshape(*quaternions.shape[:2], 3, 3)
    for body, parent in enumerate(parents):
        if parent >= 0:
            out[:, body] = out[:, parent] @ out[:, body]
    return out


def _rest_direction(
    clip: dict[str, np.ndarray], rest: np.ndarray, number: dict[str, int], name: str
) -> np.ndarray:
    """Where a limb points in the T pose, SMPL's axes: to the body that hangs on it."""
    child = list(clip["parents"]).index(number[name])
    return np.asarray(_AXES @ rest[number[name]] @ clip["local_translation"][child])


def _leg(joints: np.ndarray) -> float:
    """Hip to ankle along the bones, metres."""
    return float(np.linalg.norm(np.diff(joints[[1, 4, 7]], axis=0), axis=1).sum())


def acclaim_take(asf: Path, amc: Path, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`motion.trial` with the places of a person who has legs as long as the stand-in's."""
    poses, transl = trial(asf, amc, joints)
    bones, _ = read_asf(asf)
    leg = METRES_PER_UNIT * (bones["lfemur"].length + bones["ltibia"].length)
    return poses, _leg(joints) / leg * (transl + joints[0]) - joints[0]


def on_floor(poses: np.ndarray, transl: np.ndarray, models: BodyModels) -> np.ndarray:
    """transl (F, 3) that start at x = z = 0, with what is lowest in the lowest frames at y = 0."""
    import torch

    smpl = models.model("smpl", "neutral", "float32")
    some = torch.as_tensor(poses[::4], dtype=torch.float32)
    with torch.no_grad():
        skin = smpl(global_orient=some[:, :3], body_pose=some[:, 3:],
                    betas=torch.zeros(len(some), 10)).vertices  # fmt: skip
    lowest = skin[:, :, 1].amin(dim=1).numpy() + transl[::4, 1]
    moved = transl - transl[0] * (1.0, 0.0, 1.0)
    moved[:, 1] -= np.percentile(lowest, 5)
    return np.asarray(moved)


def build(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `pipeline/demo_takes.npz`."""
    models = BodyModels(Path(default_body_directory()))
    neutral = models.model("smpl", "neutral", "float64")
    joints = (neutral.J_regressor @ neutral.v_template).numpy()
    found = {}
    with np.load(folder / "amp_cmu.npz", allow_pickle=False) as file:
        shared = {k: file[k] for k in ("node_names", "parents", "local_translation")}
        shared["tpose"] = file["tpose/local_rotations_xyzw"]
        for name in CLIPS:
            clip = shared | {
                k: file[f"{name}/{k}"] for k in ("local_rotations_xyzw", "root_translation")
            }
            found[name] = humanoid_take(clip, joints), round(float(file[f"{name}/fps"]))
    found["kick"] = acclaim_take(folder / "11.asf", folder / "11_01.amc", joints), SOURCE_FPS
    out: dict[str, np.ndarray] = {"step": np.array(STEP)}
    for name, ((poses, transl), fps) in found.items():
        stored = np.rint(poses / STEP).astype(np.int16)
        placed = on_floor(stored * STEP, transl, models)
        out |= {
            f"{name}/poses": stored,
            f"{name}/transl": placed.round(4).astype(np.float32),
            f"{name}/fps": np.array(fps),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=OUT, help="default: the committed file")
    options = parser.parse_args()
    # numpy types its keyword arguments as those of its own options, not as arrays.
    np.savez_compressed(options.out, **build(options.folder))  # type: ignore[arg-type]
    sys.stdout.write(f"{options.out} ({options.out.stat().st_size / 1e3:.0f} kB)\n")


if __name__ == "__main__":
    main()
