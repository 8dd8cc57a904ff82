"""The numba kernels behind the interface of `kernels_torch.TorchKernels`: CPU tensors in and out.

Rows are independent by construction: a row is scalar code of its own, or one lane of a loop whose
length is fixed, so the order of its operations never depends on its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import NUM_PARAMETERS, REGIONS
from skel_fit.kinematics import Identity
from skel_fit.numba_kinematics import identity, pose_bones, pose_smpl
from skel_fit.skeleton import Skeleton
from skel_fit.solver.blocks import Posed
from skel_fit.solver.curvature import Pairs, Twists
from skel_fit.solver.numba_minimise import extra_energy, minimise
from skel_fit.solver.numba_smoothing import couple, eliminate, substitute, twist_products
from skel_fit.solver.numba_start import start_poses
from skel_fit.solver.numba_surfaces import place_rows, root_frame
from skel_fit.solver.numba_vertices import evidence, judge
from skel_fit.solver.numba_vertices import skin as skin_of_rows
from skel_fit.solver.pattern import Pattern, pattern_of
from skel_fit.solver.tables import (
    Chain,
    SearchState,
    Skin,
    SmplTree,
    StageTables,
    VertexSet,
)

if TYPE_CHECKING:
    from skel_fit.solver.surfaces import Meshes, RestTables


class NumbaKernels:
    """The kernels behind the interface of `kernels_torch.TorchKernels` (CPU tensors)."""

    host_decides = True  # whether the engine may look at results to stop early
    records = False

    def __init__(
        self,
        skeleton: Skeleton[np.ndarray],
        smpl_tree: SmplTree[np.ndarray] | None,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.skeleton, self.smpl_tree, self.dtype = skeleton, smpl_tree, dtype
        self._patterns: dict[int, tuple[StageTables[np.ndarray], Pattern]] = {}

    def _pattern(self, stage: StageTables[np.ndarray]) -> Pattern:
        """Of a stage; made once."""
        found = self._patterns.get(id(stage))
        if found is None:
            found = stage, pattern_of(self.skeleton, stage)
            self._patterns[id(stage)] = found
        return found[1]

    def pose_smpl(self, poses: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        """poses (n,72), betas (n,K), float64 -> rest joints (n,24,3), global rotations
        (n,24,3,3), transforms (24,12,n), features (1+K+207,n), global orientation left out."""
        n = poses.shape[0]
        joints, rotations = poses.new_empty(n, 24, 3), poses.new_empty(n, 24, 3, 3)
        transforms = torch.empty(24, 12, n, dtype=self.dtype)
        features = torch.empty(1 + betas.shape[1] + 207, n, dtype=self.dtype)
        pose_smpl(self.smpl_tree, *_arrays(poses, betas, joints, rotations, transforms, features))
        return joints, rotations, transforms, features

    def identity(self, betas: Tensor) -> Identity[Tensor]:
        """betas (n,K) -> rest joints, joint frames and lengths."""
        n = betas.shape[0]
        made = Identity(
            betas, betas.new_empty(n, 24, 3), betas.new_empty(n, 24, 3, 3), betas.new_empty(n, 5)
        )
        identity(self.skeleton, *_arrays(*made))
        return made

    def start(
        self,
        rotations: Tensor,
        shape: Identity[Tensor],
        lower: Tensor,
        upper: Tensor,
        branch: Tensor,
    ) -> Tensor:
        """Closed-form start (n,49) from SMPL global rotations (n,24,3,3)."""
        poses = rotations.new_zeros(rotations.shape[0], NUM_PARAMETERS)
        start_poses(self.skeleton, *_arrays(rotations, shape.frames, lower, upper, branch, poses))
        return poses

    def place_rows(
        self, rest: RestTables, meshes: Meshes, rows: Tensor, betas: Tensor, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bone rotations (k,24,3,3) of these rows' own vertices, rest -> mesh, and the middle of
        the pelvis' in the mesh and at rest (k,3), as the torch twin."""
        del width  # rows are on their own
        k = rows.numel()
        made = betas.new_empty(k, 24, 3, 3), betas.new_empty(k, 3), betas.new_empty(k, 3)
        given = _arrays(rows, betas.contiguous())
        tables = (rest.template, rest.directions, rest.first, rest.vertices, rest.weights)
        place_rows(*_mapping(meshes), *given, *tables, *_arrays(*made))
        return made

    def root_frame(
        self, meshes: Meshes, rows: Tensor, orient: Tensor, seen: Tensor, home: Tensor
    ) -> Tensor:
        """Meshes of these rows (k,) in the root frame, (V,3,k), as the torch twin."""
        targets = torch.empty(len(meshes.columns), 3, rows.numel(), dtype=self.dtype)
        parts = (part.contiguous() for part in (rows, orient, seen, home))
        root_frame(*_mapping(meshes), *_arrays(*parts, targets))
        return targets

    def pose_bones(self, poses: Tensor, shape: Identity[Tensor]) -> tuple[Tensor, Tensor]:
        """Skinning transforms (24,12,n) and features (1+K+207,n) of poses (n,49)."""
        n = poses.shape[0]
        transforms = torch.empty(24, 12, n, dtype=self.dtype)
        features = torch.empty(1 + shape.betas.shape[1] + 207, n, dtype=self.dtype)
        pose_bones(self.skeleton, *_arrays(poses, *shape, transforms, features))
        return transforms, features

    def evaluate(self, skin: Skin, poses: Tensor, shape: Identity[Tensor]) -> Posed:
        """Poses (n,49) as the passes below want them."""
        del skin  # they make its points as they go
        return Posed(*self.pose_bones(poses, shape))

    def skinned(self, skin: Skin, posed: Posed) -> Tensor:
        """Skin (V,3,n)."""
        n = posed.transforms.shape[2]
        out = torch.empty(skin.basis.shape[0] // 3, 3, n, dtype=self.dtype)
        tables = (*skin.skinning, skin.packed, skin.lines)
        skin_of_rows(*tables, *_arrays(posed.transforms, posed.features, out))
        return out

    def evidence(
        self, vertices: VertexSet, posed: Posed, targets: Tensor, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """energy (n,), moments (24,12,n), corrective (207,n) of the active rows, or of all; 0 by
        features that are 0 in all poses."""
        n = posed.transforms.shape[2]
        energy = torch.empty(n, dtype=torch.float64)
        moments = torch.empty(24, 12, n, dtype=self.dtype)
        corrective = torch.empty(207, n, dtype=self.dtype)
        shape_size = posed.features.shape[0] - 208
        evidence(
            *vertices.skinning, vertices.masses, vertices.packed, vertices.lines, shape_size,
            *_arrays(posed.transforms, posed.features, targets), _listed(active, n),
            *_arrays(energy, moments, corrective),
        )  # fmt: skip
        return energy, moments, corrective

    def judged(
        self,
        vertices: VertexSet,
        region: np.ndarray,
        posed: Posed,
        targets: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the active rows, or of all: energy (n,), the sum of squared distances times masses;
        sums of distances (regions,n); largest distance (n,)."""
        n = posed.transforms.shape[2]
        energy, largest = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        totals = torch.zeros(len(REGIONS), n, dtype=torch.float64)
        judge(
            *vertices.skinning, vertices.masses, region, vertices.packed, vertices.lines,
            *_arrays(posed.transforms, posed.features, targets), _listed(active, n),
            *_arrays(energy, totals, largest),
        )  # fmt: skip
        return energy, totals, largest

    def couple(
        self, skin: Tensor, targets: Tensor, turns: Tensor, masses: np.ndarray, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """wanted (V,3,n), own (k,), between (k-1,) of neighbouring frames, as the torch twin."""
        k = turns.shape[0]
        wanted = torch.empty_like(skin)
        own = torch.zeros(k, dtype=torch.float64)
        between = torch.zeros(max(k - 1, 0), dtype=torch.float64)
        turned = turns.permute(1, 2, 0).to(skin.dtype).contiguous()
        strengths = weights.to(skin.dtype)
        arrays = _arrays(skin, targets, turned)
        couple(*arrays, masses, *_arrays(strengths, wanted, own, between))
        return wanted, own, between

    def curvature(
        self, first: Twists, second: Twists, blocks: Tensor, pairs: Pairs, owner: Tensor
    ) -> Tensor:
        """J_first^T J_second (n,p,p), as `curvature.curvature`."""
        n, parameters = first.axes.shape[:2]
        out = torch.empty(n, parameters, parameters, dtype=torch.float64)
        sides = (_arrays(*(part.contiguous() for part in side)) for side in (first, second))
        shared = _arrays(owner.contiguous(), pairs.first, pairs.second, blocks.contiguous())
        twist_products(self.skeleton.parents, *shared, *sides, out.numpy())
        return out

    @staticmethod
    def eliminate(blocks: np.ndarray, beside: np.ndarray, right: np.ndarray) -> Chain | None:
        """As the torch twin."""
        out = Chain(np.empty_like(blocks), np.empty_like(beside), right.copy())
        return out if eliminate(blocks, beside, *out) else None

    @staticmethod
    def substitute(chain: Chain, following: np.ndarray) -> np.ndarray:
        """As the torch twin."""
        out = chain.values.copy()
        substitute(chain.factors, chain.sides, following, out)
        return out

    def extra_energy(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        joint_targets: Tensor,
        poses: Tensor,
    ) -> Tensor:
        """Joint and prior terms (n,) of the objective."""
        out = poses.new_empty(poses.shape[0])
        extra_energy(self.skeleton, stage, *_arrays(*shape[1:], joint_targets, poses, out))
        return out

    def minimise(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor, Tensor],
        active: Tensor,
        max_steps: int,
        tolerance: float,
        state: SearchState[Tensor],
    ) -> None:
        """One round (in place on `state`) for the active rows; `evaluated` is (energy, moments,
        corrective (207,n)) at state.poses."""
        energy, moments, corrective = evaluated
        minimise(
            self.skeleton,
            stage,
            self._pattern(stage),
            *_arrays(*shape[1:], pair_moments, joint_targets, state.poses),
            *_arrays(energy, moments, corrective, active),
            max_steps,
            tolerance,
            *_arrays(*state[1:]),
        )

    def unsettled(self, state: SearchState[Tensor], active: Tensor, tolerance: float) -> Tensor:
        """(n,) bool: active rows that a coarse stage goes on with."""
        return state.unsettled(active, tolerance)


def _mapping(meshes: Meshes) -> tuple[np.ndarray, ...]:
    """Source, columns and shares. An array of the kernel's kinds costs nothing here."""
    return meshes.source.numpy(), meshes.columns, meshes.shares


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.numpy() for tensor in tensors)


def _listed(active: Tensor | None, n: int) -> np.ndarray:
    """The active rows, or all n."""
    return np.arange(n) if active is None else np.flatnonzero(active.numpy())
