"""Points seen by several calibrated cameras → points in space, robustly, and how far off they
reproject. Plain numpy, every point on its own.

Cameras are as of `skel_fit.keypoint_fit.Cameras`, pinhole, V of them: cam_int (V, 3, 3) px,
outer (V, 3, 4) world → camera, metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAUCHY = 3.0
"""Standard deviations from which a view counts less and less."""
_STEPS = 12
_NEAR = 0.1


@dataclass(frozen=True)
class Triangulated:
    """n points of V views. points: (n, 3) metres, NaN where fewer than two views see it or it lies
    behind a camera; distances: (n, V) px to where it was seen, NaN where not; cost: (n,) robust
    squared standard deviations, summed over the views, 0 where there is no point."""

    points: np.ndarray
    distances: np.ndarray
    cost: np.ndarray


def projected(
    points: np.ndarray, cam_int: np.ndarray, outer: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, V, 2) and depths (n, V) of points (n, 3)."""
    inside = np.einsum("vij,nj->nvi", outer[:, :, :3], points) + outer[:, :, 3]
    depth = inside[..., 2]
    safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    flat = inside / safe[..., None]
    return np.einsum("vij,nvj->nvi", cam_int[:, :2], flat), depth


def triangulate(
    pixels: np.ndarray, weights: np.ndarray, sigmas: np.ndarray, cam_int: np.ndarray,
    outer: np.ndarray,
) -> Triangulated:  # fmt: skip
    """pixels (n, V, 2), weights (n, V) 0: not seen, sigmas (n, V) px: least robust (Cauchy)
    reprojection, from the linear solution."""
    used = (weights > 0) & np.isfinite(pixels).all(-1)
    weights = np.where(used, weights, 0.0)
    pixels = np.where(used[..., None], pixels, 0.0)
    enough = used.sum(1) >= 2
    points = _linear(pixels, weights, cam_int, outer)
    for _ in range(_STEPS):
        jacobian, residual, depth = linearised(points, pixels, cam_int, outer)
        far = (residual**2).sum(-1) / sigmas**2
        robust = weights / (1.0 + far / CAUCHY**2) / sigmas**2 * (depth > _NEAR)
        normal = np.einsum("nv,nvai,nvaj->nij", robust, jacobian, jacobian)
        right = np.einsum("nv,nvai,nva->ni", robust, jacobian, residual)
        normal += 1e-6 * np.eye(3)
        points = points - np.linalg.solve(normal, right[..., None])[..., 0]
    found, depth = projected(points, cam_int, outer)
    far = np.linalg.norm(found - pixels, axis=-1)
    good = enough & np.isfinite(points).all(1) & (~used | (depth > _NEAR)).all(1)
    cost = (weights * CAUCHY**2 * np.log1p((far / sigmas) ** 2 / CAUCHY**2)).sum(1)
    return Triangulated(
        np.where(good[:, None], points, np.nan),
        np.where(used & good[:, None], far, np.nan),
        np.where(good, cost, 0.0),
    )


def _linear(
    pixels: np.ndarray, weights: np.ndarray, cam_int: np.ndarray, outer: np.ndarray
) -> np.ndarray:
    """(n, 3) where the rays meet best, in normalised coordinates."""
    matrix = cam_int @ outer  # (V, 3, 4)
    rows = matrix[None, :, :2] - pixels[..., None] * matrix[None, :, 2:]
    rows = rows / np.linalg.norm(cam_int[:, :2, :2], axis=(1, 2))[None, :, None, None]
    normal = np.einsum("nv,nvai,nvaj->nij", weights, rows[..., :3], rows[..., :3])
    right = -np.einsum("nv,nvai,nva->ni", weights, rows[..., :3], rows[..., 3])
    normal += 1e-9 * np.eye(3)
    solved: np.ndarray = np.linalg.solve(normal, right[..., None])[..., 0]
    return solved


def linearised(
    points: np.ndarray, pixels: np.ndarray, cam_int: np.ndarray, outer: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jacobian (n, V, 2, 3) of the pixels by the point, residual (n, V, 2), depth (n, V)."""
    inside = np.einsum("vij,nj->nvi", outer[:, :, :3], points) + outer[:, :, 3]
    depth = inside[..., 2]
    safe = np.where(np.abs(depth) < _NEAR, _NEAR, depth)
    flat = inside / safe[..., None]
    found = np.einsum("vij,nvj->nvi", cam_int[:, :2], flat)
    jacobian = np.einsum("nvai,vij->nvaj", by_camera_point(inside, safe, cam_int), outer[..., :3])
    return jacobian, found - pixels, depth


def by_camera_point(inside: np.ndarray, depth: np.ndarray, cam_int: np.ndarray) -> np.ndarray:
    """(n, V, 2, 3) slopes of the pixels by the place in the camera's frame."""
    n, views = depth.shape
    slopes = np.zeros((n, views, 2, 3))
    slopes[..., 0, 0] = slopes[..., 1, 1] = 1.0 / depth
    slopes[..., :, 2] = -inside[..., :2] / depth[..., None] ** 2
    full: np.ndarray = np.einsum("vab,nvbi->nvai", cam_int[:, :2, :2], slopes)
    return full
