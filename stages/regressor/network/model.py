"""The regressor: backbone and head, and what their numbers mean in space.

Source: reference/regressor.md sections 1-4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.regressor.config import ModelConfig
from stages.regressor.network import camera as cameras
from stages.regressor.network.heads import (
    CoarseToFineHead,
    CoarseToFineOptions,
    DecoderSize,
    Estimates,
    PooledHead,
    SingleTokenHead,
)
from stages.regressor.network.joints import NUM_KEYPOINTS
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.vit import ViT, ViTSize

# The floor of the camera scale bends in over about 1 / this many units above it.
_FLOOR_SHARPNESS = 10.0


class View(NamedTuple):
    """Where a crop lies in its picture.

    box_center: (B, 2) pixels; box_side: (B,) pixels; cam_int: (B, 3, 3); affine: (B, 2, 3) picture
    pixels -> crop pixels. All after augmentation.
    """

    box_center: Tensor
    box_side: Tensor
    cam_int: Tensor
    affine: Tensor


class Regressor(nn.Module):
    """Image crop -> SKEL parameters.

    `forward(image, box)`: image (B, 3, H, W), normalised, H = crop_size and W = 3/4 of it; box
    (B, 3) from `camera.box_conditioning`. Returns `Estimates` in float32.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.backbone
        vit = ViTSize(size.width, size.depth, size.heads, size.mlp_width, size.drop_path, size.stem)
        self.backbone = ViT(vit, *config.input_size)
        decoder = DecoderSize(**config.decoder.model_dump())
        if config.head == "coarse_to_fine":
            options = CoarseToFineOptions(**config.coarse_to_fine.model_dump())
            self.head: nn.Module = CoarseToFineHead(size.width, decoder, options)
        elif config.head == "single_token":
            self.head = SingleTokenHead(size.width, decoder)
        else:
            self.head = PooledHead(size.width)
        if config.heatmaps:
            # A bias would cancel in the softmax over the tokens.
            self.heatmaps = nn.Linear(size.width, NUM_KEYPOINTS, bias=False)

    def forward(self, image: Tensor, box: Tensor) -> Estimates:
        tokens = self.backbone(image)
        coarse, layers, _ = self.head(tokens, box)
        return Estimates(
            None if coarse is None else self._floored(coarse),
            self._floored(layers),
            self.heatmaps(tokens).float() if self.config.heatmaps and self.training else None,
        )

    def _floored(self, estimate: Parameters) -> Parameters:
        """Camera scale kept above the floor; unchanged to 1e-3 from 0.6 above it on."""
        floor = self.config.scale_floor
        if floor == 0.0:
            return estimate
        scale = floor + F.softplus(estimate.camera[..., :1] - floor, beta=_FLOOR_SHARPNESS)
        return estimate._replace(camera=torch.cat((scale, estimate.camera[..., 1:]), -1))


def crop_keypoints(config: ModelConfig, keypoints: Tensor, camera: Tensor, view: View) -> Tensor:
    """Keypoints seen by the crop camera, crop coordinates, [-0.5, 0.5] inside.

    keypoints: (..., B, K, 3) with the root near the origin; camera: (..., B, 3) -> (..., B, K, 2).
    """
    if config.camera == "crop":
        translation = cameras.crop_translation(camera)
        return cameras.project_in_crop(keypoints + translation[..., None, :])
    translation = cameras.full_image_translation(
        camera, view.box_center, view.box_side, view.cam_int
    )
    pixels = cameras.project(keypoints + translation[..., None, :], view.cam_int)
    return cameras.to_crop(pixels, view.affine, config.crop_size)


def full_camera(config: ModelConfig, camera: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Where `crop_keypoints` sees the body, for the full picture: translation (B, 3), metres, and
    the intrinsics (B, 3, 3), pixels, that it belongs to (1.4, 7).

    A crop camera looks through the middle of its own crop at 5000 px on 256, whatever the lens of
    the picture; so its intrinsics differ from person to person.
    """
    if config.camera == "full_image":
        translation = cameras.full_image_translation(
            camera, view.box_center, view.box_side, view.cam_int
        )
        return translation, view.cam_int
    # Not box_side: under some evaluation protocols that is another one than was cut out.
    side = config.crop_size / view.affine[:, 0, 0]
    cam_int = torch.eye(3).to(view.box_center).repeat(len(side), 1, 1)
    cam_int[:, 0, 0] = cam_int[:, 1, 1] = side * (cameras.HSMR_FOCAL / cameras.HSMR_CROP)
    cam_int[:, :2, 2] = view.box_center
    return cameras.crop_translation(camera), cam_int
