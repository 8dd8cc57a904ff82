"""Rows under way: what they are fitted to, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from skel_fit.anatomy import REGIONS
from skel_fit.kinematics import Identity
from skel_fit.solver.tables import PARAMETERS


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
            poses=nan[:, None].repeat(1, PARAMETERS),
            energy=torch.full_like(nan, torch.inf),
            error_mean=nan.clone(),
            error_max=nan.clone(),
            region_errors=nan.repeat(len(REGIONS), 1),
            iterations=count,
            settled=count.bool(),
            start=count.clone(),
        )

    def put(self, rows: Tensor, found: Solution, take: Tensor) -> None:
        """Take over the found rows where `take` says so."""
        for name, mine, theirs in zip(self._fields, self, found, strict=True):
            if name == "region_errors":
                mine[:, rows[take]] = theirs[:, take]
            else:
                mine[rows[take]] = theirs[take]


def padded(index: Tensor, width: int) -> Tensor:
    """The index, filled up to `width` by repeating its first entry."""
    return torch.cat([index, index[:1].expand(width - index.numel())])
