"""Kinematics of SKEL and SMPL: rest frames, joint rotations, moving offsets, chain, twists.

The one float twin: `SKEL`, the torch kernels of the solver, sequences and keypoints call it; the
compiled twin with the same names is `solver.numba_kinematics`. Source:
docs/reference/skel-model.md, whose anchors are cited as "(#chain)"; docs/solver.md for twists.
Metres, radians, the caller's dtype; n rows, which never mix.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import DOFS, JOINT_OF_DOF, NUM_JOINTS, NUM_POSES, PARENTS
from skel_fit.rotations import minimal_rotation, rotation_about_axis, safe_norm, sinc, sinc_slope

LUMBAR, THORAX, HEAD = 11, 12, 13
SCAPULA_R, ULNA_R, RADIUS_R = 14, 16, 17
SCAPULA_L, ULNA_L, RADIUS_L = 19, 21, 22
FIXED_ORIENTATION = (0, 5, 10, 13, 18, 23)
"""Joints whose orientation does not follow the shape (#bone-orientation): pelvis and the leaves."""

# Joint and its first angle: bending and extension of the spine, abduction and elevation.
_SPINE = ((LUMBAR, 17), (THORAX, 20), (HEAD, 23))
_SCAPULAE = ((SCAPULA_R, 26, 1.0), (SCAPULA_L, 36, -1.0))


def _bone_sums() -> tuple[np.ndarray, np.ndarray]:
    """Which offsets add up to each bone's direction, (24, 24): in the template, in the body."""
    template = np.zeros((NUM_JOINTS, NUM_JOINTS))
    for j in range(NUM_JOINTS):
        if j in PARENTS:
            template[j, PARENTS.index(j)] = 1.0
    for ulna, radius in ((ULNA_R, RADIUS_R), (ULNA_L, RADIUS_L)):  # the ulna points to the wrist
        template[ulna] += template[radius]
    body = template.copy()
    # A quirk of the published model: the thorax follows lumbar -> thorax, its template does not.
    body[THORAX] = body[LUMBAR]
    body[list(FIXED_ORIENTATION)] = 0.0
    return template, body


_TEMPLATE_SUM, BONE_SUM = _bone_sums()


Array = TypeVar("Array", bound=np.ndarray | Tensor)
"""Tables are numpy for the compiled kernels, tensors for the others."""


class Identity(NamedTuple, Generic[Array]):
    """What kinematics needs of a shape (#rest, #bone-orientation, #local-translation)."""

    betas: Array  # (n, K)
    joints: Array  # (n, 24, 3) rest joints
    frames: Array  # (n, 24, 3, 3) Q = K Ra^T: local rotation R_i = Q Rp_i Q^T
    lengths: Array  # (n, 5) of `moving_lengths`

    def rows(self, index: Tensor) -> Identity[Array]:
        """The same for some rows."""
        parts: Any = self
        return Identity(*(part[index] for part in parts))


class Bones(NamedTuple):
    """Posed bones with the twist of each of the 49 parameters (docs/solver.md)."""

    local: Tensor  # (n,24,3,3) local rotations R_i
    rotations: Tensor  # (n,24,3,3) world rotations
    positions: Tensor  # (n,24,3) world joint positions
    local_axes: Tensor  # (n,46,3) axis of each angle in the parent's frame
    axes: Tensor  # (n,49,3) world axes, 0 for the translation
    shift: Tensor  # (n,49,3) linear part of each twist


# ---- index tables on a device -------------------------------------------------------------------


@lru_cache(maxsize=64)
def _index(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept on the device, so that no call waits for a copy."""
    with torch.inference_mode(False):  # usable in a backward pass whoever asks first
        return torch.tensor(values, device=device)


@lru_cache(maxsize=16)
def _sums_of(bones: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of `BONE_SUM`."""
    with torch.inference_mode(False):
        return torch.as_tensor(BONE_SUM[list(bones)], dtype=dtype).to(device)


@lru_cache(maxsize=16)
def levels(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Joints by their depth in the tree; the root's parent is -1."""
    found: list[tuple[int, ...]] = [(0,)]
    while members := tuple(j for j, p in enumerate(parents) if p in found[-1]):
        found.append(members)
    return tuple(found)


_Step = tuple[tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=16)
def _walk(parents: tuple[int, ...]) -> tuple[list[_Step], tuple[int, ...]]:
    """Per level its joints and where their parents stand in the level above; the way back."""
    tree = levels(parents)
    steps = [
        (members, tuple(above.index(parents[j]) for j in members))
        for above, members in pairwise(tree)
    ]
    walked = [j for members in tree for j in members]
    return steps, tuple(walked.index(j) for j in range(len(parents)))


# Places of the three angles of each joint; 46 is an angle that is always zero.
_SLOTS = tuple(d for dofs in DOFS for d in (*dofs, *[NUM_POSES] * (3 - len(dofs))))
_OWNERS = tuple(JOINT_OF_DOF)
_SLOT_OF = tuple(d - DOFS[j][0] for d, j in enumerate(JOINT_OF_DOF))


# ---- what depends on the shape ------------------------------------------------------------------


def bone_directions(per_joint_rot: np.ndarray, apose_trans: np.ndarray) -> np.ndarray:
    """Template direction of each bone in the body frame, (24, 3) float64 (#bone-orientation)."""
    source = _TEMPLATE_SUM @ apose_trans.astype(np.float64)
    return np.einsum("jab,jb->ja", per_joint_rot.astype(np.float64), source)


def rest_offsets(joints: Tensor, parents: tuple[int, ...] = PARENTS) -> Tensor:
    """o_i = J_i - J_parent(i), o_0 = J_0: rest joints (n, 24, 3) -> (n, 24, 3)."""
    above = joints[:, _index(parents[1:], joints.device)]
    return torch.cat((joints[:, :1], joints[:, 1:] - above), dim=1)


def bone_turns(directions: Tensor, offsets: Tensor) -> Tensor:
    """Smallest rotation from each template direction (24, 3) to the shaped bone's.

    offsets: (n, 24, 3). Returns (n, 24, 3, 3), the identity for `FIXED_ORIENTATION`
    (#bone-orientation).
    """
    turned = tuple(j for j in range(NUM_JOINTS) if j not in FIXED_ORIENTATION)
    index = _index(turned, offsets.device)
    target = _sums_of(turned, offsets.dtype, offsets.device) @ offsets
    made = minimal_rotation(directions[index].expand_as(target), target)
    eye = torch.eye(3, dtype=offsets.dtype, device=offsets.device)
    still = eye.expand(offsets.shape[0], len(FIXED_ORIENTATION), 3, 3)
    order = (*turned, *FIXED_ORIENTATION)
    back = tuple(order.index(j) for j in range(NUM_JOINTS))
    return torch.cat((made, still), 1)[:, _index(back, offsets.device)]


def moving_lengths(joints: Tensor) -> Tensor:
    """Arc lengths of lumbar, thorax and head, width and height of the scapula paths.

    joints: (n, 24, 3) at rest. Returns (n, 5) (#local-translation).
    """
    y = joints[:, :, 1]
    spine = [(y[:, j] - y[:, PARENTS[j]]).abs() for j, _ in _SPINE]
    wide = safe_norm(joints[:, SCAPULA_L] - joints[:, SCAPULA_R])
    high = safe_norm(joints[:, THORAX] - joints[:, LUMBAR])
    return torch.stack((*spine, wide, high), -1)


# ---- local motion -------------------------------------------------------------------------------


def joint_factors(poses: Tensor, axes: Tensor) -> Tensor:
    """Rotation of each angle by joint, first applied first: (n, 46) and (46, 3) unit axes ->
    (n, 24, 3, 3, 3), the identity where a joint has fewer than three."""
    single = rotation_about_axis(axes, poses)
    eye = torch.eye(3, dtype=poses.dtype, device=poses.device)
    single = torch.cat((single, eye.expand(poses.shape[0], 1, 3, 3)), 1)
    return single[:, _index(_SLOTS, poses.device)].unflatten(1, (NUM_JOINTS, 3))


def joint_rotations(poses: Tensor, axes: Tensor) -> Tensor:
    """Rp_j in bone space (#joint-rotation): poses (n, 46), axes (46, 3) -> (n, 24, 3, 3)."""
    factors = joint_factors(poses, axes)
    return factors[:, :, 2] @ factors[:, :, 1] @ factors[:, :, 0]


def arc(length: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """End of an arc of constant curvature, sideways and up, same shapes in and out.

    l (a/2 sinc^2(a/2), sinc a), which keeps its digits at small angles, unlike l (1 - cos a)/a.
    """
    half = sinc(angle / 2)
    return length * angle / 2 * half * half, length * sinc(angle)


def arc_slope(length: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of `arc` by the angle."""
    half = sinc(angle / 2)
    return length * (sinc(angle) - 0.5 * half * half), length * sinc_slope(angle)


def local_offsets(poses: Tensor, offsets: Tensor, lengths: Tensor) -> Tensor:
    """Local translations t_i (#local-translation), body axes: (n, 24, 3).

    poses: (n, 46); offsets (24 rest offsets) and lengths (of `moving_lengths`) of n or 1 rows.
    """
    angles = poses[:, 17:26].unflatten(1, (3, 3))[:, :, :2]  # bending, extension; no twist
    sideways, rise = arc(lengths[:, :3, None], angles)
    rise = rise.sum(-1) - 2.0 * lengths[:, :3]
    arcs = torch.stack((-sideways[..., 0], rise, -sideways[..., 1]), -1)
    width, height, root_half = lengths[:, 3] / 4, lengths[:, 4] / 2, math.sqrt(0.5)
    paths = []
    for _, first, side in _SCAPULAE:
        abduction, elevation = side * poses[:, first], side * poses[:, first + 1] - math.pi / 4
        reach = torch.cos(elevation) * torch.cos(abduction) - root_half
        drop = torch.sin(elevation) + root_half
        path = (-side * width * reach, -height * drop, width * torch.sin(abduction))
        paths.append(torch.stack(path, -1))
    offsets = offsets.expand(poses.shape[0], -1, -1)
    return torch.cat(
        (
            offsets[:, :LUMBAR],
            offsets[:, LUMBAR:SCAPULA_R] + arcs,
            (offsets[:, SCAPULA_R] + paths[0])[:, None],
            offsets[:, SCAPULA_R + 1 : SCAPULA_L],
            (offsets[:, SCAPULA_L] + paths[1])[:, None],
            offsets[:, SCAPULA_L + 1 :],
        ),
        dim=1,
    )


def offset_slopes(poses: Tensor, lengths: Tensor) -> Tensor:
    """Derivative of each joint's own `local_offsets` by its angles: (n, 46, 3)."""
    slopes = poses.new_zeros(poses.shape[0], NUM_POSES, 3)
    for k, (_, first) in enumerate(_SPINE):
        dx, dy = arc_slope(lengths[:, k, None], poses[:, first : first + 2])
        slopes[:, first, 0], slopes[:, first, 1] = -dx[:, 0], dy[:, 0]
        slopes[:, first + 1, 1], slopes[:, first + 1, 2] = dy[:, 1], -dx[:, 1]
    width, height = lengths[:, 3] / 4, lengths[:, 4] / 2
    for _, first, side in _SCAPULAE:
        abduction, elevation = side * poses[:, first], side * poses[:, first + 1] - math.pi / 4
        ca, sa = torch.cos(abduction), torch.sin(abduction)
        ce, se = torch.cos(elevation), torch.sin(elevation)
        slopes[:, first, 0], slopes[:, first, 2] = width * ce * sa, side * width * ca
        slopes[:, first + 1, 0] = width * se * ca
        slopes[:, first + 1, 1] = -side * height * ce
    return slopes


# ---- the chain ----------------------------------------------------------------------------------


def chain(local: Tensor, offsets: Tensor, parents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """World rotations (n, J, 3, 3) and joint positions (n, J, 3) down a tree, level by level.

    local: (n, J, 3, 3) rotations seen from the parent; offsets: (n, J, 3) likewise, the root's in
    the world; parents: of each joint, -1 for the root.
    """
    steps = torch.cat((local, offsets[..., None]), -1)
    world = [steps[:, :1]]
    walk, back = _walk(parents)
    for members, places in walk:
        above = world[-1][:, _index(places, local.device)]
        moved = above[..., :3] @ steps[:, _index(members, local.device)]
        world.append(torch.cat((moved[..., :3], moved[..., 3:] + above[..., 3:]), -1))
    whole = torch.cat(world, 1)[:, _index(back, local.device)]
    return whole[..., :3], whole[..., 3]


def skinning_transforms(rotations: Tensor, positions: Tensor, joints: Tensor) -> Tensor:
    """A_k = [R_k | p_k - R_k J_k] of posed bones with rest joints J (n, J, 3): (n, J, 3, 4)."""
    shift = positions - (rotations @ joints[..., None])[..., 0]
    return torch.cat((rotations, shift[..., None]), -1)


def pose_features(local: Tensor, sources: tuple[int, ...]) -> Tensor:
    """R - I of the joints listed in `sources`, zero for -1: (n, 24, 3, 3) -> (n, 9 sources)."""
    eye = torch.eye(3, dtype=local.dtype, device=local.device)
    known = _index(tuple(max(s, 0) for s in sources), local.device)
    moved = (local - eye)[:, known]
    if min(sources) < 0:
        used = _index(tuple(int(s >= 0) for s in sources), local.device).bool()
        moved = torch.where(used[:, None, None], moved, 0.0)
    return moved.flatten(1)


def bones(poses: Tensor, shape: Identity[Tensor], axes: Tensor) -> Bones:
    """SKEL's bones with twists. poses: (n, 49), 46 angles and a translation; axes: (46, 3)."""
    n, frames = poses.shape[0], shape.frames
    factors = joint_factors(poses[:, :NUM_POSES], axes)
    inner = factors[:, :, 2] @ factors[:, :, 1]
    local = frames @ (inner @ factors[:, :, 0]) @ frames.transpose(-1, -2)
    eye = torch.eye(3, dtype=poses.dtype, device=poses.device)
    later = torch.stack((inner, factors[:, :, 2], eye.expand(n, NUM_JOINTS, 3, 3)), 2)
    owners, slots = _index(_OWNERS, poses.device), _index(_SLOT_OF, poses.device)
    local_axes = (frames[:, owners] @ (later[:, owners, slots] @ axes[:, :, None]))[..., 0]
    offsets = local_offsets(poses[:, :NUM_POSES], rest_offsets(shape.joints), shape.lengths)
    offsets = torch.cat((offsets[:, :1] + poses[:, None, NUM_POSES:], offsets[:, 1:]), 1)
    rotations, positions = chain(local, offsets, PARENTS)
    above = rotations[:, _index(tuple(max(PARENTS[j], 0) for j in _OWNERS), poses.device)]
    # the root's own angles turn about axes of the world
    above = torch.cat((eye.expand(n, len(DOFS[0]), 3, 3), above[:, len(DOFS[0]) :]), 1)
    turned = (above @ local_axes[..., None])[..., 0]
    speed = (above @ offset_slopes(poses, shape.lengths)[..., None])[..., 0]
    shift = speed - torch.linalg.cross(turned, positions[:, owners])
    return Bones(
        local,
        rotations,
        positions,
        local_axes,
        torch.cat((turned, poses.new_zeros(n, 3, 3)), 1),
        torch.cat((shift, eye.expand(n, 3, 3)), 1),
    )
