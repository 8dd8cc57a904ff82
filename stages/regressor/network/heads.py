"""Decoder heads: coarse-to-fine (SKEL-CF), single token (HSMR) and the pooled baseline.

Source: docs/reference/regressor.md#coarse, #decoder and #hsmr. All take image tokens (B, N, C) and
the three conditioning numbers of the box (B, 3) and return `Estimates`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.regressor.config import CoarseToFineConfig, DecoderConfig
from stages.regressor.network.mean_parameters import (
    POSES,
    Parameters,
    Pose,
    mean_parameters,
)
from stages.regressor.network.representation import SIZE

HEAD_HIDDEN = 256
CONDITIONING = 3
_SIZES = {"betas": 10, "camera": 3}


def _sizes(pose: Pose) -> dict[str, int]:
    """Numbers of each of `Parameters`."""
    return {"code": SIZE if pose == "rotations" else len(POSES), **_SIZES}


class Estimates(NamedTuple):
    """What a head returns.

    coarse: the coarse prediction, (B, ...), or None where the head has none.
    layers: predictions after each read-out, (L, B, ...), the last one is the result.
    heatmaps: (B, M, 44) logits over the cells of `model.heatmap_grid` for each keypoint, only while
        training.
    found: (B, 44, 3) keypoints of the lifter, where there is one (`lifter.found_keypoints`), or
        (B, 44, 4) with how far behind the pelvis they are, metres (`lifter.found_depths`).
    """

    coarse: Parameters | None
    layers: Parameters
    heatmaps: Tensor | None = None
    found: Tensor | None = None

    @property
    def final(self) -> Parameters:
        """The result, (B, ...)."""
        return Parameters(*(part[-1] for part in self.layers))


class CrossAttention(nn.Module):
    """Queries attend to a context: q, k, v without bias, output with bias (regressor.md#decoder).

    The query is normalised here, the context is not. Without a context the queries attend to
    themselves, and one projection gives q, k and v.
    """

    def __init__(self, size: DecoderConfig, context_width: int | None) -> None:
        super().__init__()
        inner = size.heads * size.head_width
        self.heads = size.heads
        self.norm = nn.LayerNorm(size.width)
        if context_width is None:
            self.to_qkv = nn.Linear(size.width, 3 * inner, bias=False)
        else:
            self.to_q = nn.Linear(size.width, inner, bias=False)
            self.to_kv = nn.Linear(context_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, size.width)

    def _parts(self, tokens: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, (B, heads, tokens, width) each."""
        normal = self.norm(tokens)
        if context is None:
            q, k, v = self.to_qkv(normal).chunk(3, -1)
        else:
            q, (k, v) = self.to_q(normal), self.to_kv(context).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def weights(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, heads, Q, N): how much each token takes of each of the context, sum 1 over N."""
        q, k, _ = self._parts(tokens, context)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        q, k, v = self._parts(tokens, context)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention to the image tokens, MLP."""

    def __init__(self, size: DecoderConfig, context_width: int) -> None:
        super().__init__()
        self.self_attention = CrossAttention(size, None)
        self.cross_attention = CrossAttention(size, context_width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size.width),
            nn.Linear(size.width, size.mlp_width),
            nn.GELU(),
            nn.Linear(size.mlp_width, size.width),
        )

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        tokens = tokens + self.self_attention(tokens)
        tokens = tokens + self.cross_attention(tokens, context)
        return tokens + self.feed_forward(tokens)


class MeanStart(nn.Module):
    """The mean parameters as buffers."""

    mean_code: Tensor
    mean_betas: Tensor
    mean_camera: Tensor

    def __init__(self, pose: Pose) -> None:
        super().__init__()
        for name, value in mean_parameters(pose)._asdict().items():
            self.register_buffer(f"mean_{name}", value)

    def start(self, batch: int) -> Parameters:
        """The mean for every row, (B, ...)."""
        means = (self.mean_code, self.mean_betas, self.mean_camera)
        return Parameters(*(mean.expand(batch, -1) for mean in means))


class ReadOut(nn.ModuleDict):
    """Three MLPs: features (B, C) each -> residuals of code, betas and camera
    (regressor.md#coarse)."""

    def __init__(self, width: int, pose: Pose, *, zero_init: bool) -> None:
        super().__init__()
        for name, size in _sizes(pose).items():
            first, last = nn.Linear(width, HEAD_HIDDEN), nn.Linear(HEAD_HIDDEN, size)
            self[name] = nn.Sequential(first, nn.GELU(), last)
            if zero_init:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, code: Tensor, betas: Tensor, camera: Tensor) -> Parameters:
        return Parameters(self["code"](code), self["betas"](betas), self["camera"](camera))


def _add(a: Parameters, b: Parameters) -> Parameters:
    # The estimate is summed in float32, also under autocast.
    return Parameters(*(x.float() + y.float() for x, y in zip(a, b, strict=True)))


class CoarseToFineHead(MeanStart):
    """SKEL-CF: a coarse estimate; three tokens (pose, shape, camera) refine it layer by layer."""

    def __init__(
        self, context_width: int, size: DecoderConfig, options: CoarseToFineConfig,
        pose: Pose = "rotations", lifted_width: int | None = None,
    ) -> None:  # fmt: skip
        """lifted_width: of features that come in place of the pooled tokens, with the box numbers
        in them."""
        super().__init__(pose)
        self.options, self.size = options, size
        self.read_out = ReadOut(size.width, pose, zero_init=options.zero_init)
        if options.coarse and options.separate_heads:
            self.coarse_read_out = ReadOut(
                lifted_width or context_width, pose, zero_init=options.zero_init
            )
        if options.coarse and options.conditioned_coarse and lifted_width is None:
            self.coarse_conditioning = nn.Linear(CONDITIONING, context_width)
        extra = CONDITIONING if options.conditioned else 0
        self.embed = nn.ModuleDict(
            {name: nn.Linear(n + extra, size.width) for name, n in _sizes(pose).items()}
        )
        self.position = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        count = 1 if options.looped else size.layers
        self.layers = nn.ModuleList(DecoderLayer(size, context_width) for _ in range(count))

    def lifted(self, features: Tensor) -> Parameters:
        """The coarse estimate of a lifter's features, (B, ...)."""
        return _add(self.start(len(features)), self.coarse_read_out(features, features, features))

    def _coarse(self, tokens: Tensor, box: Tensor) -> Parameters:
        pooled = tokens.mean(1)
        if self.options.conditioned_coarse:
            pooled = pooled + self.coarse_conditioning(box)
        read_out = self.coarse_read_out if self.options.separate_heads else self.read_out
        return _add(self.start(len(tokens)), read_out(pooled, pooled, pooled))

    def _tokens(self, estimate: Parameters, box: Tensor) -> Tensor:
        parts = estimate._asdict()
        if self.options.conditioned:
            parts = {name: torch.cat((value, box), -1) for name, value in parts.items()}
        return torch.stack([self.embed[name](value) for name, value in parts.items()], 1)

    def forward(self, tokens: Tensor, box: Tensor, lifted: Tensor | None = None) -> Estimates:
        coarse = None
        if self.options.coarse:
            coarse = self._coarse(tokens, box) if lifted is None else self.lifted(lifted)
        estimate = coarse or self.start(len(tokens))
        state = self._tokens(estimate, box) + self.position
        read: list[Parameters] = []
        for k in range(self.size.layers):
            layer = self.layers[0 if self.options.looped else k]
            state = layer(state, tokens)
            last = k == self.size.layers - 1
            if self.options.state == "single_readout" and not last:
                continue
            estimate = _add(estimate, self.read_out(*state.unbind(1)))
            read.append(estimate)
            if not last:
                rebuilt = self._tokens(estimate, box)
                state = rebuilt if self.options.state == "rebuild" else state + rebuilt
        return Estimates(coarse, Parameters(*(torch.stack(x) for x in zip(*read, strict=True))))


class SingleTokenHead(MeanStart):
    """HSMR: one query token, read out once by linear maps; no box numbers (regressor.md#hsmr)."""

    def __init__(self, context_width: int, size: DecoderConfig, pose: Pose = "rotations") -> None:
        super().__init__(pose)
        self.to_token = nn.Linear(1, size.width)
        self.position = nn.Parameter(torch.randn(1, 1, size.width))
        self.layers = nn.ModuleList(DecoderLayer(size, context_width) for _ in range(size.layers))
        self.read_out = nn.ModuleDict(
            {name: nn.Linear(size.width, n) for name, n in _sizes(pose).items()}
        )

    def forward(self, tokens: Tensor, box: Tensor) -> Estimates:
        del box
        zero = tokens.new_zeros(len(tokens), 1, 1)
        state = self.to_token(zero) + self.position
        for layer in self.layers:
            state = layer(state, tokens)
        residual = Parameters(*(linear(state[:, 0]) for linear in self.read_out.values()))
        final = _add(self.start(len(tokens)), residual)
        return Estimates(None, Parameters(*(part[None] for part in final)))


class PooledHead(MeanStart):
    """Plain regression: mean + MLPs of the averaged tokens; the baseline that must be beaten."""

    def __init__(self, context_width: int, pose: Pose = "rotations") -> None:
        super().__init__(pose)
        self.read_out = ReadOut(context_width, pose, zero_init=False)

    def forward(self, tokens: Tensor, box: Tensor) -> Estimates:
        del box
        pooled = tokens.mean(1)
        final = _add(self.start(len(tokens)), self.read_out(pooled, pooled, pooled))
        return Estimates(None, Parameters(*(part[None] for part in final)))
