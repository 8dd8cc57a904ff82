"""Where calibrated cameras stand, adjusted by points that they see in common (bundle adjustment).

The points are eliminated (Schur complement), so a step solves for the cameras alone. What no points
say, where the whole lies and how large it is, comes from the given cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.triangulation import (
    CAUCHY,
    Triangulated,
    by_camera_point,
    linearised,
    triangulate,
)

_TURN_SD, _SHIFT_SD = np.deg2rad(3.0), 0.15
"""How far off, rad and metres, a given camera is expected to be."""
_STEPS, _SETTLED = 40, 1e-6
_LEVER = 3.0
"""Metres that a camera turned by a radian weighs as, where old and new cameras are laid over each
other: about how far people stand from it."""


@dataclass(frozen=True)
class Adjusted:
    """outer: (V, 3, 4) world → camera, metres; before, after: points and distances to where they
    were seen; turned, moved: (V,) rad and metres from the given cameras; steps: taken."""

    outer: np.ndarray
    before: Triangulated
    after: Triangulated
    turned: np.ndarray
    moved: np.ndarray
    steps: int


def adjust_cameras(
    pixels: np.ndarray, weights: np.ndarray, sigmas: np.ndarray, cam_int: np.ndarray,
    outer: np.ndarray,
) -> Adjusted:  # fmt: skip
    """pixels (n, V, 2), weights (n, V), sigmas (n, V) px, cameras as of `triangulate`.

    One camera stays (the one that sees most); the others move against a weak belief in the given
    ones; then all are laid over the given ones by a similarity, in which a camera's place and
    direction both count. Points that fewer than two cameras see say nothing.

    Raises ValueError: too few points for the cameras.
    """
    before = triangulate(pixels, weights, sigmas, cam_int, outer)
    good = np.isfinite(before.points).all(1)
    views = len(cam_int)
    if good.sum() < 10 * views:
        raise ValueError(f"{int(good.sum())} points are seen by two cameras; expected {10 * views}")
    pixels, weights, sigmas = pixels[good], weights[good], sigmas[good]
    used = (weights > 0) & np.isfinite(pixels).all(-1)
    weights = np.where(used, weights, 0.0)
    pixels = np.where(used[..., None], pixels, 0.0)
    fixed = int(used.sum(0).argmax())
    moved, points = outer.copy(), before.points[good]
    energy = _energy(points, pixels, weights, sigmas, cam_int, moved, outer)
    damping, steps = 1e-3, 0
    while steps < _STEPS and damping < 1e6:
        steps += 1
        by_camera, by_point = _step(
            points, pixels, weights, sigmas, cam_int, moved, outer, fixed, damping
        )
        tried = _moved(moved, by_camera)
        tried_points = points + by_point
        value = _energy(tried_points, pixels, weights, sigmas, cam_int, tried, outer)
        if value >= energy:
            damping *= 8.0
            continue
        small = energy - value < _SETTLED * energy
        moved, points, energy, damping = tried, tried_points, value, damping * 0.3
        if small:
            break
    moved = _laid_over(moved, outer)
    after = triangulate(pixels, weights, sigmas, cam_int, moved)
    turns = np.einsum("vij,vkj->vik", moved[..., :3], outer[..., :3])
    cosine = np.clip((np.trace(turns, axis1=1, axis2=2) - 1.0) / 2.0, -1.0, 1.0)
    shifts = np.linalg.norm(_centres(moved) - _centres(outer), axis=1)
    return Adjusted(moved, before, after, np.arccos(cosine), shifts, steps)


def _centres(outer: np.ndarray) -> np.ndarray:
    centres: np.ndarray = -np.einsum("vji,vj->vi", outer[..., :3], outer[..., 3])
    return centres


def _moved(outer: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Cameras (V, 3, 4) turned and shifted in their own frames by (V, 6)."""
    turn = axis_angle_to_matrix(torch.as_tensor(change[:, :3])).numpy()
    turned: np.ndarray = np.einsum("vij,vjk->vik", turn, outer)
    turned[..., 3] += change[:, 3:]
    return turned


def _belief(outer: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(V, 6) turn and shift from the given cameras, in standard deviations."""
    relative = np.einsum("vij,vkj->vik", outer[..., :3], given[..., :3])
    axis = np.stack(
        [relative[:, 2, 1] - relative[:, 1, 2], relative[:, 0, 2] - relative[:, 2, 0],
         relative[:, 1, 0] - relative[:, 0, 1]], -1,
    ) / 2.0  # fmt: skip
    shift = outer[..., 3] - np.einsum("vij,vj->vi", relative, given[..., 3])
    return np.concatenate([axis / _TURN_SD, shift / _SHIFT_SD], -1)


def _energy(
    points: np.ndarray, pixels: np.ndarray, weights: np.ndarray, sigmas: np.ndarray,
    cam_int: np.ndarray, outer: np.ndarray, given: np.ndarray,
) -> float:  # fmt: skip
    _, residual, _ = linearised(points, pixels, cam_int, outer)
    far = (residual**2).sum(-1) / sigmas**2
    robust = (weights * CAUCHY**2 * np.log1p(far / CAUCHY**2)).sum()
    return float(robust + (_belief(outer, given) ** 2).sum())


def _step(
    points: np.ndarray, pixels: np.ndarray, weights: np.ndarray, sigmas: np.ndarray,
    cam_int: np.ndarray, outer: np.ndarray, given: np.ndarray, fixed: int, damping: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Changes (V, 6) of the cameras and (n, 3) of the points."""
    views = len(outer)
    by_point, residual, _ = linearised(points, pixels, cam_int, outer)
    inside = np.einsum("vij,nj->nvi", outer[:, :, :3], points) + outer[:, :, 3]
    slopes = by_camera_point(inside, np.maximum(inside[..., 2], 1e-3), cam_int)
    crossed = np.zeros((*inside.shape[:2], 3, 6))  # turning about its own centre, then the shift
    x, y, z = (inside[..., k] for k in range(3))
    crossed[..., 0, 1], crossed[..., 0, 2] = z, -y
    crossed[..., 1, 0], crossed[..., 1, 2] = -z, x
    crossed[..., 2, 0], crossed[..., 2, 1] = y, -x
    crossed[..., 3:] = np.eye(3)
    by_camera = np.einsum("nvai,nvij->nvaj", slopes, crossed)
    far = (residual**2).sum(-1) / sigmas**2
    robust = weights / sigmas**2 / (1.0 + far / CAUCHY**2)
    pp = np.einsum("nv,nvai,nvaj->nij", robust, by_point, by_point)
    pp += damping * np.einsum("nij,ij->nij", pp, np.eye(3)) + 1e-9 * np.eye(3)
    cp = np.einsum("nv,nvai,nvaj->nvij", robust, by_camera, by_point)
    cc = np.einsum("nv,nvai,nvaj->vij", robust, by_camera, by_camera)
    own = np.array([1.0 / _TURN_SD**2] * 3 + [1.0 / _SHIFT_SD**2] * 3)
    cc += np.diag(own) + damping * np.einsum("vij,ij->vij", cc, np.eye(6))
    right_p = -np.einsum("nv,nvai,nva->ni", robust, by_point, residual)
    right_c = -np.einsum("nv,nvai,nva->vi", robust, by_camera, residual)
    right_c -= _belief(outer, given) * np.sqrt(own)
    inverse = np.linalg.inv(pp)
    weighed = np.einsum("nvij,njk->nvik", cp, inverse)
    matrix = -np.einsum("nvik,nwjk->viwj", weighed, cp)
    for v in range(views):
        matrix[v, :, v] += cc[v]
    right = right_c - np.einsum("nvik,nk->vi", weighed, right_p)
    free = np.repeat(np.arange(views) != fixed, 6)
    change = np.zeros(6 * views)
    flat = matrix.reshape(6 * views, 6 * views)
    change[free] = np.linalg.solve(flat[np.ix_(free, free)], right.reshape(-1)[free])
    cameras = change.reshape(views, 6)
    left = right_p - np.einsum("nvij,vi->nj", cp, cameras)
    return cameras, np.einsum("nij,nj->ni", inverse, left)


def _laid_over(outer: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The same cameras in the world in which they lie nearest to the given ones.

    A similarity of the world moves all cameras and points together and changes no pixel.
    """
    centres, wanted = _centres(outer), _centres(given)
    own, other = centres - centres.mean(0), wanted - wanted.mean(0)
    towards = np.einsum("vi,vj->ij", other, own)
    towards += _LEVER**2 * np.einsum("vki,vkj->ij", given[..., :3], outer[..., :3])
    u, _, vt = np.linalg.svd(towards)
    turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt  # new world = turn old world
    scale = float((other * (own @ turn.T)).sum() / max((own**2).sum(), 1e-12))
    scale = scale if scale > 0 else 1.0
    placed = scale * own @ turn.T + wanted.mean(0)
    turns = np.einsum("vij,kj->vik", outer[..., :3], turn)
    return np.concatenate([turns, -np.einsum("vij,vj->vi", turns, placed)[..., None]], -1)
