"""Bare meshes as goals: where each bone's own vertices went (orthogonal Procrustes)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skel_fit.root import root_angles, root_rotation
from skel_fit.rotations import nearest_rotation
from skel_fit.skel import SKEL
from skel_fit.solver.blocks import Goal, GoalOf, padded
from skel_fit.solver.tables import LANES

_PELVIS = 0
_WIDE = 256  # meshes side by side on a GPU; 24 sums of 9 products each


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

    def roots(
        self, skel: SKEL, poses: Tensor, betas: Tensor, found: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Root angles (n,3) and trans (n,3) of SKEL from poses (n,49) in the root frame.

        betas: (n,10) that the meshes were placed with; found: (n,10) of the fit, whose pelvis may
        be elsewhere.
        """
        away = rest_pelvis(skel, found) - rest_pelvis(skel, betas)
        shift = away + poses[:, 46:49]
        trans = self.trans + (self.orient @ shift[:, :, None])[:, :, 0] - away
        turned = self.orient @ root_rotation(skel, poses[:, :3])
        return root_angles(skel, turned), trans


def rooted_surfaces(skel: SKEL, targets: Tensor, betas: Tensor) -> PlacedSurfaces:
    """Meshes (n, V, 3) m, float64, that are in the root frame already: orient is no turn.

    betas: (n, 10). In blocks of one width, as `place_surfaces`.
    """
    rotations = place_surfaces(skel, targets, betas)
    own = rotations.orient[:, None] @ rotations.rotations
    n = targets.shape[0]
    still = torch.eye(3, dtype=targets.dtype, device=targets.device).expand(n, 3, 3)
    return PlacedSurfaces(targets, own, still, targets.new_zeros(n, 3))


def rest_pelvis(skel: SKEL, betas: Tensor) -> Tensor:
    """(n, 3) rest pelvis joint of betas (n, 10), float64; a sum a row."""
    row = skel.joint_regressor[_PELVIS].double()
    directions = torch.einsum("v,vck->ck", row, skel.shapedirs.double())
    return row @ skel.template.double() + (betas[:, None, :] * directions).sum(dim=2)


def place_surfaces(skel: SKEL, vertices: Tensor, betas: Tensor) -> PlacedSurfaces:
    """Root frame and bone rotations of meshes: vertices (n, V, 3) m, betas (n, 10), float64.

    In blocks of one width: no row depends on how many there are.
    """
    width = LANES if vertices.device.type == "cpu" else _WIDE
    parts = []
    for part in torch.arange(vertices.shape[0], device=vertices.device).split(width):
        index, real = padded(part, width), part.numel()
        parts.append([made[:real] for made in _place_block(skel, vertices[index], betas[index])])
    if not parts:
        empty = vertices.new_zeros(0, 3, 3)
        return PlacedSurfaces(vertices, vertices.new_zeros(0, 24, 3, 3), empty, empty[:, 0])
    return PlacedSurfaces(*(torch.cat(same) for same in zip(*parts, strict=True)))


def _place_block(skel: SKEL, meshes: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
    """Targets, rotations, orient and trans of `PlacedSurfaces`."""
    count, size = skel.shapedirs.shape[0], betas.shape[1]
    directions = skel.shapedirs.double().reshape(3 * count, size)
    shaped = (directions @ betas.T).view(count, 3, -1).permute(2, 0, 1)
    rest = skel.template.double() + shaped
    pelvis = skel.joint_regressor.double()[_PELVIS] @ rest
    bones, centres, rest_centres = _bone_rotations(skel.skin_weights.double(), rest, meshes)
    orient = bones[:, _PELVIS]
    # the pelvis bone's own vertices go where they are seen
    arm = (orient @ (rest_centres[:, _PELVIS] - pelvis)[..., None])[..., 0]
    shift = centres[:, _PELVIS] - arm - pelvis
    targets = (meshes - (pelvis + shift)[:, None]) @ orient + pelvis[:, None]
    return targets, orient.transpose(1, 2)[:, None] @ bones, orient, shift


def _bone_rotations(weights: Tensor, rest: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best rotation (n,24,3,3) and centres (n,24,3) of each bone's vertices, weighted by w^2."""
    share = weights.square()
    share = share / share.sum(dim=0).clamp(min=1e-12)
    # about the middle of the mesh: products of small numbers keep their digits
    rest_middle, middle = rest.mean(dim=1, keepdim=True), mesh.mean(dim=1, keepdim=True)
    still, moved = rest - rest_middle, mesh - middle
    rest_centres, centres = share.T @ still, share.T @ moved
    products = share.T @ (moved[..., :, None] * still[..., None, :]).flatten(2)
    spread = products.unflatten(2, (3, 3)) - centres[..., :, None] * rest_centres[..., None, :]
    return nearest_rotation(spread)[0], centres + middle, rest_centres + rest_middle
