"""Closed-form conversion of the root between SMPL and SKEL."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skel_fit.root import root_from_smpl, root_rotation, root_to_smpl
from skel_fit.rotations import axis_angle_to_matrix, matrix_to_axis_angle

COUNT = 100_000


def angle_between(a, b):
    """Angle of the rotation from a to b, radians: the chord is exact for small angles."""
    chord = torch.linalg.matrix_norm(a.double() - b.double()) / math.sqrt(8)
    return 2 * torch.asin(chord.clamp(max=1))


def convert(skel, smpl, turns, dtype=torch.float64):
    """Round trip of axis-angle vectors; returns the SKEL angles and the recovered vectors."""
    turns = turns.to(dtype)
    zeros = torch.zeros(len(turns), 10, dtype=dtype)
    transl = torch.randn(len(turns), 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    angles, trans = root_from_smpl(skel, smpl, turns, zeros, transl)
    back, transl_back = root_to_smpl(skel, smpl, angles, zeros, trans)
    assert angles.dtype == trans.dtype == back.dtype == dtype
    torch.testing.assert_close(transl_back, transl, rtol=0, atol=2e-6)
    return angles, back


def random_turns(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    q = q / q.norm(dim=1, keepdim=True)
    angle = 2 * torch.atan2(q[:, 1:].norm(dim=1), q[:, 0])
    return q[:, 1:] / q[:, 1:].norm(dim=1, keepdim=True) * angle[:, None]


def singular_turns(skel, count, seed=0):
    """Turns whose pelvis_list is +-90 degrees, exactly or up to 1e-12 .. 1e-1 rad."""
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    distance = 10 ** (-12 + 11 * torch.rand(count, generator=generator, dtype=torch.float64))
    distance[::3] = 0
    sign = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).double()
    angles[:, 1] = sign * (math.pi / 2 - distance)
    return matrix_to_axis_angle(root_rotation(skel, angles))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_round_trip_of_1e5_rotations(golden_skel, golden_smpl, dtype):
    turns = torch.cat(
        (
            random_turns(COUNT - 20_004),
            singular_turns(golden_skel, 20_000),
            torch.zeros(1, 3, dtype=torch.float64),
            math.pi * torch.eye(3, dtype=torch.float64),
        )
    ).to(dtype)
    assert len(turns) == COUNT
    angles, back = convert(golden_skel, golden_smpl, turns, dtype)
    assert torch.isfinite(angles).all()
    slack = 1e-6  # float32 cannot hold pi exactly
    assert angles.abs().max() <= math.pi + slack and angles[:, 1].abs().max() <= math.pi / 2 + slack
    error = angle_between(axis_angle_to_matrix(turns.double()), axis_angle_to_matrix(back.double()))
    # The lock starts 1e-7 rad before the singularity and gives up the tilt there.
    assert error.max() < (1e-5 if dtype is torch.float32 else 5e-7)


def test_gimbal_lock_takes_the_branch_without_tilt(golden_skel64, golden_smpl64):
    angles = torch.tensor([[0.7, math.pi / 2, 0.4], [0.7, -math.pi / 2, 0.4]], dtype=torch.float64)
    turns = matrix_to_axis_angle(root_rotation(golden_skel64, angles))
    found, _ = convert(golden_skel64, golden_smpl64, turns)
    expected = [[0, math.pi / 2, 0.4 - 0.7], [0, -math.pi / 2, 0.4 + 0.7]]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("double", [False, True])
def test_golden_conversion_reproduces_smpl(
    golden_skel, golden_smpl, golden_skel64, golden_smpl64, golden_arrays, double
):
    skel, smpl = (golden_skel64, golden_smpl64) if double else (golden_skel, golden_smpl)
    golden = golden_arrays("root_conversion_golden")
    turns, betas, transl = (
        torch.tensor(golden[key], dtype=skel.dtype)
        for key in ("smpl_global_orient", "betas", "smpl_transl")
    )
    root, trans = root_from_smpl(skel, smpl, turns, betas, transl)
    poses = torch.zeros(len(turns), 46, dtype=skel.dtype)
    poses[:, :3] = root
    found = skel(poses, betas, trans).skin_vertices[:, ::70]
    np.testing.assert_allclose(found.numpy(), golden["smpl_vertices"], rtol=0, atol=2e-6)
    back, transl_back = root_to_smpl(skel, smpl, root, betas, trans)
    assert angle_between(axis_angle_to_matrix(back), axis_angle_to_matrix(turns)).max() < 1e-6
    torch.testing.assert_close(transl_back, transl, rtol=0, atol=1e-6)


@given(
    turn=st.lists(st.floats(-7, 7), min_size=3, max_size=3),
    betas=st.lists(st.floats(-3, 3), min_size=10, max_size=10),
    other=st.lists(st.floats(-3, 3), min_size=10, max_size=10),
)
@settings(max_examples=40)
def test_other_betas_keep_the_pelvis_turn_and_round_trip(
    golden_skel64, golden_smpl64, turn, betas, other
):
    as_row = [torch.tensor([values], dtype=torch.float64) for values in (turn, betas, other)]
    turn, betas, other = as_row
    transl = torch.tensor([[0.1, -0.2, 3.0]], dtype=torch.float64)
    root, trans = root_from_smpl(golden_skel64, golden_smpl64, turn, betas, transl, other)
    back, transl_back = root_to_smpl(golden_skel64, golden_smpl64, root, betas, trans, other)
    assert angle_between(axis_angle_to_matrix(back), axis_angle_to_matrix(turn)).max() < 1e-7
    torch.testing.assert_close(transl_back, transl, rtol=0, atol=1e-12)
    # Meaning: the SKEL body turns by A, and a point fixed to the bone of both models (SMPL's
    # pelvis position in the rest mesh) lands where SMPL puts its pelvis.
    poses = torch.zeros(1, 46, dtype=torch.float64)
    poses[:, :3] = root
    out = golden_skel64(poses, other, trans)
    identity = golden_skel64.shape(other)
    pelvis = golden_smpl64.J_regressor[0] @ (
        golden_smpl64.v_template + golden_smpl64.shapedirs @ betas[0]
    )
    rotation = out.joint_orientations[0, 0] @ golden_skel64.per_joint_rot[0].T
    torch.testing.assert_close(rotation, axis_angle_to_matrix(turn)[0], rtol=0, atol=1e-7)
    placed = rotation @ (pelvis - identity.joints[0, 0]) + identity.joints[0, 0] + trans[0]
    torch.testing.assert_close(placed, pelvis + transl[0], rtol=0, atol=1e-7)


def test_wrong_betas_are_named(golden_skel, golden_smpl):
    with pytest.raises(ValueError, match=r"betas \(B, 10\), found \(1, 9\)"):
        root_from_smpl(
            golden_skel, golden_smpl, torch.zeros(1, 3), torch.zeros(1, 9), torch.zeros(1, 3)
        )


def test_rotation_helpers_at_zero_and_pi():
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, zero)
    tiny = torch.tensor([[1e-9, -2e-9, 3e-9], [0.0, 0.0, 0.0]], dtype=torch.float64)
    back = matrix_to_axis_angle(axis_angle_to_matrix(tiny))
    torch.testing.assert_close(back, tiny, rtol=0, atol=1e-15)
    near_pi = (math.pi - 1e-9) * torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64)
    back = matrix_to_axis_angle(axis_angle_to_matrix(near_pi))
    torch.testing.assert_close(back, near_pi, rtol=0, atol=1e-12)
