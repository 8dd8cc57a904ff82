"""Covariance of the angles at an optimum: H^-1 J^T C J H^-1, plain torch (docs/solver.md).

The residual model C = F F^T + noise never meets the vertices: a field F_f enters as the wrench that
it exerts on each bone, in that bone's frame, and its pull on the pose correctives; J^T F then is a
sum over subtrees, as the solver's gradient. Compiled twin: `numba_sandwich`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from skel_fit.kinematics import Bones
from skel_fit.rotations import axial
from skel_fit.solver.kernels_torch import TorchKernels

RIDGE = 1e-9
"""m^2/rad^2 on every angle: at gimbal lock two angles have no curvature of their own."""


class Fields(NamedTuple):
    """What K residual fields do to the bones; mass-weighted means, m and m^2, float64."""

    wrenches: Tensor  # (K,24,6) force, torque about the bone's joint; axes of the bone
    pulls: Tensor  # (K,207) on the pose correctives


class Sandwich(NamedTuple):
    """Of n rows and 49 parameters; 0 where a parameter is held."""

    variance: Tensor  # (n,49) rad^2, m^2
    share: Tensor  # (n,49) of the curvature with all others free that the data carry


def wrenches(moments: Tensor, bones: Bones, joints: Tensor) -> Tensor:
    """(n,24,6) as in `Fields` from the moments (n,24,12) of `residual_moments` at posed `bones`
    with rest joints (n,24,3)."""
    turned = bones.rotations.transpose(2, 3) @ moments.view(-1, 24, 3, 4)
    force = turned[..., 3]
    torque = axial(turned[..., :3]) - torch.linalg.cross(joints, force)
    return torch.cat([force, torque], dim=2)


def scores(kernels: TorchKernels, bones: Bones, fields: Fields) -> Tensor:
    """J^T F (n,49,K), mass-weighted, of n posed rows."""
    owner = kernels.skeleton.joint_of_parameter
    rotations, positions = bones.rotations, bones.positions
    force = torch.einsum("nbij,kbj->nbki", rotations, fields.wrenches[..., :3])
    torque = torch.einsum("nbij,kbj->nbki", rotations, fields.wrenches[..., 3:])
    torque = torque + torch.linalg.cross(positions[:, :, None].expand_as(force), force)
    below = [torch.einsum("ab,nbki->naki", kernels.subtree, part) for part in (torque, force)]
    found = torch.einsum("npi,npki->npk", bones.axes, below[0][:, owner])
    found = found + torch.einsum("npi,npki->npk", bones.shift, below[1][:, owner])
    feature = kernels.skeleton.feature_of_joint[owner[:46]]
    pushed = fields.pulls.view(-1, 23, 3, 3)[:, feature.clamp(min=0)]  # (K,46,3,3)
    turns = torch.linalg.cross(
        bones.local_axes[..., None].expand(-1, -1, 3, 3), bones.local[:, owner[:46]], dim=2
    )
    exact = torch.einsum("npij,kpij->npk", turns, pushed)
    exact = torch.where((feature >= 0)[:, None], exact, 0.0)
    return torch.cat([found[:, :46] + exact, found[:, 46:]], dim=1)


def sandwich(hessian: Tensor, prior: Tensor, found: Tensor, noise: float, free: Tensor) -> Sandwich:
    """From the Gauss-Newton matrix (n,49,49) with prior (49,), J^T F (n,49,K), the variance of
    noise that is independent from vertex to vertex, m^2 / vertices, and which are free (49,)."""
    chosen = torch.nonzero(free)[:, 0]
    prior = prior[chosen] + RIDGE
    matrix = hessian[:, chosen][:, :, chosen] + RIDGE * torch.eye(len(chosen)).to(hessian)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    own = inverse.diagonal(dim1=1, dim2=2)
    from_prior = (inverse.square() * prior).sum(dim=2)
    variance = (inverse @ found[:, chosen]).square().sum(dim=2) + noise * (own - from_prior)
    out = Sandwich(*(hessian.new_zeros(hessian.shape[:2]) for _ in Sandwich._fields))
    out.variance[:, chosen] = variance
    out.share[:, chosen] = 1.0 - from_prior / own
    return out
