"""The regressor: backbone and head (docs/reference/regressor.md#vit, #decoder)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skel_fit.keypoints import NUM_KEYPOINTS
from stages.regressor.config import ModelConfig
from stages.regressor.network import representation
from stages.regressor.network.heads import (
    CoarseToFineHead,
    Estimates,
    PooledHead,
    SingleTokenHead,
)
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.vit import ViT

# The floor of the camera scale bends in over about 1 / this many units above it.
_FLOOR_SHARPNESS = 10.0


class Regressor(nn.Module):
    """Image crop -> SKEL parameters.

    `forward(image, box)`: image (B, 3, H, W), normalised, H = crop_size and W = 3/4 of it; box
    (B, 3) from `View.conditioning`. Returns `Estimates` in float32.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.backbone = ViT(config.backbone, *config.input_size)
        if config.head == "coarse_to_fine":
            self.head: nn.Module = CoarseToFineHead(
                width, config.decoder, config.coarse_to_fine, config.pose
            )
        elif config.head == "single_token":
            self.head = SingleTokenHead(width, config.decoder, config.pose)
        else:
            self.head = PooledHead(width, config.pose)
        if config.heatmaps:
            # A bias would cancel in the softmax over the tokens.
            self.heatmaps = nn.Linear(width, NUM_KEYPOINTS, bias=False)

    def forward(self, image: Tensor, box: Tensor) -> Estimates:
        tokens = self.backbone(image)
        coarse, layers, _ = self.head(tokens, box)
        return Estimates(
            None if coarse is None else self._floored(self._coded(coarse)),
            self._floored(self._coded(layers)),
            self.heatmaps(tokens).float() if self.config.heatmaps and self.training else None,
        )

    def _coded(self, estimate: Parameters) -> Parameters:
        """The pose representation also where the head gives angles."""
        if self.config.pose == "rotations":
            return estimate
        angles = estimate.code
        code = representation.encode(angles.reshape(-1, angles.shape[-1]))
        return estimate._replace(code=code.view(*angles.shape[:-1], -1))

    def _floored(self, estimate: Parameters) -> Parameters:
        """Camera scale kept above the floor; unchanged to 1e-3 from 0.6 above it on."""
        floor = self.config.scale_floor
        if floor == 0.0:
            return estimate
        scale = floor + F.softplus(estimate.camera[..., :1] - floor, beta=_FLOOR_SHARPNESS)
        return estimate._replace(camera=torch.cat((scale, estimate.camera[..., 1:]), -1))
