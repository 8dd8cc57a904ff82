"""`fit_skel` through its public face: independence, limits, rejections, shape, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skel_fit import FitConfig, fit_skel, limits, load_skel, load_smpl, shape_transfer
from skel_fit.default_body import default_body_directory
from skel_fit.recipe import RootTrust
from skel_fit.root import root_departure
from skel_fit.rotations import axis_angle_to_matrix
from tests.test_solver import motion, shapes

ROWS = 90


@pytest.fixture(scope="module")
def models():
    """Stand-in models by gender: (skel male, skel female), {smpl gender: layer}."""
    folder = default_body_directory()
    skels = {gender: load_skel(folder, gender) for gender in ("male", "female")}
    smpls = {gender: load_smpl(folder, gender) for gender in ("neutral", "male")}
    return skels, smpls


@pytest.fixture(scope="module")
def people():
    """90 real poses with shapes and camera-frame translations."""
    poses, betas = motion(ROWS), shapes(ROWS)
    poses[:, :3] = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(3)).double()
    transl = torch.tensor([0.3, -0.1, 6.0]).repeat(ROWS, 1).double()
    return poses, betas, transl


@pytest.fixture(scope="module")
def result(models, people):
    """The default fit of all of them, male to male."""
    skels, smpls = models
    return fit_skel(skels["male"], smpls["male"], *people)


def surfaces(models, people, found, skel="male", smpl="male"):
    """Mean vertex distance (n,) of a result, by the models' own forward passes."""
    skels, smpls = models
    poses, betas, transl = (t.float() for t in people)
    target = smpls[smpl](
        betas=betas, global_orient=poses[:, :3], body_pose=poses[:, 3:], transl=transl
    ).vertices
    fitted = skels[skel](found.poses, found.betas, found.trans).skin_vertices
    return (fitted - target).norm(dim=2)


def test_reported_errors_are_those_of_the_stored_result(models, people, result):
    distance = surfaces(models, people, result)
    torch.testing.assert_close(distance.mean(dim=1), result.vertex_error_mean, atol=3e-6, rtol=0)
    torch.testing.assert_close(distance.amax(dim=1), result.vertex_error_max, atol=2e-5, rtol=0)
    parts = torch.stack(list(result.region_errors.values()))
    assert (parts.amin(dim=0) <= result.vertex_error_mean).all()
    assert (parts.amax(dim=0) >= result.vertex_error_mean).all()


def test_real_motion_fits_to_millimetres(result):
    assert result.vertex_error_mean.mean() < 0.015
    assert set(result.status) <= {"converged", "limited"}


@pytest.mark.parametrize("above", [0.015, 0.012])
def test_a_row_is_limited_where_its_limits_cost_it_more_than_the_gain(models, people, above):
    """Asked: rows on a limit above `limited_above`; limited: where the answer is 0.3 mm lower."""
    skels, smpls = models
    config = FitConfig(limited_above=above, limited_gain=0.0003)
    found = fit_skel(skels["male"], smpls["male"], *(t[:40] for t in people), config)
    error, unlimited = found.vertex_error_mean.double(), found.unlimited_error.double()
    asked = found.active_limits.any(dim=1) & (error > above)
    assert torch.equal(asked, torch.isfinite(unlimited))
    assert (unlimited[asked] <= error[asked]).all()
    limited = asked & (error - unlimited > 0.0003)
    assert [s == "limited" for s in found.status] == limited.tolist()
    # both kinds are among them, and rows whose limits would cost as much but that are good enough
    assert 0 < limited.sum() < asked.sum() < found.active_limits.any(dim=1).sum()


@pytest.mark.parametrize("table", ["default", "published"])
def test_every_angle_is_inside_its_limits(models, people, table):
    skels, smpls = models
    found = fit_skel(skels["male"], smpls["male"], *people, FitConfig(limits=table))
    low, high = (torch.as_tensor(bound) for bound in limits(table).T)
    angles = found.poses.double()
    assert ((angles >= low) & (angles <= high)).all()
    on_limit = (angles == low.float().double()) | (angles == high.float().double())
    assert (found.active_limits | ~on_limit).all()


@settings(max_examples=8)
@given(st.randoms(use_true_random=False), st.integers(1, ROWS))
def test_a_row_is_bit_equal_in_any_company(models, people, result, random, count):
    order = random.sample(range(ROWS), count)
    skels, smpls = models
    found = fit_skel(skels["male"], smpls["male"], *(t[order] for t in people))
    for name in ("poses", "betas", "trans", "vertex_error_mean", "vertex_error_max", "iterations"):
        assert torch.equal(getattr(found, name), getattr(result, name)[order]), name
    assert found.status == [result.status[row] for row in order]


def test_a_row_alone_in_a_small_block_agrees(models, people, result):
    skels, smpls = models
    small = FitConfig(block_size=1)
    for row in (0, 31, 77):
        one = slice(row, row + 1)
        found = fit_skel(skels["male"], smpls["male"], *(t[one] for t in people), small)
        assert (found.poses[0] - result.poses[row]).abs().max() < 1e-5


BAD = {
    "non_finite_pose": (0, (5, float("nan"))),
    "non_finite_betas": (1, (2, float("inf"))),
    "non_finite_transl": (2, (1, float("nan"))),
    "pose_out_of_range": (0, (7, 1e3)),
    "betas_out_of_range": (1, (0, -60.0)),
    "transl_out_of_range": (2, (2, 1e6)),
}


def test_bad_rows_are_rejected_and_change_nothing_else(models, people, result):
    skels, smpls = models
    broken = [t.clone() for t in people]
    rows = dict(zip(BAD, range(10, 10 + 7 * len(BAD), 7), strict=True))
    for reason, (which, (column, value)) in BAD.items():
        broken[which][rows[reason], column] = value
    found = fit_skel(skels["male"], smpls["male"], *broken)
    for reason, row in rows.items():
        assert found.status[row] == f"rejected:{reason}"
        assert torch.isnan(found.poses[row]).all()
        assert torch.isnan(found.vertex_error_mean[row])
        assert found.iterations[row] == -1
    good = [row for row in range(ROWS) if row not in rows.values()]
    assert torch.equal(found.poses[good], result.poses[good])
    assert torch.equal(found.trans[good], result.trans[good])


def test_nothing_in_nothing_out(models):
    skels, smpls = models
    empty = fit_skel(
        skels["male"], smpls["male"], torch.zeros(0, 72), torch.zeros(0, 10), torch.zeros(0, 3)
    )
    assert empty.poses.shape == (0, 46)
    assert empty.status == []


def test_shape_is_copied_within_a_gender_and_transferred_across(models, people, result):
    skels, smpls = models
    some = [t[:24] for t in people]
    assert torch.equal(result.betas, people[1].float())
    matrix, offset = shape_transfer(skels["female"], smpls["neutral"])
    moved = fit_skel(skels["female"], smpls["neutral"], *some)
    expected = some[1] @ matrix.T + offset
    torch.testing.assert_close(moved.betas.double(), expected, atol=1e-5, rtol=0)
    copied = fit_skel(skels["female"], smpls["neutral"], *some, FitConfig(betas="copy"))
    fitted = fit_skel(skels["female"], smpls["neutral"], *some, FitConfig(betas="fit"))
    errors = [f.vertex_error_mean.mean().item() for f in (copied, moved, fitted)]
    assert errors[2] < errors[1] < errors[0]
    distance = surfaces(models, some, fitted, skel="female", smpl="neutral").mean(dim=1)
    torch.testing.assert_close(distance, fitted.vertex_error_mean, atol=3e-6, rtol=0)


@pytest.mark.parametrize("recipe", ["released", "surface"])
def test_a_free_root_reports_its_own_surface(models, people, recipe):
    some = [t[:24] for t in people]
    skels, smpls = models
    freed = fit_skel(skels["male"], smpls["male"], *some, FitConfig(recipe=recipe))
    distance = surfaces(models, some, freed).mean(dim=1)
    torch.testing.assert_close(distance, freed.vertex_error_mean, atol=5e-6, rtol=0)


def test_freeing_root_and_translation_can_only_help(models, people, result):
    some = [t[:24] for t in people]
    skels, smpls = models
    freed = fit_skel(skels["male"], smpls["male"], *some, FitConfig(recipe="surface"))
    assert freed.vertex_error_mean.mean() < result.vertex_error_mean[:24].mean()
    turned = (freed.poses[:, :3] - result.poses[:24, :3]).abs().amax()
    assert turned > 1e-3


def test_a_near_root_stays_inside_its_trust_region_and_lowers_the_residual(models, people, result):
    """Columns against the exact root; a narrow region is used to its bound and no further."""
    some = [t[:24] for t in people]
    skels, smpls = models
    recipe = FitConfig(recipe="hierarchical_near_root").resolved_recipe()
    assert (recipe.root_trust.rotation, recipe.root_trust.translation) == (0.08726646, 0.015)
    narrow = RootTrust(rotation=0.02, translation=0.003)
    errors = [result.vertex_error_mean[:24].mean()]
    for trust in (narrow, recipe.root_trust):
        config = FitConfig(recipe=recipe.model_copy(update={"root_trust": trust}))
        found = fit_skel(skels["male"], smpls["male"], *some, config)
        root = (found.poses[:, :3], found.betas, found.trans)
        turned, moved = root_departure(
            skels["male"], smpls["male"], some[0][:, :3], some[1], some[2], root
        )
        assert turned.abs().max() < trust.rotation + 1e-6
        assert moved.abs().max() < trust.translation + 2e-6
        assert not found.active_limits[:, :3].any()
        distance = surfaces(models, some, found).mean(dim=1)
        torch.testing.assert_close(distance, found.vertex_error_mean, atol=5e-6, rtol=0)
        low, high = (torch.as_tensor(bound) for bound in limits("default").T)
        assert ((found.poses.double() >= low) & (found.poses.double() <= high)).all()
        errors.append(found.vertex_error_mean.mean())
        if trust is narrow:
            assert turned.abs().max() > 0.0199 and moved.abs().max() > 0.00299
    assert errors[0] > errors[1] > errors[2]


def test_targets_beyond_the_limits_say_what_limits_cost(models):
    """A knee bent the wrong way by 80 degrees cannot be reached."""
    skels, smpls = models
    poses = torch.zeros(2, 72)
    poses[1, 3 * 4] = poses[1, 3 * 5] = -1.4
    found = fit_skel(skels["male"], smpls["male"], poses, torch.zeros(2, 10), torch.zeros(2, 3))
    assert found.status[0] == "converged"
    assert found.status[1] == "limited"
    assert found.active_limits[1, [6, 13]].all()
    assert found.unlimited_error[1] < 0.5 * found.vertex_error_mean[1]


def test_unlimited_angles_stay_in_their_principal_range(models, people):
    skels, smpls = models
    found = fit_skel(skels["male"], smpls["male"], *people, FitConfig(limits="none"))
    assert (found.poses.abs() <= np.pi + 1e-6).all()
    assert found.vertex_error_mean.mean() <= 0.0145


def test_numpy_in_numpy_out_and_poses_in_every_form(models, people, result):
    """The same columns, bit for bit, from arrays and from vectors by joint; to rounding from
    matrices, which hold no length beyond pi."""
    skels, smpls = models
    pair, few = (skels["male"], smpls["male"]), [t[:5] for t in people]
    arrays = [t.numpy() for t in few]
    by_joint = fit_skel(*pair, arrays[0].reshape(5, 24, 3), *arrays[1:])
    for name in ("poses", "trans", "vertex_error_mean", "active_limits", "start"):
        column = getattr(by_joint, name)
        assert isinstance(column, np.ndarray)
        assert column.tobytes() == getattr(result, name)[:5].numpy().tobytes(), name
    assert isinstance(by_joint.region_errors["arms"], np.ndarray)
    matrices = axis_angle_to_matrix(few[0].view(5, 24, 3))
    matrices[3, 7, 1, 1] = torch.nan
    found = fit_skel(*pair, matrices, *few[1:])
    assert found.status[3] == "rejected:non_finite_pose"
    good = torch.tensor([0, 1, 2, 4])
    assert (found.poses - result.poses[:5])[good].abs().max() < 1e-4


WRONG_KINDS = [
    (2, None, "transl is missing"),
    (1, np.zeros((3, 10)), "betas numpy, poses, transl torch"),
    (0, [[0.0] * 72] * 3, "poses: expected a tensor or a numpy array of numbers, found list"),
    (1, torch.zeros(3, 10, dtype=torch.bool), "betas: .* found torch.bool"),
    (0, 2.0 * torch.eye(3).expand(3, 24, 3, 3), "row 0, joint 0 is no rotation matrix"),
    (0, -torch.eye(3).expand(3, 24, 3, 3), "row 0, joint 0 is no rotation matrix"),
]


@pytest.mark.parametrize(("which", "wrong", "words"), WRONG_KINDS)
def test_wrong_kinds_are_one_line(models, which, wrong, words):
    skels, smpls = models
    inputs = [torch.zeros(3, 72), torch.zeros(3, 10), torch.zeros(3, 3)]
    inputs[which] = wrong
    with pytest.raises(ValueError, match=words) as raised:
        fit_skel(skels["male"], smpls["male"], *inputs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("which", "shape", "words"),
    [(0, (3, 69), "poses: expected"), (1, (3, 16), "betas: expected"), (2, (2, 3), "2 rows")],
)
def test_wrong_shapes_are_named(models, which, shape, words):
    skels, smpls = models
    inputs = [torch.zeros(3, 72), torch.zeros(3, 10), torch.zeros(3, 3)]
    inputs[which] = torch.zeros(shape)
    with pytest.raises(ValueError, match=words):
        fit_skel(skels["male"], smpls["male"], *inputs)


def test_models_of_different_topology_are_refused(models, golden_smpl):
    skels, _ = models
    with pytest.raises(ValueError, match="topology"):
        fit_skel(
            skels["male"], golden_smpl, torch.zeros(1, 72), torch.zeros(1, 10), torch.zeros(1, 3)
        )


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="extra"):
        FitConfig(learning_rate=0.1)
    with pytest.raises(ValueError, match="every vertex"):
        FitConfig(
            recipe={"stages": [{"name": "a", "parameters": ["root"], "stride": 8, "rounds": 1}]}
        )
    with pytest.raises(ValueError, match="no stage frees it"):
        stages = FitConfig(recipe="full").resolved_recipe().stages
        FitConfig(recipe={"stages": stages, "root_trust": {"rotation": 0.1, "translation": 0.01}})
    with pytest.raises(ValueError, match="unknown parameter"):
        FitConfig(recipe={"stages": [{"name": "a", "parameters": ["knee"], "rounds": 1}]})
