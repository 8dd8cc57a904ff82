"""Standard deviations of angles: against dense sums over every vertex, and twin against twin."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from benchmarks.poses import real
from skel_fit import FitConfig, FitResult, fit_skel, load_skel, load_smpl
from skel_fit.anatomy import POSE_NAMES
from skel_fit.calibration import OBSERVED, Calibration, read_calibrations
from skel_fit.default_body import STANDIN_CALIBRATION, default_body_directory
from skel_fit.fit import solver_of
from skel_fit.solver.dense import DenseProblem
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.sandwich import Fields, scores
from skel_fit.uncertainty import (
    _residual_fields,
    angle_uncertainty,
    calibrate,
    largest_sd,
)
from tests.test_solver import motion, shapes

ROWS = 64


@pytest.fixture(scope="module")
def pair():
    """Male stand-in pair, float32."""
    folder = default_body_directory()
    return load_skel(folder, "male"), load_smpl(folder, "male")


@pytest.fixture(scope="module")
def fit(pair) -> FitResult:
    """Fits of frames of the motion, facing the same way as in the root frame."""
    poses = motion(ROWS)
    poses[:, :3] = 0.0
    return fit_skel(*pair, poses, shapes(ROWS), torch.zeros(ROWS, 3, dtype=torch.float64))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """The one that comes along."""
    return read_calibrations(STANDIN_CALIBRATION).pairs["male", "male"]


def test_standard_deviations_are_those_of_all_vertices(pair):
    """One field: H^-1 J^T r with the gradient and the Jacobian of every vertex by automatic
    differentiation, and noise that is independent from vertex to vertex. Away from the optimum,
    where J^T r is large."""
    poses, betas = motion(3)[1:2], shapes(1)
    poses[:, :3] = 0.0
    fit = fit_skel(*pair, poses, betas, torch.zeros(1, 3, dtype=torch.float64))
    away = torch.linspace(-0.15, 0.15, 43).roll(11)
    fit = replace(fit, poses=fit.poses + torch.nn.functional.pad(away, (3, 0)))
    solver = solver_of(*pair, FitConfig())
    skel64 = load_skel(default_body_directory(), "male", dtype=torch.float64)
    problem = DenseProblem.of(skel64, solver, -1, solver.smpl_goal(poses, betas), betas)
    at = torch.nn.functional.pad(fit.poses[:, 3:].double(), (3, 3))
    free = torch.as_tensor(problem.plan.tables.free)
    prior = torch.as_tensor(problem.plan.tables.prior)[free]
    widest = torch.as_tensor(largest_sd(solver.lower, solver.upper))[free]
    jacobian = problem.jacobian(at, freeze_offsets=True)[0, free]
    inverse = torch.linalg.inv(jacobian @ jacobian.T)
    pull = problem.gradient(at)[0, free] / 2.0 - prior * at[0, free]

    wrenches, pulls, _ = _residual_fields(solver, fit, poses, betas)
    field = Calibration(wrenches.numpy(), pulls.numpy(), 0.0, 1, False)
    kernels = TorchKernels(solver.skeleton, None, torch.float32)
    bones = kernels.bones(at, kernels.identity(betas))
    score = scores(kernels, bones, Fields(wrenches, pulls))[0, free, 0]
    torch.testing.assert_close(score, pull, rtol=1e-4, atol=1e-6)
    found = angle_uncertainty(*pair, fit, None, field).sd[0, 3:].double()
    expected = torch.minimum((inverse @ pull).abs(), widest)
    # the fit's matrix leaves the correctives out of the vertices' places (docs/solver.md)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=float(0.05 * expected.max()))

    noise = 1e-7
    silent = Calibration(0 * field.wrenches, 0 * field.pulls, noise, 1, False)
    found = angle_uncertainty(*pair, fit, None, silent).sd[0, 3:].double()
    spread = noise * (inverse - inverse @ torch.diag(prior) @ inverse).diagonal()
    torch.testing.assert_close(found, torch.minimum(spread.sqrt(), widest), rtol=0.02, atol=1e-5)


def test_twins_agree(pair, fit, calibration):
    """numba and torch, a block and a bit."""
    mine = angle_uncertainty(*pair, fit, None, calibration)
    other = angle_uncertainty(*pair, fit, FitConfig(kernels="torch"), calibration)
    torch.testing.assert_close(mine.sd, other.sd, rtol=1e-5, atol=0.0, equal_nan=True)
    assert torch.equal(mine.observed, other.observed)


def test_rows_are_independent(pair, fit, calibration):
    """A row alone has the bits that it has among others, wherever it stands."""
    together = angle_uncertainty(*pair, fit, None, calibration)
    turned = angle_uncertainty(*pair, fit.take(torch.arange(ROWS).flip(0)), None, calibration)
    alone = angle_uncertainty(*pair, fit.take(torch.tensor([5])), None, calibration)
    for name in ("sd", "observed"):
        whole = getattr(together, name)
        assert torch.equal(whole.nan_to_num(-1), getattr(turned, name).flip(0).nan_to_num(-1))
        assert torch.equal(whole[5].nan_to_num(-1), getattr(alone, name)[0].nan_to_num(-1))


def test_what_an_angle_rests_on_is_said(pair, fit, calibration):
    """The root is the label's, a limit says so, a strong prior outweighs the data."""
    found = angle_uncertainty(*pair, fit, None, calibration)
    assert (found.observed[:, :3] == OBSERVED["label"]).all() and found.sd[:, :3].isnan().all()
    limit = found.observed == OBSERVED["limit"]
    assert torch.equal(limit, fit.active_limits) and limit.any()
    assert (found.sd[:, 3:] > 0).all()
    stiff = FitConfig(prior_spine=10.0)
    held = angle_uncertainty(*pair, fit, stiff, calibration)
    assert (held.observed[:, 17:26] != OBSERVED["data"]).all()
    assert (found.observed[:, 17:26] == OBSERVED["data"]).float().mean() > 0.9


def test_nothing_is_claimed_without_a_calibration(pair, fit, calibration):
    """None, or one that was measured with a free root: NaN; what data carry is known all the
    same. Rejected rows know nothing."""
    whole = angle_uncertainty(*pair, fit, None, calibration)
    other = Calibration(calibration.wrenches, calibration.pulls, calibration.noise, 70, True)
    for absent in (None, other):
        found = angle_uncertainty(*pair, fit, None, absent)
        assert found.sd.isnan().all()
        same = (found.observed == whole.observed).float().mean()
        assert same > 0.99  # but for angles that may be anywhere inside their limits
    poses = motion(2)
    poses[1, 5] = np.nan
    bad = fit_skel(*pair, poses, shapes(2), torch.zeros(2, 3, dtype=torch.float64))
    found = angle_uncertainty(*pair, bad, None, calibration)
    assert found.sd[1].isnan().all() and (found.observed[1] == OBSERVED["unknown"]).all()
    assert torch.isfinite(found.sd[0, 3:]).all()


def test_in_a_lock_nothing_is_known_about_the_angles_that_it_joins(pair, calibration):
    """There a variance without bound comes out as NaN or below 0 by rounding."""
    hips = [POSE_NAMES.index(name) for name in ("hip_flexion_r", "hip_rotation_r")]
    frames = real(40)
    fit = fit_skel(*pair, frames.poses, frames.betas, frames.transl, FitConfig(limits="none"))
    poses = fit.poses.clone()
    poses[:, POSE_NAMES.index("hip_adduction_r")] = float(np.float32(np.pi / 2))
    locked = replace(fit, poses=poses)
    kinds: tuple[Literal["numba", "torch"], ...] = ("numba", "torch")
    for kernels in kinds:
        config = FitConfig(limits="none", kernels=kernels)
        made = angle_uncertainty(*pair, locked, config, calibration)
        assert torch.isfinite(made.sd[:, 3:]).all()
        assert (made.observed[:, hips] == OBSERVED["prior"]).all()


def test_results_in_numpy_are_taken_as_they_are(pair, fit, calibration):
    some, rows = fit.rows(slice(0, 4)), torch.tensor([2, 0])
    expected = angle_uncertainty(*pair, some, None, calibration)
    found = angle_uncertainty(*pair, some.numpy(), None, calibration)
    assert torch.equal(found.sd.nan_to_num(-1.0), expected.sd.nan_to_num(-1.0))
    taken = some.numpy().take(rows)
    assert np.array_equal(taken.poses, some.poses[rows].numpy())
    assert taken.status == [some.status[2], some.status[0]]
    back = some.numpy().put(rows, some.numpy().rows(slice(0, 2)))
    assert np.array_equal(back.poses[[2, 0]], some.poses[:2].numpy())


def test_too_few_rows_are_no_calibration(pair):
    """Said, not guessed."""
    with pytest.raises(ValueError, match="3 rows can be fitted; a calibration needs 48"):
        calibrate(*pair, motion(3), shapes(3))
