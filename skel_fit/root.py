"""SMPL root <-> SKEL root, in closed form (docs/reference/skel-model.md#root).

SMPL turns the body by an axis-angle vector about its own pelvis joint; SKEL by three Euler angles
about fixed axes of the pelvis bone, about another point. Both directions are computed in float64
and returned in the dtype of the input.
"""

import smplx
import torch
from torch import Tensor

from skel_fit.rotations import (
    axis_angle_to_matrix,
    euler_from_matrix,
    matrix_to_axis_angle,
    nearest_rotation,
    rotation_about_axis,
)
from skel_fit.skel import SKEL


def root_from_smpl(
    skel: SKEL,
    smpl: smplx.SMPL,
    global_orient: Tensor,
    betas: Tensor,
    transl: Tensor,
    skel_betas: Tensor | None = None,
    pelvis_difference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """SKEL root of an SMPL root.

    global_orient: (B, 3) axis-angle, radians; betas: (B, 10) of the SMPL model; transl: (B, 3)
    metres; skel_betas: (B, 10) where SKEL has other betas (gender transfer), else `betas`.
    pelvis_difference: (B, 3) J0_smpl - J0_skel in metres, for callers that have it already.
    Returns poses[:, :3] (B, 3) in radians, principal range, and trans (B, 3) in metres.
    At gimbal lock (pelvis_list = +-90 degrees) pelvis_tilt is 0.
    """
    turn = axis_angle_to_matrix(global_orient.double())
    angles = root_angles(skel, turn)
    pelvis = pelvis_difference
    if pelvis is None:
        pelvis = _pelvis_difference(skel, smpl, betas, skel_betas)
    trans = transl.double() + pelvis - (turn @ pelvis[..., None]).squeeze(-1)
    return angles.to(global_orient.dtype), trans.to(transl.dtype)


def root_to_smpl(
    skel: SKEL,
    smpl: smplx.SMPL,
    poses_root: Tensor,
    betas: Tensor,
    trans: Tensor,
    skel_betas: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Inverse of `root_from_smpl`.

    poses_root: (B, 3) = SKEL poses[:, :3], radians; betas: (B, 10) of the SMPL model; trans: (B, 3)
    metres. Returns global_orient (B, 3), axis-angle of norm at most pi, and transl (B, 3).
    """
    turn = root_rotation(skel, poses_root.double())
    pelvis = _pelvis_difference(skel, smpl, betas, skel_betas)
    transl = trans.double() - pelvis + (turn @ pelvis[..., None]).squeeze(-1)
    return matrix_to_axis_angle(turn).to(poses_root.dtype), transl.to(trans.dtype)


def root_departure(
    skel: SKEL,
    smpl: smplx.SMPL,
    global_orient: Tensor,
    betas: Tensor,
    transl: Tensor,
    skel_root: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """How far a SKEL root is from the exact one of an SMPL root, in the body's own frame.

    global_orient: (B, 3) axis-angle, radians; betas: (B, 10); transl: (B, 3) metres; skel_root:
    poses[:, :3] (B, 3) radians, betas (B, 10) and trans (B, 3) metres of SKEL. Returns pelvis
    angles (B, 3), radians, and a translation (B, 3), metres, float64: what a recipe with
    `root_trust` bounds, zero for a frozen root.
    """
    angles, skel_betas, trans = (values.double() for values in skel_root)
    turn = axis_angle_to_matrix(global_orient.double())
    _, exact = root_from_smpl(
        skel, smpl, global_orient.double(), betas.double(), transl.double(), skel_betas
    )
    back = turn.transpose(1, 2)
    shift = (back @ (trans - exact)[..., None]).squeeze(-1)
    return root_angles(skel, back @ root_rotation(skel, angles)), shift


def turned_smpl(
    smpl: smplx.SMPL, global_orient: Tensor, betas: Tensor, transl: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    """SMPL root of the same bodies in other axes: vertices become turn @ v.

    global_orient: (B, 3) axis-angle, radians; betas: (B, 10); transl: (B, 3) metres; turn: a
    rotation (3, 3) for all, or (B, 3, 4) a rotation and a shift in metres a row: turn[:, :3] @ v +
    turn[:, 3]. SMPL turns about its own pelvis, so the translation moves by what the turn does to
    that. Returns global_orient (B, 3) and transl (B, 3), float64.
    """
    turn = turn.to(transl.device, torch.float64)
    shift = turn[..., 3] if turn.shape[-1] == 4 else None
    turn = turn[..., :3]
    regressor = smpl.J_regressor[0].double()
    directions = torch.einsum("v,vck->ck", regressor, smpl.shapedirs.double())
    # a sum per row: a matrix product would choose its order of summation by the batch size
    shaped = (betas.double()[:, None] * directions[:, : betas.shape[1]]).sum(dim=2)
    pelvis = regressor @ smpl.v_template.double() + shaped
    orient = matrix_to_axis_angle(turn @ axis_angle_to_matrix(global_orient.double()))
    moved = (turn @ (transl.double() + pelvis)[..., None])[..., 0]
    moved = (moved if shift is None else moved + shift) - pelvis
    return orient, moved


def root_rotation(skel: SKEL, poses_root: Tensor) -> Tensor:
    """Body-frame rotation of the pelvis: poses_root (B, 3), radians -> (B, 3, 3) float64."""
    frame = _root_frame(skel)
    angles = poses_root.double()
    x, y, z = torch.eye(3, dtype=torch.float64, device=angles.device)
    tilt = rotation_about_axis(z, angles[..., 0])
    tip = rotation_about_axis(x, angles[..., 1])
    heading = rotation_about_axis(y, angles[..., 2])
    return frame @ heading @ tip @ tilt @ frame.T


def root_angles(skel: SKEL, rotation: Tensor) -> Tensor:
    """Inverse of `root_rotation`: body-frame rotations (B, 3, 3) float64 -> poses_root (B, 3)."""
    frame = _root_frame(skel)
    # heading about y, list about x, tilt about z, from the outermost inwards
    return euler_from_matrix(frame.T @ rotation @ frame, (1, 0, 2)).flip(-1)


def _root_frame(skel: SKEL) -> Tensor:
    """M = per_joint_rot_0 Ra_0^T of the loaded file, (3, 3) float64.

    Made orthonormal to float64 rounding: next to gimbal lock the two outer angles are read from
    entries as small as the rounding of a float32 matrix.
    """
    frame = skel.per_joint_rot[0].double() @ skel.apose_rot[0].double().T
    return nearest_rotation(frame)[0]


def _pelvis_difference(
    skel: SKEL, smpl: smplx.SMPL, betas: Tensor, skel_betas: Tensor | None
) -> Tensor:
    """J0_smpl(betas) - J0_skel(skel_betas): (B, 3) float64, metres."""
    own = betas if skel_betas is None else skel_betas
    smpl_pelvis = _pelvis(smpl.J_regressor, smpl.v_template, smpl.shapedirs, betas)
    return smpl_pelvis - _pelvis(skel.joint_regressor, skel.template, skel.shapedirs, own)


def _pelvis(regressor: Tensor, template: Tensor, shapedirs: Tensor, betas: Tensor) -> Tensor:
    row = regressor[0].double()
    directions = torch.einsum("v,vck->ck", row, shapedirs.double())
    if betas.shape[-1] != directions.shape[-1]:
        raise ValueError(
            f"root: expected betas (B, {directions.shape[-1]}), found {tuple(betas.shape)}"
        )
    return row @ template.double() + betas.double() @ directions.T


__all__ = ["root_departure", "root_from_smpl", "root_rotation", "root_to_smpl", "turned_smpl"]
