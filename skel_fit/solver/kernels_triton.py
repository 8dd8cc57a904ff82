"""The Triton kernels behind the interface of `kernels_torch.TorchKernels`, one launch each.

Matrix products and what is small stay with torch. Nothing here waits for the device or asks it
anything: rows that are done are skipped where they run. With TRITON_INTERPRET=1 set before this
module is imported the same kernels run on CPU tensors, slowly: for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from skel_fit import kinematics
from skel_fit.anatomy import NUM_PARAMETERS, REGIONS
from skel_fit.kinematics import Identity
from skel_fit.skeleton import Skeleton
from skel_fit.solver import triton_kinematics, triton_minimise, triton_vertices
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.tables import (
    SearchState,
    SmplTree,
    SparseWeights,
    StageTables,
    VertexSet,
)

_LANES = 32  # joints of a row, padded
_STILL = 31  # the lane of the bone that never moves
_SLOTS = 64  # parameters of a row, padded
_ROWS = 16  # rows of a program that works on vertices
_TILE = 32  # vertices that it takes at a time
_SHARE = 864  # vertices of a program: a whole number of tiles
_WARPS_OF_ROW = 4  # of a program that minimises a row

OPTIONS = {"num_stages": 1}
"""How every kernel is compiled: loads ahead of their use would cost registers and shared memory."""

Launch = Callable[..., None]
"""launch(kernel, grid, *arguments, **options)."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start one kernel."""
    kernel[grid](*arguments, **OPTIONS, **options)


class TritonKernels(TorchKernels):
    """Kernels of one SKEL model (and one SMPL model, if given) for a GPU."""

    records = True

    def __init__(
        self,
        skeleton: Skeleton[np.ndarray],
        smpl_tree: SmplTree[np.ndarray] | None,
        dtype: torch.dtype,
        device: torch.device | str = "cuda",
        launch: Launch = launch,
    ) -> None:
        super().__init__(skeleton, smpl_tree, dtype, device)
        self.host_decides = False
        self.launch = launch
        self._element = {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
        owners = np.asarray(skeleton.joint_of_parameter)
        slots = np.full((3, _LANES), _SLOTS - 1)
        axes = np.zeros((3, 3, _LANES))
        axes[:, 0] = 1.0
        for j in range(24):
            for slot, d in enumerate(range(self.first[j], self.first[j + 1])):
                slots[slot, j], axes[slot, :, j] = d, skeleton.axes[d]
        self._slots, self._lane_axes = self._ints(slots), self._tensor(axes)
        self._owners = self._ints(_padded(owners, _SLOTS, _STILL))
        self._ends = self._ints(_padded(_subtree_ends(self.parents), _LANES, _LANES - 1))
        self._feature_of_joint = self._ints(_padded(skeleton.feature_of_joint, _LANES, -1))
        self._feature_source = self._ints(_padded(skeleton.feature_source, _LANES, 0))
        self._aligned = self._ints(_padded(skeleton.aligned.astype(np.int32), _LANES, 0))
        bone_sum = np.zeros((_LANES, _LANES))
        bone_sum[:24, :24] = kinematics.BONE_SUM
        self._bone_sum = self._tensor(bone_sum)
        self._euler = self._ints(skeleton.euler)
        self._euler_sign = self._tensor(skeleton.euler_sign)
        self._ancestors = self._ints(_ancestors(self.parents))
        self._jumps = len(self._ancestors)
        if smpl_tree is not None:
            self._smpl_ancestors = self._ints(_ancestors(self.smpl_parents))

    def _ints(self, array: np.ndarray) -> Tensor:
        return self._tensor(np.ascontiguousarray(array, dtype=np.int32))

    def _bones(self, shape: Identity[Tensor]) -> tuple[Tensor, ...]:
        """The arguments of `triton_kinematics.bones` behind the parameters."""
        parts = (part.contiguous() for part in (shape.joints, shape.frames, shape.lengths))
        return (*parts, self._lane_axes, self._slots, self._ancestors)

    # --- identity and kinematics -----------------------------------------------------------

    def identity(self, betas: Tensor) -> Identity[Tensor]:
        """betas (n,K) -> rest joints, joint frames and lengths."""
        n, size = betas.shape
        joints, frames = betas.new_empty(n, 24, 3), betas.new_empty(n, 24, 3, 3)
        lengths = betas.new_empty(n, 5)
        s = self.skeleton
        self.launch(
            triton_kinematics.identity,
            (n,),
            betas.contiguous(),
            s.joint_template,
            s.joint_directions,
            self._ancestors,
            self._aligned,
            self._bone_sum,
            s.bone_source,
            s.rest_frames,
            joints,
            frames,
            lengths,
            size,
            num_warps=1,
        )
        return Identity(betas, joints, frames, lengths)

    def pose_bones(self, poses: Tensor, shape: Identity[Tensor]) -> tuple[Tensor, Tensor]:
        """Skinning transforms (24,12,n) and features (1+K+207,n) of poses (n,49)."""
        n, size = shape.betas.shape
        transforms, features = self._room(n, size)
        self.launch(
            triton_kinematics.pose_bones,
            (n,),
            poses.contiguous(),
            shape.betas.contiguous(),
            *self._bones(shape),
            self._feature_of_joint,
            self._feature_source,
            transforms,
            features,
            n,
            size,
            JUMPS=self._jumps,
            num_warps=1,
        )
        return transforms, features.T

    def _room(self, n: int, size: int) -> tuple[Tensor, Tensor]:
        """Transforms (24,12,n) and features (n,1+K+207), to be filled."""
        transforms = torch.empty(24, 12, n, dtype=self.dtype, device=self.device)
        return transforms, torch.empty(n, 1 + size + 207, dtype=self.dtype, device=self.device)

    def pose_smpl(self, poses: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        """poses (n,72), betas (n,K) -> rest joints (n,24,3), global rotations (n,24,3,3),
        transforms (24,12,n), features (1+K+207,n), global orientation left out."""
        tree = self.smpl_tree
        assert tree is not None, "made without an SMPL model"
        n, size = betas.shape
        joints, rotations = poses.new_empty(n, 24, 3), poses.new_empty(n, 24, 3, 3)
        transforms, features = self._room(n, size)
        self.launch(
            triton_kinematics.pose_smpl,
            (n,),
            poses.contiguous(),
            betas.contiguous(),
            tree.joint_template,
            tree.joint_directions.contiguous(),
            self._smpl_ancestors,
            joints,
            rotations,
            transforms,
            features,
            n,
            size,
            JUMPS=len(self._smpl_ancestors),
            num_warps=1,
        )
        return joints, rotations, transforms, features.T

    def start(
        self,
        rotations: Tensor,
        shape: Identity[Tensor],
        lower: Tensor,
        upper: Tensor,
        branch: Tensor,
    ) -> Tensor:
        """Closed-form start (n,49) from the wanted world rotation (n,24,3,3) of each bone."""
        n = rotations.shape[0]
        poses = rotations.new_empty(n, NUM_PARAMETERS)
        wide = [_wide(lower, -torch.inf), _wide(upper, torch.inf)]
        self.launch(
            triton_kinematics.start_poses,
            (-(-n // _ROWS),),
            rotations.contiguous(),
            shape.frames.contiguous(),
            *wide,
            branch.to(torch.int32),
            self._lane_axes,
            self._slots,
            self._ancestors,
            self._euler,
            self._euler_sign,
            poses,
            rotations.new_empty(25, 9, n),
            n,
            ROWS=_ROWS,
            num_warps=1,
        )
        return poses

    # --- vertex passes ---------------------------------------------------------------------

    def _weights(self, skinning: SparseWeights[np.ndarray]) -> Tensor:
        """(V,32) weights, zero behind the bones."""

        def made() -> np.ndarray:
            dense = self._dense_array(skinning)
            return np.pad(dense, ((0, 0), (0, _LANES - dense.shape[1])))

        return self._kept(skinning.weights, made, "wide")

    def skin(
        self, skinning: SparseWeights[np.ndarray], transforms: Tensor, points: Tensor
    ) -> Tensor:
        """Skinned points (V,3,n)."""
        count, _, n = points.shape
        out = torch.empty_like(points)
        self.launch(
            triton_vertices.skin,
            (-(-n // _ROWS), -(-count // _TILE), 3),
            self._weights(skinning),
            transforms,
            points,
            out,
            n,
            count,
            TILE=_TILE,
            ROWS=_ROWS,
            num_warps=4,
        )
        return out

    def residual_moments(
        self,
        vertices: VertexSet,
        transforms: Tensor,
        points: Tensor,
        targets: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """energy (n,), moments (24,12,n), pull (V,3,n); anything for rows that are not active."""
        count, _, n = points.shape
        shares = -(-count // _SHARE)
        energy = points.new_empty(shares, n)
        moments, pull = points.new_empty(shares, 24, 12, n), torch.empty_like(points)
        if active is None:
            active = torch.ones(n, dtype=torch.bool, device=self.device)
        self.launch(
            triton_vertices.residual_moments,
            (-(-n // _ROWS), shares),
            self._weights(vertices.skinning),
            self._kept(vertices.masses),
            active,
            transforms,
            points,
            targets,
            energy,
            moments,
            pull,
            n,
            count,
            _SHARE,
            TILE=_TILE,
            ROWS=_ROWS,
            DTYPE=self._element,
            num_warps=4,
        )
        total = moments[0] if shares == 1 else moments.sum(dim=0)
        return energy.sum(dim=0, dtype=torch.float64), total, pull

    def judge(
        self,
        skinning: SparseWeights[np.ndarray],
        region: np.ndarray,
        transforms: Tensor,
        points: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of squared distances (n,), sums of distances (regions,n), largest distance (n,)."""
        count, _, n = points.shape
        shares, regions = -(-count // _SHARE), len(REGIONS)
        squares, largest = points.new_empty(shares, n), points.new_empty(shares, n)
        totals = points.new_empty(shares, 16, n)
        member = self._kept(
            region, lambda: np.eye(16, dtype=_numpy(self.dtype))[region], "wide member"
        )
        self.launch(
            triton_vertices.judge,
            (-(-n // _ROWS), shares),
            self._weights(skinning),
            member,
            transforms,
            points,
            targets,
            squares,
            totals,
            largest,
            n,
            count,
            _SHARE,
            TILE=_TILE,
            ROWS=_ROWS,
            DTYPE=self._element,
            num_warps=4,
        )
        return (
            squares.sum(dim=0, dtype=torch.float64),
            totals[:, :regions].sum(dim=0, dtype=torch.float64),
            largest.amax(dim=0).sqrt().to(torch.float64),
        )

    # --- inner solver ----------------------------------------------------------------------

    def extra_energy(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        joint_targets: Tensor,
        poses: Tensor,
    ) -> Tensor:
        """Joint and prior terms (n,) of the objective."""
        n = poses.shape[0]
        out = poses.new_empty(n)
        self.launch(
            triton_kinematics.extra_energy,
            (n,),
            poses.contiguous(),
            *self._bones(shape),
            *self._terms(stage),
            joint_targets.contiguous(),
            out,
            JUMPS=self._jumps,
            num_warps=1,
        )
        return out

    def _terms(self, stage: StageTables[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Padded priors and joint masses."""
        return (
            self._kept(stage.prior, lambda: _padded(stage.prior, _SLOTS, 0.0), "wide"),
            self._kept(
                stage.joint_masses, lambda: _padded(stage.joint_masses, _LANES, 0.0), "wide"
            ),
        )

    def _box(self, stage: StageTables[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Padded: which parameters are free, and their limits."""
        return (
            self._kept(stage.free, lambda: _padded(stage.free.astype(np.int8), _SLOTS, 0), "wide"),
            self._kept(stage.lower, lambda: _padded(stage.lower, _SLOTS, -np.inf), "wide"),
            self._kept(stage.upper, lambda: _padded(stage.upper, _SLOTS, np.inf), "wide"),
        )

    def _pairs(self, stage: StageTables[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbours (32,D) of each bone, -1 behind the last; the place of each such pair; the
        place (32,32) of every pair, -1: none."""
        table = np.full((_LANES, _LANES), -1, np.int32)
        numbers = np.arange(stage.pair_first.size)
        table[stage.pair_first, stage.pair_second] = numbers
        table[stage.pair_second, stage.pair_first] = numbers

        def neighbours() -> np.ndarray:
            degree = max(2, 1 << int((table >= 0).sum(axis=1).max() - 1).bit_length())
            out = np.full((_LANES, degree), -1, np.int32)
            for j in range(24):
                found = np.nonzero(table[j] >= 0)[0]
                out[j, : found.size] = found
            return out

        listed = self._kept(stage.pair_first, neighbours, "neighbours")

        def places() -> np.ndarray:
            others = neighbours()
            found: np.ndarray = np.take_along_axis(table, np.maximum(others, 0), axis=1)
            return np.where(others < 0, 0, found).astype(np.int32)

        return (
            listed,
            self._kept(stage.pair_first, places, "places"),
            self._kept(stage.pair_first, lambda: table, "pair table"),
        )

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
        n = state.poses.shape[0]
        bones, targets, terms = self._bones(shape), joint_targets.contiguous(), self._terms(stage)
        self.launch(
            triton_minimise.keep_best,
            (n,),
            state.poses,
            energy,
            moments,
            corrective.contiguous(),
            active,
            *bones,
            *terms,
            targets,
            state.best_poses,
            state.best_energy,
            state.best_moments,
            state.best_corrective,
            state.damping,
            state.failures,
            n,
            JUMPS=self._jumps,
            num_warps=1,
        )
        free = np.nonzero(stage.free)[0]
        neighbours, places, table = self._pairs(stage)
        self.launch(
            triton_minimise.minimise,
            (n,),
            active,
            *bones[:3],
            pair_moments.contiguous(),
            targets,
            *bones[3:],
            self._feature_of_joint,
            self._ends,
            self._owners,
            *self._box(stage),
            *terms,
            neighbours,
            places,
            table,
            state.poses,
            state.best_poses,
            state.best_moments,
            state.best_corrective,
            state.damping,
            state.step_size,
            state.steps,
            pair_moments.new_empty(n, triton_minimise.SCRATCH),
            pair_moments.shape[1],
            int(free[0]),
            int(free[-1]) + 1,
            max_steps,
            TOLERANCE=tolerance,
            DEGREE=neighbours.shape[1],
            JUMPS=self._jumps,
            SIZE=triton_minimise.SCRATCH,
            num_warps=_WARPS_OF_ROW,
        )

    def unsettled(self, state: SearchState[Tensor], active: Tensor, tolerance: float) -> Tensor:
        """(n,) bool: active rows that a coarse stage goes on with."""
        n, out = active.numel(), torch.empty_like(active)
        self.launch(
            triton_minimise.unsettled,
            (-(-n // 256),),
            active,
            state.step_size,
            state.failures,
            out,
            n,
            TOLERANCE=tolerance,
            ROWS=256,
            num_warps=4,
        )
        return out


def _padded(values: np.ndarray, size: int, filling: float) -> np.ndarray:
    """A vector of `size` values."""
    values = np.asarray(values)
    out = np.full(size, filling, values.dtype)
    out[: values.size] = values
    return out


def _wide(limits: Tensor, filling: float) -> Tensor:
    """(64,) limits of parameters and of the places behind them."""
    return torch.nn.functional.pad(limits, (0, _SLOTS - limits.numel()), value=filling)


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32


def _ancestors(parents: tuple[int, ...]) -> np.ndarray:
    """(jumps,32) lanes 1, 2, 4 ... joints up the tree, `_STILL` above the root."""
    up = np.full(_LANES, _STILL)
    up[: len(parents)] = [p if p >= 0 else _STILL for p in parents]
    jumps = [up]
    while 2 ** len(jumps) < len(kinematics.levels(parents)):
        jumps.append(jumps[-1][jumps[-1]])
    return np.stack(jumps)


def _subtree_ends(parents: tuple[int, ...]) -> np.ndarray:
    """(24,) first joint behind each joint's subtree. Raises ValueError where a subtree is no run of
    joints: SKEL's are."""
    ends = np.arange(1, len(parents) + 1)
    for j in range(len(parents) - 1, 0, -1):
        ends[parents[j]] = max(ends[parents[j]], ends[j])
    for j, end in enumerate(ends):
        below = {j}
        for k in range(j + 1, len(parents)):
            if parents[k] in below:
                below.add(k)
        if below != set(range(j, int(end))):
            raise ValueError(f"the subtree of joint {j} is no run of joints: {sorted(below)}")
    return ends
