"""The solver's kernels in plain tensor operations: any device, no compiler.

Twin of `kernels_numba` with the same interface; tests compare the two. Written without host
synchronisation (early exits are taken on a CPU only), rows never mix. Vertices are worked on one
component at a time, so that no (rows, vertices, 12) tensor exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from skel_fit import kinematics
from skel_fit.anatomy import NUM_PARAMETERS, REGIONS
from skel_fit.joint_limits import excess
from skel_fit.kinematics import Bones, Identity
from skel_fit.rotations import (
    angle_about_axis,
    axis_angle_to_matrix,
    euler_from_matrix,
    nearest_rotation,
    rotation_about_axis,
    wrap_angle,
)
from skel_fit.skeleton import Skeleton
from skel_fit.solver.blocks import Posed, padded
from skel_fit.solver.curvature import Curvature, Pairs, Twists, curvature, unpacked
from skel_fit.solver.search_torch import Search, extra_energy
from skel_fit.solver.tables import (
    Chain,
    SearchState,
    Skin,
    SmplTree,
    SparseWeights,
    StageTables,
    VertexSet,
)

if TYPE_CHECKING:
    from skel_fit.solver.surfaces import Meshes, RestTables


class TorchKernels:
    """Kernels of one SKEL model (and one SMPL model, if given)."""

    records = False  # whether a block is few enough launches to be recorded as a graph

    def __init__(
        self,
        skeleton: Skeleton[np.ndarray],
        smpl_tree: SmplTree[np.ndarray] | None,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        curvature_of: Curvature = curvature,
    ) -> None:
        """curvature_of: what makes Gauss-Newton matrices."""
        self.dtype, self.device, self._curvature_of = dtype, torch.device(device), curvature_of
        self.host_decides = self.device.type == "cpu"
        self._uploaded: dict[tuple[int, str], tuple[object, Tensor]] = {}
        self.axes = self._tensor(skeleton.axes)
        self.parents = tuple(int(p) for p in skeleton.parents)
        self.first = [int(f) for f in skeleton.first_parameter]
        self.sources = tuple(int(s) for s in skeleton.feature_source)
        self.orders = [(int(a), int(b), int(c)) for a, b, c in skeleton.euler]
        self.skeleton = Skeleton(*(self._tensor(part) for part in skeleton))
        self.smpl_tree = None
        if smpl_tree is not None:
            self.smpl_tree = SmplTree(*(self._tensor(part) for part in smpl_tree))
            self.smpl_parents = tuple(int(p) for p in smpl_tree.parents)
        subtree = np.eye(24)
        for k in range(23, 0, -1):
            subtree[self.parents[k]] += subtree[k]
        self.subtree = self._tensor(subtree)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.device)

    def _kept(
        self, array: np.ndarray, make: Callable[[], np.ndarray] | None = None, form: str = ""
    ) -> Tensor:
        """The array (or the `form` that `make` makes of it) on the device; uploaded once, so that
        no round waits for a copy. The tables it is used for live as long as the solver."""
        found = self._uploaded.get((id(array), form))
        if found is None or found[0] is not array:
            found = (array, self._tensor(make() if make else array))
            self._uploaded[id(array), form] = found
        return found[1]

    # --- identity and kinematics -----------------------------------------------------------

    def identity(self, betas: Tensor) -> Identity[Tensor]:
        """betas (n,K) -> rest joints, joint frames and lengths."""
        s = self.skeleton
        joints = s.joint_template + (s.joint_directions * betas[:, None, None, :]).sum(dim=-1)
        turns = kinematics.bone_turns(s.bone_source, kinematics.rest_offsets(joints))
        frames = (turns @ s.rest_frames).contiguous()
        return Identity(betas, joints, frames, kinematics.moving_lengths(joints))

    def bones(self, poses: Tensor, shape: Identity[Tensor]) -> Bones:
        """Kinematics with twists, poses (n,49)."""
        return kinematics.bones(poses, shape, self.axes)

    def features(self, local: Tensor) -> Tensor:
        """(n,207) R - I of SMPL joints 1..23, from SKEL's local rotations."""
        return kinematics.pose_features(local, self.sources)

    def pose_bones(self, poses: Tensor, shape: Identity[Tensor]) -> tuple[Tensor, Tensor]:
        """Skinning transforms (24,12,n) and features (1+K+207,n) of poses (n,49)."""
        bones = self.bones(poses, shape)
        transforms = kinematics.skinning_transforms(bones.rotations, bones.positions, shape.joints)
        return self._for_vertices(transforms, shape.betas, self.features(bones.local))

    def _for_vertices(
        self, transforms: Tensor, betas: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Transforms (n,24,3,4) as (24,12,n), and (1+K+207,n) = [1, betas, features]."""
        features = torch.cat([betas.new_ones(betas.shape[0], 1), betas, features], dim=1)
        return (
            transforms.flatten(2).permute(1, 2, 0).to(self.dtype).contiguous(),
            features.T.to(self.dtype).contiguous(),
        )

    def pose_smpl(self, poses: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        """poses (n,72), betas (n,K) -> rest joints (n,24,3), global rotations (n,24,3,3),
        transforms (24,12,n), features (1+K+207,n), global orientation left out."""
        tree = self.smpl_tree
        assert tree is not None, "made without an SMPL model"
        joints = tree.joint_template + (tree.joint_directions * betas[:, None, None]).sum(dim=-1)
        vectors = torch.cat([torch.zeros_like(poses[:, :3]), poses[:, 3:]], dim=1)
        local = axis_angle_to_matrix(vectors.view(-1, 24, 3))
        offsets = kinematics.rest_offsets(joints, self.smpl_parents)
        rotations, positions = kinematics.chain(local, offsets, self.smpl_parents)
        features = kinematics.pose_features(local, tuple(range(1, 24)))
        transforms = kinematics.skinning_transforms(rotations, positions, joints)
        return joints, rotations, *self._for_vertices(transforms, betas, features)

    # --- start -----------------------------------------------------------------------------

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
        poses = rotations.new_zeros(n, NUM_PARAMETERS)
        world: list[Tensor] = [torch.eye(3, dtype=poses.dtype, device=self.device).expand(n, 3, 3)]
        for j in range(1, 24):
            above, frame = world[self.parents[j]], shape.frames[:, j]
            wanted = frame.transpose(1, 2) @ (above.transpose(1, 2) @ rotations[:, j]) @ frame
            part = slice(self.first[j], self.first[j + 1])
            poses[:, part] = self._project_joint(j, wanted, lower[part], upper[part], branch[j])
            turned = world[0]
            for d in range(part.start, part.stop):
                turned = rotation_about_axis(self.axes[d], poses[:, d]) @ turned
            world.append(above @ (frame @ turned @ frame.transpose(1, 2)))
        return poses

    def _project_joint(
        self, j: int, wanted: Tensor, low: Tensor, high: Tensor, branch: Tensor
    ) -> Tensor:
        """Angles (n, 1..3) of joint j nearest to the wanted joint rotation, inside the limits.

        branch 0 takes the Euler branch with less limit violation, branch 1 the other one."""
        first, last = self.first[j], self.first[j + 1]
        if last - first == 1:
            angle = angle_about_axis(wanted, self.axes[first])
            return torch.minimum(torch.maximum(angle[:, None], low), high)
        one = euler_from_matrix(wanted, self.orders[j])
        turn = torch.full_like(one, math.pi)
        other = wrap_angle(torch.stack([one[:, 0], -one[:, 1], one[:, 2]], dim=1) + turn)
        # the first parameter is the innermost rotation
        one, other = ((angles * self.skeleton.euler_sign[j]).flip(1) for angles in (one, other))
        if last - first == 2:
            found = one[:, ::2]
        else:
            worse = _violation(other, low, high) >= _violation(one, low, high)
            found = torch.where((~worse ^ (branch == 1))[:, None], other, one)
        return torch.minimum(torch.maximum(found, low), high)

    # --- bare meshes -----------------------------------------------------------------------

    def place_rows(
        self, rest: RestTables, meshes: Meshes, rows: Tensor, betas: Tensor, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bone rotations (k,24,3,3) of these rows' own vertices, rest -> mesh, and the middle of
        the pelvis' in the mesh and at rest (k,3), float64; betas (k,K). NaN in `seen` where a mesh
        is not finite. width: rows that products of matrices are filled up to."""
        real, index = rows.numel(), padded(rows, width)
        shapes = padded(torch.arange(real, device=rows.device), width)
        share = self._tensor(rest.share)
        directions, template = self._tensor(rest.directions), self._tensor(rest.template)
        still = (template + betas[shapes] @ directions).view(width, -1, 3)
        moved = self._mapped(meshes, index)
        origin = moved[:, :1]
        moved = moved - origin
        rest_centres, centres = share.T @ still, share.T @ moved
        products = share.T @ (moved[..., :, None] * still[..., None, :]).flatten(2)
        spread = products.unflatten(2, (3, 3)) - centres[..., :, None] * rest_centres[..., None, :]
        finite = torch.isfinite(spread).flatten(1).all(dim=1)
        eye = torch.eye(3, dtype=spread.dtype, device=spread.device)
        turns = nearest_rotation(torch.where(finite[:, None, None, None], spread, eye))[0]
        seen = torch.where(finite[:, None], centres[:, 0] + origin[:, 0], torch.nan)
        return turns[:real], seen[:real], rest_centres[:real, 0]

    def root_frame(
        self, meshes: Meshes, rows: Tensor, orient: Tensor, seen: Tensor, home: Tensor
    ) -> Tensor:
        """Meshes of these rows (k,) in the root frame, (V,3,k) of the fit's dtype: orient^T (mesh -
        seen) + home; orient (n,3,3), seen and home (n,3) of all rows, float64."""
        moved = self._mapped(meshes, rows) - seen[rows][:, None]
        targets = moved @ orient[rows] + home[rows][:, None]
        return targets.permute(1, 2, 0).to(self.dtype).contiguous()

    def _mapped(self, meshes: Meshes, rows: Tensor) -> Tensor:
        """SKEL's vertices (k,V,3) on the meshes of these rows, float64."""
        source = meshes.source[rows].double()
        columns = self._tensor(meshes.columns).long()
        shares = self._tensor(meshes.shares).double()
        parts = [source[:, columns[:, k]] * shares[:, k, None] for k in range(3)]
        return parts[0] + parts[1] + parts[2]

    # --- vertex passes ---------------------------------------------------------------------

    def _dense(self, skinning: SparseWeights[np.ndarray]) -> Tensor:
        """(V,24) weights on the device."""
        return self._kept(skinning.weights, lambda: self._dense_array(skinning), "dense")

    @staticmethod
    def _dense_array(skinning: SparseWeights[np.ndarray]) -> np.ndarray:
        count = len(skinning.first) - 1
        dense = np.zeros((count, 24), skinning.weights.dtype)
        rows = np.repeat(np.arange(count), np.diff(skinning.first))
        dense[rows, skinning.bones] = skinning.weights
        return dense

    def skin(
        self, skinning: SparseWeights[np.ndarray], transforms: Tensor, points: Tensor
    ) -> Tensor:
        """Skinned points (V,3,n)."""
        weights = self._dense(skinning)
        rows = []
        for i in range(3):
            total = weights @ transforms[:, 4 * i + 3]
            for c in range(3):
                total = torch.addcmul(total, weights @ transforms[:, 4 * i + c], points[:, c])
            rows.append(total)
        return torch.stack(rows, dim=1)

    def couple(
        self, skin: Tensor, targets: Tensor, turns: Tensor, masses: np.ndarray, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals of neighbouring frames, coupled by the velocity of the skin.

        skin, targets (V,3,n) in the root frame, m; turns (k,3,3) global orientations of the first
        k <= n frames; masses (V,) of sum 1; weights (k-1,) of the steps. Returns wanted (V,3,n):
        skin less the coupled residual r_t + w_{t-1} (r_t - r_{t-1}) + w_t (r_t - r_{t+1}), taken in
        the world; own (k,) and between (k-1,), float64: mean squares of residuals and of their
        changes.
        """
        k = turns.shape[0]
        turns = turns.to(skin.dtype)
        # frames first, points last: one small matrix product a frame
        world = turns @ (skin - targets)[:, :, :k].permute(2, 1, 0)
        change = world[1:] - world[:-1]
        own, between = (self._mean_squares(points, masses) for points in (world, change))
        pull = weights.to(skin.dtype)[:, None, None] * change
        world[1:] += pull
        world[:-1] -= pull
        wanted = skin.clone()
        wanted[:, :, :k] -= (turns.transpose(1, 2) @ world).permute(2, 1, 0)
        return wanted, own, between

    def _mean_squares(self, points: Tensor, masses: np.ndarray) -> Tensor:
        """(n,) float64 of points (n,3,V)."""
        return points.double().square().sum(dim=1) @ self._kept(masses).double()

    @staticmethod
    def eliminate(blocks: np.ndarray, beside: np.ndarray, right: np.ndarray) -> Chain | None:
        """Block Cholesky down a chain of frames, each with a next one, on the host; None where it
        is not positive.

        blocks: (n,f,f); beside: (n,f,f), rows of a frame and columns of the next; right: (n,f).
        """
        # torch's matrix library: its threads are the caller's choice, scipy's spin on small blocks
        out = Chain(np.empty_like(blocks), np.empty_like(beside), np.empty_like(right))
        factors, sides, values = (torch.from_numpy(part) for part in out)
        for t, parts in enumerate(zip(blocks, beside, right, strict=True)):
            block, across, value = (torch.from_numpy(part) for part in parts)
            if t:
                block = block - sides[t - 1].T @ sides[t - 1]
                value = value - sides[t - 1].T @ values[t - 1]
            factor, failed = torch.linalg.cholesky_ex(block)
            if failed:
                return None
            both = torch.cat([across, value[:, None]], dim=1)
            solved = torch.linalg.solve_triangular(factor, both, upper=False)
            factors[t], sides[t], values[t] = factor.T, solved[:, :-1], solved[:, -1]
        return out

    @staticmethod
    def substitute(chain: Chain, following: np.ndarray) -> np.ndarray:
        """The way back: solution (n,f); following: (f,), that of the frame after the chain."""
        factors, sides, values = (torch.from_numpy(part) for part in chain)
        out, after = torch.empty_like(values), torch.from_numpy(following)
        for t in range(len(values) - 1, -1, -1):
            value = values[t] - sides[t] @ after
            after = torch.linalg.solve_triangular(factors[t], value[:, None], upper=True)[:, 0]
            out[t] = after
        return out.numpy()

    def evaluate(self, skin: Skin, poses: Tensor, shape: Identity[Tensor]) -> Posed:
        """Poses (n,49) with the skin's corrected rest vertices."""
        transforms, features = self.pose_bones(poses, shape)
        return Posed(transforms, features, self._points(skin, features))

    def _points(self, skin: Skin, features: Tensor) -> Tensor:
        return (skin.basis @ features).view(-1, 3, features.shape[1])

    def _seen(self, skin: Skin, posed: Posed) -> tuple[Tensor, Tensor]:
        """Transforms, and corrected rest vertices (V,3,n)."""
        points = self._points(skin, posed.features) if posed.points is None else posed.points
        return posed.transforms, points

    def skinned(self, skin: Skin, posed: Posed) -> Tensor:
        """Skin (V,3,n)."""
        return self.skin(skin.skinning, *self._seen(skin, posed))

    def evidence(
        self, vertices: VertexSet, posed: Posed, targets: Tensor, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """energy (n,), moments (24,12,n), corrective (207,n); anything for rows that are not
        active."""
        seen = self._seen(vertices, posed)
        energy, moments, pull = self.residual_moments(vertices, *seen, targets, active)
        return energy, moments, vertices.pose_basis.T @ pull.view(-1, pull.shape[2])

    def judged(
        self,
        vertices: VertexSet,
        region: np.ndarray,
        posed: Posed,
        targets: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (n,), the sum of squared distances times masses; sums of distances (regions,n);
        largest distance (n,); anything for rows that are not active."""
        seen = self._seen(vertices, posed)
        squares, totals, largest = self.judge(vertices.skinning, region, *seen, targets)
        if vertices.alike:
            return squares / len(region), totals, largest
        return self.residual_moments(vertices, *seen, targets, active)[0], totals, largest

    def residual_moments(
        self,
        vertices: VertexSet,
        transforms: Tensor,
        points: Tensor,
        targets: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """energy (n,), moments (24,12,n), pull (V,3,n); anything for rows that are not active."""
        weights = self._dense(vertices.skinning)
        masses = self._kept(vertices.masses)[:, None]
        residual = self.skin(vertices.skinning, transforms, points) - targets
        energy = (masses[:, :, None] * residual.square()).sum(dim=(0, 1)).to(torch.float64)
        residual = residual * masses[:, :, None]
        moments = torch.empty_like(transforms)
        for i in range(3):
            for c in range(3):
                moments[:, 4 * i + c] = weights.T @ (residual[:, i] * points[:, c])
            moments[:, 4 * i + 3] = weights.T @ residual[:, i]
        pull = torch.zeros_like(points)
        for i in range(3):
            for c in range(3):
                pull[:, c] += (weights @ transforms[:, 4 * i + c]) * residual[:, i]
        return energy, moments, pull

    def judge(
        self,
        skinning: SparseWeights[np.ndarray],
        region: np.ndarray,
        transforms: Tensor,
        points: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of squared distances (n,), sums of distances (regions,n), largest distance (n,)."""
        squares = (self.skin(skinning, transforms, points) - targets).square().sum(dim=1)
        distances = squares.sqrt()
        member = self._kept(region, lambda: np.eye(len(REGIONS))[region], "member").to(
            distances.dtype
        )
        return (
            squares.sum(dim=0).to(torch.float64),
            (member.T @ distances).to(torch.float64),
            distances.amax(dim=0).to(torch.float64),
        )

    def curvature(
        self, first: Twists, second: Twists, blocks: Tensor, pairs: Pairs, owner: Tensor
    ) -> Tensor:
        """J_first^T J_second (n,p,p), as `curvature.curvature`."""
        return curvature(first, second, blocks, pairs, owner)

    # --- inner solver ----------------------------------------------------------------------

    def extra_energy(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        joint_targets: Tensor,
        poses: Tensor,
    ) -> Tensor:
        """Joint and prior terms (n,) of the objective."""
        positions = self.bones(poses, shape).positions
        return extra_energy(self._stage(stage), positions, joint_targets, poses)

    def _stage(self, stage: StageTables[np.ndarray]) -> StageTables[Tensor]:
        return StageTables(*(self._kept(part) for part in stage))

    def linearise(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor],
        poses: Tensor,
    ) -> tuple[Tensor, Tensor, Bones]:
        """Half gradient (n,49) and half Gauss-Newton matrix (n,49,49) at poses (n,49), kinematics.

        evaluated: moments (n,24,12) and corrective (n,207) there, float64. 0 where the stage holds
        a parameter.
        """
        search = self.search(stage, shape, pair_moments, joint_targets, evaluated, poses)
        transforms = search.start_transforms
        gradient = search.gradient(search.bones, transforms, torch.zeros_like(transforms), poses)
        return gradient, search.curvature(search.bones, transforms), search.bones

    def gradient(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor],
        poses: Tensor,
    ) -> Tensor:
        """The half gradient of `linearise` alone."""
        search = self.search(stage, shape, pair_moments, joint_targets, evaluated, poses)
        start = search.start_transforms
        return search.gradient(search.bones, start, torch.zeros_like(start), poses)

    def search(
        self,
        stage: StageTables[np.ndarray],
        shape: Identity[Tensor],
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor],
        start: Tensor,
    ) -> Search:
        """The model of `linearise` around poses `start` (n,49)."""
        moments, corrective = evaluated
        kept = self._stage(stage)
        return Search(
            curvature_of=self._curvature_of,
            bones_of=self.bones,
            features_of=self.features,
            feature_of_joint=self.skeleton.feature_of_joint,
            owner=self.skeleton.joint_of_parameter,
            pairs=Pairs(kept.pair_first, kept.pair_second, self.subtree),
            stage=kept,
            free=self._kept(stage.free, lambda: np.nonzero(stage.free)[0], "numbers"),
            shape=shape,
            blocks=unpacked(pair_moments),
            joint_targets=joint_targets,
            moments=moments.view(-1, 24, 3, 4),
            corrective=corrective,
            start=start,
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
        bones = self.bones(state.poses, shape)
        total = energy + extra_energy(
            self._stage(stage), bones.positions, joint_targets, state.poses
        )
        better = active & (total <= state.best_energy)
        worse = active & ~better
        _keep(state.best_energy, better, total)
        _keep(state.best_poses, better, state.poses)
        flat = moments.permute(2, 0, 1).to(torch.float64)
        _keep(state.best_moments, better, flat)
        _keep(state.best_corrective, better, corrective.T.to(torch.float64))
        state.failures.add_(worse.to(torch.int64))
        _keep(state.damping, worse, (30.0 * state.damping).clamp(min=1e-3))
        best = (state.best_moments, state.best_corrective)
        search = self.search(stage, shape, pair_moments, joint_targets, best, state.best_poses)
        damping, steps, poses = search.run(max_steps, tolerance, state.damping, active)
        _keep(state.damping, active, damping)
        _keep(state.poses, active, poses)
        state.steps.add_(torch.where(active, steps, 0))
        moved = (state.poses - state.best_poses).abs().amax(dim=1)
        _keep(state.step_size, active, moved)

    def unsettled(self, state: SearchState[Tensor], active: Tensor, tolerance: float) -> Tensor:
        """(n,) bool: active rows that a coarse stage goes on with."""
        return state.unsettled(active, tolerance)


def _keep(mine: Tensor, rows: Tensor, theirs: Tensor) -> None:
    """mine[rows] = theirs[rows], without leaving the device."""
    mask = rows.view(-1, *([1] * (mine.ndim - 1)))
    mine.copy_(torch.where(mask, theirs, mine))


def _violation(angles: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum of squared excess over the limits, (n,)."""
    return excess(angles, low, high, turns=False).square().sum(dim=1)
