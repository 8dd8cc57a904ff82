"""Rows under way: what they are fitted to, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from skel_fit.anatomy import NUM_PARAMETERS, REGIONS
from skel_fit.kinematics import Identity
from skel_fit.solver.tables import SearchState


class Goal(NamedTuple):
    """What rows are fitted to, in the root frame."""

    targets: Tensor  # (V,3,n) surface, m, of the fit's dtype
    rotations: Tensor  # (n,24,3,3) world rotation that each SKEL bone should start from, float64


GoalOf = Callable[[Tensor], Goal]
"""The goal of the listed rows."""


class Block(NamedTuple):
    """Rows under way with what does not change while they are fitted."""

    rows: Tensor  # (n,) row numbers
    shape: Identity[Tensor]
    targets: Tensor  # (V,3,n) SMPL surface in the root frame, m
    joint_targets: Tensor  # (n,24,3) anatomical joints regressed from it
    rotations: Tensor  # (n,24,3,3) wanted world rotations

    def select(self, index: Tensor) -> Block:
        """Some rows of the block."""
        return Block(
            self.rows[index],
            self.shape.rows(index),
            self.targets[:, :, index].contiguous(),
            self.joint_targets[index],
            self.rotations[index],
        )

    @staticmethod
    def join(blocks: list[Block]) -> Block:
        """One block after the other."""
        return Block(
            torch.cat([b.rows for b in blocks]),
            Identity(*(torch.cat(parts) for parts in zip(*(b.shape for b in blocks), strict=True))),
            torch.cat([b.targets for b in blocks], dim=2),
            torch.cat([b.joint_targets for b in blocks]),
            torch.cat([b.rotations for b in blocks]),
        )


class Posed(NamedTuple):
    """Rows in a pose, as kernels see vertices from there."""

    transforms: Tensor  # (24,12,n) of the bones
    features: Tensor  # (1+K+207,n) [1, betas, R - I]
    points: Tensor | None = None  # (V,3,n) corrected rest vertices, of kernels that keep them


class Solution(NamedTuple):
    """Fits of n rows in the root frame, float64, metres and radians."""

    poses: Tensor  # (n,49)
    energy: Tensor  # (n,) objective of the last stage
    error_mean: Tensor  # (n,)
    error_max: Tensor  # (n,)
    region_errors: Tensor  # (regions, n)
    iterations: Tensor  # (n,) Levenberg-Marquardt steps
    settled: Tensor  # (n,) bool
    start: Tensor  # (n,) index into STARTS

    @staticmethod
    def empty(n: int, device: torch.device) -> Solution:
        """Nothing known yet: NaN."""
        nan = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
        count = torch.zeros(n, dtype=torch.int64, device=device)
        return Solution(
            poses=nan[:, None].repeat(1, NUM_PARAMETERS),
            energy=torch.full_like(nan, torch.inf),
            error_mean=nan.clone(),
            error_max=nan.clone(),
            region_errors=nan.repeat(len(REGIONS), 1),
            iterations=count,
            settled=count.bool(),
            start=count.clone(),
        )

    def rows(self, index: Tensor | slice) -> Solution:
        """Some rows."""
        return Solution(
            *(
                part[..., index] if k == _REGION_ERRORS else part[index]
                for k, part in enumerate(self)
            )
        )

    def where(self, rows: Tensor, found: Solution) -> Solution:
        """Theirs for the rows (n,) bool, mine for the others; nothing waits for the device."""
        return Solution(
            *(
                torch.where(rows if k == _REGION_ERRORS else _spread(rows, mine), theirs, mine)
                for k, (mine, theirs) in enumerate(zip(self, found, strict=True))
            )
        )

    def improve(self, rows: Tensor, found: Solution) -> None:
        """Take over the found rows, numbered `rows` and each there once, where they lower the
        objective; nothing waits for the device."""
        self.take(rows, found, found.energy < self.energy[rows])

    def take(self, rows: Tensor, found: Solution, where: Tensor) -> None:
        """Take over those of the found rows, numbered `rows` and each there once, that `where`
        (r,) says."""
        for k, (kept, taken) in enumerate(
            zip(self, self.rows(rows).where(where, found), strict=True)
        ):
            if k == _REGION_ERRORS:
                kept[:, rows] = taken
            else:
                kept[rows] = taken


_REGION_ERRORS = Solution._fields.index("region_errors")


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    """A mask of rows (n,) in the dimensions of `like` (n, ...)."""
    return rows.view(-1, *[1] * (like.ndim - 1))


class Ended(NamedTuple):
    """Where a block's rows stand after some rounds."""

    found: Solution  # of the rows that are done; energy inf elsewhere
    active: Tensor  # (n,) bool: rows that are not
    state: SearchState[Tensor]


class Outcome(NamedTuple):
    """What is kept of a block: its targets are large, and most of its rows are done."""

    rows: Tensor  # (n,) row numbers, without those that fill a block up
    found: Solution  # of these rows; energy inf where a row is not done
    left: tuple[Block, SearchState[Tensor]] | None  # the rows that are not

    @staticmethod
    def of(block: Block, real: int, ended: Ended) -> Outcome:
        """Of the `real` first rows. Here the host waits for the device: once a block."""
        left = torch.nonzero(ended.active)[:, 0]
        return Outcome(
            block.rows[:real],
            ended.found.rows(slice(real)),
            (block.select(left), ended.state.rows(left)) if left.numel() else None,
        )


def padded(index: Tensor, width: int) -> Tensor:
    """The index, filled up to `width` by repeating its first entry."""
    return torch.cat([index, index[:1].expand(width - index.numel())])
