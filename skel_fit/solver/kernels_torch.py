"""The solver's kernels in plain tensor operations: any device, no compiler.

Twin of `kernels_numba` with the same interface; tests compare the two. Written without host
synchronisation (early exits are taken on a CPU only), rows never mix. Vertices are worked on one
component at a time, so that no (rows, vertices, 12) tensor exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import REGIONS
from skel_fit.solver.tables import (
    PARAMETERS,
    Identity,
    SearchState,
    Skeleton,
    SmplTree,
    SparseWeights,
    StageTables,
    VertexSet,
)

FRESH_CURVATURE = 0.1
_SMALL_ARC = 2e-2
_TRIES = 6
_ACTIVE_SET_PASSES = 8


class Bones(NamedTuple):
    """Kinematics of n rows; see docs/solver.md."""

    local: Tensor  # (n,24,3,3) local rotations R_i
    rotations: Tensor  # (n,24,3,3) world rotations
    positions: Tensor  # (n,24,3) world joint positions
    local_axes: Tensor  # (n,46,3) axis of each angle in the parent's frame
    axes: Tensor  # (n,49,3) world axes, 0 for the translation
    shift: Tensor  # (n,49,3) linear part of each twist

    def transforms(self, joints: Tensor) -> Tensor:
        """Skinning transforms A_k = [R_k | p_k - R_k J_k] (n,24,3,4)."""
        shift = self.positions - (self.rotations @ joints[..., None])[..., 0]
        return torch.cat([self.rotations, shift[..., None]], dim=-1)


class TorchKernels:
    """Kernels of one SKEL model (and one SMPL model, if given)."""

    def __init__(
        self,
        skeleton: Skeleton,
        smpl_tree: SmplTree | None,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self._uploaded: dict[int, tuple[object, Tensor]] = {}
        self.skeleton = Skeleton(*(self._tensor(part) for part in skeleton))
        self.parents = [int(p) for p in skeleton.parents]
        self.levels = _levels(self.parents)
        self.smpl_tree = None
        if smpl_tree is not None:
            self.smpl_tree = SmplTree(*(self._tensor(part) for part in smpl_tree))
            self.smpl_parents = [int(p) for p in smpl_tree.parents]
            self.smpl_levels = _levels(self.smpl_parents)
        slots = np.full((24, 3), 46)
        for d, j in enumerate(skeleton.joint_of_parameter[:46]):
            slots[j, d - skeleton.first_parameter[j]] = d
        self.slots = self._tensor(slots)
        self.slot_of = self._tensor(
            np.array([d - skeleton.first_parameter[j] for d, j in enumerate(_owners(skeleton))])
        )
        subtree = np.eye(24)
        for k in range(23, 0, -1):
            subtree[self.parents[k]] += subtree[k]
        self.subtree = self._tensor(subtree)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.device)

    def _kept(self, array: np.ndarray, make: Callable[[], np.ndarray] | None = None) -> Tensor:
        """The array (or what `make` makes of it) on the device; uploaded once, so that no round
        waits for a copy. The tables it is used for live as long as the solver."""
        found = self._uploaded.get(id(array))
        if found is None or found[0] is not array:
            found = (array, self._tensor(make() if make else array))
            self._uploaded[id(array)] = found
        return found[1]

    def _on_host(self) -> bool:
        return self.device.type == "cpu"

    # --- identity and kinematics -----------------------------------------------------------

    def identity(self, betas: Tensor) -> Identity:
        """betas (n,K) -> rest joints, joint frames and lengths."""
        s = self.skeleton
        joints = s.joint_template + (s.joint_directions * betas[:, None, None, :]).sum(dim=-1)
        parents = torch.as_tensor([max(p, 0) for p in self.parents], device=self.device)
        offsets = joints - joints[:, parents]
        target = torch.einsum("jk,nkc->njc", s.bone_sum.to(joints.dtype), offsets)
        turned = _minimal_rotation(s.bone_source, target) @ s.rest_frames
        frames = torch.where(s.aligned[:, None, None], turned, s.rest_frames)
        y = joints[:, :, 1]
        lengths = torch.stack(
            [
                (y[:, 11] - y[:, 0]).abs(),
                (y[:, 12] - y[:, 11]).abs(),
                (y[:, 13] - y[:, 12]).abs(),
                (joints[:, 19] - joints[:, 14]).norm(dim=1),
                (joints[:, 12] - joints[:, 11]).norm(dim=1),
            ],
            dim=1,
        )
        return Identity(betas, joints, frames.contiguous(), lengths)

    def _single_rotations(self, angles: Tensor) -> Tensor:
        """(n,47,3,3) rotation of each angle; the last one is the identity."""
        axes = self.skeleton.axes
        length = axes.norm(dim=1)
        unit = axes / length[:, None]
        cross = torch.zeros(46, 3, 3, dtype=axes.dtype, device=self.device)
        cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -unit[:, 2], unit[:, 1], -unit[:, 0]
        cross = cross - cross.transpose(1, 2)
        turn = (angles * length)[..., None, None]
        eye = torch.eye(3, dtype=axes.dtype, device=self.device)
        made = eye + torch.sin(turn) * cross + (1.0 - torch.cos(turn)) * (cross @ cross)
        return torch.cat([made, eye.expand(angles.shape[0], 1, 3, 3)], dim=1)

    def _offsets(self, poses: Tensor, shape: Identity) -> tuple[Tensor, Tensor]:
        """Local translations (n,24,3) and their derivatives by angle (n,46,3), parent's frame."""
        parents = torch.as_tensor([max(p, 0) for p in self.parents], device=self.device)
        offsets = shape.joints - shape.joints[:, parents]
        offsets[:, 0] = shape.joints[:, 0] + poses[:, 46:49]
        velocity = poses.new_zeros(poses.shape[0], 46, 3)
        for n, (joint, first) in enumerate(((11, 17), (12, 20), (13, 23))):
            length = shape.lengths[:, n]
            x0, y0, dx0, dy0 = _arc(length, poses[:, first])
            x1, y1, dx1, dy1 = _arc(length, poses[:, first + 1])
            offsets[:, joint] += torch.stack([-x0, y0 + y1 - 2.0 * length, -x1], dim=1)
            zero = torch.zeros_like(x0)
            velocity[:, first] = torch.stack([-dx0, dy0, zero], dim=1)
            velocity[:, first + 1] = torch.stack([zero, dy1, -dx1], dim=1)
        wide, high = 0.25 * shape.lengths[:, 3], 0.5 * shape.lengths[:, 4]
        half = math.sqrt(0.5)
        for joint, first, side in ((14, 26, 1.0), (19, 36, -1.0)):
            abduction, elevation = side * poses[:, first], side * poses[:, first + 1] - math.pi / 4
            ca, sa = torch.cos(abduction), torch.sin(abduction)
            ce, se = torch.cos(elevation), torch.sin(elevation)
            moved = [-side * wide * (ce * ca - half), -high * (se + half), wide * sa]
            offsets[:, joint] += torch.stack(moved, dim=1)
            zero = torch.zeros_like(ca)
            velocity[:, first] = torch.stack([wide * ce * sa, zero, side * wide * ca], dim=1)
            velocity[:, first + 1] = torch.stack([wide * se * ca, -side * high * ce, zero], dim=1)
        return offsets, velocity

    def bones(self, poses: Tensor, shape: Identity) -> Bones:
        """Kinematics with twists, poses (n,49)."""
        n = poses.shape[0]
        single = self._single_rotations(poses[:, :46])[:, self.slots]  # (n,24,3,3,3)
        inner = single[:, :, 2] @ single[:, :, 1]
        frames = shape.frames
        local = frames @ (inner @ single[:, :, 0]) @ frames.transpose(-1, -2)
        eye = torch.eye(3, dtype=poses.dtype, device=self.device).expand(n, 24, 3, 3)
        after = torch.stack([inner, single[:, :, 2], eye], dim=2)  # rotations applied later
        owners = self.skeleton.joint_of_parameter[:46]
        local_axes = frames[:, owners] @ (
            after[:, owners, self.slot_of] @ self.skeleton.axes[:, :, None]
        )
        offsets, velocity = self._offsets(poses, shape)
        rotations, positions = _chain(local, offsets, self.parents, self.levels)
        root = torch.eye(3, dtype=poses.dtype, device=self.device).expand(n, 1, 3, 3)
        above = torch.cat([root, rotations[:, self.parents[1:]]], dim=1)[:, owners]
        axes = torch.cat([(above @ local_axes)[..., 0], poses.new_zeros(n, 3, 3)], dim=1)
        speed = (above @ velocity[..., None])[..., 0]
        shift = speed - torch.linalg.cross(axes[:, :46], positions[:, owners])
        unit = torch.eye(3, dtype=poses.dtype, device=self.device).expand(n, 3, 3)
        return Bones(
            local,
            rotations,
            positions,
            local_axes[..., 0],
            axes,
            torch.cat([shift, unit], dim=1),
        )

    def pose_bones(self, poses: Tensor, shape: Identity) -> tuple[Tensor, Tensor]:
        """Skinning transforms (24,12,n) and features (1+K+207,n) of poses (n,49)."""
        bones = self.bones(poses, shape)
        n = poses.shape[0]
        transforms = bones.transforms(shape.joints).reshape(n, 24, 12)
        features = torch.cat(
            [poses.new_ones(n, 1), shape.betas, self._features(bones.local)], dim=1
        )
        return (
            transforms.permute(1, 2, 0).to(self.dtype).contiguous(),
            features.T.to(self.dtype).contiguous(),
        )

    def _features(self, local: Tensor) -> Tensor:
        """(n,207) R - I of SMPL joints 1..23."""
        source = self.skeleton.feature_source
        eye = torch.eye(3, dtype=local.dtype, device=self.device)
        moved = (local - eye)[:, source.clamp(min=0)]
        return torch.where((source >= 0)[:, None, None], moved, 0.0).flatten(1)

    def pose_smpl(self, poses: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        """poses (n,72), betas (n,K) -> rest joints (n,24,3), global rotations (n,24,3,3),
        transforms (24,12,n), features (1+K+207,n), global orientation left out."""
        tree, n = self.smpl_tree, poses.shape[0]
        joints = tree.joint_template + (tree.joint_directions * betas[:, None, None]).sum(dim=-1)
        vectors = poses.view(n, 24, 3)
        angle = (vectors + 1e-8).norm(dim=2, keepdim=True)  # as smplx does
        unit = vectors / angle
        cross = poses.new_zeros(n, 24, 3, 3)
        cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = (
            -unit[..., 2],
            unit[..., 1],
            -unit[..., 0],
        )
        cross = cross - cross.transpose(-1, -2)
        eye = torch.eye(3, dtype=poses.dtype, device=self.device)
        turn = angle[..., None]
        local = eye + torch.sin(turn) * cross + (1.0 - torch.cos(turn)) * (cross @ cross)
        local = torch.cat([eye.expand(n, 1, 3, 3), local[:, 1:]], dim=1)
        parents = torch.as_tensor([max(p, 0) for p in self.smpl_parents], device=self.device)
        offsets = joints - joints[:, parents]
        offsets[:, 0] = joints[:, 0]
        rotations, positions = _chain(local, offsets, self.smpl_parents, self.smpl_levels)
        shift = positions - (rotations @ joints[..., None])[..., 0]
        transforms = torch.cat([rotations, shift[..., None]], dim=-1).reshape(n, 24, 12)
        features = torch.cat([poses.new_ones(n, 1), betas, (local[:, 1:] - eye).flatten(1)], dim=1)
        return (
            joints,
            rotations,
            transforms.permute(1, 2, 0).to(self.dtype).contiguous(),
            features.T.to(self.dtype).contiguous(),
        )

    # --- start -----------------------------------------------------------------------------

    def start(
        self, rotations: Tensor, shape: Identity, lower: Tensor, upper: Tensor, branch: Tensor
    ) -> Tensor:
        """Closed-form start (n,49) from the wanted world rotation (n,24,3,3) of each bone."""
        n = rotations.shape[0]
        poses = rotations.new_zeros(n, PARAMETERS)
        world: list[Tensor] = [torch.eye(3, dtype=poses.dtype, device=self.device).expand(n, 3, 3)]
        first = [int(f) for f in self.skeleton.first_parameter]
        for j in range(1, 24):
            above, frame = world[self.parents[j]], shape.frames[:, j]
            wanted = frame.transpose(1, 2) @ (above.transpose(1, 2) @ rotations[:, j]) @ frame
            part = slice(first[j], first[j + 1])
            poses[:, part] = self._project(j, part, wanted, lower, upper, branch[j])
            single = self._single_rotations(poses[:, :46])[:, self.slots[j]]
            turned = single[:, 2] @ single[:, 1] @ single[:, 0]
            world.append(above @ (frame @ turned @ frame.transpose(1, 2)))
        return poses

    def _project(
        self, j: int, part: slice, wanted: Tensor, lower: Tensor, upper: Tensor, branch: Tensor
    ) -> Tensor:
        """Angles (n, 1..3) of joint j nearest to the wanted joint rotation, inside the limits."""
        low, high, axes = lower[part], upper[part], self.skeleton.axes[part]
        if axes.shape[0] == 1:
            axis = axes[0]
            axial = torch.stack(
                [
                    wanted[:, 2, 1] - wanted[:, 1, 2],
                    wanted[:, 0, 2] - wanted[:, 2, 0],
                    wanted[:, 1, 0] - wanted[:, 0, 1],
                ],
                dim=1,
            )
            trace = wanted.diagonal(dim1=1, dim2=2).sum(dim=1)
            cosine = trace - ((wanted @ axis) * axis).sum(dim=1)
            angle = torch.atan2((axial * axis).sum(dim=1), cosine)
            return torch.minimum(torch.maximum(angle[:, None], low), high)
        a, b, c = (int(k) for k in self.skeleton.euler[j])
        signs = self.skeleton.euler_sign[j]
        parity = 1.0 if (a + 1) % 3 == b else -1.0
        cosine = torch.hypot(wanted[:, a, a], wanted[:, a, b])
        y = torch.atan2(parity * wanted[:, a, c], cosine)
        free = cosine > 1e-7
        z = torch.where(free, torch.atan2(-parity * wanted[:, a, b], wanted[:, a, a]), 0.0)
        x = torch.where(
            free,
            torch.atan2(-parity * wanted[:, b, c], wanted[:, c, c]),
            torch.atan2(parity * wanted[:, c, b], wanted[:, b, b]),
        )
        if axes.shape[0] == 2:
            found = torch.stack([signs[2] * z, signs[0] * x], dim=1)
            return torch.minimum(torch.maximum(found, low), high)
        order = signs.flip(0)
        one = torch.stack([z, y, x], dim=1) * order
        other = torch.stack([_wrap(z + math.pi), _wrap(math.pi - y), _wrap(x + math.pi)], dim=1)
        other = other * order
        worse = _violation(other, low, high) >= _violation(one, low, high)
        take_other = ~worse ^ (branch == 1)
        found = torch.where(take_other[:, None], other, one)
        return torch.minimum(torch.maximum(found, low), high)

    # --- vertex passes ---------------------------------------------------------------------

    def _dense(self, skinning: SparseWeights) -> Tensor:
        """(V,24) weights on the device."""
        return self._kept(skinning.weights, lambda: self._dense_array(skinning))

    @staticmethod
    def _dense_array(skinning: SparseWeights) -> np.ndarray:
        count = len(skinning.first) - 1
        dense = np.zeros((count, 24), skinning.weights.dtype)
        rows = np.repeat(np.arange(count), np.diff(skinning.first))
        dense[rows, skinning.bones] = skinning.weights
        return dense

    def skin(self, skinning: SparseWeights, transforms: Tensor, points: Tensor) -> Tensor:
        """Skinned points (V,3,n)."""
        weights = self._dense(skinning)
        rows = []
        for i in range(3):
            total = weights @ transforms[:, 4 * i + 3]
            for c in range(3):
                total = torch.addcmul(total, weights @ transforms[:, 4 * i + c], points[:, c])
            rows.append(total)
        return torch.stack(rows, dim=1)

    def residual_moments(
        self, vertices: VertexSet, transforms: Tensor, points: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """energy (n,), moments (24,12,n), pull (V,3,n)."""
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
        skinning: SparseWeights,
        region: np.ndarray,
        transforms: Tensor,
        points: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of squared distances (n,), sums of distances (regions,n), largest distance (n,)."""
        squares = (self.skin(skinning, transforms, points) - targets).square().sum(dim=1)
        distances = squares.sqrt()
        member = self._kept(region, lambda: np.eye(len(REGIONS))[region]).to(distances.dtype)
        return (
            squares.sum(dim=0).to(torch.float64),
            (member.T @ distances).to(torch.float64),
            distances.amax(dim=0).to(torch.float64),
        )

    # --- inner solver ----------------------------------------------------------------------

    def extra_energy(
        self, stage: StageTables, shape: Identity, joint_targets: Tensor, poses: Tensor
    ) -> Tensor:
        """Joint and prior terms (n,) of the objective."""
        positions = self.bones(poses, shape).positions
        return _extra_energy(self._stage(stage), positions, joint_targets, poses)

    def _stage(self, stage: StageTables) -> StageTables:
        return StageTables(*(self._kept(part) for part in stage))

    def linearise(
        self,
        stage: StageTables,
        shape: Identity,
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor],
        poses: Tensor,
    ) -> tuple[Tensor, Tensor, Bones]:
        """Half gradient (n,49) and half Gauss-Newton matrix (n,49,49) at poses (n,49), kinematics.

        evaluated: moments (n,24,12) and corrective (n,207) there, float64. 0 where the stage holds
        a parameter.
        """
        n = poses.shape[0]
        free = self._tensor(np.nonzero(stage.free)[0])
        moments, corrective = evaluated
        search = _Search(
            self,
            self._stage(stage),
            free,
            shape,
            pair_moments,
            joint_targets,
            moments.view(n, 24, 3, 4),
            corrective,
            poses,
        )
        transforms = search.transforms0
        gradient = search._gradient(search.bones, transforms, torch.zeros_like(transforms), poses)
        return gradient, search._curvature(search.bones, transforms), search.bones

    def minimise(
        self,
        stage: StageTables,
        shape: Identity,
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor, Tensor],
        active: Tensor,
        max_steps: int,
        tolerance: float,
        state: SearchState,
    ) -> None:
        """One round (in place on `state`) for the active rows; `evaluated` is (energy, moments,
        corrective (207,n)) at state.poses."""
        free = self._tensor(np.nonzero(stage.free)[0])
        stage = self._stage(stage)
        energy, moments, corrective = evaluated
        n = energy.shape[0]
        bones = self.bones(state.poses, shape)
        total = energy + _extra_energy(stage, bones.positions, joint_targets, state.poses)
        better = active & (total <= state.best_energy)
        worse = active & ~better
        _keep(state.best_energy, better, total)
        _keep(state.best_poses, better, state.poses)
        flat = moments.permute(2, 0, 1).to(torch.float64)
        _keep(state.best_moments, better, flat)
        _keep(state.best_corrective, better, corrective.T.to(torch.float64))
        state.failures.add_(worse.to(torch.int64))
        _keep(state.damping, worse, (30.0 * state.damping).clamp(min=1e-3))
        search = _Search(
            self,
            stage,
            free,
            shape,
            pair_moments,
            joint_targets,
            state.best_moments.view(n, 24, 3, 4),
            state.best_corrective,
            state.best_poses,
        )
        damping, steps, poses = search.run(max_steps, tolerance, state.damping, active)
        _keep(state.damping, active, damping)
        _keep(state.poses, active, poses)
        state.steps.add_(torch.where(active, steps, 0))
        moved = (state.poses - state.best_poses).abs().amax(dim=1)
        _keep(state.step_size, active, moved)


class _Search:
    """Levenberg-Marquardt on the model around `start`, all rows side by side."""

    def __init__(
        self,
        kernels: TorchKernels,
        stage: StageTables,
        free: Tensor,
        shape: Identity,
        pair_moments: Tensor,
        joint_targets: Tensor,
        moments: Tensor,
        corrective: Tensor,
        start: Tensor,
    ) -> None:
        self.kernels, self.stage, self.free, self.shape = kernels, stage, free, shape
        self.joint_targets, self.moments, self.start = joint_targets, moments, start
        self.blocks = _unpacked(pair_moments)
        n = start.shape[0]
        self.corrective = corrective.view(n, 23, 3, 3)
        self.bones = kernels.bones(start, shape)
        self.transforms0 = self.bones.transforms(shape.joints)
        self.features0 = kernels._features(self.bones.local)
        ones = shape.joints.new_ones(n, 24, 1)
        self.homogeneous = torch.cat([shape.joints, ones], dim=2)
        self.owner = kernels.skeleton.joint_of_parameter

    def run(
        self, max_steps: int, tolerance: float, damping: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns damping (n,), steps (n,), poses (n,49)."""
        n = self.start.shape[0]
        poses, bones, damping = self.start.clone(), self.bones, damping.clone()
        product = torch.zeros_like(self.transforms0)
        energy = _extra_energy(self.stage, bones.positions, self.joint_targets, poses)
        steps = torch.zeros(n, dtype=torch.int64, device=poses.device)
        largest = torch.full_like(energy, torch.inf)
        curvature = poses.new_zeros(n, PARAMETERS, PARAMETERS)
        running = active.clone()
        for _ in range(max_steps):
            if self.kernels._on_host() and not running.any():
                break
            transforms = bones.transforms(self.shape.joints)
            gradient = self._gradient(bones, transforms, product, poses)
            fresh = running & (largest > FRESH_CURVATURE)
            if not self.kernels._on_host() or fresh.any():
                made = self._curvature(bones, transforms)
                curvature = torch.where(fresh[:, None, None], made, curvature)
            steps = steps + running.to(torch.int64)
            trying, accepted = running.clone(), torch.zeros_like(running)
            moved_poses, moved_energy, moved_product = poses, energy, product
            for _ in range(_TRIES):
                if self.kernels._on_host() and not trying.any():
                    break
                step = self._step(poses, curvature, gradient, damping)
                largest = torch.where(trying, step.abs().amax(dim=1), largest)
                trial = poses + step
                trial_energy, trial_product = self._model(trial)
                good = trying & (trial_energy <= energy)
                moved_poses = torch.where(good[:, None], trial, moved_poses)
                moved_energy = torch.where(good, trial_energy, moved_energy)
                moved_product = torch.where(good[:, None, None, None], trial_product, moved_product)
                easier = (0.2 * damping).clamp(min=1e-8)
                harder = (10.0 * damping).clamp(min=1e-5, max=1e4)
                damping = torch.where(good, easier, torch.where(trying, harder, damping))
                accepted = accepted | good
                trying = trying & ~good & (largest >= 0.1 * tolerance)
            poses, energy, product = moved_poses, moved_energy, moved_product
            bones = self.kernels.bones(poses, self.shape)
            running = running & accepted & (largest >= tolerance)
        return damping, steps, poses

    def _model(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Model objective (n,) up to a constant, and change M (n,24,3,4)."""
        bones = self.kernels.bones(poses, self.shape)
        change = bones.transforms(self.shape.joints) - self.transforms0
        product = self._times_moments(change)
        value = (change * (product + 2.0 * self.moments)).sum(dim=(1, 2, 3))
        turned = self.kernels._features(bones.local) - self.features0
        value = value + 2.0 * (self.corrective.flatten(1) * turned).sum(dim=1)
        extra = _extra_energy(self.stage, bones.positions, self.joint_targets, poses)
        return value + extra, product

    def _times_moments(self, change: Tensor) -> Tensor:
        first, second = self.stage.pair_first, self.stage.pair_second
        out = torch.zeros_like(change)
        out.index_add_(1, second, change[:, first] @ self.blocks)
        apart = (first != second).to(change.dtype)[:, None, None]
        out.index_add_(1, first, (change[:, second] @ self.blocks) * apart)
        return out

    def _gradient(self, bones: Bones, transforms: Tensor, product: Tensor, poses: Tensor) -> Tensor:
        """Half the gradient (n,49) of the model objective; 0 where the stage holds still."""
        miss = self.stage.joint_masses[:, None] * (bones.positions - self.joint_targets)
        force = self.moments + product + miss[..., None] * self.homogeneous[:, :, None]
        carried = torch.cat([force @ transforms.transpose(2, 3), force[..., 3:]], dim=3)
        s = (self.kernels.subtree @ carried.flatten(2)).view_as(carried)[:, self.owner]
        axial = torch.stack(
            [
                s[..., 2, 1] - s[..., 1, 2],
                s[..., 0, 2] - s[..., 2, 0],
                s[..., 1, 0] - s[..., 0, 1],
            ],
            dim=-1,
        )
        gradient = (bones.axes * axial).sum(dim=-1) + (bones.shift * s[..., 3]).sum(dim=-1)
        feature = self.kernels.skeleton.feature_of_joint[self.owner[:46]]
        pushed = self.corrective[:, feature.clamp(min=0)]
        turned = pushed @ bones.local[:, self.owner[:46]].transpose(2, 3)
        spin = torch.stack(
            [
                turned[..., 2, 1] - turned[..., 1, 2],
                turned[..., 0, 2] - turned[..., 2, 0],
                turned[..., 1, 0] - turned[..., 0, 1],
            ],
            dim=-1,
        )
        exact = torch.where(feature >= 0, (bones.local_axes * spin).sum(dim=-1), 0.0)
        gradient = torch.cat([gradient[:, :46] + exact, gradient[:, 46:]], dim=1)
        return torch.where(self.stage.free, gradient + self.stage.prior * poses, 0.0)

    def _curvature(self, bones: Bones, transforms: Tensor) -> Tensor:
        """Half the Gauss-Newton matrix (n,49,49) from subtree second moments."""
        n, first, second = transforms.shape[0], self.stage.pair_first, self.stage.pair_second
        last = transforms.new_zeros(n, 24, 1, 4)
        last[..., 3] = 1.0
        full = torch.cat([transforms, last], dim=2)
        joint = self.homogeneous[..., None] * self.homogeneous[:, :, None]
        joint = joint * self.stage.joint_masses[:, None, None]
        same = (first == second).to(transforms.dtype)[:, None, None]
        blocks = self.blocks + joint[:, first] * same
        made = full[:, first] @ blocks @ full[:, second].transpose(2, 3)
        pairs = transforms.new_zeros(n, 24 * 24, 4, 4)
        pairs[:, first * 24 + second] = made
        pairs[:, second * 24 + first] = made.transpose(2, 3)
        rows = self.kernels.subtree @ pairs.view(n, 24, 24 * 16)
        u = self.kernels.subtree @ rows.view(n, 24, 24, 16)
        free = self.free
        owner = self.owner[free]
        b = u.view(n, 24, 24, 4, 4)[:, :, owner]  # (n, 24, free, 4, 4)
        axes, shift = bones.axes[:, free], bones.shift[:, free]
        a, e = axes[:, None].expand(-1, 24, -1, -1), shift[:, None].expand(-1, 24, -1, -1)
        force = torch.linalg.cross(a, b[..., 3, :3]) + e * b[..., 3, 3:]
        trace = b[..., 0, 0] + b[..., 1, 1] + b[..., 2, 2]
        torque = a * trace[..., None] - (b[..., :3, :3].transpose(3, 4) @ a[..., None])[..., 0]
        torque = torque + torch.linalg.cross(b[..., :3, 3], e)
        matrix = (axes[:, :, None] * torque[:, owner]).sum(dim=-1)
        matrix = matrix + (shift[:, :, None] * force[:, owner]).sum(dim=-1)
        matrix = torch.tril(matrix.transpose(1, 2))
        matrix = matrix + torch.tril(matrix, -1).transpose(1, 2)
        out = matrix.new_zeros(n, PARAMETERS, PARAMETERS)
        out[:, free[:, None], free] = matrix + torch.diag(self.stage.prior[free])
        return out

    def _step(self, poses: Tensor, curvature: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
        """Damped step inside the limits: what would cross a bound is set to it, the others are
        solved once more."""
        lower, upper = self.stage.lower, self.stage.upper
        outward = ((poses <= lower) & (gradient > 0)) | ((poses >= upper) & (gradient < 0))
        held = outward | ~self.stage.free
        step = torch.zeros_like(poses)
        diagonal = curvature.diagonal(dim1=1, dim2=2)
        damped = curvature + torch.diag_embed(damping[:, None] * (diagonal + 1e-9))
        shifted = gradient
        for _ in range(_ACTIVE_SET_PASSES):
            keep = (~held).to(poses.dtype)
            matrix = damped * keep[:, :, None] * keep[:, None, :] + torch.diag_embed(1.0 - keep)
            factor, _ = torch.linalg.cholesky_ex(matrix)
            solved = torch.cholesky_solve((-shifted * keep)[..., None], factor)[..., 0]
            step = torch.where(held, step, solved)
            bounded = torch.minimum(torch.maximum(poses + step, lower), upper) - poses
            crossed = (poses + step != poses + bounded) & ~held
            step = torch.where(crossed, bounded, step)
            held = held | crossed
            placed = torch.where(crossed, bounded, 0.0)
            shifted = shifted + (curvature @ placed[..., None])[..., 0]
            if self.kernels._on_host() and not crossed.any():
                break
        step = torch.minimum(torch.maximum(poses + step, lower), upper) - poses
        return torch.where(self.stage.free, step, 0.0)


def _keep(mine: Tensor, rows: Tensor, theirs: Tensor) -> None:
    """mine[rows] = theirs[rows], without leaving the device."""
    mask = rows.view(-1, *([1] * (mine.ndim - 1)))
    mine.copy_(torch.where(mask, theirs, mine))


def _extra_energy(
    stage: StageTables, positions: Tensor, joint_targets: Tensor, poses: Tensor
) -> Tensor:
    joints = stage.joint_masses[:, None] * (positions - joint_targets).square()
    return (stage.prior * poses.square()).sum(dim=1) + joints.sum(dim=(1, 2))


def _unpacked(pair_moments: Tensor) -> Tensor:
    """(n,P,4,4) symmetric blocks from xx xy xz x1 yy yz y1 zz z1 11."""
    places = torch.tensor([0, 1, 2, 3, 1, 4, 5, 6, 2, 5, 7, 8, 3, 6, 8, 9])
    return pair_moments[..., places.to(pair_moments.device)].unflatten(-1, (4, 4))


def _arc(length: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """End of a constant-curvature arc and its derivative: X, Y, dX, dY (skel-model.md 3.6)."""
    small = angle.abs() < _SMALL_ARC
    t2 = angle * angle
    t = torch.where(small, torch.ones_like(angle), angle)
    c, s = torch.cos(t), torch.sin(t)
    x = torch.where(small, angle * (0.5 - t2 / 24.0 + t2 * t2 / 720.0), (1.0 - c) / t)
    y = torch.where(small, 1.0 - t2 / 6.0 + t2 * t2 / 120.0, s / t)
    dx = torch.where(small, 0.5 - t2 / 8.0 + t2 * t2 / 144.0, (t * s - (1.0 - c)) / (t * t))
    dy = torch.where(
        small, angle * (-1.0 / 3.0 + t2 / 30.0 - t2 * t2 / 840.0), (t * c - s) / (t * t)
    )
    return length * x, length * y, length * dx, length * dy


def _minimal_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Minimal rotations (n,24,3,3) from source (24,3) to target (n,24,3); identity if undefined."""
    source_length, target_length = source.norm(dim=-1), target.norm(dim=-1)
    defined = (source_length > 0) & (target_length > 0)
    a = source / torch.where(source_length > 0, source_length, 1.0)[:, None]
    b = target / torch.where(target_length > 0, target_length, 1.0)[..., None]
    v = torch.linalg.cross(a.expand_as(b), b)
    c = (a * b).sum(dim=-1)
    s = v.norm(dim=-1) + 2.2204e-16
    cross = torch.zeros(*b.shape, 3, dtype=b.dtype, device=b.device)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    cross = cross - cross.transpose(-1, -2)
    eye = torch.eye(3, dtype=b.dtype, device=b.device)
    made = eye + cross + (cross @ cross) * ((1.0 - c) / (s * s))[..., None, None]
    return torch.where(defined[..., None, None], made, eye)


def _chain(
    local: Tensor, offsets: Tensor, parents: list[int], levels: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """World rotations (n,24,3,3) and positions (n,24,3) from local ones, a tree level at a time."""
    rotations, positions = torch.empty_like(local), torch.empty_like(offsets)
    rotations[:, 0], positions[:, 0] = local[:, 0], offsets[:, 0]
    for joints in levels[1:]:
        above = [parents[j] for j in joints]
        turned = rotations[:, above]
        rotations[:, joints] = turned @ local[:, joints]
        moved = (turned @ offsets[:, joints, :, None])[..., 0]
        positions[:, joints] = positions[:, above] + moved
    return rotations, positions


def _levels(parents: list[int]) -> list[list[int]]:
    """Joints by their depth in the tree."""
    depth = [0] * len(parents)
    for j, p in enumerate(parents):
        depth[j] = depth[p] + 1 if p >= 0 else 0
    return [[j for j, d in enumerate(depth) if d == k] for k in range(max(depth) + 1)]


def _owners(skeleton: Skeleton) -> list[int]:
    return [int(j) for j in skeleton.joint_of_parameter[:46]]


def _wrap(angle: Tensor) -> Tensor:
    """The angle in (-pi, pi]."""
    turn = 2.0 * math.pi
    return angle - turn * torch.ceil((angle - math.pi) / turn)


def _violation(angles: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum of squared excess over the limits, (n,)."""
    excess = torch.maximum(low - angles, angles - high).clamp(min=0.0)
    return excess.square().sum(dim=1)
