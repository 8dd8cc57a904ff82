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
    MeanStart,
    PooledHead,
    SingleTokenHead,
)
from stages.regressor.network.lifter import Lifter, found_depths, found_keypoints
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.pyramid import MAP_STRIDE, Pyramid
from stages.regressor.network.vit import ViT, token_grid

# The floor of the camera scale bends in over about 1 / this many units above it.
_FLOOR_SHARPNESS = 10.0


def heatmap_grid(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns of the cells that heatmaps are over."""
    if config.pyramid is None:
        return token_grid(*config.input_size)
    height, width = (side // MAP_STRIDE for side in config.input_size)
    return height, width


class Regressor(nn.Module):
    """Image crop -> SKEL parameters.

    `forward(image, box)`: image (B, 3, H, W), normalised, H = crop_size and W = 3/4 of it; box
    (B, 3) from `View.conditioning`. Returns `Estimates` in float32. H and W are those of
    the recipe where there is a lifter. look_only: nothing but what is found in the picture is
    worked out; the estimate is the mean.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        maps = width if config.pyramid is None else config.pyramid.maps
        self.backbone: nn.Module = (
            ViT(config.backbone, *config.input_size)
            if config.pyramid is None
            else Pyramid(config.pyramid, width)
        )
        if config.head == "coarse_to_fine":
            self.head: nn.Module = CoarseToFineHead(
                width, config.decoder, config.coarse_to_fine, config.pose,
                None if config.lifter is None else config.lifter.width,
            )  # fmt: skip
        elif config.head == "single_token":
            self.head = SingleTokenHead(width, config.decoder, config.pose)
        else:
            self.head = PooledHead(width, config.pose)
        if config.heatmaps:
            # A bias would cancel in the softmax over the cells.
            self.heatmaps = nn.Linear(maps, NUM_KEYPOINTS, bias=False)
        if config.lifter is not None:
            self.lifter = Lifter(config.lifter, maps, width)
            if config.lifter.depths:
                self.depths = nn.Linear(maps, NUM_KEYPOINTS)

    def forward(self, image: Tensor, box: Tensor, *, look_only: bool = False) -> Estimates:
        seen = self.backbone(image)
        tokens, maps = (seen, seen) if self.config.pyramid is None else seen
        logits, found, share, lifted = None, None, None, {}
        if self.config.heatmaps and (self.training or self.config.lifter):
            logits = self.heatmaps(maps).float()
        if logits is not None and self.config.lifter is not None:
            found, share = self._found(logits, maps)
        if look_only:
            assert isinstance(self.head, MeanStart)
            mean = Parameters(*(part[None] for part in self.head.start(len(image))))
            return Estimates(None, self._floored(self._coded(mean)), logits, found)
        if found is not None and share is not None:
            shown = self.lifter.shows(maps, share, tokens.mean(1))
            lifted = {"lifted": self.lifter(found, self._told(box), shown)}
        estimates = self.head(tokens, box, **lifted)
        coarse = estimates.coarse
        return Estimates(
            None if coarse is None else self._floored(self._coded(coarse)),
            self._floored(self._coded(estimates.layers)),
            logits if self.training else None,
            found,
        )

    def _found(self, logits: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """`Estimates.found` of heatmaps (B, M, 44), and these as probabilities."""
        found, share = found_keypoints(logits, heatmap_grid(self.config))
        if self.config.lifter is not None and self.config.lifter.depths:
            found = torch.cat((found, found_depths(share, self.depths(maps))), -1)
        return found, share

    def lifted(self, keypoints: Tensor, box: Tensor) -> Estimates:
        """What the lifter says of keypoints, as `Estimates.found` has them, without a picture, as
        the one layer of `Estimates`."""
        assert isinstance(self.head, CoarseToFineHead)
        coarse = self.head.lifted(self.lifter(keypoints, self._told(box)))
        layers = Parameters(*(part[None] for part in coarse))
        return Estimates(None, self._floored(self._coded(layers)))

    def _told(self, box: Tensor) -> Tensor:
        """What the lifter is told of the box: nothing without `conditioned_coarse`."""
        return box if self.config.coarse_to_fine.conditioned_coarse else torch.zeros_like(box)

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
