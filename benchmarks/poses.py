"""Frame sets of the solver benchmarks, all on the licence-free pair.

real     frames of the committed motion with shapes N(0, 1) and random headings
extreme  deep squats, splits, arms overhead, lying, inverted, ...: built in SMPL space, both sides,
         with noise on every joint
own      SKEL's own meshes, so that an error of zero is possible: from fits of the motion plus
         noise, and with hips, knees, shoulders and elbows anywhere in 90 % of the published limits
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from skel_fit import anatomy, joint_limits
from skel_fit.fit import fit_skel
from skel_fit.recipe import FitConfig
from skel_fit.skel import SKEL

MOTION = Path(__file__).resolve().parents[1] / "pipeline" / "demo_motion.npz"
NOISE = 0.08
"""Standard deviation (rad) on every joint of an extreme pose."""
_DISTAL = (7, 8, 10, 11, 20, 21, 22, 23)
_LEFT_RIGHT = (
    (1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21), (22, 23),
)  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """SMPL bodies, float64: poses (n, 72) axis-angle rad, betas (n, 10), transl (n, 3) m."""

    name: str
    poses: Tensor
    betas: Tensor
    transl: Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: slice) -> "Frames":
        """Some of them."""
        return Frames(
            self.name,
            self.poses[index],
            self.betas[index],
            self.transl[index],
            self.labels[index],
        )


@dataclass(frozen=True)
class OwnMeshes:
    """SKEL bodies, float64: poses (n, 46) rad, betas (n, 10), trans (n, 3), vertices (n, V, 3)."""

    name: str
    poses: Tensor
    betas: Tensor
    trans: Tensor
    vertices: Tensor


def real(n: int, seed: int = 0) -> Frames:
    """n frames spread over the demo motion, each with its own shape, heading and place."""
    with np.load(MOTION) as motion:
        poses = motion["poses"].astype(np.float64)
    index = np.linspace(0, len(poses) - 1, n).astype(int)
    return _frames("real", poses[index], seed, tuple(f"frame {i}" for i in index))


def extreme(n: int, seed: int = 1) -> Frames:
    """n extreme poses: the table below in turn, every second round mirrored, noise everywhere."""
    draw = np.random.default_rng(seed)
    names = tuple(_EXTREME)
    poses, labels = np.zeros((n, 24, 3)), []
    for row in range(n):
        name = names[row % len(names)]
        for joint, turns in _EXTREME[name].items():
            poses[row, joint] = _compose(turns)
        if (row // len(names)) % 2:
            poses[row] = _mirror(poses[row])
        noise = draw.normal(0.0, NOISE, (24, 3))
        noise[list(_DISTAL)] *= 0.5
        noise[22:] = 0.0
        poses[row] = (Rotation.from_rotvec(noise) * Rotation.from_rotvec(poses[row])).as_rotvec()
        labels.append(name)
    return _frames("extreme", poses.reshape(n, 72), seed, tuple(labels))


def uniform(n: int, seed: int = 3) -> Frames:
    """n poses no human strikes: every joint turned by up to 1.2 rad (uniform) about any axis."""
    draw = np.random.default_rng(seed)
    axis = draw.normal(size=(n, 24, 3))
    axis /= np.linalg.norm(axis, axis=2, keepdims=True)
    poses = axis * draw.uniform(0, 1.2, (n, 24, 1))
    poses[:, 0], poses[:, 22:] = 0.0, 0.0
    return _frames("uniform", poses.reshape(n, 72), seed, tuple(str(i) for i in range(n)))


def own_from_motion(skel: SKEL, smpl: torch.nn.Module, n: int, seed: int = 2) -> OwnMeshes:
    """SKEL meshes of plausible poses: fits of the motion plus noise of 0.1 rad, inside limits."""
    frames = real(n, seed)
    fit = fit_skel(skel, smpl, frames.poses, frames.betas, frames.transl, FitConfig())
    draw = np.random.default_rng(seed)
    poses = fit.poses.double().numpy() + draw.normal(0.0, 0.1, (n, 46))
    return _meshes("own, motion", skel, poses, frames.betas, fit.trans.double(), 0.99)


def own_wide(skel: SKEL, n: int, seed: int = 3) -> OwnMeshes:
    """SKEL meshes with hips, knees, shoulders and elbows uniform over 90 % of the published limits
    and 0.15 rad of noise elsewhere."""
    draw = np.random.default_rng(seed)
    poses = draw.normal(0.0, 0.15, (n, 46))
    low, high = joint_limits.limits("published").T
    for d, name in enumerate(anatomy.POSE_NAMES):
        if name.startswith(("hip", "knee", "shoulder", "elbow")):
            middle, half = (low[d] + high[d]) / 2, 0.9 * (high[d] - low[d]) / 2
            poses[:, d] = draw.uniform(middle - half, middle + half, n)
    poses[:, :3] = draw.uniform(-1.2, 1.2, (n, 3))
    betas = torch.as_tensor(draw.normal(size=(n, 10)))
    return _meshes("own, wide", skel, poses, betas, torch.as_tensor(draw.normal(size=(n, 3))), 0.98)


def _meshes(
    name: str, skel: SKEL, poses: np.ndarray, betas: Tensor, trans: Tensor, share: float
) -> OwnMeshes:
    """Meshes of the poses, drawn into the given share of the default limits."""
    low, high = joint_limits.limits("default")[3:].T
    middle, half = (low + high) / 2, share * (high - low) / 2
    poses = poses.copy()
    poses[:, 3:] = np.clip(poses[:, 3:], middle - half, middle + half)
    posed = torch.as_tensor(poses)
    vertices = []
    with torch.no_grad():
        for part in torch.arange(len(poses)).split(32):
            single = (posed[part].float(), betas[part].float(), trans[part].float())
            vertices.append(skel(*single).skin_vertices.double())
    return OwnMeshes(name, posed, betas, trans, torch.cat(vertices))


def _frames(name: str, poses: np.ndarray, seed: int, labels: tuple[str, ...]) -> Frames:
    """Shapes N(0, 1), a random heading about the vertical axis, a place in front of a camera."""
    n = len(poses)
    draw = np.random.default_rng([seed, n])
    heading = Rotation.from_rotvec(np.outer(draw.uniform(-np.pi, np.pi, n), [0.0, 1.0, 0.0]))
    poses = poses.copy()
    poses[:, :3] = (heading * Rotation.from_rotvec(poses[:, :3])).as_rotvec()
    transl = draw.normal((0.0, 0.2, 4.0), 0.3, (n, 3))
    return Frames(
        name,
        torch.as_tensor(poses),
        torch.as_tensor(draw.normal(size=(n, 10))),
        torch.as_tensor(transl),
        labels,
    )


# --- extreme poses -------------------------------------------------------------------------
# SMPL body frame: x left, y up, z forward, T pose. A joint's turns apply from left to right.

_Turns = tuple[tuple[str, float], ...]


def _compose(turns: _Turns) -> np.ndarray:
    rotation = Rotation.identity()
    for axis, angle in turns:
        rotation = Rotation.from_euler(axis, angle) * rotation
    return rotation.as_rotvec()


def _mirror(pose: np.ndarray) -> np.ndarray:
    """The pose (24, 3) of the mirror image (x -> -x)."""
    order = np.arange(24)
    for left, right in _LEFT_RIGHT:
        order[left], order[right] = right, left
    return pose[order] * [1.0, -1.0, -1.0]


def _both(left: int, right: int, *turns: tuple[str, float]) -> dict[int, _Turns]:
    """The same movement on both sides: turns for the left joint, mirrored for the right."""
    return {
        left: turns,
        right: tuple((axis, angle if axis == "x" else -angle) for axis, angle in turns),
    }


def _hips(*turns: tuple[str, float]) -> dict[int, _Turns]:
    return _both(1, 2, *turns)


def _knees(angle: float) -> dict[int, _Turns]:
    return _both(4, 5, ("x", angle))


def _ankles(angle: float) -> dict[int, _Turns]:
    return _both(7, 8, ("x", angle))


def _shoulders(*turns: tuple[str, float]) -> dict[int, _Turns]:
    return _both(16, 17, *turns)


def _collars(angle: float) -> dict[int, _Turns]:
    return _both(13, 14, ("z", angle))


def _elbows(angle: float) -> dict[int, _Turns]:
    return _both(18, 19, ("y", -angle))


def _spine(angle: float, axis: str = "x") -> dict[int, _Turns]:
    return {joint: ((axis, angle),) for joint in (3, 6, 9)}


_ARMS_DOWN = _shoulders(("z", -1.25))
_ARMS_FORWARD = _shoulders(("y", -1.45))
_ARMS_UP = _collars(0.35) | _shoulders(("z", 1.15))
_EXTREME: dict[str, dict[int, _Turns]] = {
    "deep squat": _hips(("x", -2.0), ("z", 0.35))
    | _knees(2.3) | _ankles(-0.45) | _spine(0.15) | _ARMS_FORWARD,
    "front split": {0: (("x", 0.25),), 1: (("x", -1.5),), 2: (("x", 0.65),)}
    | _ankles(0.6) | _spine(-0.1) | _shoulders(("z", 0.1)),
    "side split": _hips(("y", 0.5), ("z", 1.35)) | _ankles(0.5) | _spine(0.1) | _ARMS_FORWARD,
    "arms overhead": _ARMS_UP | _spine(-0.12) | _hips(("x", 0.1)),
    "back bend": _ARMS_UP | _spine(-0.3) | _hips(("x", 0.35)) | _knees(0.9) | {0: (("x", -1.2),)},
    "lying on the back": {0: (("x", -1.5),)}
    | _shoulders(("z", -0.6), ("y", 0.2)) | _hips(("z", 0.2)) | _knees(0.1),
    "lying on the side": {0: (("x", -1.5), ("y", 1.5)), 1: (("x", -1.3),), 2: (("x", -0.4),)}
    | _knees(1.4) | _spine(0.2) | _shoulders(("y", -1.2)) | _elbows(1.5),
    "handstand": {0: (("x", 3.0),)} | _ARMS_UP | _ankles(0.7) | _hips(("x", 0.15)),
    "handstand, split": {0: (("x", 2.8),), 1: (("x", -1.2),), 2: (("x", 0.7),)}
    | _ARMS_UP | _ankles(0.6),
    "forward fold": _hips(("x", -1.7)) | _spine(0.35) | _shoulders(("y", -1.3), ("x", -0.6)),
    "cross-legged": _hips(("y", 0.9), ("x", -1.5), ("y", 0.6))
    | _knees(1.9) | _ARMS_DOWN | _elbows(0.5),
    "high kick": {1: (("x", -1.8),), 2: (("x", 0.1),)}
    | _knees(0.15) | _ankles(0.4) | _spine(0.15) | _shoulders(("z", -0.3)),
    "lunge with twist": {1: (("x", -1.6),), 2: (("x", 0.5),), 4: (("x", 1.6),), 5: (("x", 0.6),)}
    | _spine(0.25, "y") | _shoulders(("z", 0.1)),
    "hands behind the head": _collars(0.3) | _shoulders(("z", 0.5), ("y", 0.2)) | _elbows(2.2),
    "hands behind the back": _shoulders(("x", 0.7), ("z", -1.2), ("x", 0.6)) | _elbows(1.2),
    "crouch, arms crossed": _hips(("x", -1.9)) | _knees(2.2) | _spine(0.3)
    | _shoulders(("z", -0.3), ("y", -1.5)) | _elbows(1.6),
}  # fmt: skip
