"""The learning rate of each step and each part (docs/reference/regressor.md#training)."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor, nn

from stages.regressor.config import OptimiserConfig


def learning_rate(config: OptimiserConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up (n+1)/N_w, then the schedule."""
    warm = round(config.warmup * steps_per_epoch)
    if step < warm:
        return config.rate * (step + 1) / warm
    if config.schedule == "constant":
        return config.rate
    share = (step - warm) / max(epochs * steps_per_epoch - warm, 1)
    low = config.final_share
    return config.rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def parameter_groups(
    network: nn.Module, config: OptimiserConfig, depth: int
) -> list[dict[str, Any]]:
    """Parameters by rate and weight decay; `share`: of the step's rate.

    depth: blocks of the backbone. One group, in the network's order, where all are treated alike.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        plain = config.decay_all or (parameter.ndim > 1 and not name.endswith(_POSITIONS))
        key = (config.layer_decay ** _below(name, depth), config.weight_decay if plain else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "share": share, "weight_decay": decay}
        for (share, decay), parameters in groups.items()
    ]


_POSITIONS = ("pos_embed", "position")


def _below(name: str, depth: int) -> int:
    """How many layers below the head a parameter is."""
    if block := re.match(r"backbone\.blocks\.(\d+)\.", name):
        return depth - int(block[1])
    return depth + 1 if name.startswith(("backbone.patch_embed", "backbone.pos_embed")) else 0
