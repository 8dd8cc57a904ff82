"""Gauss-Newton matrices from subtree second moments, within a pose and between two.

Sums `Abar_k M_kl Abar_l^T` over the subtrees below two joints (docs/solver.md). For one pose both
transforms are its own; between neighbouring frames of a sequence (docs/sequences.md) the left one
belongs to the first frame and the right one to the second. Compiled twins: of one pose
`numba_minimise.curvature`, of two `numba_smoothing.twist_products`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from skel_fit.kinematics import Bones, skinning_transforms


class Twists(NamedTuple):
    """Motion of n rows' bones by their parameters, in a frame that the rows share."""

    axes: Tensor  # (n,p,3) axis of each angle, 0 for the translation
    shift: Tensor  # (n,p,3) linear part
    transforms: Tensor  # (n,24,3,4) skinning transforms, up to a translation of the whole body

    @staticmethod
    def turned(bones: Bones, joints: Tensor, orient: Tensor) -> Twists:
        """Twists of `bones` with rest joints (n,24,3), turned by orient (n,3,3).

        Where the body stands does not matter: a displacement of a vertex is a free vector.
        """
        transforms = skinning_transforms(bones.rotations, bones.positions, joints)
        return Twists(
            bones.axes @ orient.transpose(1, 2),
            bones.shift @ orient.transpose(1, 2),
            orient[:, None] @ transforms,
        )

    def rows(self, index: slice) -> Twists:
        """The same for some rows."""
        return Twists(*(part[index] for part in self))


class Pairs(NamedTuple):
    """Which bones share vertices, and the tree that their twists act through."""

    first: Tensor  # (P,) bones, first <= second
    second: Tensor  # (P,)
    subtree: Tensor  # (24,24) 1 where the column's bone is below the row's, or is it


def subtree_products(first: Tensor, second: Tensor, blocks: Tensor, pairs: Pairs) -> Tensor:
    """U (n,24,24,4,4): sums over the bones below two joints of Abar_k(first) M_kl Abar_l(second)^T.

    first, second: (n,24,3,4) transforms; blocks: (n,P,4,4) symmetric pair moments M_kl.
    """
    n, k, l = first.shape[0], pairs.first, pairs.second
    own = first is second
    first = _completed(first)
    second = first if own else _completed(second)
    products = first.new_zeros(n, 24 * 24, 4, 4)
    made = first[:, k] @ blocks @ second[:, l].transpose(2, 3)
    products[:, k * 24 + l] = made
    # the same block serves both orders; on the diagonal this writes the same numbers again
    other = made if own else second[:, k] @ blocks @ first[:, l].transpose(2, 3)
    products[:, l * 24 + k] = other.transpose(2, 3)
    below = pairs.subtree @ products.view(n, 24, 24 * 16)
    return (pairs.subtree @ below.view(n, 24, 24, 16)).view(n, 24, 24, 4, 4)


def curvature(first: Twists, second: Twists, blocks: Tensor, pairs: Pairs, owner: Tensor) -> Tensor:
    """J_first^T J_second (n,p,p) of the mass-weighted skin, correctives held.

    owner: (p,) joint of each parameter; blocks as in `subtree_products`.
    """
    u = subtree_products(first.transforms, second.transforms, blocks, pairs)
    b = u[:, :, owner]  # (n, 24, p, 4, 4): joint of the first, parameter of the second
    a = second.axes[:, None].expand(-1, 24, -1, -1)
    e = second.shift[:, None].expand(-1, 24, -1, -1)
    force = torch.linalg.cross(a, b[..., 3, :3]) + e * b[..., 3, 3:]
    trace = b[..., 0, 0] + b[..., 1, 1] + b[..., 2, 2]
    torque = a * trace[..., None] - (b[..., :3, :3].transpose(3, 4) @ a[..., None])[..., 0]
    torque = torque + torch.linalg.cross(b[..., :3, 3], e)
    matrix = (first.axes[:, :, None] * torque[:, owner]).sum(dim=-1)
    return matrix + (first.shift[:, :, None] * force[:, owner]).sum(dim=-1)


Curvature = Callable[[Twists, Twists, Tensor, Pairs, Tensor], Tensor]
"""`curvature`, or its compiled twin."""


def unpacked(pair_moments: Tensor) -> Tensor:
    """(n,P,4,4) symmetric blocks from xx xy xz x1 yy yz y1 zz z1 11."""
    places = torch.tensor([0, 1, 2, 3, 1, 4, 5, 6, 2, 5, 7, 8, 3, 6, 8, 9])
    return pair_moments[..., places.to(pair_moments.device)].unflatten(-1, (4, 4))


def _completed(transforms: Tensor) -> Tensor:
    """(n,24,4,4) with the row 0 0 0 1."""
    last = transforms.new_zeros(*transforms.shape[:2], 1, 4)
    last[..., 3] = 1.0
    return torch.cat([transforms, last], dim=2)
