"""Every number that the evaluation prints, once.

Source: docs/reference/evaluation.md#point-errors and below. Points are metres, angles radians;
errors come out in millimetres, rates in percent. Batched, device-agnostic, and row by row: the
result of a row does not depend on the rows beside it. Callers pass float64
(evaluation.md#precision).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from skel_fit import joint_limits
from skel_fit.anatomy import POSE_NAMES
from skel_fit.rotations import axis_angle_to_matrix, euler_from_matrix, nearest_rotation

MILLIMETRES = 1000.0
PERCENT = 100.0


# --- 3D points -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation, one a row.

    scale: (B,); rotation: (B, 3, 3), always proper; translation: (B, 3), metres.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """(B, N, 3) points, mapped."""
        turned = points @ self.rotation.transpose(-1, -2)
        return self.scale[:, None, None] * turned + self.translation[:, None]


def root_points(points: Tensor, root: Sequence[int]) -> Tensor:
    """(B, 1, 3) mean of the points that `root` names, of (B, N, 3)."""
    _check_points(points)
    return points[:, list(root)].mean(1, keepdim=True)


def point_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(B,) mean distance of (B, N, 3) points, millimetres; MPJPE for joints, PVE for vertices.

    The caller subtracts the root; nothing is aligned here.
    """
    _check_points(predicted, target)
    return MILLIMETRES * torch.linalg.vector_norm(predicted - target, dim=-1).mean(-1)


def fit_similarity(source: Tensor, target: Tensor) -> Similarity:
    """The rotation, scale and translation that bring `source` closest to `target`.

    Procrustes with least squares over (B, N, 3) points. A mirror image is not undone: where the
    unrestricted optimum is a reflection, the direction with the smallest singular value is
    flipped, so det(rotation) = +1. A source without extent gets scale 0 (it lands on the target's
    centroid).
    """
    _check_points(source, target)
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    centred, wanted = source - source_mean, target - target_mean
    rotation, stretch = nearest_rotation(wanted.transpose(-1, -2) @ centred)
    extent = centred.square().sum((-1, -2))
    scale = stretch.sum(-1) / torch.where(extent > 0, extent, torch.ones_like(extent))
    moved = scale[:, None] * (rotation @ source_mean.transpose(-1, -2)).squeeze(-1)
    return Similarity(scale, rotation, target_mean.squeeze(1) - moved)


def aligned_point_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(B,) mean distance of (B, N, 3) points after `fit_similarity`, millimetres: the PA- errors.

    Joints and vertices each get their own alignment (evaluation.md#point-errors).
    """
    return point_error(fit_similarity(predicted, target)(predicted), target)


def _check_points(*clouds: Tensor) -> None:
    for cloud in clouds:
        if cloud.ndim != 3 or cloud.shape[-1] != 3 or cloud.shape != clouds[0].shape:
            shapes = " and ".join(str(tuple(cloud.shape)) for cloud in clouds)
            raise ValueError(f"expected point sets of one shape (B, N, 3), got {shapes}")


# --- 2D points -----------------------------------------------------------------------------------


def box_distance(predicted: Tensor, target: Tensor, box_side: Tensor) -> Tensor:
    """(B, K) distance of (B, K, 2) pixels in units of the larger side of the annotated box.

    box_side: (B,) max(w, h) of the annotated box, pixels, before any growth to an aspect ratio
    (evaluation.md#pck: the evaluators multiply the growth back out).
    """
    return torch.linalg.vector_norm(predicted - target, dim=-1) / box_side[:, None]


def within(distance: Tensor, visible: Tensor, threshold: float) -> Tensor:
    """(B, K) bool: visible and strictly closer than the threshold."""
    return visible & (distance < threshold)


def pck(distance: Tensor, visible: Tensor, threshold: float) -> float:
    """Percentage of correct keypoints: the mean over keypoints of each one's own accuracy.

    distance, visible: (B, K), `box_distance` and which points are annotated. Keypoints that are
    never annotated do not count; rare ones weigh as much as common ones. NaN without any.
    """
    hits = within(distance, visible, threshold).sum(0).double()
    seen = visible.sum(0).double()
    return float(PERCENT * (hits[seen > 0] / seen[seen > 0]).mean())


def keypoint_l2(distance: Tensor, confidence: Tensor) -> Tensor:
    """(B,) mean over all keypoints of confidence times squared distance (`mode_kpl2`)."""
    # Unannotated points may hold anything, also NaN.
    weighted = torch.where(confidence > 0, confidence * distance.square(), 0.0)
    return weighted.mean(-1)


# --- joint limits --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitedPart:
    """A joint with limited angles. `angles`: positions in the pose vector; limits in degrees."""

    name: str
    angles: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True)
class SmplPart:
    """A SMPL joint (number among the 24) whose Tait-Bryan angles are limited, degrees.

    order: axes from the outermost rotation inwards, R = R1 R2 R3.
    """

    name: str
    joint: int
    order: tuple[int, int, int]
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]


PART_NAMES = ("left_elbow", "right_elbow", "left_knee", "right_knee")  # order of HSMR Table 4


def _skel_part(name: str, *angles: str) -> LimitedPart:
    """From the published table, whose radians are half degrees with six digits."""
    places = tuple(POSE_NAMES.index(angle) for angle in angles)
    rows = np.rad2deg(joint_limits.limits("published")[list(places)])
    lower, upper = (tuple((np.round(2 * side) / 2).tolist()) for side in rows.T)
    return LimitedPart(name, places, lower, upper)


SKEL_PARTS = (
    _skel_part("left_elbow", "elbow_flexion_l", "pro_sup_l"),
    _skel_part("right_elbow", "elbow_flexion_r", "pro_sup_r"),
    _skel_part("left_knee", "knee_angle_l"),
    _skel_part("right_knee", "knee_angle_r"),
)
_X, _Y, _Z = 0, 1, 2
SMPL_PARTS = (
    SmplPart("left_elbow", 18, (_Y, _Z, _X), (-135.0, 0.0, -67.5), (0.0, 0.0, 67.5)),
    SmplPart("right_elbow", 19, (_Y, _Z, _X), (0.0, 0.0, -67.5), (135.0, 0.0, 67.5)),
    SmplPart("left_knee", 4, (_X, _Z, _Y), (0.0, 0.0, 0.0), (135.0, 0.0, 0.0)),
    SmplPart("right_knee", 5, (_X, _Z, _Y), (0.0, 0.0, 0.0), (135.0, 0.0, 0.0)),
)


def limit_excess(
    angles: Tensor, lower: Sequence[float], upper: Sequence[float], tolerance: float
) -> Tensor:
    """(B, A) how far angles (B, A), radians, lie outside limits widened by the tolerance, radians.

    lower, upper (A,) and tolerance: degrees.
    """
    low = torch.deg2rad(angles.new_tensor(lower) - tolerance)
    high = torch.deg2rad(angles.new_tensor(upper) + tolerance)
    return joint_limits.excess(angles, low, high)


def skel_limit_excess(poses: Tensor, tolerance: float) -> Tensor:
    """(B, 4) largest excess of each of `PART_NAMES`, radians, for SKEL poses (B, 46), radians.

    tolerance: degrees. A row violates a part where this is positive
    (evaluation.md#limit-rates).
    """
    if poses.ndim != 2 or poses.shape[1] != 46:
        raise ValueError(f"poses must be (B, 46), got {tuple(poses.shape)}")
    return torch.stack(
        [
            limit_excess(poses[:, list(part.angles)], part.lower, part.upper, tolerance).amax(-1)
            for part in SKEL_PARTS
        ],
        -1,
    )


def smpl_limit_excess(
    body_pose: Tensor, tolerance: float, *, euler: Literal["principal", "best"] = "principal"
) -> Tensor:
    """(B, 4) as `skel_limit_excess` for SMPL body poses (B, 69), axis-angle, radians.

    euler: `principal` uses the decomposition with the middle angle in [-90, 90] degrees, which is
    what the published numbers amount to; `best` also tries the other exact one,
    (a + pi, pi - b, c + pi), and keeps the one with the smaller summed excess.
    """
    if body_pose.ndim != 2 or body_pose.shape[1] != 69:
        raise ValueError(f"body_pose must be (B, 69), got {tuple(body_pose.shape)}")
    columns = []
    for part in SMPL_PARTS:
        first = 3 * (part.joint - 1)  # the root is not part of body_pose
        angles = euler_from_matrix(
            axis_angle_to_matrix(body_pose[:, first : first + 3]), part.order
        )
        excess = limit_excess(angles, part.lower, part.upper, tolerance)
        if euler == "best":
            turn = angles.new_tensor([math.pi, math.pi, math.pi])
            other = turn + angles * angles.new_tensor([1.0, -1.0, 1.0])
            second = limit_excess(other, part.lower, part.upper, tolerance)
            better = second.sum(-1, keepdim=True) < excess.sum(-1, keepdim=True)
            excess = torch.where(better, second, excess)
        columns.append(excess.amax(-1))
    return torch.stack(columns, -1)
