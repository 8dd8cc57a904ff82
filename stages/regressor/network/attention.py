"""Where the decoder's tokens look: the weights of its cross-attention.

Source: docs/reference/checkpoints.md#attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.regressor.network.heads import CrossAttention, DecoderLayer, Estimates
from stages.regressor.network.model import Regressor

TOKENS = ("pose", "betas", "camera")
"""Of the coarse-to-fine head; HSMR's has one token for all."""


@torch.no_grad()
def attention_maps(network: Regressor, image: Tensor, box: Tensor) -> tuple[Estimates, Tensor]:
    """What `network(image, box)` returns, and the weights behind it.

    Returns the estimates and (T, B, heads, Q, N): of each decoder layer in the order that it runs,
    for its Q tokens, over the N image tokens row by row; each sums to 1 over N. A network without a
    decoder gives none, (0,).
    """
    with _watched(network) as seen:
        estimates = network(image, box)
    return estimates, torch.stack(seen) if seen else torch.empty(0)


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def note(attention: nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
        assert isinstance(attention, CrossAttention)
        seen.append(attention.weights(*arguments))

    layers = (module for module in network.modules() if isinstance(module, DecoderLayer))
    hooks = [layer.cross_attention.register_forward_pre_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
