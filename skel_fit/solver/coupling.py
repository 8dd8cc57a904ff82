"""What couples neighbouring frames of a sequence: cross second moments (docs/sequences.md).

The curvature of docs/solver.md sums `Abar_k M_kl Abar_l^T` over subtrees of one pose; between two
frames the left transform belongs to the first frame and the right one to the second.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from skel_fit.solver.kernels_torch import Bones


class Twists(NamedTuple):
    """Motion of n rows' bones by their parameters, in a frame that the rows share."""

    axes: Tensor  # (n,49,3) axis of each angle, 0 for the translation
    shift: Tensor  # (n,49,3) linear part
    transforms: Tensor  # (n,24,3,4) skinning transforms, up to a translation of the whole body

    @staticmethod
    def of(bones: Bones, joints: Tensor, orient: Tensor) -> Twists:
        """Twists of `bones` with rest joints (n,24,3), turned by orient (n,3,3).

        Where the body stands does not matter: a displacement of a vertex is a free vector.
        """
        return Twists(
            bones.axes @ orient.transpose(1, 2),
            bones.shift @ orient.transpose(1, 2),
            orient[:, None] @ bones.transforms(joints),
        )

    def rows(self, index: slice) -> Twists:
        """The same for some rows."""
        return Twists(*(part[index] for part in self))


def subtree_products(
    first: Tensor, second: Tensor, blocks: Tensor, pairs: tuple[Tensor, Tensor], subtree: Tensor
) -> Tensor:
    """U (n,24,24,4,4): sums over the bones below two joints of Abar_k(first) M_kl Abar_l(second)^T.

    first, second: (n,24,3,4) transforms; blocks: (n,P,4,4) symmetric pair moments M_kl of the bones
    in `pairs` (first <= second); subtree: (24,24), 1 where the column's bone is below the row's.
    """
    n, (k, l) = first.shape[0], pairs
    first, second = _completed(first), _completed(second)
    products = first.new_zeros(n, 24 * 24, 4, 4)
    products[:, k * 24 + l] = first[:, k] @ blocks @ second[:, l].transpose(2, 3)
    # the same block serves both orders; on the diagonal this writes the same numbers again
    products[:, l * 24 + k] = first[:, l] @ blocks @ second[:, k].transpose(2, 3)
    below = subtree @ products.view(n, 24, 24 * 16)
    return (subtree @ below.view(n, 24, 24, 16)).view(n, 24, 24, 4, 4)


def cross_curvature(
    first: Twists,
    second: Twists,
    blocks: Tensor,
    pairs: tuple[Tensor, Tensor],
    subtree: Tensor,
    owner: Tensor,
) -> Tensor:
    """J_first^T J_second (n,49,49) of the mass-weighted skin, correctives held.

    owner: (49,) joint of each parameter; the rest as in `subtree_products`.
    """
    u = subtree_products(first.transforms, second.transforms, blocks, pairs, subtree)
    b = u[:, :, owner]  # (n, 24, 49, 4, 4): joint of the first frame, parameter of the second
    a = second.axes[:, None].expand(-1, 24, -1, -1)
    e = second.shift[:, None].expand(-1, 24, -1, -1)
    force = torch.linalg.cross(a, b[..., 3, :3]) + e * b[..., 3, 3:]
    trace = b[..., 0, 0] + b[..., 1, 1] + b[..., 2, 2]
    torque = a * trace[..., None] - (b[..., :3, :3].transpose(3, 4) @ a[..., None])[..., 0]
    torque = torque + torch.linalg.cross(b[..., :3, 3], e)
    matrix = (first.axes[:, :, None] * torque[:, owner]).sum(dim=-1)
    return matrix + (first.shift[:, :, None] * force[:, owner]).sum(dim=-1)


def _completed(transforms: Tensor) -> Tensor:
    """(n,24,4,4) with the row 0 0 0 1."""
    last = transforms.new_zeros(*transforms.shape[:2], 1, 4)
    last[..., 3] = 1.0
    return torch.cat([transforms, last], dim=2)
