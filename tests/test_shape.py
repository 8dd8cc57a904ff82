"""Closed-form transfer of betas between models."""

import copy

import pytest
import torch

from skel_fit.shape import shape_transfer


@pytest.fixture
def transferred(golden_skel64, golden_smpl64):
    """SMPL whose shape space is a known mixture of SKEL's: T_n = T_m + S_m c, S_n = S_m A."""
    generator = torch.Generator().manual_seed(4)
    mixture = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    shift = torch.randn(10, generator=generator, dtype=torch.float64)
    smpl = copy.deepcopy(golden_smpl64)
    smpl.shapedirs = golden_skel64.shapedirs @ mixture
    smpl.v_template = golden_skel64.template + golden_skel64.shapedirs @ shift
    return smpl, mixture, shift


def test_equal_models_keep_their_betas(golden_skel, golden_smpl):
    matrix, shift = shape_transfer(golden_skel, golden_smpl)
    assert matrix.dtype == shift.dtype == torch.float64
    torch.testing.assert_close(matrix, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(shift, torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_known_mixture_is_recovered(golden_skel64, transferred):
    smpl, mixture, expected = transferred
    matrix, shift = shape_transfer(golden_skel64, smpl)
    torch.testing.assert_close(matrix, mixture, rtol=0, atol=1e-10)
    torch.testing.assert_close(shift, expected, rtol=0, atol=1e-10)


def test_result_is_the_least_squares_optimum(golden_skel64, golden_smpl64):
    smpl = copy.deepcopy(golden_smpl64)
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(smpl.shapedirs.shape, generator=generator, dtype=torch.float64)
    smpl.shapedirs = smpl.shapedirs + 1e-3 * noise
    smpl.v_template = smpl.v_template + 0.01 * noise[..., 0]
    matrix, shift = shape_transfer(golden_skel64, smpl)
    betas = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    ours = golden_skel64.shape(betas @ matrix.T + shift).vertices
    theirs = smpl.v_template + torch.einsum("vck,bk->bvc", smpl.shapedirs, betas)
    gradient = torch.einsum("bvc,vck->bk", ours - theirs, golden_skel64.shapedirs)
    assert gradient.abs().max() < 1e-9
    assert (ours - theirs).abs().max() > 1e-3


def test_other_shape_spaces_are_refused(golden_skel64, golden_smpl64):
    smpl = copy.deepcopy(golden_smpl64)
    smpl.shapedirs = smpl.shapedirs[:, :, :8]
    with pytest.raises(ValueError, match=r"\(6890, 3, 10\).*\(6890, 3, 8\)"):
        shape_transfer(golden_skel64, smpl)
