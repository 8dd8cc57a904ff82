"""The inner solver in plain tensor operations: Levenberg-Marquardt on 24 bone transforms.

The vertices enter through moments only (docs/solver.md). All rows walk side by side and never mix.
Compiled twin: `numba_minimise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.kinematics import Bones, Identity, skinning_transforms
from skel_fit.rotations import axial
from skel_fit.solver.box_step import Box, dense_step
from skel_fit.solver.curvature import Curvature, Pairs, Twists
from skel_fit.solver.tables import StageTables

FRESH_CURVATURE = 0.1
_TRIES = 6


@dataclass(frozen=True)
class Search:
    """The model of n rows around `start`: what it takes to evaluate it and to step."""

    curvature_of: Curvature
    bones_of: Callable[[Tensor, Identity], Bones]
    features_of: Callable[[Tensor], Tensor]
    feature_of_joint: Tensor  # (24,) place of the joint's correctives, -1: none
    owner: Tensor  # (49,) joint of each parameter
    pairs: Pairs
    stage: StageTables[Tensor]  # on the device
    free: Tensor  # (f,) numbers of the parameters that move
    shape: Identity[Tensor]
    blocks: Tensor  # (n,P,4,4) pair moments
    joint_targets: Tensor  # (n,24,3) m
    moments: Tensor  # (n,24,3,4) of the residual at `start`
    corrective: Tensor  # (n,207) its pull on the correctives
    start: Tensor  # (n,49)

    @cached_property
    def bones(self) -> Bones:
        """Kinematics at `start`."""
        return self.bones_of(self.start, self.shape)

    @cached_property
    def start_transforms(self) -> Tensor:
        """(n,24,3,4) skinning transforms at `start`."""
        return self._transforms(self.bones)

    @cached_property
    def start_features(self) -> Tensor:
        """(n,207) at `start`."""
        return self.features_of(self.bones.local)

    @cached_property
    def _homogeneous(self) -> Tensor:
        """(n,24,4) rest joints and 1."""
        joints = self.shape.joints
        return torch.cat([joints, joints.new_ones(*joints.shape[:2], 1)], dim=2)

    @property
    def _box(self) -> Box:
        return Box(self.stage.lower, self.stage.upper, self.stage.free)

    @property
    def _on_host(self) -> bool:
        return self.start.device.type == "cpu"

    def _transforms(self, bones: Bones) -> Tensor:
        return skinning_transforms(bones.rotations, bones.positions, self.shape.joints)

    def run(
        self, max_steps: int, tolerance: float, damping: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns damping (n,), steps (n,), poses (n,49)."""
        n = self.start.shape[0]
        poses, bones, damping = self.start.clone(), self.bones, damping.clone()
        product = torch.zeros_like(self.start_transforms)
        energy = extra_energy(self.stage, bones.positions, self.joint_targets, poses)
        steps = torch.zeros(n, dtype=torch.int64, device=poses.device)
        largest = torch.full_like(energy, torch.inf)
        curvature = poses.new_zeros(n, NUM_PARAMETERS, NUM_PARAMETERS)
        running = active.clone()
        for _ in range(max_steps):
            if self._on_host and not running.any():
                break
            transforms = self._transforms(bones)
            gradient = self.gradient(bones, transforms, product, poses)
            fresh = running & (largest > FRESH_CURVATURE)
            if not self._on_host or fresh.any():
                made = self.curvature(bones, transforms)
                curvature = torch.where(fresh[:, None, None], made, curvature)
            steps = steps + running.to(torch.int64)
            trying, accepted = running.clone(), torch.zeros_like(running)
            moved_poses, moved_energy, moved_product = poses, energy, product
            for _ in range(_TRIES):
                if self._on_host and not trying.any():
                    break
                step = dense_step(poses, gradient, curvature, damping, self._box)
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
            bones = self.bones_of(poses, self.shape)
            running = running & accepted & (largest >= tolerance)
        return damping, steps, poses

    def _model(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Model objective (n,) up to a constant, and change M (n,24,3,4)."""
        bones = self.bones_of(poses, self.shape)
        change = self._transforms(bones) - self.start_transforms
        product = self._times_moments(change)
        value = (change * (product + 2.0 * self.moments)).sum(dim=(1, 2, 3))
        turned = self.features_of(bones.local) - self.start_features
        value = value + 2.0 * (self.corrective * turned).sum(dim=1)
        extra = extra_energy(self.stage, bones.positions, self.joint_targets, poses)
        return value + extra, product

    def _times_moments(self, change: Tensor) -> Tensor:
        first, second = self.stage.pair_first, self.stage.pair_second
        out = torch.zeros_like(change)
        out.index_add_(1, second, change[:, first] @ self.blocks)
        apart = (first != second).to(change.dtype)[:, None, None]
        out.index_add_(1, first, (change[:, second] @ self.blocks) * apart)
        return out

    def gradient(self, bones: Bones, transforms: Tensor, product: Tensor, poses: Tensor) -> Tensor:
        """Half the gradient (n,49) of the model objective; 0 where the stage holds still."""
        miss = self.stage.joint_masses[:, None] * (bones.positions - self.joint_targets)
        force = self.moments + product + miss[..., None] * self._homogeneous[:, :, None]
        carried = torch.cat([force @ transforms.transpose(2, 3), force[..., 3:]], dim=3)
        s = (self.pairs.subtree @ carried.flatten(2)).view_as(carried)[:, self.owner]
        gradient = (bones.axes * axial(s)).sum(dim=-1) + (bones.shift * s[..., 3]).sum(dim=-1)
        feature = self.feature_of_joint[self.owner[:46]]
        pushed = self.corrective.view(-1, 23, 3, 3)[:, feature.clamp(min=0)]
        turned = pushed @ bones.local[:, self.owner[:46]].transpose(2, 3)
        exact = torch.where(feature >= 0, (bones.local_axes * axial(turned)).sum(dim=-1), 0.0)
        gradient = torch.cat([gradient[:, :46] + exact, gradient[:, 46:]], dim=1)
        return torch.where(self.stage.free, gradient + self.stage.prior * poses, 0.0)

    def curvature(self, bones: Bones, transforms: Tensor) -> Tensor:
        """Half the Gauss-Newton matrix (n,49,49) from subtree second moments."""
        joint = self._homogeneous[..., None] * self._homogeneous[:, :, None]
        joint = joint * self.stage.joint_masses[:, None, None]
        same = (self.pairs.first == self.pairs.second).to(transforms.dtype)[:, None, None]
        blocks = self.blocks + joint[:, self.pairs.first] * same
        free = self.free
        own = Twists(bones.axes[:, free], bones.shift[:, free], transforms)
        matrix = self.curvature_of(own, own, blocks, self.pairs, self.owner[free])
        matrix = torch.tril(matrix.transpose(1, 2))
        matrix = matrix + torch.tril(matrix, -1).transpose(1, 2)
        out = matrix.new_zeros(transforms.shape[0], NUM_PARAMETERS, NUM_PARAMETERS)
        out[:, free[:, None], free] = matrix + torch.diag(self.stage.prior[free])
        return out


def extra_energy(
    stage: StageTables[Tensor], positions: Tensor, joint_targets: Tensor, poses: Tensor
) -> Tensor:
    """Joint and prior terms (n,) of the objective, m^2."""
    joints = stage.joint_masses[:, None] * (positions - joint_targets).square()
    return (stage.prior * poses.square()).sum(dim=1) + joints.sum(dim=(1, 2))
