"""Predictions drawn over pictures: translucent skin, skeleton inside, keypoint limbs."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from skel_fit.keypoints import LIMBS
from skel_fit.skel import SKEL
from stages.drawing.render import BONE_COLOR, NEAR, Camera, Mesh, render_translucent

SKIN = (0.45, 0.65, 0.90)
PREDICTED, LABELLED = (255, 120, 30), (60, 220, 90)


@dataclass(frozen=True)
class Posed:
    """A body in the camera frame, metres: skin (6890, 3) and skeleton (Nk, 3) vertices."""

    skin: np.ndarray
    bones: np.ndarray
    faces: np.ndarray
    bone_faces: np.ndarray


@torch.no_grad()
def pose_bodies(skel: SKEL, poses: Tensor, betas: Tensor, translation: Tensor) -> list[Posed]:
    """Bodies of (B, 46), (B, 10), (B, 3)."""
    output = skel(poses, betas, translation, skeleton=True)
    faces, bone_faces = (x.cpu().numpy() for x in (skel.faces, skel.skeleton_faces))
    skin, bones = (
        x.double().cpu().numpy() for x in (output.skin_vertices, output.skeleton_vertices)
    )
    return [Posed(*pair, faces, bone_faces) for pair in zip(skin, bones, strict=True)]


def draw_body(
    picture: np.ndarray,
    body: Posed,
    cam_int: np.ndarray,
    *,
    skin: ArrayLike = SKIN,
    bones: ArrayLike = BONE_COLOR,
) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the body over it; cam_int (3, 3) in the picture's pixels; colours as
    of `Mesh`."""
    height, width = picture.shape[:2]
    left, top, right, bottom = _window(body, cam_int, height, width)
    if right <= left or bottom <= top:
        return picture
    moved = np.array(cam_int, np.float64)
    moved[:2, 2] -= (left, top)
    drawn = np.array(picture)
    drawn[top:bottom, left:right] = render_translucent(
        Mesh(body.skin, body.faces, skin),
        Mesh(body.bones, body.bone_faces, bones),
        Camera(moved, bottom - top, right - left),
        background=picture[top:bottom, left:right],
    )
    return drawn


def _window(body: Posed, cam_int: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Pixel bounds of a body in the picture: left, top, right, bottom."""
    points = np.concatenate([body.skin, body.bones])
    if points[:, 2].min() < 2 * NEAR:  # partly behind the camera: anywhere
        return 0, 0, width, height
    pixels = Camera(cam_int, height, width).project(points)
    low = np.clip(np.floor(pixels.min(0)) - 1, 0, (width, height)).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 1, 0, (width, height)).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def draw_limbs(
    picture: np.ndarray, points: np.ndarray, color: tuple[int, int, int], *, thickness: int = 1
) -> np.ndarray:
    """A copy with limbs between the points (44, 2 or 3), pixels; points without confidence or
    beyond any picture are left out.
    """
    drawn = np.ascontiguousarray(picture).copy()
    seen = np.isfinite(points[:, :2]).all(1) & (np.abs(points[:, :2]) < 1e5).all(1)
    if points.shape[1] == 3:
        seen &= points[:, 2] > 0
    whole = [tuple(map(round, point)) for point in np.nan_to_num(points[:, :2]).clip(-1e5, 1e5)]
    for a, b in LIMBS:
        if seen[a] and seen[b]:
            cv2.line(drawn, whole[a], whole[b], color, thickness, cv2.LINE_AA)
    return drawn
