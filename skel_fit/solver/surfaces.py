"""Bare meshes as goals: where each bone's own vertices went (orthogonal Procrustes)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skel_fit.rotations import nearest_rotation
from skel_fit.skel import SKEL
from skel_fit.solver.blocks import Goal, GoalOf

_PELVIS = 0


@dataclass(frozen=True)
class PlacedSurfaces:
    """n meshes taken to the root frame, float64: v = orient (v_root - J) + J + trans."""

    targets: Tensor  # (n, V, 3) m, root frame
    rotations: Tensor  # (n, 24, 3, 3) world rotation of each bone, root frame
    orient: Tensor  # (n, 3, 3)
    trans: Tensor  # (n, 3) m

    def goal(self, dtype: torch.dtype) -> GoalOf:
        """The goal of each row."""

        def goal(rows: Tensor) -> Goal:
            targets = self.targets[rows].permute(1, 2, 0).to(dtype).contiguous()
            return Goal(targets, self.rotations[rows])

        return goal


def place_surfaces(skel: SKEL, vertices: Tensor, betas: Tensor) -> PlacedSurfaces:
    """Root frame and bone rotations of meshes: vertices (n, V, 3) m, betas (n, 10), float64.

    One mesh at a time: no row depends on another.
    """
    template, directions = skel.template.double(), skel.shapedirs.double()
    weights, regressor = skel.skin_weights.double(), skel.joint_regressor.double()
    targets, rotations, orients, shifts = [], [], [], []
    for mesh, shape in zip(vertices, betas, strict=True):
        rest = template + directions @ shape
        pelvis = regressor[0] @ rest
        bones, centres, rest_centres = _bone_rotations(weights, rest, mesh)
        orient = bones[_PELVIS]
        # the pelvis bone's own vertices go where they are seen
        shift = centres[_PELVIS] - orient @ (rest_centres[_PELVIS] - pelvis) - pelvis
        targets.append((mesh - pelvis - shift) @ orient + pelvis)
        rotations.append(orient.T @ bones)
        orients.append(orient)
        shifts.append(shift)
    if not targets:
        empty = vertices.new_zeros(0, 3, 3)
        return PlacedSurfaces(vertices, vertices.new_zeros(0, 24, 3, 3), empty, empty[:, 0])
    return PlacedSurfaces(
        torch.stack(targets), torch.stack(rotations), torch.stack(orients), torch.stack(shifts)
    )


def _bone_rotations(weights: Tensor, rest: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best rotation (24,3,3) and centres (24,3) of each bone's vertices, weighted by w^2."""
    share = weights.square()
    share = share / share.sum(dim=0).clamp(min=1e-12)
    rest_centres, centres = share.T @ rest, share.T @ mesh
    moved = mesh - centres[:, None]  # (24, V, 3)
    still = (rest - rest_centres[:, None]) * share.T[:, :, None]
    return nearest_rotation(moved.transpose(1, 2) @ still)[0], centres, rest_centres
