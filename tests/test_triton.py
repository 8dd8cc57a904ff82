"""The Triton kernels on a CPU: Triton's interpreter against the torch twins, what a block launches.

Triton comes with CUDA builds of torch; with the CPU build it is the extra `gpu`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skel_fit import FitConfig, load_skel, load_smpl
from skel_fit.default_body import default_body_directory
from skel_fit.kinematics import Identity
from skel_fit.solver.blocks import Outcome
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.tables import SearchState

ROOT = Path(__file__).parents[1]
ROWS = 2
without_triton = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(without_triton, reason="triton is missing: extra `gpu`")


def motion(count: int) -> torch.Tensor:
    """(count, 72) real SMPL poses, float64."""
    from benchmarks.poses import real

    return real(count).poses


@pytest.fixture(scope="module")
def twins():
    """A float64 solver of the recipe with joints and a free root, its torch kernels, and the Triton
    kernels through the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        from skel_fit.solver.kernels_triton import TritonKernels

        folder = default_body_directory()
        solver = Solver.of(
            load_skel(folder, "male", dtype=torch.float64),
            load_smpl(folder, "male", dtype=torch.float64),
            FitConfig(dtype="float64", recipe="released", kernels="torch", block_size=16),
        )
        tree = solver.smpl_side.tree
        yield (
            solver,
            TorchKernels(solver.skeleton, tree, torch.float64),
            TritonKernels(solver.skeleton, tree, torch.float64, "cpu"),
        )


@pytest.fixture(scope="module")
def rows(twins):
    """Poses, betas, shape, wanted rotations and targets of a few rows."""
    solver, plain, _ = twins
    poses = motion(ROWS)
    betas = torch.randn(ROWS, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    goal = solver.smpl_goal(poses, betas)(torch.arange(ROWS))
    return poses, betas, plain.identity(betas), goal


def start_of(twins, rows) -> torch.Tensor:
    solver, plain, _ = twins
    bounds = (torch.as_tensor(bound) for bound in (solver.lower, solver.upper))
    start = plain.start(rows[3].rotations, rows[2], *bounds, torch.zeros(24, dtype=torch.int64))
    random = torch.Generator().manual_seed(1)
    return start + 0.1 * torch.randn(start.shape, generator=random, dtype=torch.float64)


def near(found, expected, tolerance: float = 1e-13) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@needs_triton
def test_twins_of_kinematics(twins, rows):
    solver, plain, fused = twins
    poses, betas, shape, goal = rows
    near(fused.pose_smpl(poses, betas), plain.pose_smpl(poses, betas))
    near(fused.identity(betas), shape)
    # a body without length in one bone: the direction is undefined in both
    flat = torch.zeros_like(betas)
    near(fused.identity(flat), plain.identity(flat))
    start = start_of(twins, rows)
    near(fused.pose_bones(start, shape), plain.pose_bones(start, shape))
    joints = solver.joint_targets(goal.targets)
    stage = solver.plans[-1].tables
    near(
        [fused.extra_energy(stage, shape, joints, start)],
        [plain.extra_energy(stage, shape, joints, start)],
    )


@needs_triton
@pytest.mark.parametrize("branch", [0, 1])
def test_twins_of_the_start(twins, rows, branch):
    solver, plain, fused = twins
    lower, upper = (torch.as_tensor(bound) for bound in (solver.lower, solver.upper))
    choice = torch.full((24,), branch)
    found, expected = (
        kernels.start(rows[3].rotations, rows[2], lower, upper, choice)
        for kernels in (fused, plain)
    )
    near([found], [expected], 1e-6)  # SMPL's rotations are orthonormal to 1e-8 only


@needs_triton
def test_twins_of_vertex_passes_and_of_a_round(twins, rows):
    solver, plain, fused = twins
    _, _, shape, goal = rows
    plan = solver.plans[0]
    vertices, start = plan.vertices, start_of(twins, rows)
    transforms, features = plain.pose_bones(start, shape)
    points = (vertices.basis @ features).view(-1, 3, ROWS)
    targets = goal.targets[vertices.rows]
    expected = plain.residual_moments(vertices, transforms, points, targets)
    active = torch.tensor([True, False])
    near(fused.residual_moments(vertices, transforms, points, targets, active), expected)
    region = solver.region[vertices.indices]
    judged = (vertices.skinning, region, transforms, points, targets)
    near(fused.judge(*judged), plain.judge(*judged), 1e-11)

    corrective = vertices.pose_basis.T @ expected[2].reshape(-1, ROWS)
    moments = solver.pair_moments(plan, shape)
    joints = solver.joint_targets(goal.targets)
    states = []
    for kernels in (plain, fused):
        state = SearchState.begin(start)
        state.best_energy[:] = torch.inf
        kernels.minimise(
            plan.tables, shape, moments, joints, (*expected[:2], corrective), active, 3, 2e-3, state
        )  # fmt: skip
        states.append(state)
    near(states[1], states[0], 1e-12)
    assert states[0].steps[0] > 1 and states[0].steps[1] == 0
    assert (states[0].poses[0] - start[0]).abs().max() > 1e-2


@needs_triton
def test_a_worse_candidate_raises_the_damping(twins, rows):
    solver, plain, fused = twins
    _, _, shape, goal = rows
    plan, start = solver.plans[0], start_of(twins, rows)
    evidence = (
        torch.ones(ROWS, dtype=torch.float64),
        torch.zeros(24, 12, ROWS, dtype=torch.float64),
        torch.zeros(207, ROWS, dtype=torch.float64),
    )
    moments, joints = solver.pair_moments(plan, shape), solver.joint_targets(goal.targets)
    states = []
    for kernels in (plain, fused):
        state = SearchState.begin(start)
        state.best_energy[:] = 0.5
        active = torch.tensor([False, True])
        kernels.minimise(plan.tables, shape, moments, joints, evidence, active, 1, 1.0, state)
        states.append(state)
    near(states[1], states[0], 1e-12)
    assert states[1].failures.tolist() == [0, 1]


@needs_triton
def test_the_bounded_step(twins):
    """Bounds are met, crossed in turn, and free values solve the damped system that is left."""
    global tl, step_of  # where the interpreter looks names up
    import triton
    import triton.language as tl

    from skel_fit.solver.box_step import Box, dense_step
    from skel_fit.solver.triton_minimise import dense_step as step_of

    @triton.jit
    def one(at, gradient, matrix, lower, upper, free, out):
        d = tl.arange(0, 64)
        found = step_of(
            tl.load(at + d), tl.load(gradient + d),
            tl.load(matrix + 64 * d[:, None] + d[None, :]), tl.load(at) * 0.0 + 1e-3,
            tl.load(lower + d), tl.load(upper + d), tl.load(free + d) != 0, 2, 40,
        )  # fmt: skip
        tl.store(out + d, found)

    random = torch.Generator().manual_seed(5)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    root = draw(64, 64)
    matrix = root @ root.T + torch.eye(64, dtype=torch.float64)
    free = torch.arange(64).ge(2) & torch.arange(64).lt(40)
    matrix = torch.where(free[:, None] & free, matrix, 0.0)
    at, gradient = 0.1 * draw(64), 5.0 * draw(64)
    lower, upper = at - 0.05 * draw(64).abs(), at + 0.05 * draw(64).abs()
    lower[10], upper[11] = at[10], at[11]
    box = Box(lower, upper, free)
    damping = torch.tensor([1e-3], dtype=torch.float64)
    expected = dense_step(at[None], gradient[None], matrix[None], damping, box)[0]
    out = torch.empty_like(at)
    one[(1,)](at, gradient, matrix, lower, upper, free.to(torch.int8), out)
    near([out], [expected], 1e-12)
    assert ((at + out == lower) | (at + out == upper))[free].sum() > 5


@needs_triton
def test_the_compiler_takes_every_kernel_and_a_block_is_few_launches(tmp_path):
    """What the interpreter accepts is more than the compiler does: its front end sees every kernel,
    with the types of a block's own calls. Nothing in the block waits for the device or the host."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    file = tmp_path / "front_end.json"
    script = [ROOT / "benchmarks" / "triton_kernels.py", "--front-end", "--targets", "90"]
    done = subprocess.run(
        [sys.executable, *script, "--json", file],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    assert {"minimise", "keep_best", "residual_moments", "judge", "start_poses"} <= set(
        found["kernels"]
    )
    assert 100 < found["launches"]["whole"] <= 300
    assert found["launches"]["later"] <= 150


def test_a_block_waits_once_at_its_end(monkeypatch: pytest.MonkeyPatch):
    waits = []
    nonzero = torch.nonzero
    monkeypatch.setattr(torch, "nonzero", lambda of: waits.append(1) or nonzero(of))
    folder = default_body_directory()
    solver = Solver.of(
        load_skel(folder, "male"), load_smpl(folder, "male"), FitConfig(block_size=16)
    )
    betas = torch.zeros(3, 10, dtype=torch.float64)
    goal = solver.smpl_goal(motion(3), betas)
    block = solver._block(goal, betas, torch.arange(3))
    begin = solver._start(0, block, torch.zeros(16, 49, dtype=torch.float64))
    ended = solver._all_stages(block, solver._real(torch.arange(3)), begin, 0)
    assert not waits
    outcome = Outcome.of(block, 3, ended)
    assert len(waits) == 1
    assert outcome.found.poses.shape == (3, 49)


def test_triton_on_a_cpu_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder = default_body_directory()
    skel, smpl = load_skel(folder, "male"), load_smpl(folder, "male")
    with pytest.raises(ValueError, match="run on a GPU"):
        Solver.of(skel, smpl, FitConfig(kernels="triton"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "skel_fit.solver.kernels_triton", None)
    with pytest.raises(ImportError, match=r"pip install 'hmr-skel\[gpu\]'"):
        Solver.of(skel, smpl, FitConfig(kernels="triton"))


def test_recorded_work_is_rebuilt_in_its_own_types():
    from skel_fit.solver.graphs import _leaves, _rebuilt

    shape = Identity(*(torch.full((1,), float(k)) for k in range(4)))
    nested = (shape, (torch.zeros(2), torch.ones(3)))
    again = _rebuilt(nested, (leaf + 1 for leaf in _leaves(nested)))
    assert isinstance(again[0], Identity) and again[0].frames.item() == 3.0
    assert again[1][1].tolist() == [2.0, 2.0, 2.0]
