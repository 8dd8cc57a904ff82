"""The learning rate of each step (docs/reference/regressor.md#training)."""

from __future__ import annotations

import math

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
