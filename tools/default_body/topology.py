"""6890 of MakeHuman's 13,380 body vertices and the 13,776 triangles between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from .decimate import decimate
from .makehuman import N_BODY, BaseMesh, Rig

N_VERTICES = 6890
FLIP = np.array([-1.0, 1.0, 1.0])
CLOSED = 0.01  # openness of a cavity


@dataclass(frozen=True)
class Topology:
    """keep: (6890,) MakeHuman vertex numbers; faces: (13776, 3); mirror: (6890,) twin of each;
    openness: (6890,) share of all directions in which a vertex sees the outside (convex skin:
    nearly 0.5; mouth, nostrils, eye sockets: nearly 0)."""

    keep: np.ndarray
    faces: np.ndarray
    mirror: np.ndarray
    openness: np.ndarray

    @property
    def internal(self) -> np.ndarray:
        """(6890,) whether a vertex lies inside mouth, nostrils or eye sockets."""
        return self.openness < CLOSED


def _split_quality(corners: np.ndarray) -> float:
    """Smallest height-to-size ratio of triangles (n, 3, 3): the larger the better split."""
    edges = np.roll(corners, -1, axis=1) - corners
    area = np.linalg.norm(np.cross(edges[:, 0], -edges[:, 2]), axis=1)
    return float((area / (edges**2).sum((1, 2))).min())


def _triangles(quads: list[list[int]], rest: np.ndarray, posed: np.ndarray,
               mirror: np.ndarray) -> np.ndarray:  # fmt: skip
    """Quads of the left side split along the better diagonal, the right side mirrored."""
    known = {frozenset(quad) for quad in quads}
    out: list[list[int]] = []
    for quad in quads:
        side = rest[quad, 0].mean()
        if abs(side) < 1e-6 or frozenset(int(v) for v in mirror[quad]) not in known:
            raise ValueError("the base mesh is not symmetric")
        if side < 0:
            continue
        a, b, c, d = quad
        splits = ([[a, b, c], [a, c, d]], [[a, b, d], [b, c, d]])
        best = max(splits, key=lambda split: _split_quality(posed[np.array(split)]))
        out += best
        out += [[int(mirror[v]) for v in reversed(face)] for face in best]
    return np.array(out)


def _openness(mesh: trimesh.Trimesh, mirror: np.ndarray) -> np.ndarray:
    """(n,) share of 128 symmetric directions in which a vertex sees the outside."""
    directions = np.random.default_rng(0).normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen = np.zeros(len(mesh.vertices))
    normals = np.asarray(mesh.vertex_normals)
    for direction in np.r_[directions, directions * FLIP]:
        facing = np.flatnonzero(normals @ direction > 0.05)
        start = mesh.vertices[facing] + (normals[facing] + direction) * 1e-4
        hit = mesh.ray.intersects_any(start, np.tile(direction, (len(facing), 1)))
        seen[facing[~hit]] += 1
    return (seen + seen[mirror]) / 2 / (2 * len(directions))


def _importance(
    rig: Rig, faces: np.ndarray, internal: np.ndarray, mirror: np.ndarray
) -> np.ndarray:
    """Detail where people look (face, hands), little where nobody does (toes, cavities)."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    border = edges[internal[edges[:, 0]] != internal[edges[:, 1]]]
    rim = np.zeros(N_BODY, bool)
    rim[border] = True
    rim[edges[rim[edges[:, 0]], 1]] = True  # eyelids and lips: one ring more
    muscles = ("oris", "orbic", "oculi", "special", "levator", "jaw", "tongue")
    out = 1 + rig.part(("finger", "metacarpal")) + 8 * rig.part(muscles) + 2 * rig.part(("head",))
    out[rig.part(("toe",)) > 0.5] *= 0.15
    out[internal] *= 0.002
    out[rim] = 40
    return (out + out[mirror]) / 2


def build_topology(rig: Rig, base: BaseMesh, posed: np.ndarray) -> Topology:
    """posed: (13380, 3) the average body in T pose; the errors are measured on it."""
    distance, mirror = cKDTree(base.vertices[:N_BODY]).query(base.vertices[:N_BODY] * FLIP)
    if distance.max() > 1e-9 or len(np.unique(mirror)) != N_BODY:
        raise ValueError("the base mesh is not symmetric")
    posed = (posed + posed[mirror] * FLIP) / 2
    faces = _triangles(base.groups["body"], base.vertices, posed, mirror)
    openness = _openness(trimesh.Trimesh(posed, faces, process=False), mirror)
    importance = _importance(rig, faces, openness < CLOSED, mirror)
    keep, kept_faces = decimate(posed, faces, mirror, importance, N_VERTICES)
    result = trimesh.Trimesh(posed[keep], kept_faces, process=False)
    if not (result.is_watertight and result.is_winding_consistent and result.euler_number == 2):
        raise RuntimeError("the decimated body is not one closed surface")
    number = np.full(N_BODY, -1)
    number[keep] = np.arange(len(keep))
    return Topology(keep, kept_faces, number[mirror[keep]], openness[keep])
