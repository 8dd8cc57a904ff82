"""Moving surfaces as few bytes: bone transforms a frame, and a low-rank shape in rest space.

A surface is v_f = sum_k w_k A_f,k [x_f; 1] with fixed weights w. Given the true vertices v_f, x_f
follows by inverting the blended transform, whatever made it (shape, pose correctives, weights left
out), and varies little: a mean and a few principal components hold it. What the packing costs is
measured by unpacking it again, and stated on the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

_REGULAR = 1e-4
"""Keeps rest points near the mean where a blend of opposed rotations has no inverse."""
_FRAMES_FOR_BASIS = 400
MAX_COMPONENTS = 24
TOLERANCE = 0.5e-3
"""Metres, largest deviation of a vertex that is aimed at."""


@dataclass(frozen=True)
class Surface:
    """A surface that moves with bones.

    name: `skin`, `bones` or `target`; vertices: (F, V, 3) true positions, metres; rotations:
    (F, K, 3, 3) and translations (F, K, 3): rest -> posed, of each bone; weights: (V, K), rows sum
    to one; faces: (n, 3).
    """

    name: str
    vertices: NDArray[np.float32]
    rotations: NDArray[np.float64]
    translations: NDArray[np.float64]
    weights: NDArray[np.float64]
    faces: NDArray[np.int64]


class Packer:
    """Collects arrays in one buffer; entries say where each lies."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, values: NDArray, kind: str, *, delta: bool = False) -> dict[str, Any]:
        """Append an array as little-endian `kind` (`i1`, `u1`, `i2`, `u2`, `u4`, `f4`).

        delta: as differences of neighbours (modulo 2^32), which packs indices well.
        """
        flat = np.ascontiguousarray(values).reshape(-1)
        if delta:
            flat = np.mod(np.diff(flat.astype(np.int64), prepend=0), 2**32)
        data = flat.astype("<" + kind).tobytes()
        entry = {"kind": kind, "start": self._size, "bytes": len(data), "delta": delta}
        padding = -len(data) % 4
        self._parts.append(data + b"\0" * padding)
        self._size += len(data) + padding
        return entry

    def bytes(self) -> bytes:
        return b"".join(self._parts)


@dataclass(frozen=True)
class Packed:
    """A packed surface: what the page's header says of it, and how far it is from the truth.

    mean, largest: deviation over frames and vertices, metres.
    """

    description: dict[str, Any]
    mean: float
    largest: float


def pack(surface: Surface, packer: Packer) -> Packed:
    """Append a surface to the buffer."""
    frames, count = surface.vertices.shape[:2]
    first, bone, weight = _sparse(surface.weights)
    quaternions = _quaternions(surface.rotations)
    affine = _affine(quaternions, surface.translations)
    steps_of = (weight / 65535.0, bone, first)
    blended = _Blend(csr_matrix(steps_of, shape=surface.weights.shape), affine)
    mean, mean_step, components, steps, coefficients = _low_rank(surface, blended)
    description = {
        "name": surface.name,
        "bones": surface.rotations.shape[1],
        "vertices": count,
        "mean_step": mean_step,
        "component_steps": steps,
        "arrays": {
            "first": packer.add(first, "u4", delta=True),
            "bone": packer.add(bone, "u1"),
            "weight": packer.add(weight, "u2"),
            "faces": packer.add(surface.faces, "u4", delta=True),
            "mean": packer.add(mean, "i2"),
            "coefficients": packer.add(coefficients, "f4"),
            "quaternions": packer.add(quaternions, "i2"),
            "translations": packer.add(surface.translations, "f4"),
        }
        | {f"component_{k}": packer.add(item, "i1") for k, item in enumerate(components)},
    }
    middle = mean * mean_step
    scaled = [component * step for component, step in zip(components, steps, strict=True)]
    totals, largest = 0.0, 0.0
    for frame in range(frames):
        rest = middle.copy()
        for k, component in enumerate(scaled):
            rest += coefficients[frame, k] * component
        found = blended.apply(frame, rest.reshape(-1, 3))
        distance = np.linalg.norm(found - surface.vertices[frame], axis=1)
        totals += float(distance.mean())
        largest = max(largest, float(distance.max()))
    return Packed(description, totals / frames, largest)


def low_rank_rest(
    surface: Surface,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """The rest surface as a mean (V, 3), components (C, V, 3) and their coefficients (F, C)."""
    affine = np.concatenate([surface.rotations, surface.translations[..., None]], axis=-1)
    blended = _Blend(csr_matrix(surface.weights), affine)
    mean, mean_step, components, steps, coefficients = _low_rank(surface, blended)
    shape = (-1, surface.vertices.shape[1], 3)
    scaled = [component * step for component, step in zip(components, steps, strict=True)]
    stacked = np.array(scaled, dtype=np.float64).reshape(shape)
    return (mean * mean_step).reshape(shape)[0], stacked, coefficients


class _Blend:
    """Blended affine maps of a frame, (V, 3, 4)."""

    def __init__(self, weights: csr_matrix, affine: NDArray[np.float64]) -> None:
        self._weights, self._affine = weights, affine

    def maps(self, frame: int) -> NDArray[np.float64]:
        bones = self._affine.shape[1]
        return (self._weights @ self._affine[frame].reshape(bones, 12)).reshape(-1, 3, 4)

    def apply(self, frame: int, rest: NDArray) -> NDArray[np.float64]:
        maps = self.maps(frame)
        return np.einsum("vij,vj->vi", maps[:, :, :3], rest) + maps[:, :, 3]

    def invert(self, frame: int, posed: NDArray, near: NDArray) -> NDArray[np.float64]:
        """Rest points (V, 3) that the map takes to `posed`, near `near` where that is vague."""
        maps = self.maps(frame)
        linear = maps[:, :, :3]
        missing = posed - (np.einsum("vij,vj->vi", linear, near) + maps[:, :, 3])
        normal = np.matmul(linear.transpose(0, 2, 1), linear) + _REGULAR * np.eye(3)
        right = np.einsum("vij,vi->vj", linear, missing)
        return near + _solve(normal, right)


def _solve(matrices: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solutions (V, 3) of symmetric (V, 3, 3) systems by Cramer's rule: many small ones at once."""
    a, b, c = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    rows = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    determinant = np.einsum("vi,vi->v", a, rows[:, 0])
    return np.einsum("vij,vj->vi", rows, right) / determinant[:, None]


def _low_rank(
    surface: Surface, blended: _Blend
) -> tuple[NDArray, float, list[NDArray], list[float], NDArray]:
    """Mean and components as whole numbers with their steps, and coefficients (F, C)."""
    frames = len(surface.vertices)
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, _FRAMES_FOR_BASIS)).astype(int))
    count = surface.vertices.shape[1]
    near = blended.invert(int(chosen[0]), surface.vertices[chosen[0]], np.zeros((count, 3)))
    rest = np.stack([blended.invert(int(f), surface.vertices[f], near).ravel() for f in chosen])
    middle = rest.mean(axis=0)
    mean_step = float(np.abs(middle).max()) / 32767 or 1.0
    mean = np.round(middle / mean_step).astype(np.int16)
    basis = _principal(rest - mean * mean_step)
    components, steps = [], []
    for direction in basis:
        step = float(np.abs(direction).max()) / 127
        components.append(np.round(direction / step).astype(np.int8))
        steps.append(step)
    coefficients = np.zeros((frames, len(components)), np.float32)
    if components:
        used = np.stack([c * s for c, s in zip(components, steps, strict=True)])
        solver = np.linalg.pinv(used @ used.T) @ used
        at = {int(frame): points for frame, points in zip(chosen, rest, strict=True)}
        for frame in range(frames):
            points = at.get(frame)
            if points is None:
                points = blended.invert(frame, surface.vertices[frame], near).ravel()
            coefficients[frame] = solver @ (points - mean * mean_step)
    return mean, mean_step, components, steps, coefficients


def _principal(deviations: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Principal directions (largest coefficient one), as many as the tolerance asks for."""
    size = np.linalg.norm(deviations.reshape(len(deviations), -1, 3), axis=2)
    if size.max() <= TOLERANCE / 4:
        return []
    values, vectors = np.linalg.eigh(deviations @ deviations.T)
    found: list[NDArray[np.float64]] = []
    left = deviations.copy()
    for k in np.argsort(values)[::-1][:MAX_COMPONENTS]:
        if values[k] <= 0:
            break
        direction = vectors[:, k] @ deviations
        coefficient = vectors[:, k]
        scale = float(np.abs(coefficient).max())
        found.append(direction * scale)
        left -= np.outer(coefficient, direction)
        if np.linalg.norm(left.reshape(len(left), -1, 3), axis=2).max() <= TOLERANCE:
            break
    return found


def _sparse(weights: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """CSR of the weights: (V + 1,) first entries, bones, weights in steps of 1 / 65535.

    The steps of a vertex add up to 65535 exactly, so that blending stays affine.
    """
    rows, bone = np.nonzero(weights > 1e-4)
    values = weights[rows, bone]
    sums = np.bincount(rows, values, minlength=len(weights))
    steps = np.floor(values / sums[rows] * 65535).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(weights)))])
    missing = 65535 - np.bincount(rows, steps, minlength=len(weights)).astype(np.int64)
    steps[first[:-1]] += missing
    return first.astype(np.int64), bone.astype(np.uint8), steps.astype(np.uint16)


def _quaternions(rotations: NDArray[np.float64]) -> NDArray[np.int16]:
    """(F, K, 4) x, y, z, w in steps of 1 / 32767."""
    frames, bones = rotations.shape[:2]
    found = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat()
    return np.round(found * 32767).astype(np.int16).reshape(frames, bones, 4)


def _affine(quaternions: NDArray[np.int16], translations: NDArray) -> NDArray[np.float64]:
    """(F, K, 3, 4) as the page will see them."""
    frames, bones = quaternions.shape[:2]
    turned = Rotation.from_quat(quaternions.reshape(-1, 4).astype(np.float64)).as_matrix()
    moved = translations.astype(np.float32).astype(np.float64)[..., None]
    return np.concatenate([turned.reshape(frames, bones, 3, 3), moved], axis=-1)


def thinned(
    vertices: NDArray, faces: NDArray, parts: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fewer vertices of a fine mesh, by clusters on a grid that is made coarser until they suffice.

    vertices: (V, 3); parts: (V,) a number for what must not be merged (the bone); most: vertices
    wanted. Returns kept vertices (indices into V) and faces (n, 3) on them; all if there are few.
    """
    if len(vertices) <= most:
        return np.arange(len(vertices)), np.asarray(faces)
    cell = 1e-3
    while True:
        keys = np.column_stack([np.floor(vertices / cell).astype(np.int64), parts])
        _, kept, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        if len(kept) <= most:
            break
        cell *= 1.25
    merged = inverse.reshape(-1)[faces]
    whole = (
        (merged[:, 0] != merged[:, 1])
        & (merged[:, 1] != merged[:, 2])
        & (merged[:, 2] != merged[:, 0])
    )
    return kept, merged[whole]
