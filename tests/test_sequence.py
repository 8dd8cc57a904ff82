"""Sequences: derivatives of the coupled problem, branches through time, smoothing, conversion."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from benchmarks.poses import real
from pipeline import open_dataset
from pipeline.dataset_rows import recorded_ground
from pipeline.errors import InputError
from pipeline.fitters import registered_fitter
from pipeline.manifest import load_manifest
from pipeline.run import Request, convert
from pipeline.takes import take
from pipeline.task import WITHIN, open_plan_source, shard_columns
from pipeline.verify import verify
from skel_fit import FitConfig, fit_skel, limits, load_skel, load_smpl, root_to_smpl
from skel_fit.anatomy import DOFS, JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.fit import solver_of
from skel_fit.root import root_rotation, turned_smpl
from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.sequence import (
    NEIGHBOUR_START,
    SequenceConfig,
    displacement_weights,
    fit_sequence,
    largest_turns,
)
from skel_fit.solver.branches import Candidates, Describer, cheapest_path
from skel_fit.solver.curvature import Pairs, Twists
from skel_fit.solver.dense import DenseProblem
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_numba import NumbaKernels
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.plans import stored_limits
from skel_fit.solver.smoothing import SequenceProblem, solve_block_tridiagonal
from skel_fit.status import costly_rows, limited_rows
from stages import cli
from tests.test_solver import EXACT, MOTION, shapes

SMALL = FitConfig(block_size=16)
"""Narrow blocks, for short sequences."""


@pytest.fixture(scope="module")
def pair():
    """Male stand-in pair, float32."""
    folder = default_body_directory()
    return load_skel(folder, "male"), load_smpl(folder, "male")


@pytest.fixture(scope="module")
def walk():
    """32 consecutive real frames with jitter: poses (32,72), betas (10,), transl (32,3)."""
    with np.load(MOTION) as file:
        poses, transl = (file[name][300:332].astype(np.float64) for name in ("poses", "transl"))
    poses = torch.as_tensor(poses)
    generator = torch.Generator().manual_seed(0)
    poses += 0.02 * torch.randn(poses.shape, generator=generator).double()
    return poses, shapes(1)[0], torch.as_tensor(transl)


@pytest.fixture(scope="module")
def plain(pair, walk):
    """The frames fitted one by one."""
    poses, betas, transl = walk
    return fit_skel(*pair, poses, betas.expand(len(poses), -1), transl)


@pytest.fixture(scope="module")
def smoothed(pair, walk):
    """The sequence with smoothing 3."""
    return fit_sequence(*pair, *walk, smoothing=SequenceConfig(smoothing=3.0))


def differences(pair, motion, found) -> torch.Tensor:
    """(T, V, 3) SKEL skin minus SMPL skin in the world, by the models' own forward passes."""
    skel, smpl = pair
    poses, betas, transl = (t.float() for t in motion)
    target = smpl(
        betas=betas.expand(len(poses), -1),
        global_orient=poses[:, :3],
        body_pose=poses[:, 3:],
        transl=transl,
    ).vertices
    return skel(found.poses, found.betas, found.trans).skin_vertices - target


def velocity_error(difference: torch.Tensor) -> float:
    """Mean squared velocity error, m^2 a frame."""
    return float((difference[1:] - difference[:-1]).square().sum(dim=2).mean())


def still(count: int) -> torch.Tensor:
    return torch.zeros(count, 3, dtype=torch.float64)


def arm(joint: int, axis: tuple[float, float, float], count: int) -> torch.Tensor:
    """(count, 72): one SMPL shoulder turning once about an axis."""
    poses = torch.zeros(count, 72, dtype=torch.float64)
    unit = np.array(axis) / np.linalg.norm(axis)
    turns = Rotation.from_rotvec(np.linspace(0, 2 * math.pi, count)[:, None] * unit).as_rotvec()
    poses[:, 3 * joint : 3 * joint + 3] = torch.as_tensor(turns)
    return poses


def largest_step(poses: torch.Tensor) -> float:
    return float((poses[1:] - poses[:-1]).abs().max())


# --- derivatives -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["equal", "weighted"])
def coupled(request):
    """Six frames in windows of two, away from the optimum, float64, and their slow twin."""
    folder = default_body_directory()
    skel = load_skel(folder, "male", dtype=torch.float64)
    smpl = load_smpl(folder, "male", dtype=torch.float64)
    vertex_weights = None
    if request.param == "weighted":
        vertex_weights = np.random.default_rng(1).uniform(0.1, 3.0, len(skel.template))
    solver = Solver.of(skel, smpl, EXACT.model_copy(update={"kernels": "torch"}), vertex_weights)
    # several windows in a few frames; these kernels take any width
    solver = replace(solver, block=4, width=4)
    generator = torch.Generator().manual_seed(4)
    with np.load(MOTION) as file:
        poses = torch.as_tensor(file["poses"][100:106].astype(np.float64))
    poses[:, :3] = torch.randn(6, 3, generator=generator).double()
    betas = shapes(1).expand(6, -1).contiguous()
    goal = solver.smpl_goal(poses, betas)
    weights = torch.tensor([0.7, 0.2, 0.0, 1.5, 0.9], dtype=torch.float64)
    problem = SequenceProblem(solver, goal, betas[0], axis_angle_to_matrix(poses[:, :3]), weights)
    at = torch.zeros(6, 49, dtype=torch.float64)
    at[:, 3:46] = 0.2 * torch.randn(6, 43, generator=generator).double()
    return problem, DenseProblem.of(skel, solver, -1, goal, betas), at


def test_objective_and_gradient_of_a_sequence_match_automatic_differentiation(coupled):
    problem, twin, at = coupled
    turn = problem.orient
    variable = at.clone().requires_grad_(True)
    posed, _ = twin.points(variable, twin.offsets(variable))
    world = (posed - twin.targets) @ turn.transpose(1, 2)
    masses = torch.as_tensor(twin.plan.vertices.masses, dtype=at.dtype)
    velocity = (world[1:] - world[:-1]).square().sum(dim=2) @ masses
    total = twin.objective(variable).sum() + problem.weights @ velocity
    (expected,) = torch.autograd.grad(total, variable)
    view = problem.view(at)
    torch.testing.assert_close(view.shares.sum(), total.detach(), rtol=1e-9, atol=0)
    own = twin.objective(at).detach()
    torch.testing.assert_close(problem.energies(at), own, rtol=1e-9, atol=0)
    free = torch.as_tensor(problem.solver.plans[-1].tables.free)
    gradient = problem.linearise(at, view).gradient
    assert (2 * gradient - expected * free).abs().max() < 1e-7 * expected.abs().max()


def test_blocks_are_the_gauss_newton_matrix_of_the_sequence(coupled):
    problem, twin, at = coupled
    model = problem.linearise(at, problem.view(at))
    offsets = torch.zeros_like(twin.targets)  # the reduced matrix leaves the correctives out
    free = torch.as_tensor(problem.solver.plans[-1].tables.free)
    turn = problem.orient

    def residuals(variable: torch.Tensor) -> torch.Tensor:
        own = twin.residuals(variable, offsets)
        skin = own[:, : 3 * twin.targets.shape[1]].unflatten(1, (-1, 3))
        world = skin @ turn.transpose(1, 2)  # each vertex times the root of its mass
        between = problem.weights.sqrt()[:, None, None] * (world[1:] - world[:-1])
        return torch.cat([own.flatten(), between.flatten()])

    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(8, *at.shape, generator=generator, dtype=at.dtype) * free
    moved = torch.stack([torch.func.jvp(residuals, (at,), (x,))[1] for x in directions])
    expected = moved @ moved.T
    full = torch.zeros(6, 49, 6, 49, dtype=at.dtype)
    for t in range(6):
        full[t, :, t] = model.diagonal[t]
        if t < 5:
            full[t, :, t + 1], full[t + 1, :, t] = model.beside[t], model.beside[t].T
    flat = directions.flatten(1)
    made = flat @ full.view(6 * 49, 6 * 49) @ flat.T
    assert (made - expected).abs().max() < 1e-6 * expected.abs().max()
    held = ~free
    for blocks in (model.diagonal, model.beside):
        assert not blocks[:, held].any() and not blocks[:, :, held].any()


@pytest.mark.parametrize("kernels", [NumbaKernels, TorchKernels])
@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_block_tridiagonal_solution_is_that_of_the_dense_system(kernels, n, f, seed):
    random = np.random.default_rng(seed)
    factor = random.normal(size=(n * f, n * f))
    cut = np.kron(np.eye(n) + np.eye(n, k=-1), np.ones((f, f)))
    full = (np.tril(factor) * cut) @ (np.tril(factor) * cut).T + 0.1 * np.eye(n * f)
    held, right = random.random((n, f)) < 0.3, random.normal(size=(n, f))
    extra = random.random((n, f))
    grid = full.reshape(n, f, n, f)
    diagonal = np.stack([grid[t, :, t] for t in range(n)])
    beside = np.array([grid[t, :, t + 1] for t in range(n - 1)]).reshape(n - 1, f, f)
    found = solve_block_tridiagonal(kernels, diagonal, beside, extra, held, right)
    free = ~held.reshape(-1)
    expected = np.zeros(n * f)
    system = full + np.diag(extra.reshape(-1))
    expected[free] = np.linalg.solve(system[free][:, free], right.reshape(-1)[free])
    assert np.abs(found.reshape(-1) - expected).max() < 1e-6 * (1 + np.abs(expected).max())


@pytest.mark.parametrize("kernels", [NumbaKernels, TorchKernels])
def test_a_system_that_is_not_finite_is_refused(kernels):
    generator = np.random.default_rng(3)
    diagonal = np.repeat(np.eye(2)[None] * 3.0, 4, axis=0)
    beside, extra = generator.normal(size=(3, 2, 2)), np.zeros((4, 2))
    diagonal[1, 0, 0] = np.nan
    free, right = np.zeros((4, 2), bool), np.ones((4, 2))
    with pytest.raises(ArithmeticError, match="not finite"):
        solve_block_tridiagonal(kernels, diagonal, beside, extra, free, right)


def test_a_system_that_is_not_positive_is_lifted():
    diagonal, beside = np.full((2, 1, 1), 1.0), np.full((1, 1, 1), 1.0)
    right, free = np.ones((2, 1)), np.zeros((2, 1), bool)
    nothing = np.zeros((2, 1))
    found = [
        solve_block_tridiagonal(kernels, diagonal, beside, nothing, free, right)
        for kernels in (NumbaKernels, TorchKernels)
    ]
    assert np.allclose(found[0], 0.5, atol=1e-4) and np.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_coupled_residuals_are_those_of_the_torch_twin(pair, weight):
    random = torch.Generator().manual_seed(1)
    solver = Solver.of(*pair, EXACT)
    count, block = len(pair[0].template), 16
    skin, targets = torch.randn(2, count, 3, block, generator=random).to(solver.dtype)
    turns = axis_angle_to_matrix(torch.randn(11, 3, generator=random).double())
    masses = solver.plans[-1].vertices.masses
    weights = weight * torch.rand(10, generator=random).double()
    twin = TorchKernels(solver.skeleton, None, solver.dtype, solver.device)
    assert isinstance(solver.kernels, NumbaKernels)
    mine, other = (k.couple(skin, targets, turns, masses, weights) for k in (solver.kernels, twin))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=3e-5)
    assert torch.equal(mine[0][:, :, 11:], skin[:, :, 11:])


def test_curvature_between_two_poses_is_that_of_the_torch_twin(pair):
    random = torch.Generator().manual_seed(2)
    solver = Solver.of(*pair, EXACT)
    tables = solver.plans[-1].tables
    first, second = (torch.as_tensor(p) for p in (tables.pair_first, tables.pair_second))
    twin = TorchKernels(solver.skeleton, None, solver.dtype, solver.device)
    owner = twin.skeleton.joint_of_parameter[:31]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(3, *shape, generator=random).double()

    one, two = (Twists(drawn(31, 3), drawn(31, 3), drawn(24, 3, 4)) for _ in range(2))
    blocks = drawn(len(first), 4, 4)
    blocks = blocks + blocks.transpose(2, 3)
    pairs = Pairs(first, second, twin.subtree)
    for left, right in ((one, two), (one, one)):
        mine, other = (
            k.curvature(left, right, blocks, pairs, owner) for k in (solver.kernels, twin)
        )
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


# --- smoothing -------------------------------------------------------------------------------


def test_without_smoothing_real_motion_is_the_fit_of_its_frames(pair, walk, plain):
    found = fit_sequence(*pair, *walk)
    assert (found.start != NEIGHBOUR_START).all()
    assert torch.equal(found.poses[:, 3:], plain.poses[:, 3:])
    skel = pair[0]
    turned = root_rotation(skel, found.poses[:, :3]) - root_rotation(skel, plain.poses[:, :3])
    assert turned.abs().max() < 1e-6
    for name in ("betas", "trans", "vertex_error_mean", "vertex_error_max", "active_limits"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert found.status == plain.status


def test_smoothing_lowers_the_velocity_error_and_hardly_moves_the_skin(pair, walk, plain, smoothed):
    before, after = (differences(pair, walk, found) for found in (plain, smoothed))
    assert velocity_error(after) < 0.95 * velocity_error(before)
    mean = after.norm(dim=2).mean()
    assert mean < 1.03 * before.norm(dim=2).mean()
    # the weighted sum is what was to fall
    position = [float(d.square().sum(dim=2).mean()) for d in (before, after)]
    frames = len(walk[0])
    total = [
        frames * p + 3.0 * (frames - 1) * velocity_error(d)
        for p, d in zip(position, (before, after), strict=True)
    ]
    assert total[1] < 0.995 * total[0]
    torch.testing.assert_close(
        after.norm(dim=2).mean(dim=1), smoothed.vertex_error_mean, atol=3e-6, rtol=0
    )
    low, high = (torch.as_tensor(bound) for bound in limits("default").T)
    angles = smoothed.poses.double()
    assert ((angles >= low) & (angles <= high)).all()
    assert set(smoothed.status) <= {"converged", "limited"}
    error, unlimited = smoothed.vertex_error_mean.double(), smoothed.unlimited_error.double()
    on_limit = smoothed.active_limits.any(dim=1)
    assert torch.equal(torch.isfinite(unlimited), costly_rows(FitConfig(), error, on_limit))
    limited = limited_rows(FitConfig(), error, unlimited, on_limit)
    assert [s == "limited" for s in smoothed.status] == limited.tolist()


def test_smoothing_shows_no_block(pair, walk, smoothed):
    """Windows of 14 frames instead of 62: the same sequence."""
    small = fit_sequence(*pair, *walk, SMALL, SequenceConfig(smoothing=3.0))
    assert (small.poses - smoothed.poses).abs().max() < 1e-3
    torch.testing.assert_close(
        small.vertex_error_mean, smoothed.vertex_error_mean, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
def test_a_rejected_frame_moves_no_other(pair, walk, smoothing):
    """The others are, bit for bit, what they are without it, whatever it held."""
    poses, betas, transl = (t[:9].clone() if t.ndim > 1 else t for t in walk)
    config = SequenceConfig(smoothing=smoothing)
    good = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])
    without = fit_sequence(*pair, poses[good], betas, transl[good], SMALL, config)
    for bad in (torch.nan, 1e9):
        poses[4, 7] = bad
        found = fit_sequence(*pair, poses, betas, transl, SMALL, config)
        assert found.status[4].is_rejected
        assert torch.isnan(found.poses[4]).all() and found.start[4] == -1
        for name in ("poses", "trans", "vertex_error_mean", "alone_error", "start", "iterations"):
            assert torch.equal(getattr(found, name)[good], getattr(without, name)), name
        assert [found.status[row] for row in good.tolist()] == without.status


def test_smoothing_tears_no_branch_apart(pair):
    """A kick, whose arms jump at their locks frame by frame, leaves no jump behind."""
    kick = take("kick")
    poses, transl = (torch.as_tensor(part[452:484]) for part in (kick.poses, kick.transl))
    found = fit_sequence(*pair, poses, shapes(1)[0], transl, SMALL, SequenceConfig(smoothing=3.0))
    assert largest_step(found.poses[:, 3:]) < 0.5
    assert (found.vertex_error_mean - found.alone_error).mean() < 1e-4


def test_smoothing_holds_less_where_the_target_moves_far_in_a_step(pair):
    """A backflip at 16 frames a second, whose arms turn by up to 1.9 rad between two frames."""
    flip = take("backflip")
    poses, transl = torch.as_tensor(flip.poses), torch.as_tensor(flip.transl)
    found = fit_sequence(*pair, poses, shapes(1)[0], transl, SMALL, SequenceConfig(smoothing=3.0))
    assert (found.vertex_error_mean - found.alone_error).mean() < 1e-4
    assert not torch.equal(found.vertex_error_mean, found.alone_error)
    steps = torch.tensor([0.0, 0.29, 0.3, 0.6, 3.0])
    weights = displacement_weights(SequenceConfig(smoothing=2.0), steps)
    torch.testing.assert_close(weights, torch.tensor([2.0, 2.0, 2.0, 0.5, 0.02]).double())


def test_strong_smoothing_of_unrelated_frames_never_raises_the_sum(pair):
    """Limits can leave a step that raises the sum by its own model: it is no end."""
    frames = real(40)
    poses, betas, transl = frames.poses[:24], frames.betas[0], frames.transl[:24]
    coupled = SequenceConfig(smoothing=100.0)
    alone, bound = (
        fit_sequence(*pair, poses, betas, transl, None, some)
        for some in (SequenceConfig(), coupled)
    )
    solver = solver_of(*pair, FitConfig())
    steps = largest_turns(axis_angle_to_matrix(poses.double().view(24, 24, 3)[:, 1:]))
    shapes = betas.double().expand(24, -1)
    problem = SequenceProblem(
        solver, solver.smpl_goal(poses.double(), shapes), betas.double(),
        axis_angle_to_matrix(poses[:, :3].double()), displacement_weights(coupled, steps),
    )  # fmt: skip
    before, after = (
        problem.view(torch.nn.functional.pad(fit.poses.double()[:, 3:], (3, 3))).shares.sum()
        for fit in (alone, bound)
    )
    assert after < before
    assert bound.vertex_error_mean.max() < 0.03


def test_frames_are_taken_in_every_form_that_fit_skel_takes(pair, walk):
    poses, betas, transl = walk[0][:5], walk[1], walk[2][:5]
    expected = fit_sequence(*pair, poses, betas, transl)
    shares: list[float] = []
    found = fit_sequence(
        *pair, poses.reshape(-1, 24, 3).numpy(), betas.numpy(), transl.numpy(),
        progress=shares.append,
    )  # fmt: skip
    assert isinstance(found.poses, np.ndarray) and shares[-1] == 1.0
    assert np.array_equal(found.poses, expected.poses.numpy())
    shares.clear()
    bad = fit_sequence(*pair, poses * torch.nan, betas, transl, progress=shares.append)
    assert all(status.is_rejected for status in bad.status) and shares[-1] == 1.0
    with pytest.raises(ValueError, match=r"poses: expected \(n, 72\)"):
        fit_sequence(*pair, poses[:, :71], betas, transl)


def test_all_frames_share_a_fitted_shape_and_vertices_count_as_told(pair, walk):
    """And the caller hears how far it is."""
    poses, betas, transl = (t[:9] if t.ndim > 1 else t for t in walk)
    shares: list[float] = []
    config = SMALL.model_copy(update={"betas": "fit"})
    smoothing = SequenceConfig(smoothing=3.0)
    copied = fit_sequence(*pair, poses, betas, transl, SMALL, smoothing)
    fitted = fit_sequence(*pair, poses, betas, transl, config, smoothing, progress=shares.append)
    assert torch.equal(fitted.betas, fitted.betas[:1].expand(9, -1))
    assert (fitted.betas[0] - copied.betas[0]).abs().max() > 0.01
    assert fitted.vertex_error_mean.mean() < copied.vertex_error_mean.mean()
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1.0 and len(shares) > 3
    arms = np.asarray(pair[1].lbs_weights)[:, [18, 19, 20, 21]].sum(axis=1) > 0.5
    counted = fit_sequence(*pair, poses, betas, transl, SMALL, smoothing,
                           vertex_weights=np.where(arms, 10.0, 1.0))  # fmt: skip

    def on_arms(found) -> float:
        distance = differences(pair, (poses, betas, transl), found).norm(dim=2)
        return float(distance[:, torch.as_tensor(arms)].square().mean())

    assert on_arms(counted) < 0.95 * on_arms(copied)


# --- branches --------------------------------------------------------------------------------


def test_root_angles_are_continuous_through_gimbal_lock_and_count_turns(pair):
    """Two cartwheels (pelvis list goes exactly through +-90 degrees) and a double pirouette."""
    skel, smpl = pair
    count = 65
    angle = torch.linspace(0, 4 * math.pi, count, dtype=torch.float64)
    wheels = torch.stack([0 * angle + 0.6, angle, 0.1 * angle - 0.4], dim=1)
    turns = torch.stack([0 * angle, 0 * angle + 0.2, angle], dim=1)
    betas = torch.zeros(count, 10, dtype=torch.float64)
    for path in (wheels, turns):
        orient, transl = root_to_smpl(skel, smpl, path, betas, still(count))
        poses = torch.cat([orient, orient.new_zeros(count, 69)], dim=1)
        found = fit_sequence(skel, smpl, poses, betas[0], transl)
        # in the lock only a sum of two angles is defined, which move 0.02 a frame
        torch.testing.assert_close(found.poses[:, :3].double(), path, atol=0.015, rtol=0)
        same = root_rotation(skel, found.poses[:, :3]) - root_rotation(skel, path)
        assert same.abs().max() < 1e-5
        alone = fit_skel(skel, smpl, poses, betas, transl)
        assert largest_step(alone.poses[:, :3]) > 3.0  # what the sequence cures
        assert torch.equal(alone.poses[:, 3:], found.poses[:, 3:])


@pytest.mark.parametrize(("joint", "axis"), [(17, (0, 1, 0)), (16, (0.3, 0, 1))])
def test_an_arm_circles_without_a_jump(pair, joint, axis):
    poses, betas = arm(joint, axis, 48), torch.zeros(10, dtype=torch.float64)
    free = FitConfig(limits="none")
    alone = fit_skel(*pair, poses, betas.expand(48, -1), still(48), free)
    found = fit_sequence(*pair, poses, betas, still(48), free)
    assert largest_step(alone.poses[:, 3:]) > 3.0
    assert largest_step(found.poses[:, 3:]) < 0.5
    distance = differences(pair, (poses, betas, still(48)), found).norm(dim=2).mean(dim=1)
    torch.testing.assert_close(distance, found.vertex_error_mean, atol=3e-6, rtol=0)
    assert (found.vertex_error_mean < alone.vertex_error_mean + 1e-4).all()


def test_neighbours_lead_out_of_a_wrong_branch(pair):
    """Within limits the arm's circle has frames that end in a poor optimum on their own."""
    poses, betas = arm(17, (0, 1, 0), 16), torch.zeros(10, dtype=torch.float64)
    alone = fit_skel(*pair, poses, betas.expand(16, -1), still(16), SMALL)
    found = fit_sequence(*pair, poses, betas, still(16), SMALL)
    assert (found.start == NEIGHBOUR_START).any()
    assert found.vertex_error_mean.mean() < 0.5 * alone.vertex_error_mean.mean()
    assert torch.equal(found.alone_error, alone.vertex_error_mean)
    assert (found.vertex_error_mean < found.alone_error + 1e-3).all()
    distance = differences(pair, (poses, betas, still(16)), found)
    error = distance.norm(dim=2).mean(dim=1)
    torch.testing.assert_close(error, found.vertex_error_mean, atol=3e-6, rtol=0)
    assert_inside(found.poses.double())


def assert_inside(poses: torch.Tensor) -> None:
    """Every rotation has angles within the limits, and all but arms are described by those."""
    low, high = (torch.as_tensor(bound) for bound in limits("default").T)
    inside = (poses >= low - 1e-6) & (poses <= high + 1e-6)
    for name in ("humerus_r", "humerus_l"):
        ball = list(DOFS[JOINT_NAMES.index(name)])
        other = poses[:, ball] * torch.tensor([1.0, -1.0, 1.0]) + math.pi
        turned = other[..., None] + 2 * math.pi * torch.arange(-1.0, 2.0)
        fits = (turned >= low[ball, None] - 1e-5) & (turned <= high[ball, None] + 1e-5)
        inside[:, ball] |= fits.any(dim=2).all(dim=1)[:, None]
    assert inside.all()


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
def test_an_arm_passes_its_lock_without_a_jump(pair, smoothing):
    """From the side over the pole of the shoulder's angles: alone, two of them turn by pi."""
    count = 24
    betas = torch.zeros(10, dtype=torch.float64)
    poses = torch.zeros(count, 72, dtype=torch.float64)
    poses[:, 52] = torch.linspace(0.2, 2.4, count)  # right shoulder about the vertical
    motion = (poses, betas, still(count))
    alone = fit_skel(*pair, poses, betas.expand(count, -1), still(count), SMALL)
    assert largest_step(alone.poses[:, 3:]) > 1.5
    found = fit_sequence(*pair, *motion, SMALL, SequenceConfig(smoothing=smoothing))
    assert largest_step(found.poses[:, 3:]) < 0.5
    second = found.poses[2:, 3:] - 2 * found.poses[1:-1, 3:] + found.poses[:-2, 3:]
    assert second.square().mean().sqrt() < 0.04
    assert (found.vertex_error_mean - alone.vertex_error_mean).mean() < 1e-4
    assert_inside(found.poses.double())
    error = differences(pair, motion, found).norm(dim=2).mean(dim=1)
    torch.testing.assert_close(error, found.vertex_error_mean, atol=3e-6, rtol=0)


@pytest.mark.parametrize("count", [16, 17, 33])
def test_any_number_of_frames_is_fitted_again_from_given_poses(pair, walk, count):
    """More fronts than a narrow block holds: no row is left out, none depends on the others."""
    poses, betas, _ = walk
    poses = poses.repeat(2, 1)
    solver = Solver.of(*pair, FitConfig())
    problem = SequenceProblem(
        solver,
        solver.smpl_goal(poses, betas.expand(len(poses), -1)),
        betas,
        axis_angle_to_matrix(poses[:, :3]),
        torch.zeros(len(poses) - 1, dtype=torch.float64),
    )
    starts = torch.zeros(count, 49, dtype=torch.float64)
    found = problem.refine(torch.arange(count), starts)
    assert torch.isfinite(found.poses).all() and (found.error_mean < 0.08).all()
    last = problem.refine(torch.tensor([count - 1]), starts[:1])
    assert torch.equal(found.poses[-1:], last.poses)


def _path(frames: int, costs: list[tuple[int, float, float]]) -> np.ndarray:
    """The cheapest of candidates (frame, RMS distance in m, shoulder angle in rad)."""
    poses = np.zeros((len(costs), 49))
    poses[:, POSE_NAMES.index("elbow_flexion_r")] = [angle for _, _, angle in costs]
    frame = np.array([number for number, _, _ in costs])
    energy = np.square([rms for _, rms, _ in costs])
    found = Candidates(frame, poses, energy, frame >= 0, frame)
    lower, upper = stored_limits("default")
    return cheapest_path(found, Describer(lower, upper, 0.5), frames)


def test_the_path_weighs_the_whole_sequence():
    own = [(t, 0.010, 2.0 if t == 2 else 0.0) for t in range(5)]
    # a frame in the middle gives up 0.1 mm for one branch; a step within `jump` is not worth it
    assert _path(5, [*own, (2, 0.0101, 0.1)]).tolist() == [0, 1, 5, 3, 4]
    near = [(t, 0.010, 0.2 if t == 2 else 0.0) for t in range(5)]
    assert _path(5, [*near, (2, 0.0102, 0.0)]).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_described_pose_is_the_same_body_and_comes_back(seed):
    """Charts are exact and invertible, and their bounds are the limits seen through them."""
    random = np.random.default_rng(seed)
    lower, upper = stored_limits("default")
    poses = np.zeros((12, 49))
    poses[:, 3:46] = random.uniform(lower[3:46], upper[3:46], (12, 43))
    chart = Describer(lower, upper, 0.5).describe(poses)
    inside = torch.as_tensor(poses)
    described = chart.described(inside)
    torch.testing.assert_close(chart.inside(described), inside, atol=1e-12, rtol=0)
    low, high = (torch.as_tensor(side) for side in chart.bounds(lower, upper))
    assert ((described >= low - 1e-12) & (described <= high + 1e-12)).all()
    ball = list(DOFS[JOINT_NAMES.index("humerus_l")])
    one, other = (
        Rotation.from_euler("XYZ", angles[:, ball].numpy()).as_matrix()
        for angles in (inside, described)
    )
    assert np.abs(one - other).max() < 1e-9


# --- refusals and conversion -----------------------------------------------------------------


def test_what_is_no_sequence_is_refused(pair, walk):
    poses, betas, transl = walk
    other = betas.expand(len(poses), -1).clone()
    other[7, 0] += 0.1
    with pytest.raises(ValueError, match="frame 7 differs from frame 0"):
        fit_sequence(*pair, poses, other, transl)
    with pytest.raises(ValueError, match="frees the root"):
        fit_sequence(*pair, *walk, FitConfig(recipe="released"))


def write_amass(path: Path, frames: range, seed: int, **changes) -> None:
    """An SMPL+H file as AMASS has them, from the demo motion."""
    with np.load(MOTION) as file:
        body = file["poses"][frames].astype(np.float64)
        transl = file["transl"][frames].astype(np.float64)
    content = {
        "poses": np.concatenate([body[:, :66], np.zeros((len(body), 90))], axis=1),
        "betas": shapes(1, seed)[0].repeat(2)[:16].numpy(),
        "trans": transl,
        "gender": np.array("male"),
        "mocap_framerate": np.array(30.0),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content | changes)


def convert_amass(folder: Path, out: str, **changes) -> Path:
    """Convert the AMASS folder with a changed manifest, in this process."""
    manifest = folder / f"{out}.yaml"
    manifest.write_text(json.dumps({"name": "amass"} | AMASS | changes))
    request = Request(manifest=load_manifest(manifest), directory=folder / out, data_root=folder)
    convert(request, lambda event, data: None)
    return folder / out


AMASS = {
    "source": {"path": "amass", "format": "sequence", "options": {"pattern": "**/*_poses.npz"}},
    "genders": {"smpl": "column", "skel": "column"},
    "models": "default-body",
    "fit": {"block_size": 16, "sequence": {"smoothing": 2.0}},
}


def test_convert_an_amass_folder(tmp_path: Path, pair, capsys: pytest.CaptureFixture[str]):
    """By the command line; the cut into shards does not show."""
    write_amass(tmp_path / "amass" / "S1" / "a_poses.npz", range(200, 212), 1)
    write_amass(tmp_path / "amass" / "S2" / "b_poses.npz", range(400, 406), 2)
    manifest = tmp_path / "amass.yaml"
    manifest.write_text(json.dumps({"name": "amass", "shard_rows": 8} | AMASS))
    out = tmp_path / "cut"
    code = cli.run(
        ["convert", str(manifest), "--data-root", str(tmp_path), "--out", str(out), "--quiet"]
    )
    assert code == 0, capsys.readouterr().err
    whole = convert_amass(tmp_path, "whole", shard_rows=512)
    cut, whole = open_dataset(out), open_dataset(whole)
    assert len(cut) == 18
    for name in ("skel_poses", "skel_trans", "vertex_error_mean", "status", "sequence", "frame"):
        assert np.array_equal(cut[name], whole[name]), name
    with np.load(tmp_path / "amass" / "S2" / "b_poses.npz") as file:
        poses = np.pad(file["poses"][:, :66], ((0, 0), (0, 6)))
        rows = (torch.as_tensor(poses), torch.as_tensor(file["betas"][:10]))
        transl = torch.as_tensor(file["trans"])
    # z is up in AMASS: converted in a world that is turned so that y is
    assert open_dataset(out).plan.source_options["up"] == "z"
    turn = torch.as_tensor(cut.to_source).T
    orient, transl = turned_smpl(
        pair[1], rows[0][:, :3], rows[1].expand(len(rows[0]), -1), transl, turn
    )
    poses = torch.cat([orient, rows[0][:, 3:]], dim=1)
    expected = fit_sequence(*pair, poses, rows[1], transl, SMALL, SequenceConfig(smoothing=2.0))
    # how far a fit is inside a sequence is said as rows of the shard
    plan, folder, said = open_dataset(out).plan, default_body_directory(), []
    fitter = registered_fitter(plan.fitter).open(folder, "cpu", plan.request, plan.calibration)
    source = open_plan_source(plan, tmp_path / "amass", tmp_path)
    shard_columns(plan, source, 2, fitter, step=8, say=lambda *news: said.append(news))
    assert said[0] == (0, 6, 0) and said[-1] == (2, 6, WITHIN)  # of two rows; six are fitted
    assert said == sorted(said, key=lambda news: news[0]) and len(said) > 4
    # a run may use other numbers of threads than this process: last bits
    assert np.abs(cut["skel_poses"][12:] - expected.poses.numpy()).max() < 1e-3
    apart = cut["vertex_error_mean"][12:] - expected.vertex_error_mean.numpy()
    assert np.abs(apart).max() < 1e-5


@pytest.mark.parametrize("up", ["z", "y"])
def test_a_world_is_turned_upright_and_the_turn_is_told(tmp_path: Path, pair, up: str):
    """A standing AMASS subject is far from gimbal lock; points come back to the file's axes, and
    verify compares there."""
    write_amass(tmp_path / "amass" / "a_poses.npz", range(200, 204), 1)
    with np.load(tmp_path / "amass" / "a_poses.npz") as file:
        content = dict(file)
    if up == "z":  # the demo motion has y up
        world = Rotation.from_euler("x", 90, degrees=True)
        orient = world * Rotation.from_rotvec(content["poses"][:, :3])
        content["poses"][:, :3] = orient.as_rotvec()
        content["trans"] = world.apply(content["trans"])
        np.savez(tmp_path / "amass" / "a_poses.npz", **content)
    source = {**AMASS["source"], "options": {**AMASS["source"]["options"], "up": up}}
    out = convert_amass(tmp_path, f"up-{up}", source=source, fit={"block_size": 16, "sequence": {}})
    dataset = open_dataset(out)
    assert np.abs(np.sin(dataset["skel_poses"][:, 1])).max() < 0.5  # pelvis_list
    assert recorded_ground(dataset.plan) == "y-up"
    skel, smpl = pair
    given = (torch.as_tensor(dataset[name]) for name in ("skel_poses", "skel_betas", "skel_trans"))
    skin = skel(*given).skin_vertices @ torch.as_tensor(dataset.to_source.T, dtype=torch.float32)
    poses = torch.as_tensor(content["poses"][:, :66]).float()
    target = smpl(
        betas=torch.as_tensor(content["betas"][None, :10]).float().expand(4, -1),
        global_orient=poses[:, :3],
        body_pose=torch.nn.functional.pad(poses[:, 3:], (0, 6)),
        transl=torch.as_tensor(content["trans"]).float(),
    ).vertices
    error = (skin - target).norm(dim=2).mean(dim=1).numpy()
    assert np.abs(error - dataset["vertex_error_mean"]).max() < 1e-5
    found = verify(out, data_root=tmp_path, full=True)
    assert found.ok and found.exact == 4, found


def test_rows_that_are_no_sequence_are_refused_in_one_line(tmp_path: Path):
    write_amass(tmp_path / "amass" / "a_poses.npz", range(4), 1, betas=shapes(4).numpy())
    with pytest.raises(InputError, match=r"unknown key .fit\.sequence\.smooth."):
        convert_amass(tmp_path, "wrong", fit={"sequence": {"smooth": 1.0}})
    with pytest.raises(InputError, match=r"fit: .*recipe 'released' frees the root"):
        convert_amass(tmp_path, "wrong", fit={"sequence": {}, "recipe": "released"})
    with np.load(tmp_path / "amass" / "a_poses.npz") as file:
        np.savez(
            tmp_path / "images.npz",
            imgname=np.array(["a.jpg"] * 4),
            pose_cam=np.zeros((4, 72)),
            shape=file["betas"],
            trans_cam=np.zeros((4, 3)),
            cam_int=np.tile(np.diag([500.0, 500.0, 1.0]), (4, 1, 1)),
            center=np.full((4, 2), 200.0),
            scale=np.ones(4),
            gtkps=np.ones((4, 44, 3)),
            gender=np.array(["male"] * 4),
        )
    with pytest.raises(InputError, match="no column 'sequence'"):
        convert_amass(tmp_path, "wrong", source={"path": "images.npz", "format": "camerahmr"})
