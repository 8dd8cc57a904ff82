"""The slow twin: the same objective over all vertices by automatic differentiation.

Plain and obvious on purpose, float64, written on `SKEL`'s own kinematics. Tests compare the
reduced solver with it; benchmarks use it for the best known optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skel_fit.kinematics import skinning_transforms
from skel_fit.skel import SKEL, SkelIdentity
from skel_fit.solver.blocks import GoalOf
from skel_fit.solver.box_step import Box, dense_step
from skel_fit.solver.engine import Solver
from skel_fit.solver.plans import StagePlan


@dataclass(frozen=True)
class DenseProblem:
    """A stage's objective for n rows. poses are (n, 49): 46 angles and a root translation."""

    skel: SKEL  # float64
    plan: StagePlan
    identity: SkelIdentity
    targets: Tensor  # (n, V, 3) m, root frame, the stage's vertices
    joint_targets: Tensor  # (n, 24, 3) m

    @staticmethod
    def of(skel: SKEL, solver: Solver, stage: int, goal: GoalOf, betas: Tensor) -> DenseProblem:
        """The problem that `solver` poses in one of its stages. skel: float64; betas (n,10)."""
        plan = solver.plans[stage]
        targets = solver.surface(goal, betas.shape[0]).double()
        joints = solver.joint_regressor.double() @ targets
        chosen = targets[:, torch.as_tensor(plan.vertices.indices)]
        return DenseProblem(skel, plan, skel.shape(betas), chosen, joints)

    def rows(self, index: Tensor) -> DenseProblem:
        """Some rows of the problem."""
        return DenseProblem(
            self.skel,
            self.plan,
            self.identity.rows(index),
            self.targets[index],
            self.joint_targets[index],
        )

    def offsets(self, poses: Tensor) -> Tensor:
        """(n, V, 3) pose-corrective offsets."""
        local = self.skel.bone_transforms(poses[:, :46], self.identity)[2]
        flat = self.skel.pose_features(local) @ self._basis
        return flat.view(poses.shape[0], -1, 3)

    @cached_property
    def _basis(self) -> Tensor:
        """(207, 3V) pose correctives of the stage's vertices."""
        chosen = self.skel.posedirs[torch.as_tensor(self.plan.vertices.indices)]
        return chosen.flatten(0, 1).T.contiguous()

    @cached_property
    def _weights(self) -> Tensor:
        """(V, 24) skinning weights of the stage's vertices."""
        return self.skel.skin_weights[torch.as_tensor(self.plan.vertices.indices)]

    def points(self, poses: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Skin vertices (n, V, 3) and joints (n, 24, 3) with the given offsets."""
        rotations, positions, _ = self.skel.bone_transforms(poses[:, :46], self.identity)
        positions = positions + poses[:, None, 46:49]
        chosen = torch.as_tensor(self.plan.vertices.indices)
        shaped = self.identity.vertices[:, chosen] + offsets
        shift = skinning_transforms(rotations, positions, self.identity.joints)[..., 3]
        rows = []
        for i in range(3):  # a component at a time: no (n, V, 3, 4) tensor
            total = shift[:, :, i] @ self._weights.T
            for c in range(3):
                total = total + (rotations[:, :, i, c] @ self._weights.T) * shaped[..., c]
            rows.append(total)
        posed = torch.stack(rows, dim=-1)
        return posed, positions

    def residuals(self, poses: Tensor, offsets: Tensor | None = None) -> Tensor:
        """(n, 3V + 72 + 49) weighted residuals; the objective is their sum of squares."""
        posed, joints = self.points(poses, self.offsets(poses) if offsets is None else offsets)
        masses = torch.as_tensor(self.plan.vertices.masses, dtype=poses.dtype)
        joint_masses = torch.as_tensor(self.plan.tables.joint_masses)
        prior = torch.as_tensor(self.plan.tables.prior)
        return torch.cat(
            [
                (masses.sqrt()[:, None] * (posed - self.targets)).flatten(1),
                (joint_masses.sqrt()[:, None] * (joints - self.joint_targets)).flatten(1),
                prior.sqrt() * poses,
            ],
            dim=1,
        )

    def objective(self, poses: Tensor) -> Tensor:
        """(n,) objective, m^2."""
        return self.residuals(poses).square().sum(dim=1)

    def gradient(self, poses: Tensor) -> Tensor:
        """(n, 49) exact gradient by reverse mode, zero where the stage holds a parameter."""
        variable = poses.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.objective(variable).sum(), variable)
        return gradient * torch.as_tensor(self.plan.tables.free)

    def jacobian(self, poses: Tensor, freeze_offsets: bool) -> Tensor:
        """(n, 49, residuals): derivative of `residuals` by forward mode, one parameter a pass."""
        offsets = self.offsets(poses) if freeze_offsets else None
        columns = []
        for d in range(poses.shape[1]):
            tangent = torch.zeros_like(poses)
            tangent[:, d] = float(self.plan.tables.free[d])
            moved = torch.func.jvp(lambda q: self.residuals(q, offsets), (poses,), (tangent,))
            columns.append(moved[1])
        return torch.stack(columns, dim=1)

    def minimise(
        self, poses: Tensor, steps: int = 60, tolerance: float = 1e-8
    ) -> tuple[Tensor, Tensor]:
        """Projected Levenberg-Marquardt with the full Jacobian, per row, to convergence.

        Returns poses (n, 49) and the objective (n,)."""
        tables = self.plan.tables
        lower, upper, free = map(torch.as_tensor, (tables.lower, tables.upper, tables.free))
        box = Box(lower, upper, free)
        poses = box.clamp(poses)
        energy = self.objective(poses)
        damping = torch.full_like(energy, 1e-4)
        for _ in range(steps):
            jacobian = self.jacobian(poses, freeze_offsets=False)
            gradient = (jacobian @ self.residuals(poses)[:, :, None])[:, :, 0]
            hessian = jacobian @ jacobian.transpose(1, 2)
            moved = torch.zeros_like(energy)
            for _ in range(4):
                step = dense_step(poses, gradient, hessian, damping, box)
                trial = self.objective(poses + step)
                better = trial <= energy
                poses = torch.where(better[:, None], poses + step, poses)
                moved = torch.where(better, torch.maximum(moved, step.abs().amax(dim=1)), moved)
                energy = torch.where(better, trial, energy)
                damping = torch.where(better, (0.2 * damping).clamp(min=1e-9), damping * 10)
                if better.all():
                    break
            if (moved < tolerance).all():
                break
        return poses, energy
