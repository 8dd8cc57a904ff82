"""A pyramid of convolutions: the backbone of recipes that start from random weights on CPU cores.

Residual levels at 1/4, 1/8 and 1/16 of the input (He et al. 2016), joined from the coarsest up to a
map at 1/4 (Lin et al. 2017, "Feature pyramid networks"). Group norms, so that no row depends on the
others of its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.regressor.config import PyramidConfig

MAP_STRIDE = 4
"""Input pixels a cell of the map, each way."""
_NORM_GROUPS = 8


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """3 x 3, with its norm."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(_NORM_GROUPS, after)
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (_convolution(channels, channels) for _ in range(2))
        scale = self.second.get_parameter("1.weight")
        nn.init.zeros_(scale)  # an identity at the start

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Level(nn.Module):
    """Half the size, then residual blocks."""

    def __init__(self, before: int, after: int, blocks: int) -> None:
        super().__init__()
        self.shrink = _convolution(before, after, 2)
        self.blocks = nn.Sequential(*(ResidualBlock(after) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.shrink(x)))


class Pyramid(nn.Module):
    """Image (B, 3, H, W), normalised -> tokens (B, N, C) of the cells of 16 x 16 pixels and map
    (B, M, F) of those of 4 x 4, both row by row. H and W are multiples of 16.

    width: C; F is `size.maps`.
    """

    def __init__(self, size: PyramidConfig, width: int) -> None:
        super().__init__()
        first, *channels = size.channels
        self.stem = _convolution(3, first, 2)
        pairs = zip((first, *channels), channels, size.blocks, strict=False)
        self.levels = nn.ModuleList(Level(*sizes) for sizes in pairs)
        self.beside = nn.ModuleList(nn.Conv2d(count, size.maps, 1) for count in channels)
        self.smooth = _convolution(size.maps, size.maps)
        self.to_tokens = nn.Conv2d(channels[-1], width, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(image.contiguous(memory_format=torch.channels_last)))
        seen = []
        for level in self.levels:
            x = level(x)
            seen.append(x)
        joined = self.beside[-1](x)
        for own, beside in zip(reversed(seen[:-1]), reversed(self.beside[:-1]), strict=True):
            joined = beside(own) + F.interpolate(joined, scale_factor=2.0, mode="nearest")
        joined = F.relu(self.smooth(joined))
        return self.to_tokens(x).flatten(2).transpose(1, 2), joined.flatten(2).transpose(1, 2)
