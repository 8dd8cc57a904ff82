"""The skin of many bodies on a CPU: correctives and linear blend skinning, with their gradient.

What torch does in a dozen passes over the vertices is one here (`numba_skinning`), rows over
threads. `SKEL.forward` decides who does it; its own operations are the twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad

from skel_fit.crew import each, rows_over_threads

LEAST_ROWS = {False: 16, True: 32}
"""Rows from which on it is worth it, without and with gradient (benchmarks/forward.py, two
threads): for fewer it takes longer to load kernels than to do without."""
_BLOCK = 1024
"""Vertices that one thread takes at a time: their correctives are multiplied for all rows at once,
so that the basis is read once, and skinned while they are in the cache."""
_ROWS = 256
"""Rows at a time, for the same reason."""


@dataclass(frozen=True)
class BoneWeights:
    """Which bones a vertex follows: `bones[starts[v]:starts[v + 1]]`, and how far."""

    starts: np.ndarray  # (V + 1,) int32
    bones: np.ndarray  # (n,) int32
    weights: np.ndarray  # (n,) float32

    @staticmethod
    def of(weights: np.ndarray) -> BoneWeights:
        """From skinning weights (V, 24), of which most are zero."""
        used = weights != 0
        used[~used.any(1), 0] = True  # a vertex without bones: one of weight zero
        vertices, bones = np.nonzero(used)
        starts = np.concatenate(([0], np.cumsum(used.sum(1))))
        return BoneWeights(
            starts.astype(np.int32),
            bones.astype(np.int32),
            weights[vertices, bones].astype(np.float32),
        )


def can_skin(tensors: tuple[Tensor, ...]) -> bool:
    """Whether `skin` does it: enough float32 rows on a CPU, nothing but plain gradients asked for
    (no function transforms, no forward derivatives, no compilation), numba installed.

    tensors: (B, ...) each.
    """
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and tensors[0].shape[0] >= LEAST_ROWS[asks_gradient(tensors)]
        and not torch.compiler.is_compiling()
        and not _are_functorch_transforms_active()
        and all(forward_ad.unpack_dual(t).tangent is None for t in tensors)
        and _kernels() is not None
    )


def asks_gradient(tensors: tuple[Tensor, ...]) -> bool:
    """Whether torch would record what is done with them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def skin(
    features: Tensor,
    shaped: Tensor,
    affine: Tensor,
    trans: Tensor,
    basis: Tensor,
    bones: BoneWeights,
    twin: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Posed skin, (B, V, 3) m.

    features: (B, F) what moves rest vertices along the basis; shaped: (B or 1, 3V) rest vertices,
    component after component, m; affine: (B, 24, 3, 4); trans: (B, 3) m; basis: (3V, F); twin: the
    same in torch, from the first five, for second derivatives.
    """
    found: Tensor = _Skin.apply(features, shaped, affine, trans, basis, bones, twin)
    return found


class _Skin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        shaped: Tensor,
        affine: Tensor,
        trans: Tensor,
        basis: Tensor,
        bones: BoneWeights,
        twin: Callable[..., Tensor],
    ) -> Tensor:
        ctx.save_for_backward(features, shaped, affine, trans, basis)
        ctx.bones, ctx.twin = bones, twin
        batch = features.shape[0]
        out = torch.empty(batch, basis.shape[0])
        rest, moved, array = _vertices(shaped), _array(trans), out.numpy()
        for rows in _slices(batch, _ROWS):
            part = _Part(basis, features[rows], affine[rows], bones, _own(rest, rows))
            part.skin(moved[rows], array[rows])
        return out.view(batch, -1, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, shaped, affine, _, basis = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            return (*_twice(ctx, grad), None, None, None)
        batch = features.shape[0]
        rest, pull = _vertices(shaped), _array(grad.reshape(batch, -1))
        for_features, for_affine = torch.empty_like(features), torch.empty(affine.shape)
        for_shaped = torch.zeros(shaped.shape) if ctx.needs_input_grad[1] else None
        for rows in _slices(batch, _ROWS):
            part = _Part(basis, features[rows], affine[rows], ctx.bones, _own(rest, rows))
            own = None if for_shaped is None else _own(for_shaped, rows)
            for_features[rows], for_affine[rows] = part.gradients(pull[rows], own)
        for_trans = grad.sum(1) if ctx.needs_input_grad[3] else None
        return for_features, for_shaped, for_affine, for_trans, None, None, None


class _Part:
    """Rows that are posed together, blocks of vertices over threads."""

    def __init__(
        self,
        basis: Tensor,
        features: Tensor,
        affine: Tensor,
        bones: BoneWeights,
        rest: np.ndarray,
    ) -> None:
        self.kernels = _found_kernels()
        self.basis = basis.unflatten(0, (3, -1))
        self.features = features.t().contiguous()
        self.bones = (bones.starts, bones.bones, bones.weights)
        self.rest = rest
        batch, lanes = len(affine), self.kernels.LANES
        padded = affine.new_zeros(-(-batch // lanes) * lanes, 24, 12)
        padded[:batch] = affine.reshape(batch, 24, 12)
        self.maps = padded.view(-1, lanes, 24, 12).permute(0, 2, 3, 1).flatten(2).contiguous()

    def skin(self, trans: np.ndarray, out: np.ndarray) -> None:
        """out: (n, 3V)."""
        maps = self.maps.numpy()

        def work(block: slice) -> None:
            offsets = self._offsets(block).numpy()
            self.kernels.skin_block(*self.bones, maps, self.rest, offsets, trans, block.start, out)

        self._over_blocks(work)

    def gradients(self, grad: np.ndarray, for_shaped: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients of features (n, F) and maps (n, 24, 3, 4), from grad (n, 3V); that of the rest
        vertices (n or 1, 3V) is added to `for_shaped`. Blocks are summed in their order."""
        maps, batch = self.maps.numpy(), len(grad)

        def work(block: slice) -> tuple[Tensor, Tensor]:
            offsets = self._offsets(block)
            points, for_maps = torch.empty_like(offsets), torch.empty_like(self.maps)
            self.kernels.skin_block_gradients(
                *self.bones, maps, self.rest, offsets.numpy(), grad, block.start, points.numpy(),
                for_maps.numpy(),
            )  # fmt: skip
            if for_shaped is not None:
                own = for_shaped.view(len(for_shaped), 3, -1)[:, :, block]
                own += points.sum(2) if len(own) == 1 else points.permute(2, 0, 1)
            parts = [points[c].t() @ self.basis[c, block] for c in range(3)]
            return parts[0] + parts[1] + parts[2], for_maps

        found = self._over_blocks(work)
        features, summed = found[0]
        for more, maps_of in found[1:]:
            features, summed = features + more, summed + maps_of
        lanes = self.kernels.LANES
        rows = summed.view(-1, 24, 3, 4, lanes).permute(0, 4, 1, 2, 3).flatten(0, 1)
        return features, rows[:batch]

    def _offsets(self, block: slice) -> Tensor:
        """Correctives of the vertices of a block: (3, vertices, n)."""
        out = self.features.new_empty(3, block.stop - block.start, self.features.shape[1])
        for c in range(3):
            torch.mm(self.basis[c, block], self.features, out=out[c])
        return out

    def _over_blocks(self, work: Callable[[slice], Any]) -> list[Any]:
        with torch.no_grad(), rows_over_threads():
            return list(each(work, _slices(self.basis.shape[1], _BLOCK), torch.device("cpu")))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _own(rest: Any, rows: slice) -> Any:
    """Those of some rows, or the one that all share."""
    return rest if len(rest) == 1 else rest[rows]


def _twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the first four inputs by the twin, which torch can differentiate again."""
    inputs = ctx.saved_tensors
    wanted = [k for k in range(4) if ctx.needs_input_grad[k]]
    out = ctx.twin(*inputs)
    made = torch.autograd.grad(out, [inputs[k] for k in wanted], grad, create_graph=True)
    found: list[Tensor | None] = [None] * 4
    for k, value in zip(wanted, made, strict=True):
        found[k] = value
    return tuple(found)


def _vertices(shaped: Tensor) -> np.ndarray:
    return _array(shaped).reshape(len(shaped), 3, -1)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())


@cache
def _kernels() -> Any | None:
    """The module of the kernels, or None where there is no numba."""
    try:
        from skel_fit import numba_skinning
    except ImportError:
        return None
    return numba_skinning


def _found_kernels() -> Any:
    found = _kernels()
    assert found is not None, "can_skin was not asked"
    return found
