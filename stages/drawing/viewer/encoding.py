"""Moving surfaces as few bytes: bone transforms a frame, and a low-rank shape in rest space.

A surface is v_f = sum_k w_k A_f,k [x_f; 1] with fixed weights w. Given the true vertices v_f, x_f
follows by inverting the blended transform, whatever made it (shape, pose correctives, weights left
out), and varies little: a mean and a few principal components hold it. What the packing costs is
measured by unpacking it again, and stated on the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

_REGULAR = 1e-4
"""Keeps rest points near the mean where a blend of opposed rotations has no inverse."""
_FRAMES_FOR_BASIS = 200
"""Frames that the components are taken from, at most: more would only take memory."""
MAX_COMPONENTS = 24
TOLERANCE = 0.5e-3
"""Metres, largest deviation of a vertex that is aimed at."""


class Frames(Protocol):
    """Vertices (F, V, 3), metres, a frame at a time: an array, or what poses them when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, frame: int, /) -> NDArray[np.float32]: ...


def whole(frames: Frames) -> NDArray[np.float32]:
    """All of them at once."""
    return np.stack([frames[frame] for frame in range(len(frames))])


@dataclass(frozen=True)
class Surface:
    """A surface that moves with bones.

    name: `skin`, `bones` or `target`; vertices: true positions, metres; rotations: (F, K, 3, 3) and
    translations (F, K, 3): rest -> posed, of each bone; weights: (V, K), rows sum to one; faces:
    (n, 3).
    """

    name: str
    vertices: Frames
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
    basis = _basis(surface, blended)
    coefficients = np.zeros((frames, len(basis.components)), np.float32)
    totals, largest = 0.0, 0.0
    for frame in range(frames):  # once through all of them: posing them is what takes time
        true = surface.vertices[frame]
        coefficients[frame] = basis.coefficients(blended.invert(frame, true, basis.near))
        distance = np.linalg.norm(
            blended.apply(frame, basis.rest(coefficients[frame])) - true, axis=1
        )
        totals += float(distance.mean())
        largest = max(largest, float(distance.max()))
    description = {
        "name": surface.name,
        "bones": surface.rotations.shape[1],
        "vertices": count,
        "mean_step": basis.mean_step,
        "component_steps": basis.steps,
        "arrays": {
            "first": packer.add(first, "u4", delta=True),
            "bone": packer.add(bone, "u1"),
            "weight": packer.add(weight, "u2"),
            "faces": packer.add(surface.faces, "u4", delta=True),
            "mean": packer.add(basis.mean, "i2"),
            "coefficients": packer.add(coefficients, "f4"),
            "quaternions": packer.add(quaternions, "i2"),
            "translations": packer.add(surface.translations, "f4"),
        }
        | {f"component_{k}": packer.add(item, "i1") for k, item in enumerate(basis.components)},
    }
    return Packed(description, totals / frames, largest)


def low_rank_rest(
    surface: Surface,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """The rest surface as a mean (V, 3), components (C, V, 3) and their coefficients (F, C)."""
    affine = np.concatenate([surface.rotations, surface.translations[..., None]], axis=-1)
    blended = _Blend(csr_matrix(surface.weights), affine)
    basis = _basis(surface, blended)
    frames, count = surface.vertices.shape[:2]
    coefficients = np.zeros((frames, len(basis.components)), np.float32)
    for frame in range(frames):
        points = blended.invert(frame, surface.vertices[frame], basis.near)
        coefficients[frame] = basis.coefficients(points)
    return basis.middle.reshape(count, 3), basis.scaled.reshape(-1, count, 3), coefficients


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


class _Basis(NamedTuple):
    """A rest surface that varies little. mean (3 V,) and components, each (3 V,), as whole numbers
    of mean_step and steps; near: (V, 3) rest points about which blends are inverted; middle,
    scaled: mean (3 V,) and components (C, 3 V) in metres; solver: (C, 3 V) deviations ->
    coefficients."""

    mean: NDArray[np.int16]
    mean_step: float
    components: list[NDArray[np.int8]]
    steps: list[float]
    near: NDArray[np.float64]
    middle: NDArray[np.float64]
    scaled: NDArray[np.float64]
    solver: NDArray[np.float64]

    def coefficients(self, points: NDArray) -> NDArray[np.float64]:
        """(C,) of rest points (V, 3)."""
        found: NDArray[np.float64] = self.solver @ (points.ravel() - self.middle)
        return found

    def rest(self, coefficients: NDArray) -> NDArray[np.float64]:
        """(V, 3) rest points."""
        return (self.middle + coefficients @ self.scaled).reshape(-1, 3)


def _basis(surface: Surface, blended: _Blend) -> _Basis:
    frames, count = surface.vertices.shape[:2]
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, _FRAMES_FOR_BASIS)).astype(int))
    near = blended.invert(int(chosen[0]), surface.vertices[int(chosen[0])], np.zeros((count, 3)))
    rest = np.empty((len(chosen), 3 * count))
    for row, frame in zip(rest, chosen.tolist(), strict=True):
        row[:] = blended.invert(frame, surface.vertices[frame], near).ravel()
    average = rest.mean(axis=0)
    mean_step = float(np.abs(average).max()) / 32767 or 1.0
    mean = np.round(average / mean_step).astype(np.int16)
    middle = mean * mean_step
    rest -= middle
    components, steps = [], []
    for direction in _principal(rest):
        step = float(np.abs(direction).max()) / 127
        components.append(np.round(direction / step).astype(np.int8))
        steps.append(step)
    scaled = np.zeros((len(components), 3 * count))
    for row, component, step in zip(scaled, components, steps, strict=True):
        row[:] = component * step
    solver = np.linalg.pinv(scaled @ scaled.T) @ scaled if components else scaled
    return _Basis(mean, mean_step, components, steps, near, middle, scaled, solver)


def _principal(deviations: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Principal directions (largest coefficient one), as many as the tolerance asks for; what they
    do not hold is left in `deviations` (F, 3 V)."""
    if _farthest(deviations) <= TOLERANCE / 4:
        return []
    values, vectors = np.linalg.eigh(deviations @ deviations.T)
    found: list[NDArray[np.float64]] = []
    for k in np.argsort(values)[::-1][:MAX_COMPONENTS]:
        if values[k] <= 0:
            break
        coefficient = vectors[:, k]
        direction = coefficient @ deviations
        found.append(direction * float(np.abs(coefficient).max()))
        for row, share in zip(deviations, coefficient, strict=True):
            row -= share * direction
        if _farthest(deviations) <= TOLERANCE:
            break
    return found


def _farthest(deviations: NDArray[np.float64]) -> float:
    """Of all points of all frames (F, 3 V); a frame at a time, because there are many."""
    return max(float(np.linalg.norm(row.reshape(-1, 3), axis=1).max()) for row in deviations)


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
