"""Moving average of a network's weights (docs/reference/regressor.md#ema)."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from stages.regressor.config import EmaConfig


class Ema:
    """`model` is the averaged copy: m(n) = decay (1 - exp(-n / steps)) after update n = 1, 2, ...

    All floating-point entries, buffers too, are averaged; others are copied. With decay 0 the copy
    equals the network.
    """

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(network).requires_grad_(False).eval()

    def momentum(self, update: int) -> float:
        """m(n)."""
        return self.config.decay * (1 - math.exp(-update / self.config.steps))

    @torch.no_grad()
    def update(self, network: nn.Module, update: int) -> None:
        """Take in the weights after optimiser step `update` (from 1)."""
        kept = self.momentum(update)
        own, new = self.model.state_dict(), network.state_dict()
        floating = [name for name in own if own[name].is_floating_point()]
        torch._foreach_lerp_(
            [own[name] for name in floating], [new[name] for name in floating], 1 - kept
        )
        for name in own.keys() - set(floating):
            own[name].copy_(new[name])
