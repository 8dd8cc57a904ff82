"""Boxes, crops and cameras: from a detection box to a projection in the full image.

Source: docs/reference/regressor.md#crop and below. Pixels are those of the full image.
Coordinates are continuous: pixel (row i, column j) covers [j, j+1) x [i, i+1), so a principal point
at (W/2, H/2) is the centre. Camera frame: x right, y down, z forward, metres.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Height over width of what the network sees of a square crop (192 of 256 columns).
ASPECT = 4 / 3
HSMR_FOCAL = 5000.0
HSMR_CROP = 256.0
_HSMR_EPSILON = 1e-9


def grown_side(width: float, height: float, *, enlarge: bool) -> float:
    """Side of the square box of a (width, height) box, pixels.

    enlarge: first grow it to width : height = 192 : 256, so that nothing falls into the columns
    that the network never sees (regressor.md#d11).
    """
    if not enlarge:
        return max(width, height)
    return max(width * ASPECT, height)


def box_conditioning(box_center: Tensor, box_side: Tensor, cam_int: Tensor) -> Tensor:
    """((cx - px)/f, (cy - py)/f, b/f): box_center (B, 2), box_side (B,), cam_int (B, 3, 3) ->
    (B, 3). The centre is measured from the principal point (regressor.md#box-numbers).
    """
    focal = cam_int[:, 0, 0, None]
    return torch.cat(((box_center - cam_int[:, :2, 2]) / focal, box_side[:, None] / focal), 1)


def full_image_translation(
    camera: Tensor, box_center: Tensor, box_side: Tensor, cam_int: Tensor
) -> Tensor:
    """Crop camera (s, tx, ty) -> translation in the camera frame, metres.

    Source: regressor.md#camera.

    camera: (..., B, 3); box_center: (B, 2); box_side: (B,); cam_int: (B, 3, 3) -> (..., B, 3).
    """
    scale = camera[..., 0] * box_side
    shift = 2 * (box_center - cam_int[:, :2, 2]) / scale[..., None]
    depth = 2 * cam_int[:, 0, 0] / scale
    return torch.cat((camera[..., 1:] + shift, depth[..., None]), -1)


def crop_translation(camera: Tensor) -> Tensor:
    """HSMR's camera: (s, tx, ty) -> (tx, ty, 2 * 5000 / (256 s)), metres: (..., 3).

    Source: regressor.md#patch-camera.
    """
    depth = 2 * HSMR_FOCAL / (HSMR_CROP * camera[..., :1] + _HSMR_EPSILON)
    return torch.cat((camera[..., 1:], depth), -1)


def project(points: Tensor, cam_int: Tensor) -> Tensor:
    """Pixels (..., N, 2) of points (..., N, 3) in the camera frame; cam_int broadcasts (..., 3, 3).

    The depth keeps 1 mm from zero, so that a point behind the camera gives a large, finite error.
    """
    depth = points[..., 2:]
    depth = torch.where(depth.abs() < 1e-3, torch.full_like(depth, 1e-3), depth)
    flat = points[..., :2] / depth
    return flat @ cam_int[..., :2, :2].transpose(-1, -2) + cam_int[..., None, :2, 2]


def project_in_crop(points: Tensor) -> Tensor:
    """HSMR's projection: camera-frame points (..., 3) -> crop coordinates, [-0.5, 0.5] inside."""
    return points[..., :2] / points[..., 2:] * (HSMR_FOCAL / HSMR_CROP)


def to_crop(pixels: Tensor, affine: Tensor, crop_size: int) -> Tensor:
    """Full-image pixels (..., B, N, 2) -> crop coordinates, [-0.5, 0.5] inside.

    affine: (B, 2, 3) full-image pixels -> crop pixels; crop_size: side of the square crop, pixels.
    """
    moved = pixels @ affine[:, :, :2].transpose(-1, -2) + affine[:, None, :, 2]
    return moved / crop_size - 0.5


def focal_from_fov(vertical_fov: float, height: float) -> float:
    """Focal length, pixels, of a picture `height` pixels high seen under `vertical_fov` radians."""
    return height / (2 * math.tan(vertical_fov / 2))


def intrinsics(focal: float, width: float, height: float) -> list[list[float]]:
    """3 x 3 camera matrix with the principal point in the image centre."""
    return [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
