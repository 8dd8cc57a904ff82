"""The 24 x 6 pose representation: 46 angles <-> 144 numbers, of which 88 carry information.

Source: docs/reference/skel-model.md#pose-code. It encodes the bone-space rotation Rp_j
of each joint: three angles as the first two rows of Rp_j; one angle as (cos q, -sin q); two angles
(the hands) raw. Unused numbers are zero when encoded and ignored when decoded.

The decoder has no asin: every middle angle is atan2(sine, hypot of the two outer entries), so it
is never NaN and its gradient is finite; `rotations` goes from the numbers to matrices without any
Euler angle.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from skel_fit import anatomy, kinematics
from skel_fit.anatomy import (
    BALL_JOINTS,
    DOFS,
    HAND_JOINTS,
    HINGE_JOINTS,
    MIRROR_PERMUTATION,
    MIRROR_SIGNS,
    NUM_JOINTS,
)
from skel_fit.rotations import (
    euler_from_matrix,
    gram_schmidt,
    rotation_about_axis,
    rotation_of_cosine_sine,
    safe_atan2,
    unit,
)

PER_JOINT = 6
SIZE = NUM_JOINTS * PER_JOINT


def _indices(per_joint: dict[int, int]) -> tuple[int, ...]:
    return tuple(PER_JOINT * joint + k for joint, used in per_joint.items() for k in range(used))


_USED = {1: 2, 2: 2, 3: 6}
#: The 88 positions that carry information.
MEANINGFUL: tuple[int, ...] = _indices({j: _USED[len(dofs)] for j, dofs in enumerate(DOFS)})


@dataclass(frozen=True)
class _Tables:
    """Index tensors and axes on one device."""

    ball: Tensor  # (10,) joints
    hinge: Tensor  # (12,)
    hand: Tensor  # (2,)
    ball_axes: Tensor  # (10, 3) which coordinate axis each of the three angles turns about
    ball_signs: Tensor  # (10, 3) its sign
    axes: Tensor  # (46, 3)
    hinge_dofs: Tensor  # (12,)
    hand_dofs: Tensor  # (2, 2)


@functools.lru_cache(maxsize=16)
def _tables(device: torch.device, dtype: torch.dtype) -> _Tables:
    axes = torch.tensor(anatomy.axes(), dtype=torch.float64)
    dofs = torch.tensor([DOFS[j] for j in BALL_JOINTS])
    ball = axes[dofs]
    which = ball.abs().argmax(-1)
    signs = torch.take_along_dim(ball, which[..., None], -1)[..., 0]

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return _Tables(
        ball=move(torch.tensor(BALL_JOINTS)),
        hinge=move(torch.tensor(HINGE_JOINTS)),
        hand=move(torch.tensor(HAND_JOINTS)),
        ball_axes=move(which),
        ball_signs=move(signs),
        axes=move(axes),
        hinge_dofs=move(torch.tensor([DOFS[j][0] for j in HINGE_JOINTS])),
        hand_dofs=move(torch.tensor([DOFS[j] for j in HAND_JOINTS])),
    )


def pose_rotations(poses: Tensor) -> Tensor:
    """Bone-space joint rotations Rp_j of angles: (B, 46) radians -> (B, 24, 3, 3)."""
    tables = _tables(poses.device, poses.dtype)
    return kinematics.joint_rotations(poses, tables.axes)


def encode(poses: Tensor) -> Tensor:
    """Angles (B, 46), radians -> representation (B, 144); unused numbers are zero."""
    tables = _tables(poses.device, poses.dtype)
    code = poses.new_zeros(*poses.shape[:-1], NUM_JOINTS, PER_JOINT)
    rows = pose_rotations(poses)[:, tables.ball, :2]
    hinge = poses[:, tables.hinge_dofs]
    pairs = torch.stack((torch.cos(hinge), -torch.sin(hinge)), -1)
    code = code.index_copy(1, tables.ball, rows.flatten(2))
    code = code.index_copy(1, tables.hinge, _padded(pairs))
    code = code.index_copy(1, tables.hand, _padded(poses[:, tables.hand_dofs]))
    return code.flatten(1)


def _padded(pairs: Tensor) -> Tensor:
    return torch.cat((pairs, pairs.new_zeros(*pairs.shape[:-1], PER_JOINT - 2)), -1)


def unit_pairs(code: Tensor) -> Tensor:
    """(cos q, -sin q) of the 12 hinges, normalised: (B, 144) -> (B, 12, 2)."""
    pairs = code.view(-1, NUM_JOINTS, PER_JOINT)[:, _tables(code.device, code.dtype).hinge, :2]
    return unit(pairs)


def decode(code: Tensor) -> Tensor:
    """Representation (B, 144) -> angles (B, 46), radians.

    Hinges and the outer angles of ball joints in (-pi, pi], middle angles in [-pi/2, pi/2], hands
    as given. At gimbal lock the first angle (the innermost rotation) is 0, and the third makes up
    for it.
    """
    tables = _tables(code.device, code.dtype)
    grid = code.view(-1, NUM_JOINTS, PER_JOINT)
    hinge = safe_atan2(-grid[:, tables.hinge, 1], grid[:, tables.hinge, 0])
    turn = gram_schmidt(grid[:, tables.ball])
    # the last angle is the outermost rotation; docs/reference/skel-model.md#pose-code
    ball = euler_from_matrix(turn, tables.ball_axes.flip(-1)).flip(-1) * tables.ball_signs
    hand = grid[:, tables.hand, :2]
    parts = (ball.flatten(1), hinge, hand.flatten(1))
    return torch.cat(parts, 1)[:, _order(code.device)]


@functools.lru_cache(maxsize=16)
def _order(device: torch.device) -> Tensor:
    """Where each angle stands in (ball, hinge, hand) order."""
    listed = [d for group in (BALL_JOINTS, HINGE_JOINTS, HAND_JOINTS) for j in group
              for d in DOFS[j]]  # fmt: skip
    return torch.argsort(torch.tensor(listed)).to(device)


def rotations(code: Tensor) -> Tensor:
    """Representation (B, 144) -> joint rotations Rp_j (B, 24, 3, 3), without Euler angles."""
    tables = _tables(code.device, code.dtype)
    grid = code.view(-1, NUM_JOINTS, PER_JOINT)
    batch = grid.shape[0]
    pairs = unit_pairs(code)
    hinges = rotation_of_cosine_sine(tables.axes[tables.hinge_dofs], pairs[..., 0], -pairs[..., 1])
    hands = grid[:, tables.hand, :2]
    steps = rotation_about_axis(tables.axes[tables.hand_dofs].expand(batch, -1, -1, -1), hands)
    result = code.new_zeros(batch, NUM_JOINTS, 3, 3)
    result = result.index_copy(1, tables.ball, gram_schmidt(grid[:, tables.ball]))
    result = result.index_copy(1, tables.hinge, hinges)
    return result.index_copy(1, tables.hand, steps[:, :, 1] @ steps[:, :, 0])


def mirror_poses(poses: Tensor) -> Tensor:
    """Angles of the left-right mirrored person: (B, 46) -> (B, 46); an involution
    (regressor.md#flip).

    Exact for every joint but the ankles, whose axes the model does not mirror.
    """
    order = torch.as_tensor(MIRROR_PERMUTATION.copy(), device=poses.device)
    signs = torch.as_tensor(MIRROR_SIGNS.copy(), dtype=poses.dtype, device=poses.device)
    return poses[..., order] * signs


#: Body frame from pelvis bone space (x forward, y up, z right -> x left, y up, z forward).
NOMINAL_ROOT_FRAME: tuple[tuple[float, ...], ...] = ((0, 0, -1), (0, 1, 0), (1, 0, 0))


def turn_root(poses: Tensor, turn: Tensor, root_frame: Tensor | None = None) -> Tensor:
    """Angles after the person is turned about its root in the camera frame.

    poses: (B, 46); turn: (B, 3, 3) rotation applied from the left to the camera-frame orientation
    O = F Rp_0 F^T; root_frame: F (3, 3), `NOMINAL_ROOT_FRAME` if absent. Only q0..q2 change
    (regressor.md#roll).
    """
    frame = torch.as_tensor(NOMINAL_ROOT_FRAME, dtype=poses.dtype, device=poses.device)
    frame = frame if root_frame is None else root_frame
    code = encode(poses)
    root = frame.T @ turn @ frame @ gram_schmidt(code[:, :PER_JOINT])
    code = torch.cat((root[:, :2].flatten(1), code[:, PER_JOINT:]), 1)
    return torch.cat((decode(code)[:, :3], poses[:, 3:]), 1)


__all__ = [
    "MEANINGFUL", "NOMINAL_ROOT_FRAME", "SIZE", "decode", "encode", "gram_schmidt", "mirror_poses",
    "pose_rotations", "rotations", "turn_root", "unit_pairs",
]  # fmt: skip
