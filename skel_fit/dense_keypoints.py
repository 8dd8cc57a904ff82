"""The slow twin of the fit to points: the same objective by automatic differentiation, float64.

Plain on purpose, on `SKEL`'s own kinematics and skin: tests compare the kernels with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skel_fit.body_points import SKIN, BodyPoints
from skel_fit.keypoint_fit import Problem
from skel_fit.kinematics import skinning_transforms
from skel_fit.skel import SKEL
from skel_fit.solver.box_step import Box, dense_step


@dataclass(frozen=True)
class DensePoints:
    """The objective of a `Problem` for its rows. unknowns are (n, 59): 46 angles, translation,
    10 betas."""

    skel: SKEL  # float64
    points: BodyPoints
    problem: Problem

    def places(self, unknowns: Tensor) -> Tensor:
        """(n, K, 3) points of the body, m."""
        poses, trans, betas = unknowns.split((46, 3, 10), dim=1)
        identity = self.skel.shape(betas)
        rotations, positions, local = self.skel.bone_transforms(poses, identity)
        positions = positions + trans[:, None]
        used = torch.as_tensor(np.flatnonzero(self.points.skin.any(0)))
        directions = self.skel.posedirs[used].flatten(0, 1)
        offsets = self.skel.pose_features(local) @ directions.T
        rest_skin = identity.vertices[:, used]
        skin = rest_skin + offsets.view(len(poses), -1, 3)
        maps = torch.einsum(
            "vj,njab->nvab",
            self.skel.skin_weights[used],
            skinning_transforms(rotations, positions, identity.joints),
        )
        skin = (maps[..., :3] @ skin[..., None])[..., 0] + maps[..., 3]
        found = []
        for k in range(len(self.points)):
            weights = torch.as_tensor(self.points.skin[k])[used]
            centres = torch.as_tensor(self.points.joints[k])
            bone = int(self.points.bone[k])
            if bone == SKIN:
                found.append(torch.einsum("v,nvc->nc", weights, skin))
                continue
            rest = torch.einsum("v,nvc->nc", weights, rest_skin)
            rest = rest + torch.einsum("j,njc->nc", centres, identity.joints)
            arm = rest - identity.joints[:, bone] + torch.as_tensor(self.points.shifts[k])
            found.append((rotations[:, bone] @ arm[..., None])[..., 0] + positions[:, bone])
        return torch.stack(found, dim=1)

    def distances(self, unknowns: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Residuals in standard deviations (n, V, K, 2) of pixels, (n, K, 3) of 3D points and
        (n, S, 3) of ways between them, each with its weights (n, V, K), (n, K), (n, S)."""
        places, seen = self.places(unknowns), self.problem.seen
        pixels, weights, lenses, turns, shifts, spots, spot_weights = (
            torch.as_tensor(part)
            for part in (
                seen.pixels, seen.weights, seen.lenses, seen.turns, seen.shifts, seen.places,
                seen.place_weights,
            )
        )  # fmt: skip
        camera = torch.einsum("nvab,nkb->nvka", turns, places) + shifts[:, :, None]
        x, y, z = camera.unbind(-1)
        fx, fy, cx, cy, skew = lenses[:, :, None].unbind(-1)
        flat = torch.stack(((fx * x + skew * y) / z + cx, fy * y / z + cy), dim=-1)
        away = (flat - pixels) / torch.as_tensor(seen.sigmas)[:, :, None, None]
        first, last = torch.as_tensor(self.points.spans).T
        ways = places[:, last] - places[:, first] - torch.as_tensor(seen.spans)
        origin = torch.as_tensor(self.points.origin)
        if seen.relative:
            places = places - torch.einsum("k,nkc->nc", origin, places)[:, None]
        return (
            (away, weights),
            ((places - spots) / seen.place_sigma, spot_weights),
            (ways / seen.span_sigma, torch.as_tensor(seen.span_weights)),
        )

    def objective(self, unknowns: Tensor) -> Tensor:
        """(n,) the objective."""
        squared = self.problem.config.cauchy**2
        total = self._priors(unknowns)
        for value, weight in self.distances(unknowns):
            robust = squared * torch.log1p(value.square().sum(-1) / squared)
            # where nothing is seen the residual may be anything
            total = total + torch.where(weight > 0, weight * robust, 0.0).flatten(1).sum(1)
        return total

    def _priors(self, unknowns: Tensor) -> Tensor:
        beliefs = self.problem.beliefs
        away = unknowns[:, 3:46] - torch.as_tensor(beliefs.pose_mean)
        shape = unknowns[:, 49:] - torch.as_tensor(beliefs.shape_mean)
        pose = (away @ torch.as_tensor(beliefs.pose_precision) * away).sum(1)
        return pose + beliefs.shape_precision * shape.square().sum(1)

    def gradient(self, unknowns: Tensor) -> Tensor:
        """(n, 59) exact gradient by reverse mode."""
        variable = unknowns.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.objective(variable).sum(), variable)
        return gradient

    def minimise(self, unknowns: Tensor, steps: int = 60) -> tuple[Tensor, Tensor]:
        """Projected Levenberg-Marquardt with the full Jacobian, per row. Returns unknowns (n, 59)
        and the objective (n,)."""
        beliefs = self.problem.beliefs
        box = Box(*(torch.as_tensor(part) for part in (beliefs.lower, beliefs.upper, beliefs.free)))
        at = box.clamp(unknowns)
        energy, damping = self.objective(at), torch.full((len(at),), 1e-3, dtype=at.dtype)
        for _ in range(steps):
            gradient, hessian = self.gradient(at) / 2.0, self._gauss_newton(at)
            step = dense_step(at, gradient, hessian, damping, box)
            trial = self.objective(at + step)
            better = trial <= energy
            at = torch.where(better[:, None], at + step, at)
            energy = torch.where(better, trial, energy)
            damping = torch.where(better, (0.3 * damping).clamp(min=1e-9), 8.0 * damping)
            if (step.abs().amax(1) < 1e-8).all():
                break
        return at, energy

    def _gauss_newton(self, at: Tensor) -> Tensor:
        """(n, 59, 59) half the Gauss-Newton matrix, robust weights at this place."""
        squared = self.problem.config.cauchy**2
        roots = [
            (weight / (1.0 + value.square().sum(-1) / squared)).sqrt()[..., None]
            for value, weight in self.distances(at)
        ]

        def residuals(unknowns: Tensor) -> Tensor:
            found = zip(roots, self.distances(unknowns), strict=True)
            return torch.cat([(root * value).flatten(1) for root, (value, _) in found], dim=1)

        columns = []
        for d in range(at.shape[1]):
            tangent = torch.zeros_like(at)
            tangent[:, d] = 1.0
            columns.append(torch.func.jvp(residuals, (at,), (tangent,))[1])
        jacobian = torch.stack(columns, dim=2)
        hessian = jacobian.transpose(1, 2) @ jacobian
        beliefs = self.problem.beliefs
        hessian[:, 3:46, 3:46] += torch.as_tensor(beliefs.pose_precision)
        hessian[:, 49:, 49:] += beliefs.shape_precision * torch.eye(10, dtype=at.dtype)
        return hessian
