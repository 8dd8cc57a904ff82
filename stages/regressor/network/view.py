"""Where a crop lies in its picture, and what the network's camera numbers mean there.

Source: docs/reference/regressor.md#box-numbers, #camera. The arithmetic is in `camera.py`; which of
the two cameras a network has, `full_image` or `crop`, is decided here and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stages.regressor.config import ModelConfig
from stages.regressor.network.camera import (
    HSMR_CROP,
    HSMR_FOCAL,
    box_conditioning,
    crop_translation,
    full_image_translation,
    project,
    project_in_crop,
    to_crop,
)


class View(NamedTuple):
    """Where a crop lies in its picture.

    box_center: (B, 2) pixels; box_side: (B,) pixels; cam_int: (B, 3, 3); affine: (B, 2, 3) picture
    pixels -> crop pixels. All after augmentation.
    """

    box_center: Tensor
    box_side: Tensor
    cam_int: Tensor
    affine: Tensor

    @property
    def conditioning(self) -> Tensor:
        """(B, 3) what the network is told about the box (regressor.md#box-numbers)."""
        return box_conditioning(self.box_center, self.box_side, self.cam_int)

    def translation(self, camera: Tensor) -> Tensor:
        """Full-image translation, metres, of crop cameras (..., B, 3)
        (regressor.md#camera)."""
        return full_image_translation(camera, self.box_center, self.box_side, self.cam_int)


def crop_keypoints(config: ModelConfig, keypoints: Tensor, camera: Tensor, view: View) -> Tensor:
    """Keypoints seen by the crop camera, crop coordinates, [-0.5, 0.5] inside.

    keypoints: (..., B, K, 3) with the root near the origin; camera: (..., B, 3) -> (..., B, K, 2).
    """
    if config.camera == "crop":
        translation = crop_translation(camera)
        return project_in_crop(keypoints + translation[..., None, :])
    pixels = project(keypoints + view.translation(camera)[..., None, :], view.cam_int)
    return to_crop(pixels, view.affine, config.crop_size)


def full_camera(config: ModelConfig, camera: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Where `crop_keypoints` sees the body, for the full picture: translation (B, 3), metres, and
    the intrinsics (B, 3, 3), pixels, that it belongs to (regressor.md#camera).

    A crop camera looks through the middle of its own crop at 5000 px on 256, whatever the lens of
    the picture; so its intrinsics differ from person to person.
    """
    if config.camera == "full_image":
        return view.translation(camera), view.cam_int
    # Not box_side: under some evaluation protocols that is another one than was cut out.
    side = config.crop_size / view.affine[:, 0, 0]
    cam_int = torch.eye(3).to(view.box_center).repeat(len(side), 1, 1)
    cam_int[:, 0, 0] = cam_int[:, 1, 1] = side * (HSMR_FOCAL / HSMR_CROP)
    cam_int[:, :2, 2] = view.box_center
    return crop_translation(camera), cam_int


def seen_intrinsics(config: ModelConfig, cam_int: Tensor, view: View) -> Tensor:
    """Intrinsics (B, 3, 3) of what the network sees, pixels, from those of the picture."""
    last = cam_int.new_tensor([[[0.0, 0.0, 1.0]]]).expand(len(cam_int), 1, 3)
    seen = torch.cat((view.affine, last), 1) @ cam_int
    seen[:, 0, 2] -= seen_offset(config)
    return seen


def seen_pixels(config: ModelConfig, points: Tensor) -> Tensor:
    """Crop coordinates (..., 2 or 3) -> pixels of what the network sees; a third one is kept."""
    pixels = (points[..., :2] + 0.5) * config.crop_size
    pixels[..., 0] -= seen_offset(config)
    return torch.cat((pixels, points[..., 2:]), -1)


def seen_offset(config: ModelConfig) -> float:
    """Columns of the square crop left of what the network sees."""
    return (config.crop_size - config.input_size[1]) / 2
