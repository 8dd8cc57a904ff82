"""Pose correctives (`posedirs`): what plain skinning gets wrong at bent joints, made linear.

Target shape of a bent joint: between dual-quaternion and linear skinning (volume without bulging),
then delta mush where several bones mix. The difference is taken back to the rest pose through the
blended bone matrices and regressed on the entries of R - I, as SMPL defines its correctives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags, identity
from scipy.spatial.transform import Rotation

from skel_fit.anatomy import SMPL_MIRROR, SMPL_PARENTS

from .topology import FLIP

DUAL_QUATERNION_SHARE = 0.6
ROTATIONS = 60  # per joint
RIDGE = 0.05
PEAK = 0.02  # metres; deep folds at crotch and knee would ask for 4-5 cm and tear
FLOOR = 2e-3  # metres per entry: weaker rows are dropped
# Largest rotation that is sampled about a joint (degrees); elbows and knees bend one way.
RANGE = np.array(
    [0, 80, 80, 30, 110, 110, 30, 35, 35, 30, 25, 25, 40, 25, 25, 40, 90, 90, 110, 110, 60, 60,
     30, 30]
)  # fmt: skip


@dataclass(frozen=True)
class _Body:
    """Rest mesh with everything that does not depend on the pose."""

    vertices: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    joints: np.ndarray
    smoother: csr_matrix
    neighbour: np.ndarray  # (6890,) one fixed neighbour, to span tangent frames

    def smooth(self, values: np.ndarray, steps: int = 12) -> np.ndarray:
        for _ in range(steps):
            values = self.smoother @ values
        return values

    def frames(self, points: np.ndarray) -> np.ndarray:
        """(6890, 3, 3) normal, tangent, bitangent as columns."""
        corner = points[self.faces]
        face_normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        normal = np.zeros_like(points)
        for k in range(3):
            np.add.at(normal, self.faces[:, k], face_normal)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        tangent = points[self.neighbour] - points
        tangent -= (tangent * normal).sum(1, keepdims=True) * normal
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
        return np.stack([normal, tangent, np.cross(normal, tangent)], axis=2)


def _body(vertices: np.ndarray, faces: np.ndarray, weights: np.ndarray,
          joints: np.ndarray) -> _Body:  # fmt: skip
    n = len(vertices)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    one = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    adjacency = csr_matrix(((one + one.T) > 0).astype(float))
    degree = np.asarray(adjacency.sum(1)).ravel()
    smoother = csr_matrix(0.5 * identity(n) + 0.5 * diags(1 / degree) @ adjacency)
    neighbour = adjacency.indices[adjacency.indptr[:-1]]
    return _Body(vertices, faces, weights, joints, smoother, neighbour)


def _skinning(body: _Body, joint: int, rotation: np.ndarray) -> np.ndarray:
    """(24, 3, 4) bone transforms, rest -> posed, with only `joint` turned."""
    world = np.tile(np.eye(4), (24, 1, 1))
    for j in range(24):
        local = np.eye(4)
        local[:3, :3] = rotation if j == joint else np.eye(3)
        parent = SMPL_PARENTS[j]
        local[:3, 3] = body.joints[j] - (body.joints[parent] if j else 0)
        world[j] = local if j == 0 else world[parent] @ local
    out = world[:, :3].copy()
    out[:, :, 3] -= np.einsum("jab,jb->ja", world[:, :3, :3], body.joints)
    return out


def _dual_quaternion(body: _Body, bones: np.ndarray) -> np.ndarray:
    """(6890, 3) dual-quaternion skinning."""
    real = Rotation.from_matrix(bones[:, :, :3]).as_quat()[:, [3, 0, 1, 2]]  # scalar first
    shift = bones[:, :, 3]
    dual = (
        0.5
        * np.c_[-(shift * real[:, 1:]).sum(1), real[:, :1] * shift + np.cross(shift, real[:, 1:])]
    )
    # q and -q are the same rotation: bring every bone to the side of the vertex' strongest one.
    sign = np.where((real @ real.T)[body.weights.argmax(1)] < 0, -1.0, 1.0)
    weights = body.weights * sign
    real_v, dual_v = weights @ real, weights @ dual
    length = np.linalg.norm(real_v, axis=1, keepdims=True)
    real_v, dual_v = real_v / length, dual_v / length
    turned = Rotation.from_quat(real_v[:, [1, 2, 3, 0]]).apply(body.vertices)
    moved = real_v[:, :1] * dual_v[:, 1:] - dual_v[:, :1] * real_v[:, 1:]
    return turned + 2 * (moved + np.cross(real_v[:, 1:], dual_v[:, 1:]))


def _rotations(joint: int, rng: np.random.Generator) -> np.ndarray:
    """(60, 3, 3) plausible rotations of one joint of the left side or the middle."""
    axes = rng.normal(size=(ROTATIONS, 3))
    if joint == 4:  # knee: flexion about +x
        axes = axes * [0, 0.1, 0.1] + [1.0, 0, 0]
    elif joint == 18:  # left elbow: flexion about -y, some pronation about x
        axes = axes * [0.5, 0, 0.1] + [0, -1.0, 0]
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = rng.uniform(0.1, 1, size=(ROTATIONS, 1)) * np.deg2rad(RANGE[joint])
    return Rotation.from_rotvec(axes * angles).as_matrix()


def _limit(offsets: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) shortened smoothly to less than `PEAK`."""
    length = np.linalg.norm(offsets, axis=-1, keepdims=True)
    return offsets * PEAK * np.tanh(length / PEAK) / np.maximum(length, 1e-12)


def fit_correctives(
    vertices: np.ndarray,
    faces: np.ndarray,
    weights: np.ndarray,
    joints: np.ndarray,
    mirror: np.ndarray,
) -> tuple[np.ndarray, list[str]]:
    """`posedirs` (6890, 3, 207), metres per entry of R - I, symmetric, and a report line a joint.

    vertices (6890, 3) and joints (24, 3): neutral rest body; weights (6890, 24).
    """
    body = _body(vertices, faces, weights, joints)
    rest = body.smooth(vertices)
    detail = np.einsum("vij,vi->vj", body.frames(rest), vertices - rest)
    mixed = body.smooth(np.clip((1 - weights.max(1)) * 4, 0, 1)[:, None], 6)
    rng = np.random.default_rng(1)
    blocks = np.zeros((len(vertices), 3, 24, 9))
    flip = FLIP[:, None] * np.outer(FLIP, FLIP).ravel()
    report = []
    for joint in range(1, 24):
        twin = SMPL_MIRROR[joint]
        if twin < joint:
            continue
        rotations = _rotations(joint, rng)
        offsets = np.empty((ROTATIONS, len(vertices), 3))
        for k, rotation in enumerate(rotations):
            bones = _skinning(body, joint, rotation)
            blended = np.einsum("vj,jab->vab", weights, bones)
            linear = np.einsum("vab,vb->va", blended[..., :3], vertices) + blended[..., 3]
            target = DUAL_QUATERNION_SHARE * _dual_quaternion(body, bones)
            target += (1 - DUAL_QUATERNION_SHARE) * linear
            smooth = body.smooth(target)
            mushed = smooth + np.einsum("vij,vj->vi", body.frames(smooth), detail)
            target += (mushed - target) * mixed
            offsets[k] = np.linalg.solve(blended[..., :3], (target - linear)[..., None])[..., 0]
        wanted = _limit(offsets)
        feature = (rotations - np.eye(3)).reshape(ROTATIONS, 9)
        normal = feature.T @ feature + RIDGE * np.eye(9)
        block = np.linalg.solve(normal, feature.T @ wanted.reshape(ROTATIONS, -1))
        block = block.T.reshape(-1, 3, 9)
        block[np.linalg.norm(block, axis=(1, 2)) < FLOOR] = 0
        if twin == joint:
            block = (block + block[mirror] * flip) / 2
        predicted = np.einsum("vak,nk->nva", block, feature)
        peak = np.linalg.norm(predicted, axis=2).max(0)
        block *= np.minimum(1, PEAK / np.maximum(peak, 1e-9))[:, None, None]
        blocks[:, :, joint] = block
        if twin != joint:
            blocks[:, :, twin] = block[mirror] * flip
        rms = np.sqrt((offsets**2).sum(2).mean()) * 1e3
        report.append(f"joint {joint}: offset rms {rms:.2f} mm, peak {peak.max() * 1e3:.1f} mm")
    return blocks[:, :, 1:].reshape(len(vertices), 3, 207), report
