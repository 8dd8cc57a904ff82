"""One damped step of a bounded least-squares problem, by an active set.

What the unbounded step would carry over a bound is set onto it and the others are solved again, a
few times. One home for the torch kernels, the dense twin and sequences; the compiled twin is
`numba_minimise.bounded_step`. Half gradients and half Gauss-Newton matrices throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PASSES = 8


class Box(NamedTuple):
    """What unknowns (n, f) may do: limits and which of them move; broadcast over rows."""

    lower: Tensor  # (f,)
    upper: Tensor  # (f,)
    free: Tensor  # (f,) bool

    def clamp(self, values: Tensor) -> Tensor:
        """The nearest values inside the limits."""
        return torch.minimum(torch.maximum(values, self.lower), self.upper)


def damping_of(diagonal: Tensor, damping: Tensor) -> Tensor:
    """What is added to the diagonal (n, f) of a Gauss-Newton matrix; damping (n,)."""
    return damping[:, None] * (diagonal + 1e-9)


def box_step(
    at: Tensor,
    gradient: Tensor,
    box: Box,
    times: Callable[[Tensor], Tensor],
    solve: Callable[[Tensor, Tensor], Tensor],
    passes: int = PASSES,
) -> Tensor:
    """Step (n, f) from `at` (n, f), inside the box.

    times: the undamped matrix times values (n, f); solve(right, held): the damped system with the
    `held` unknowns (n, f) taken out. Rows that are done wait for the others, unchanged; on an
    accelerator all passes run, without waiting for the host.
    """
    outward = ((at <= box.lower) & (gradient > 0)) | ((at >= box.upper) & (gradient < 0))
    held = outward | ~box.free
    step, shifted = torch.zeros_like(at), gradient
    for _ in range(passes):
        step = torch.where(held, step, solve(-shifted, held))
        bounded = box.clamp(at + step) - at
        crossed = (at + step != at + bounded) & ~held
        placed = torch.where(crossed, bounded, 0.0)
        step = torch.where(crossed, bounded, step)
        held = held | crossed
        if at.device.type == "cpu" and not crossed.any():
            break
        shifted = shifted + times(placed)
    return torch.where(box.free, box.clamp(at + step) - at, 0.0)


def dense_step(at: Tensor, gradient: Tensor, hessian: Tensor, damping: Tensor, box: Box) -> Tensor:
    """`box_step` with a matrix (n, f, f) and a damping (n,) of each row. NaN where a matrix is not
    positive: no objective falls there."""
    extra = damping_of(hessian.diagonal(dim1=1, dim2=2), damping)
    damped = hessian + torch.diag_embed(extra)

    def solve(right: Tensor, held: Tensor) -> Tensor:
        keep = (~held).to(at.dtype)
        matrix = damped * keep[:, :, None] * keep[:, None, :] + torch.diag_embed(1.0 - keep)
        factor, _ = torch.linalg.cholesky_ex(matrix)
        return torch.cholesky_solve((right * keep)[..., None], factor)[..., 0]

    def times(values: Tensor) -> Tensor:
        return (hessian @ values[..., None])[..., 0]

    return box_step(at, gradient, box, times, solve)
