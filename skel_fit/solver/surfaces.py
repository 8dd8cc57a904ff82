"""Bare meshes as goals: where each bone's own vertices went (orthogonal Procrustes)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.crew import each
from skel_fit.root import root_angles, root_rotation
from skel_fit.skel import SKEL
from skel_fit.skeleton import numpy_of
from skel_fit.solver.blocks import Goal, GoalOf

if TYPE_CHECKING:
    from skel_fit.solver.engine import Solver

_PELVIS = 0
_WIDE = 256  # meshes side by side on a GPU
_NARROW = 16  # and those that a thread takes at a time


class Meshes(NamedTuple):
    """Meshes of n rows, m, in their own topology and float type, and SKEL's vertices on them: each
    the mean of three source vertices, weighted by its shares."""

    source: Tensor  # (n, V_source, 3) contiguous float32 or float64
    columns: np.ndarray  # (V, 3) int32
    shares: np.ndarray  # (V, 3) float32

    @staticmethod
    def same(vertices: Tensor) -> Meshes:
        """Meshes (n, V, 3) of SKEL's own topology."""
        count = vertices.shape[1]
        own = np.repeat(np.arange(count, dtype=np.int32)[:, None], 3, axis=1)
        return Meshes(vertices, own, np.tile(np.array((1.0, 0.0, 0.0), np.float32), (count, 1)))


class RestTables(NamedTuple):
    """What placing meshes needs of a SKEL model, float64."""

    template: np.ndarray  # (3V,) m
    directions: np.ndarray  # (K, 3V) m
    share: np.ndarray  # (V, 24) how much a vertex counts for a bone; each bone's sum 1
    first: np.ndarray  # (25,) the same by bone: vertices[first[j]:first[j+1]] and weights
    vertices: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(skel: SKEL) -> RestTables:
        """Tables of a loaded model. A vertex counts by the square of its skinning weight."""
        share = np.square(numpy_of(skel.skin_weights))
        share /= np.maximum(share.sum(axis=0), 1e-12)
        shapes = numpy_of(skel.shapedirs).reshape(-1, skel.shapedirs.shape[2])
        bones, vertices = np.nonzero(share.T)
        return RestTables(
            numpy_of(skel.template).reshape(-1),
            np.ascontiguousarray(shapes.T),
            share,
            np.concatenate(([0], np.cumsum(np.bincount(bones, minlength=share.shape[1])))),
            vertices,
            share[vertices, bones],
        )


@dataclass(frozen=True)
class PlacedSurfaces:
    """n meshes and their root frames, float64: v = orient (v_root - home) + seen."""

    meshes: Meshes
    rotations: Tensor  # (n, 24, 3, 3) world rotation of each bone, root frame
    orient: Tensor  # (n, 3, 3)
    seen: Tensor  # (n, 3) m, where `home` (n, 3), a point of the root frame, lies in the mesh
    home: Tensor
    finite: Tensor  # (n,) bool: rows without NaN or infinity; others mean nothing

    def goal(self, solver: Solver) -> GoalOf:
        """The goal of each row."""

        def goal(rows: Tensor) -> Goal:
            targets = solver.kernels.root_frame(
                self.meshes, rows, self.orient, self.seen, self.home
            )
            return Goal(targets, self.rotations[rows])

        return goal

    def in_frame(self, orient: Tensor, seen: Tensor, home: Tensor) -> PlacedSurfaces:
        """The same meshes in root frames that are known: (n, 3, 3), (n, 3), (n, 3), float64."""
        turn = orient.transpose(1, 2) @ self.orient
        known = [torch.isfinite(part).flatten(1).all(dim=1) for part in (orient, seen, home)]
        return replace(
            self,
            rotations=turn[:, None] @ self.rotations,
            orient=orient,
            seen=seen,
            home=home,
            finite=self.finite & known[0] & known[1] & known[2],
        )

    def roots(
        self, skel: SKEL, rows: Tensor, poses: Tensor, betas: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Root angles (k,3) and trans (k,3) of SKEL from poses (k,49) and betas (k,10) of the fit
        of these rows."""
        pelvis, orient = rest_pelvis(skel, betas), self.orient[rows]
        arm = pelvis + poses[:, 46:49] - self.home[rows]
        trans = self.seen[rows] + (orient @ arm[:, :, None])[:, :, 0] - pelvis
        turned = orient @ root_rotation(skel, poses[:, :3])
        return root_angles(skel, turned), trans


def rest_pelvis(skel: SKEL, betas: Tensor) -> Tensor:
    """(n, 3) rest pelvis joint of betas (n, 10), float64; a sum a row."""
    row = skel.joint_regressor[_PELVIS].double()
    directions = torch.einsum("v,vck->ck", row, skel.shapedirs.double())
    return row @ skel.template.double() + (betas[:, None, :] * directions).sum(dim=2)


def place_surfaces(skel: SKEL, solver: Solver, meshes: Meshes, betas: Tensor) -> PlacedSurfaces:
    """Root frame and bone rotations of meshes; betas (n, 10), float64. A row's result depends on
    no other row. The root frame is that of the pelvis bone's own vertices."""
    rest, device = RestTables.of(skel), meshes.source.device
    width = _NARROW if device.type == "cpu" else _WIDE
    everything = torch.arange(meshes.source.shape[0], device=device)

    def place(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return solver.kernels.place_rows(rest, meshes, part, betas[part], width)

    parts = list(each(place, everything.split(width), device)) if everything.numel() else []
    empty = betas.new_zeros(0, 3)
    found = (
        tuple(torch.cat(same) for same in zip(*parts, strict=True))
        if parts
        else (betas.new_zeros(0, 24, 3, 3), empty, empty)
    )
    bones, seen, home = found
    finite = torch.isfinite(seen).all(dim=1) & torch.isfinite(bones).flatten(1).all(dim=1)
    orient = bones[:, _PELVIS]
    own = orient.transpose(1, 2)[:, None] @ bones
    return PlacedSurfaces(meshes, own, orient, seen, home, finite)
