"""The reduced solver against its slow twin, and its two sets of kernels against each other."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skel_fit import (
    FitConfig,
    fit_skel,
    fit_skel_to_vertices,
    kinematics,
    limits,
    load_skel,
    load_smpl,
    numba_kinematics,
)
from skel_fit.default_body import default_body_directory
from skel_fit.numba_abreast import ABREAST, abreast, sine_cosine
from skel_fit.rotations import skew, wrap_angle
from skel_fit.solver import numba_minimise
from skel_fit.solver.box_step import Box, dense_step
from skel_fit.solver.dense import DenseProblem
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.pattern import pattern_of
from skel_fit.solver.tables import SearchState

MOTION = Path(__file__).parents[1] / "pipeline" / "demo_motion.npz"


def motion(count: int) -> torch.Tensor:
    """(count, 72) real SMPL poses, evenly spread over the demo motion, float64."""
    with np.load(MOTION) as file:
        poses = file["poses"]
    index = np.linspace(0, len(poses) - 1, count).astype(int)
    return torch.as_tensor(poses[index].astype(np.float64))


def shapes(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 10) betas ~ N(0, 1), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 10, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def pair64():
    """Male stand-in pair, float64."""
    folder = default_body_directory()
    return (
        load_skel(folder, "male", dtype=torch.float64),
        load_smpl(folder, "male", dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def pair():
    """Male stand-in pair, float32."""
    folder = default_body_directory()
    return load_skel(folder, "male"), load_smpl(folder, "male")


EXACT = FitConfig(
    dtype="float64", tolerance=1e-7, steps=20, restarts=False, prior_spine=1e-5, prior_scapula=1e-5
)


@pytest.fixture(scope="module")
def evaluated(pair64):
    """A released-recipe stage (joint term, free root) at poses away from the optimum."""
    skel, smpl = pair64
    solver = Solver.of(skel, smpl, EXACT.model_copy(update={"recipe": "released"}))
    poses, betas = motion(4), shapes(4)
    goal = solver.smpl_goal(poses, betas)
    problem = DenseProblem.of(skel, solver, -1, goal, betas)
    index = torch.arange(16) % 4
    shape = solver.kernels.identity(betas[index])
    start = solver.kernels.start(
        goal(index).rotations,
        shape,
        *(torch.as_tensor(bound) for bound in (solver.lower, solver.upper)),
        torch.zeros(24, dtype=torch.int64),
    )
    generator = torch.Generator().manual_seed(1)
    start += 0.05 * torch.randn(start.shape, generator=generator, dtype=torch.float64)[index]
    plan = solver.plans[-1]
    posed = solver.kernels.evaluate(plan.vertices, start, shape)
    found = solver.kernels.evidence(plan.vertices, posed, goal(index).targets)
    return solver, plan, problem, shape, start, found


def row_model(evaluated, row: int, second_moments: torch.Tensor | None = None):
    """Half gradient (49,) and half Gauss-Newton matrix (49,49) of one row, reduced form."""
    solver, plan, problem, shape, start, (_, moments, corrective) = evaluated
    work = numba_kinematics.make_work()
    identity = [part[row].numpy() for part in (shape.joints, shape.frames, shape.lengths)]
    numba_kinematics.bones(solver.skeleton, start[row].numpy(), *identity, work)
    transforms = np.empty((24, 3, 4))
    numba_kinematics.skinning_transforms(work, identity[0], transforms)
    numba_kinematics.twists(solver.skeleton, work)
    masses = plan.tables.joint_masses
    homogeneous = np.concatenate([identity[0], np.ones((24, 1))], axis=1)
    miss = masses[:, None] * (work.positions - problem.joint_targets[row].numpy())
    force = moments[:, :, row].numpy().reshape(24, 3, 4) + miss[:, :, None] * homogeneous[:, None]
    joint_moments = masses[:, None, None] * homogeneous[:, :, None] * homogeneous[:, None]
    gradient, matrix = np.zeros(49), np.zeros((49, 49))
    numba_minimise.gradient_of(
        solver.skeleton,
        plan.tables,
        transforms,
        force,
        np.ascontiguousarray(corrective[:, row].numpy()),
        start[row].numpy(),
        work,
        gradient,
    )
    pair_moments = solver.pair_moments(plan, shape)[row].numpy()
    pattern = pattern_of(solver.skeleton, plan.tables)
    blocks, sides = np.empty((pattern.blocks[0], 4, 4)), np.empty(len(pattern.column) + 1)
    diagonal = np.empty(len(pattern.parameters))
    numba_minimise.curvature(
        solver.skeleton, plan.tables, pattern, transforms, pair_moments, joint_moments, work,
        blocks, diagonal, sides,
    )  # fmt: skip
    numba_minimise.whole_matrix(pattern, diagonal, sides, matrix)
    return gradient, matrix


@numba.njit
def turns_of_rows(angles, sine, cosine):
    """`sine_cosine` of angles (n,ABREAST)."""
    for n in range(angles.shape[0]):
        abreast(sine)[n], abreast(cosine)[n] = sine_cosine(abreast(angles)[n])


def test_sine_and_cosine_of_rows_abreast():
    """In every quarter of a turn, where two of its polynomials meet, thousands of turns away."""
    draw = np.random.default_rng(0)
    quarters = np.arange(-16, 17)[:, None] * np.pi / 4 + 1e-9 * draw.normal(size=(33, ABREAST))
    angles = np.concatenate(
        [quarters, *(draw.uniform(-far, far, (200, ABREAST)) for far in (60, 2e4)), 0 * quarters]
    )
    sine, cosine = np.empty_like(angles), np.empty_like(angles)
    turns_of_rows(angles, sine, cosine)
    near(sine, np.sin(angles), 3e-16)
    near(cosine, np.cos(angles), 3e-16)


@numba.njit
def steps_of_rows(tables, pattern, at, gradient, damping, diagonal, entries, out):
    """`bounded_step` of ABREAST rows, the last dimension of every array."""
    step = numba_minimise.make_step(pattern)
    for n in range(diagonal.shape[0]):
        step.diagonal[n] = abreast(diagonal)[n]
    for n in range(entries.shape[0]):
        step.entries[n] = abreast(entries)[n]
    parts = abreast(at), abreast(gradient), abreast(damping)
    numba_minimise.bounded_step(tables, pattern, *parts, step, abreast(out))


def test_objective_and_exact_gradient_match_automatic_differentiation(evaluated):
    solver, plan, problem, shape, start, (energy, _, _) = evaluated
    extra = solver.kernels.extra_energy(
        plan.tables, shape, problem.joint_targets[torch.arange(16) % 4], start
    )
    torch.testing.assert_close(
        (energy + extra)[:4], problem.objective(start[:4]), rtol=1e-7, atol=0
    )
    expected = problem.gradient(start[:4]).numpy()
    for row in range(4):
        gradient, _ = row_model(evaluated, row)
        scale = np.abs(expected[row]).max()
        free = plan.tables.free
        assert np.abs(2 * gradient[free] - expected[row][free]).max() < 1e-7 * scale


def test_subtree_second_moments_are_the_gauss_newton_matrix(evaluated):
    _, plan, problem, _, start, _ = evaluated
    # the reduced matrix leaves the correctives out (docs/solver.md): so does the twin here
    two = problem.rows(torch.arange(2))
    still = torch.zeros_like(two.targets)
    columns = []
    for d in range(49):
        tangent = torch.zeros_like(start[:2])
        tangent[:, d] = float(plan.tables.free[d])
        columns.append(
            torch.func.jvp(lambda q: two.residuals(q, still), (start[:2],), (tangent,))[1]
        )
    jacobian = torch.stack(columns, dim=1)
    expected = (jacobian @ jacobian.transpose(1, 2)).numpy()
    for row in range(2):
        _, matrix = row_model(evaluated, row)
        keep = np.outer(plan.tables.free, plan.tables.free)
        assert np.abs((matrix - expected[row])[keep]).max() < 1e-6 * np.abs(expected[row]).max()


@pytest.mark.parametrize(
    "changes", [{}, {"limits": "none", "recipe": "hierarchical_near_root"}], ids=str
)
def test_solutions_are_optima_of_the_slow_twin(pair64, changes):
    skel, smpl = pair64
    solver = Solver.of(skel, smpl, EXACT.model_copy(update=changes))
    poses, betas = motion(2), shapes(2)
    goal = solver.smpl_goal(poses, betas)
    found = solver.solve(goal, betas)
    problem = DenseProblem.of(skel, solver, -1, goal, betas)
    polished, energy = problem.minimise(found.poses, steps=2)
    assert found.settled.all()
    torch.testing.assert_close(found.energy, energy, rtol=1e-8, atol=0)
    assert (found.poses - polished).abs().max() < 1e-4


@pytest.mark.parametrize("recipe", ["hierarchical", "hierarchical_near_root", "released"])
def test_plain_torch_kernels_find_the_same_poses(pair, recipe):
    skel, smpl = pair
    poses, betas, transl = motion(6), shapes(6), torch.zeros(6, 3)
    # few steps and rounds suffice: both walk the same path
    fused, plain = (
        fit_skel(
            skel,
            smpl,
            poses,
            betas,
            transl,
            FitConfig(kernels=kernels, recipe=recipe, block_size=8),
        )
        for kernels in ("numba", "torch")
    )
    assert (fused.poses - plain.poses).abs().max() < 1e-4
    torch.testing.assert_close(
        fused.vertex_error_mean, plain.vertex_error_mean, atol=1e-7, rtol=1e-5
    )
    assert fused.status == plain.status


def test_own_meshes_are_recovered(pair):
    """Zero error is possible on SKEL's own meshes: mean <= 0.2 mm, no row above 1 mm."""
    skel, _ = pair
    generator = torch.Generator().manual_seed(5)
    count = 48
    table = torch.as_tensor(limits("default")).clamp(-2.5, 2.5)
    share = 0.1 + 0.8 * torch.rand(count, 46, generator=generator, dtype=torch.float64)
    poses = table[:, 0] + share * (table[:, 1] - table[:, 0])
    poses[:, 17:29] *= 0.5  # a spine at the end of all its ranges at once is no human pose
    poses[:, 36:39] *= 0.5
    betas, trans = shapes(count), torch.randn(count, 3, generator=generator)
    vertices = skel(poses.float(), betas.float(), trans).skin_vertices
    found = fit_skel_to_vertices(skel, vertices, betas)
    again = skel(found.poses, found.betas, found.trans).skin_vertices
    error = (again - vertices).norm(dim=2).mean(dim=1)
    torch.testing.assert_close(error, found.vertex_error_mean, atol=2e-6, rtol=0)
    assert error.mean() < 2e-4
    assert error.max() < 1e-3


def test_a_worse_candidate_is_not_kept(evaluated):
    """The best state survives a round whose candidate is worse, and the damping grows."""
    solver, plan, _, shape, start, (energy, moments, corrective) = evaluated
    state = SearchState.begin(start)
    state.best_energy[:] = energy * 0.5
    before = state.best_poses.clone()
    joints = torch.zeros(16, 24, 3, dtype=torch.float64)
    solver.kernels.minimise(
        plan.tables,
        shape,
        solver.pair_moments(plan, shape),
        joints,
        (energy, moments, corrective),
        torch.ones(16, dtype=torch.bool),
        1,
        1e-3,
        state,
    )
    assert torch.equal(state.best_poses, before)
    assert (state.failures == 1).all()


# --- compiled twins against the float ones, function by function -----------------------------


@pytest.fixture(scope="module")
def twins(evaluated):
    """The plain kernels of the same models, and both kernels' bones of four rows."""
    solver, plan, _, shape, start, _ = evaluated
    plain = TorchKernels(solver.skeleton, solver.smpl_side.tree, solver.dtype)
    rows = torch.arange(4)
    floats = plain.bones(start[rows], shape.rows(rows))
    works = []
    for row in range(4):
        work = numba_kinematics.make_work()
        parts = [part[row].numpy() for part in (shape.joints, shape.frames, shape.lengths)]
        numba_kinematics.bones(solver.skeleton, start[row].numpy(), *parts, work)
        numba_kinematics.twists(solver.skeleton, work)
        works.append(work)
    return plain, plan, shape.rows(rows), start[rows], floats, works


def near(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


def test_twins_of_the_identity(evaluated, twins):
    plain, _, shape, *_ = twins
    for name, own in zip(shape._fields, plain.identity(shape.betas), strict=True):
        near(own, getattr(shape, name))


def test_twins_of_bones_and_twists(twins):
    _, _, shape, _, floats, works = twins
    transforms = kinematics.skinning_transforms(floats.rotations, floats.positions, shape.joints)
    for row, work in enumerate(works):
        for name in ("local", "rotations", "positions", "axes", "shift"):
            near(getattr(work, name), getattr(floats, name)[row])
        near(work.local_axes[:46], floats.local_axes[row])
        made = np.empty((24, 3, 4))
        numba_kinematics.skinning_transforms(work, shape.joints[row].numpy(), made)
        near(made, transforms[row])


def test_twists_are_the_derivatives_of_the_bones(twins):
    plain, _, shape, start, floats, _ = twins
    tangent = torch.linspace(-1, 1, 49, dtype=torch.float64).expand(4, -1)
    below = plain.subtree.T[:, plain.skeleton.joint_of_parameter]  # (24, 49)
    spin = (floats.axes * tangent[..., None])[:, None] * below[None, :, :, None]
    slide = (floats.shift * tangent[..., None])[:, None] * below[None, :, :, None]

    def posed(poses):
        # what the twists say nothing about: derivatives are taken of rotations and positions
        frames = shape.frames
        turns = kinematics.joint_rotations(poses[:, :46], plain.axes)
        local = frames @ turns @ frames.transpose(-1, -2)
        offsets = kinematics.rest_offsets(shape.joints)
        offsets = kinematics.local_offsets(poses[:, :46], offsets, shape.lengths)
        rotations, positions = kinematics.chain(local, offsets, plain.parents)
        return rotations, positions + poses[:, None, 46:]

    _, (turned, moved) = torch.func.jvp(posed, (start,), (tangent,))
    spin, slide = spin.sum(2), slide.sum(2)
    # the file's frames are orthonormal to float32 rounding only
    near(turned, skew(spin) @ floats.rotations, 1e-6)
    near(moved, torch.linalg.cross(spin, floats.positions) + slide, 1e-6)


def test_twins_of_pose_bones_and_pose_smpl(evaluated, twins):
    solver, plain = evaluated[0], twins[0]
    _, _, shape, start, *_ = twins
    pairs = [(k.pose_bones(start, shape), 1e-12) for k in (solver.kernels, plain)]
    poses, betas = motion(16), shapes(16)
    smpl = [(k.pose_smpl(poses, betas), 2e-7) for k in (solver.kernels, plain)]  # smplx adds 1e-8
    for (fused, tolerance), (own, _) in (pairs, smpl):
        for one, other in zip(fused, own, strict=True):
            near(one, other, tolerance)


def poses_of(betas):
    """(n, 49) poses that differ from row to row."""
    return 0.1 * betas @ torch.linspace(-1, 1, 490, dtype=torch.float64).view(10, 49)


def passes(kernels, solver, posed, targets, active):
    """What the passes over all vertices give for the active rows, a row first each."""
    vertices = solver.plans[-1].vertices
    energy, moments, corrective = kernels.evidence(vertices, posed, targets, active)
    moving = torch.as_tensor(vertices.lines[11:] - 11)  # others are of no use to anybody
    judged = kernels.judged(vertices, solver.region, posed, targets, active)
    return [part[..., active] for part in (energy, moments, corrective[moving], *judged)]


@pytest.mark.parametrize("weighted", [False, True])
def test_twins_of_the_vertex_passes(pair64, twins, weighted):
    """Every vertex counts, also those of the last tile and with weights of their own."""
    weights = np.linspace(0.2, 1.0, 6890) if weighted else None
    solver = Solver.of(*pair64, FitConfig(dtype="float64"), weights)
    plain, _, shape, start, *_ = twins
    targets = solver.smpl_goal(motion(4), shapes(4))(torch.arange(4)).targets
    vertices = solver.plans[-1].vertices
    active = torch.tensor([True, False, True, True])
    found = []
    for kernels in (solver.kernels, plain):
        posed = kernels.evaluate(vertices, start, shape)
        near(kernels.skinned(vertices, posed), plain.skinned(vertices, posed))
        found.append(passes(kernels, solver, posed, targets, active))
    for one, other in zip(*found, strict=True):
        near(one, other)


def test_a_rows_pass_does_not_depend_on_the_others(pair):
    """To the last bit: alone, in another place, in a full group of lanes or the next."""
    solver = Solver.of(*pair, FitConfig())
    poses, betas = motion(20), shapes(20)
    vertices = solver.plans[-1].vertices
    whole = []
    for order in (torch.arange(20), torch.arange(19, -1, -1), torch.tensor([7])):
        goal = solver.smpl_goal(poses, betas)(order)
        shape = solver.kernels.identity(betas[order])
        posed = solver.kernels.evaluate(vertices, poses_of(betas[order]), shape)
        active = order % 3 != 0
        rows = order[active].argsort()
        found = passes(solver.kernels, solver, posed, goal.targets, active)
        whole.append([part[..., rows] for part in found])
    for one, other, alone in zip(*whole, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[..., 4], alone[..., 0])  # of 1 2 4 5 7, row 7


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("free", [False, True])
def test_twins_of_the_start(evaluated, twins, branch, free):
    """`project_joint` for joints of one, two and three angles, inside limits and without."""
    solver, plain, shape = evaluated[0], twins[0], evaluated[3]
    rotations = solver.smpl_goal(motion(16), shapes(16))(torch.arange(16)).rotations
    lower, upper = (torch.as_tensor(bound) for bound in (solver.lower, solver.upper))
    if free:
        lower, upper = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
    choice = torch.full((24,), branch)
    found = [k.start(rotations, shape, lower, upper, choice) for k in (solver.kernels, plain)]
    # SMPL's rotations are orthonormal to 1e-8 only; without limits pi may be written as -pi
    near(wrap_angle(found[0] - found[1]), 0.0, 1e-6)


def test_twins_of_gradient_and_curvature(evaluated, twins):
    plain, plan, shape, start, *_ = twins
    solver, _, problem, _, _, (_, moments, corrective) = evaluated
    evidence = (moments.permute(2, 0, 1)[:4], corrective.T[:4])
    pair_moments = solver.pair_moments(plan, shape)
    joints = problem.joint_targets[:4]
    found = plain.linearise(plan.tables, shape, pair_moments, joints, evidence, start)
    keep = np.outer(plan.tables.free, plan.tables.free)
    for row in range(4):
        gradient, matrix = row_model(evaluated, row)
        near(np.where(plan.tables.free, gradient, 0), found[0][row], 1e-12)
        near(matrix * keep, found[1][row], 1e-11)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-8, 10.0))
def test_twins_of_the_bounded_step(evaluated, seed, damping):
    """And what a step has to be: inside the box, at rest where free, downhill."""
    solver, plan = evaluated[:2]
    draw = np.random.default_rng(seed)
    tables = plan.tables._replace(
        lower=np.full(49, -1.0), upper=np.full(49, 1.0), free=draw.random(49) < 0.8
    )
    pattern = pattern_of(solver.skeleton, tables)
    lines = np.repeat(np.arange(len(pattern.parameters)), np.diff(pattern.first))
    r, p = pattern.parameters[lines], pattern.parameters[pattern.column]
    rows, gradient = np.zeros((ABREAST, 49, 49)), 3 * draw.normal(size=(ABREAST, 49))
    for hessian in rows:  # 0 where the pattern says so
        hessian[r, p] = hessian[p, r] = draw.normal(size=len(r))
        hessian[np.diag_indices(49)] = np.abs(hessian).sum(axis=1) + 0.1
    at = draw.uniform(-1, 1, (ABREAST, 49))
    at[draw.random(at.shape) < 0.3] = -1.0  # on a bound
    step, dampings = np.zeros((49, ABREAST)), np.full((1, ABREAST), damping)
    diagonal, entries = rows[:, pattern.parameters, pattern.parameters], rows[:, r, p]
    given = (part.T.copy() for part in (at, gradient))
    sides = (part.T.copy() for part in (diagonal, entries))
    steps_of_rows(tables, pattern, *given, dampings, *sides, step)
    box = Box(*(torch.as_tensor(part) for part in (tables.lower, tables.upper, tables.free)))
    whole = [torch.as_tensor(part) for part in (at, gradient, rows, dampings[0])]
    found = dense_step(*whole, box).numpy()
    near(step.T, found, 1e-9)
    assert (np.abs(at + found) <= 1 + 1e-12).all() and not found[:, ~tables.free].any()
    assert ((gradient * found).sum(axis=1) <= 0).all()
    slope = gradient + (rows @ found[..., None])[..., 0]
    slope += damping * (np.diagonal(rows, axis1=1, axis2=2) + 1e-9) * found
    inside = tables.free & (np.abs(at + found) < 1 - 1e-9)
    assert np.abs(slope[inside]).max(initial=0) < 1e-8 * (1 + np.abs(rows).max())
