"""From heatmaps to keypoints, and from keypoints to features that a pose can be read from.

A keypoint is the mean of its heatmap (Sun et al. 2018, "Integral human pose regression"), its
spread says how sure it is. The residual MLP behind is that of Martinez et al. 2017, "A simple yet
effective baseline for 3d human pose estimation". It needs no picture: `lifted` without what the
picture shows is what `training/generated.py` teaches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skel_fit.keypoints import NUM_KEYPOINTS
from stages.regressor.config import LifterConfig
from stages.regressor.network.camera import ASPECT

#: Scales that bring x, y and spread of keypoints, shares of the crop, and their depth to about one.
_UNITS = (0.15, 0.25, 0.05)
_DEPTH_UNIT = 0.25  # metres
_CONDITIONING = 3
_HIDDEN = 2


def found_keypoints(logits: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Keypoints of heatmaps over the cells of what the network sees.

    logits: (B, M, 44), row by row over `grid`, rows and columns -> (B, 44, 3): crop coordinates
    ([-0.5, 0.5] inside) and spread, standard deviation in shares of the crop; and the heatmaps as
    probabilities (B, M, 44).
    """
    rows, columns = grid
    y = (torch.arange(rows, device=logits.device) + 0.5) / rows - 0.5
    x = ((torch.arange(columns, device=logits.device) + 0.5) / columns - 0.5) / ASPECT
    places = torch.stack((x.repeat(rows), y.repeat_interleave(columns)), 1)
    share = logits.float().softmax(1)
    mean = share.transpose(1, 2) @ places
    square = share.transpose(1, 2) @ places.square().sum(1, keepdim=True)
    spread = (square - mean.square().sum(-1, keepdim=True)).clamp(min=1e-6).sqrt()
    return torch.cat((mean, spread), -1), share


def found_depths(share: Tensor, depths: Tensor) -> Tensor:
    """What a map (B, M, 44) says where the heatmaps (B, M, 44) are: (B, 44, 1)."""
    return (share * depths.float()).sum(1)[..., None]


class Lifter(nn.Module):
    """Keypoints and box numbers -> features (B, `size.width`); what a picture shows is added.

    maps: channels of the map under the heatmaps; tokens: width of the pooled tokens.
    """

    units: Tensor

    def __init__(self, size: LifterConfig, maps: int, tokens: int) -> None:
        super().__init__()
        units = torch.tensor((*_UNITS, _DEPTH_UNIT) if size.depths else _UNITS)
        self.register_buffer("units", units, persistent=False)
        self.keypoints = nn.Linear(NUM_KEYPOINTS * len(units) + _CONDITIONING, size.width)
        self.local = nn.Linear(maps, size.features)
        self.shown = nn.Linear(NUM_KEYPOINTS * size.features + tokens, size.width)
        # Nothing at the start: a lifter that was taught without pictures goes on from there.
        nn.init.zeros_(self.shown.weight)
        nn.init.zeros_(self.shown.bias)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(size.width),
                nn.Linear(size.width, _HIDDEN * size.width),
                nn.GELU(),
                nn.Linear(_HIDDEN * size.width, size.width),
            )
            for _ in range(size.blocks)
        )
        self.norm = nn.LayerNorm(size.width)

    def shows(self, maps: Tensor, share: Tensor, pooled: Tensor) -> Tensor:
        """What the picture adds, (B, width): maps (B, M, F), heatmaps (B, M, 44), pooled (B, C)."""
        local = self.local(share.to(maps.dtype).transpose(1, 2) @ maps)
        return self.shown(torch.cat((local.flatten(1), pooled), 1))

    def forward(self, keypoints: Tensor, box: Tensor, shown: Tensor | None = None) -> Tensor:
        """keypoints: (B, 44, 3) of `found_keypoints`, or (B, 44, 4) with their depths; box: (B, 3);
        shown: of `shows`."""
        numbers = (keypoints / self.units).flatten(1)
        features = self.keypoints(torch.cat((numbers, box), 1))
        if shown is not None:
            features = features + shown
        for block in self.blocks:
            features = features + block(features)
        return self.norm(features)
