"""The plain vision transformer of ViTPose.

A stem of convolutions can take the place of the patch embedding: for weights that start random on
few pictures (Xiao et al. 2021, "Early convolutions help transformers see better").

Source: docs/reference/regressor.md#vit. Pre-norm blocks, LayerNorm eps 1e-6, qkv with bias, exact
GELU, no layer scale; patch embedding with padding 2; the class-token position is added to every
patch, there is no class token.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.regressor.config import BackboneConfig

PATCH = 16
PATCH_PADDING = 2
_POSITION_STD = 0.02
_NORM_GROUPS = 8


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches for an input of `height` x `width` pixels."""
    rows, columns = ((side + 2 * PATCH_PADDING - PATCH) // PATCH + 1 for side in (height, width))
    return rows, columns


class DropPath(nn.Module):
    """Stochastic depth: a whole residual branch of a row is dropped with `probability`."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, C) in and out; the mean over draws is the input."""
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        kept = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep)
        return branch * (kept / keep)


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) -> tokens (B, N, C), row by row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH, PATCH_PADDING)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class ConvolutionStem(nn.Module):
    """(B, 3, H, W) -> tokens (B, N, C) on the grid of `PatchEmbedding`, H and W multiples of 16.

    Four 3 x 3 convolutions of stride 2, C/8 to C channels, each with group norm and GELU, then a
    1 x 1 convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, width // 8, width // 4, width // 2, width)
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False),
                       nn.GroupNorm(_NORM_GROUPS, after), nn.GELU()]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, width, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` rows in the order q, k, v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class MLP(nn.Module):
    """Two linear maps with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each behind stochastic depth."""

    def __init__(self, size: BackboneConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
        self.attn = Attention(size.width, size.heads)
        self.norm2 = nn.LayerNorm(size.width, eps=1e-6)
        self.mlp = MLP(size.width, size.mlp_width)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViT(nn.Module):
    """ViTPose backbone: image (B, 3, H, W), normalised -> tokens (B, N, C), row-major grid.

    height, width: input size that the positional embedding is made for (256 x 192: 16 x 12 = 192
    tokens). Another size at run time interpolates the positions bicubically.
    """

    def __init__(self, size: BackboneConfig, height: int = 256, width: int = 192) -> None:
        super().__init__()
        self.size = size
        self.grid = token_grid(height, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), size.width))
        stem = {"patch": PatchEmbedding, "convolutions": ConvolutionStem}[size.stem]
        self.patch_embed = stem(size.width)
        rates = [size.drop_path * i / max(size.depth - 1, 1) for i in range(size.depth)]
        self.blocks = nn.ModuleList(Block(size, rate) for rate in rates)
        self.last_norm = nn.LayerNorm(size.width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=_POSITION_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_POSITION_STD)
                nn.init.zeros_(module.bias)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positional vectors (1, N, C) of a token grid: pos[1:] + pos[0]."""
        patches = self.pos_embed[:, 1:]
        if grid != self.grid:
            square = patches.view(1, *self.grid, -1).permute(0, 3, 1, 2)
            square = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
            patches = square.flatten(2).transpose(1, 2)
        return patches + self.pos_embed[:, :1]

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patch_embed(image)
        tokens = tokens + self.positions(token_grid(*image.shape[-2:]))
        again = self.size.recompute and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            # Stochastic depth draws the same again: the state of the generator is kept.
            tokens = checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)
        return self.last_norm(tokens)
