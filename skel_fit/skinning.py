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
_BLOCK = 864
"""Vertices that one thread takes at a time: an eighth of them."""
_ROWS = 256
"""Rows at a time: their features stay in the cache while the basis passes."""


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

    features: (B, F) what moves rest vertices along the first columns of the basis; shaped:
    (B or 1, 3V) rest vertices, component after component, m; affine: (B, 24, 3, 4); trans: (B, 3)
    m; basis: (3V, F or more), contiguous; twin: the same in torch, from the first five with a basis
    (3V, F), for second derivatives.
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
        batch = features.shape[0]
        out = torch.empty(batch, basis.shape[0], dtype=torch.float32)
        rest, moved, array = _vertices(shaped), _array(trans), out.numpy()
        kept = []
        for rows in _slices(batch, _ROWS):
            part = _Part(basis, features[rows], affine[rows], bones)
            points = part.room(any(ctx.needs_input_grad))
            part.skin(_own(rest, rows), moved[rows], points.numpy(), array[rows])
            kept.append(points)
        ctx.save_for_backward(features, shaped, affine, trans, basis, *kept)
        ctx.bones, ctx.twin = bones, twin
        return out.view(batch, -1, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, shaped, affine, _, basis, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            return (*_twice(ctx, grad), None, None, None)
        batch = features.shape[0]
        pull = _array(grad.reshape(batch, -1))
        for_features, for_affine = torch.empty_like(features), torch.empty_like(affine)
        for_shaped = torch.zeros_like(shaped) if ctx.needs_input_grad[1] else None
        for rows, points in zip(_slices(batch, _ROWS), kept, strict=True):
            part = _Part(basis, features[rows], affine[rows], ctx.bones)
            own = _NOTHING if for_shaped is None else _own(_vertices(for_shaped), rows)
            for_features[rows], for_affine[rows] = part.gradients(points.numpy(), pull[rows], own)
        for_trans = grad.sum(1) if ctx.needs_input_grad[3] else None
        return for_features, for_shaped, for_affine, for_trans, None, None, None


_NOTHING = np.zeros((0, 0, 0), np.float32)


class _Part:
    """Rows that are posed together, blocks of vertices over threads."""

    def __init__(self, basis: Tensor, features: Tensor, affine: Tensor, bones: BoneWeights) -> None:
        self.kernels = _found_kernels()
        self.batch, self.count = features.shape
        self.vertices = basis.shape[0] // 3
        self.features = self._side_by_side(features)
        self.maps = self._side_by_side(affine.reshape(self.batch, -1)).reshape(
            len(self.features), affine.shape[1], -1
        )
        self.fixed = (
            bones.starts, bones.bones, bones.weights, _array(basis).reshape(-1), basis.shape[1],
        )  # fmt: skip

    def room(self, wanted: bool) -> Tensor:
        """For corrected rest vertices, which gradients need: (groups, V, 3 LANES), or nothing."""
        if not wanted:
            return torch.empty(0, 0, 0, dtype=torch.float32)
        shape = len(self.maps), self.vertices, 3 * self.kernels.LANES
        return torch.empty(shape, dtype=torch.float32)

    def skin(
        self, rest: np.ndarray, trans: np.ndarray, points: np.ndarray, out: np.ndarray
    ) -> None:
        """rest: (n or 1, 3, V); points: of `room`; out: (n, 3V)."""

        def work(block: slice) -> None:
            self.kernels.skin_block(
                *self.fixed, self.features, rest, self.maps, trans, block.start, block.stop,
                points, out,
            )  # fmt: skip

        self._over_blocks(work)

    def gradients(
        self, points: np.ndarray, grad: np.ndarray, for_shaped: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Gradients of features (n, F) and maps (n, 24, 3, 4), from grad (n, 3V); that of the rest
        vertices (n or 1, 3, V) is added to `for_shaped`. Blocks are summed in their order."""

        def work(block: slice) -> tuple[np.ndarray, np.ndarray]:
            found = np.zeros_like(self.features), np.zeros_like(self.maps)
            self.kernels.skin_block_gradients(
                *self.fixed, points, self.maps, grad, block.start, block.stop, *found, for_shaped
            )
            return found

        found = self._over_blocks(work)
        features, maps = found[0]
        for more, maps_of in found[1:]:
            features += more
            maps += maps_of
        return self._by_row(features), self._by_row(maps).view(self.batch, -1, 3, 4)

    def _side_by_side(self, rows: Tensor) -> np.ndarray:
        """(n, C) -> (groups, C LANES): LANES rows side by side, the last group filled with 0."""
        lanes, columns = self.kernels.LANES, rows.shape[1]
        groups = -(-self.batch // lanes)
        padded = np.zeros((groups * lanes, columns), np.float32)
        padded[: self.batch] = _array(rows)
        turned = padded.reshape(groups, lanes, columns).swapaxes(1, 2)
        return np.ascontiguousarray(turned).reshape(groups, columns * lanes)

    def _by_row(self, groups: np.ndarray) -> Tensor:
        """Its inverse."""
        lanes = self.kernels.LANES
        rows = groups.reshape(len(groups), -1, lanes).swapaxes(1, 2)
        return torch.from_numpy(
            np.ascontiguousarray(rows).reshape(len(rows) * lanes, -1)[: self.batch]
        )

    def _over_blocks(self, work: Callable[[slice], Any]) -> list[Any]:
        with rows_over_threads():
            return list(each(work, _slices(self.vertices, _BLOCK), torch.device("cpu")))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _own(rest: Any, rows: slice) -> Any:
    """Those of some rows, or the one that all share."""
    return rest if len(rest) == 1 else rest[rows]


def _twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the first four inputs by the twin, which torch can differentiate again."""
    *inputs, basis = ctx.saved_tensors[:5]
    wanted = [k for k in range(4) if ctx.needs_input_grad[k]]
    out = ctx.twin(*inputs, basis[:, : inputs[0].shape[1]])
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
