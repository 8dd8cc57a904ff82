"""Fit a moving body: frames as in `fit_skel`, then one branch through time, then smoothing.

Method: docs/sequences.md. Frames are fitted one by one, so nothing depends on how a sequence is cut
into blocks; what couples them afterwards treats the whole sequence at once.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded
from torch import Tensor

from skel_fit.anatomy import DOFS, JOINT_NAMES, PERIODIC, REGIONS
from skel_fit.fit import FitResult, _solver, fit_skel, status_of
from skel_fit.recipe import FitConfig, SequenceConfig, check_sequence
from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.solver.coupling import Twists, cross_curvature
from skel_fit.solver.engine import STARTS, GoalOf, Solution, Solver, padded
from skel_fit.solver.kernels_torch import TorchKernels, _unpacked
from skel_fit.solver.tables import LANES, Identity
from skel_fit.status import Status

NEIGHBOUR_START = len(STARTS)
"""`FitResult.start` of a frame that was fitted again from its neighbour's pose."""

_TURN = 2.0 * math.pi
# Three turns about orthogonal axes, no moving offset: two triples of angles give one rotation.
_BALLS = tuple(DOFS[JOINT_NAMES.index(n)] for n in ("femur_r", "femur_l", "humerus_r", "humerus_l"))
_PERIODIC = np.flatnonzero(PERIODIC)
_LOCK_COSINE = 1e-5
_NO_WORSE, _BETTER = 1.001, 0.999  # objective ratios that count as equal, as lower
_NEARER = 0.1  # rad
_FLAT = 1e-6  # relative fall of the objective that is no progress any more
_TRIES = 8
_ACTIVE_SET_PASSES = 5


def fit_sequence(
    skel: torch.nn.Module,
    smpl: torch.nn.Module,
    poses: Tensor,
    betas: Tensor,
    transl: Tensor,
    config: FitConfig | None = None,
    smoothing: SequenceConfig | None = None,
) -> FitResult:
    """Fit SKEL to consecutive frames of one SMPL body.

    poses: (T, 72) SMPL axis-angle, rad; betas: (10,), or (T, 10) with equal rows; transl: (T, 3) m.
    The result is that of `fit_skel` with, over time, continuous angles (root angles count whole
    turns), the better branch where a neighbour's pose leads to it (`start` NEIGHBOUR_START), and
    the smoothing asked for. A rejected frame cuts the sequence in two.

    Raises ValueError where `fit_skel` does, where betas change, and for a recipe that frees the
    root or fits a shape to every frame.
    """
    config, smoothing = config or FitConfig(), smoothing or SequenceConfig()
    check_sequence(config)
    betas = _one_shape(betas, poses.shape[0])
    result = fit_skel(skel, smpl, poses, betas, transl, config)
    result = replace(
        result,
        poses=result.poses.clone(),
        status=list(result.status),
        region_errors={name: part.clone() for name, part in result.region_errors.items()},
    )
    solver = _solver(skel, smpl, config)
    poses, betas = (t.detach().to(solver.device, torch.float64) for t in (poses, betas))
    for frames in _unbroken(result.status):
        part = slice(frames[0], frames[-1] + 1)
        problem = SequenceProblem(
            solver,
            solver.smpl_goal(poses[part], betas[part]),
            result.betas[frames[0]].double(),
            poses[part, :3],
            smoothing.smoothing,
        )
        _fit_run(problem, result, part, smoothing)
    return result


def _one_shape(betas: Tensor, count: int) -> Tensor:
    """(T,10) with equal rows."""
    if betas.ndim == 1:
        return betas.expand(count, -1)
    finite = torch.nonzero(torch.isfinite(betas).all(dim=1))[:, 0]
    differs = (betas[finite] != betas[finite[:1]]).any(dim=1)
    if differs.any():
        row, first = int(finite[differs][0]), int(finite[0])
        raise ValueError(f"betas: frame {row} differs from frame {first}; a sequence has one shape")
    return betas


def _unbroken(status: list[Status]) -> list[list[int]]:
    """Frame numbers of each run without a rejected frame."""
    runs: list[list[int]] = [[]]
    for frame, found in enumerate(status):
        if found.is_rejected:
            runs.append([])
        else:
            runs[-1].append(frame)
    return [run for run in runs if run]


def _fit_run(
    problem: SequenceProblem, result: FitResult, part: slice, config: SequenceConfig
) -> None:
    """Branches and smoothing of one unbroken run, written into the result."""
    first = result.poses[part].double()
    root = _continuous_root(first[:, :3].cpu().numpy())
    poses = torch.nn.functional.pad(first[:, 3:], (3, 3))
    poses = _relabelled(poses, problem.solver)
    unchanged = poses
    start, iterations = result.start[part].clone(), result.iterations[part].clone()
    settled = torch.tensor([s != Status.MAX_ITER for s in result.status[part]], device=poses.device)
    energy = problem.energies(poses)
    for step in (1, -1):
        poses, energy, found = _follow(problem, poses, energy, config.jump, step)
        start = torch.where(found.refitted, NEIGHBOUR_START, start)
        settled = torch.where(found.refitted, found.settled, settled)
        iterations += found.iterations
    poses = _relabelled(poses, problem.solver)
    if config.smoothing > 0.0 and poses.shape[0] > 1:
        poses, steps, settled = smooth(problem, poses, config.rounds)
        iterations += steps
    result.poses[part] = torch.cat([torch.as_tensor(root).to(poses), poses[:, 3:46]], dim=1).float()
    result.start[part], result.iterations[part] = start, iterations
    moved = torch.nonzero((poses != unchanged).any(dim=1))[:, 0]
    if moved.numel():
        _judge(problem, result, part.start + moved, moved, poses, settled)


# --- one branch through time -----------------------------------------------------------------


def _continuous_root(angles: np.ndarray) -> np.ndarray:
    """Root angles (T,3) of the same rotations, each triple the nearest to the one before."""
    free = np.full(3, np.inf)
    out = angles.copy()
    for t in range(1, len(out)):
        out[t] = _nearest_triple(_out_of_lock(out[t], out[t - 1]), out[t - 1], -free, free)
    return out


def _out_of_lock(angles: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """At list = +-90 degrees only heading -+ tilt is defined: the split nearest to `previous`."""
    if abs(math.cos(angles[1])) > _LOCK_COSINE:
        return angles
    sign = math.copysign(1.0, math.sin(angles[1]))
    defined = angles[2] - sign * angles[0]
    half = 0.5 * _wrapped(defined - (previous[2] - sign * previous[0]))
    return np.array([previous[0] - sign * half, angles[1], previous[2] + half])


def _relabelled(poses: Tensor, solver: Solver) -> Tensor:
    """Poses (T,49) of the same bodies, angles nearest to the frame before, inside the limits."""
    out = poses.cpu().numpy().copy()
    for t in range(1, len(out)):
        out[t] = _nearest_pose(out[t], out[t - 1], solver)
    return torch.as_tensor(out).to(poses.device)


def _nearest_pose(pose: np.ndarray, neighbour: np.ndarray, solver: Solver) -> np.ndarray:
    """The pose (49,) in the angles nearest to the neighbour's, inside the limits."""
    lower, upper, out = solver.lower, solver.upper, pose.copy()
    for ball in _BALLS:
        part = list(ball)
        out[part] = _nearest_triple(out[part], neighbour[part], lower[part], upper[part])
    some = _PERIODIC
    out[some] = _nearest_turn(out[some], neighbour[some], lower[some], upper[some])
    return out


def _nearest_triple(
    angles: np.ndarray, previous: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Of the triples (3,) that give one rotation, the nearest to `previous` inside the limits."""
    one = _nearest_turn(angles, previous, lower, upper)
    other = np.array([angles[0] + math.pi, math.pi - angles[1], angles[2] + math.pi])
    other = other - _TURN * np.round((other - previous) / _TURN)
    inside = ((other >= lower) & (other <= upper)).all()
    nearer = np.square(other - previous).sum() < np.square(one - previous).sum() - 1e-9
    return other if inside and nearer else one


def _nearest_turn(
    angles: np.ndarray, previous: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Angles (k,) plus the whole turns that bring them nearest to `previous`, if limits allow."""
    moved = angles - _TURN * np.round((angles - previous) / _TURN)
    return np.where((moved >= lower) & (moved <= upper), moved, angles)


def _wrapped(angle: float) -> float:
    return angle - _TURN * round(angle / _TURN)


class _Followed(NamedTuple):
    """What following a branch did to n frames."""

    refitted: Tensor  # (n,) bool
    settled: Tensor  # (n,) bool
    iterations: Tensor  # (n,)


def _follow(
    problem: SequenceProblem, poses: Tensor, energy: Tensor, jump: float, step: int
) -> tuple[Tensor, Tensor, _Followed]:
    """Fit frames behind a jump again from their neighbour; keep what fits better, or as well and
    nearer. Goes on from frame to frame while that succeeds.

    poses: (n,49); energy: (n,) m^2; step: 1 forwards, -1 backwards in time.
    """
    n, solver = poses.shape[0], problem.solver
    poses, energy = poses.clone(), energy.clone()
    lowest = energy.clone()
    refitted = torch.zeros(n, dtype=torch.bool, device=poses.device)
    settled, iterations = refitted.clone(), torch.zeros(n, dtype=torch.int64, device=poses.device)
    everyone = torch.arange(n, device=poses.device)
    fronts = everyone[1:] if step > 0 else everyone[:-1]
    while True:
        fronts = fronts[(fronts >= 0) & (fronts < n)]
        fronts = fronts[(poses[fronts] - poses[fronts - step]).abs().amax(dim=1) > jump]
        if not fronts.numel():
            return poses, energy, _Followed(refitted, settled, iterations)
        found = problem.refine(fronts, poses[fronts - step])
        behind = poses[fronts - step]
        named = np.stack(
            [
                _nearest_pose(a, b, solver)
                for a, b in zip(found.poses.cpu().numpy(), behind.cpu().numpy(), strict=True)
            ]
        )
        named = torch.as_tensor(named).to(poses.device)
        gain = (poses[fronts] - behind).norm(dim=1) - (named - behind).norm(dim=1)
        as_good = (found.energy <= lowest[fronts] * _NO_WORSE) & (gain > _NEARER)
        take = as_good | (found.energy < energy[fronts] * _BETTER)
        iterations[fronts] += found.iterations
        fronts, named = fronts[take], named[take]
        poses[fronts], energy[fronts] = named, found.energy[take]
        lowest[fronts] = torch.minimum(lowest[fronts], energy[fronts])
        refitted[fronts], settled[fronts] = True, found.settled[take]
        fronts = fronts + step


# --- the coupled problem ---------------------------------------------------------------------


class View(NamedTuple):
    """Exact objective and forces at the poses of n frames, float64."""

    shares: Tensor  # (n,) m^2; their sum is the objective
    moments: Tensor  # (n,24,12) of the coupled residual
    corrective: Tensor  # (n,207) of the coupled residual


class Model(NamedTuple):
    """Half gradient and half Gauss-Newton matrix at the poses of n frames, float64."""

    gradient: Tensor  # (n,49)
    diagonal: Tensor  # (n,49,49)
    beside: Tensor  # (n-1,49,49): rows of a frame, columns of the next


@dataclass(frozen=True)
class SequenceProblem:
    """sum_t E_t(q_t) + weight sum_t mean_v |A_{t+1} r_{t+1} - A_t r_t|^2 over n frames, m^2.

    E_t is the objective of the last stage (docs/solver.md), r_t the residual of the skin in the
    root frame and A_t the global orientation: A r is the residual in the world, where the velocity
    error is the difference of neighbours. Poses are (n,49) as in `Solver`; memory is that of the
    poses and matrices, vertices are visited a block at a time.
    """

    solver: Solver
    goal: GoalOf
    betas: Tensor  # (10,) of SKEL, float64
    orient: Tensor  # (n,3) SMPL global orientation, axis-angle, rad
    weight: float

    @property
    def frames(self) -> int:
        return self.orient.shape[0]

    def refine(self, frames: Tensor, starts: Tensor) -> Solution:
        """Frames fitted on their own from the given poses (k,49)."""
        # often one frame at a time: the narrowest block, always the same
        narrow = copy.copy(self.solver)
        narrow.config = narrow.config.model_copy(update={"block_size": LANES})
        narrow.width = LANES
        return narrow.refine(
            lambda rows: self.goal(frames[rows]),
            self.betas.expand(frames.numel(), -1),
            starts,
        )

    def energies(self, poses: Tensor) -> Tensor:
        """E_t of every frame, (n,) m^2."""
        parts = []
        for index in torch.arange(self.frames, device=poses.device).split(self.solver.width):
            look = self._look(index, poses)
            own = look.residual.double().square().sum(dim=(0, 1)) * look.mass + look.extra
            parts.append(own[: index.numel()])
        return torch.cat(parts)

    def view(self, poses: Tensor) -> View:
        """Visit every vertex of every frame once: shares of the objective, forces."""
        parts = []
        for inner, window in self._windows():
            look = self._look(window, poses)
            count = window.numel()
            turn = axis_angle_to_matrix(self.orient[window]).to(look.residual.dtype)
            world = _turn_points(turn, look.residual[:, :, :count])
            change = world[:, :, 1:] - world[:, :, :-1]  # velocity error, one frame interval
            own = world.double().square().sum(dim=(0, 1)) * look.mass + look.extra[:count]
            between = change.double().square().sum(dim=(0, 1)) * (look.mass * self.weight)
            # between frames: half a share each, so that a frame knows what its own step changed
            share = own + 0.5 * (_padded(between, 1, 0) + _padded(between, 0, 1))
            pull = _padded(change, 1, 0) - _padded(change, 0, 1)
            coupled = _turn_points(turn.transpose(1, 2), world + self.weight * pull)
            moments, corrective = self._forces(look, coupled)
            keep = slice(inner.start - int(window[0]), inner.stop - int(window[0]))
            parts.append((share[keep], moments[keep], corrective[keep]))
        return View(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def linearise(self, poses: Tensor, view: View) -> Model:
        """Gradient and Gauss-Newton matrix at poses (n,49), where `view` was taken."""
        solver, plan = self.solver, self.solver.plans[-1]
        kernels = TorchKernels(solver.skeleton, None, solver.dtype, solver.device)
        owner = kernels.skeleton.joint_of_parameter
        pairs = tuple(
            torch.as_tensor(part, device=poses.device)
            for part in (plan.tables.pair_first, plan.tables.pair_second)
        )
        keep = torch.as_tensor(plan.tables.free, device=poses.device).double()
        keep = keep[:, None] * keep
        parts: list[tuple[Tensor, ...]] = []
        for inner, window in self._windows():
            # the neighbour to the right is needed, the one to the left is not
            index = window[window >= inner.start]
            count = index.numel()
            shape = self._identity(count)
            moments = solver._pair_moments(plan, shape)
            neighbours = (index > 0).double() + (index < self.frames - 1).double()
            gradient, diagonal, bones = kernels.linearise(
                plan.tables,
                shape,
                moments * (1.0 + self.weight * neighbours)[:, None, None],
                self._joint_targets(index),
                (view.moments[index], view.corrective[index]),
                poses[index],
            )
            turned = Twists.of(bones, shape.joints, axis_angle_to_matrix(self.orient[index]))
            beside = cross_curvature(
                turned.rows(slice(0, count - 1)),
                turned.rows(slice(1, count)),
                _unpacked(moments)[: count - 1],
                pairs,
                kernels.subtree,
                owner,
            )
            size = inner.stop - inner.start
            parts.append((gradient[:size], diagonal[:size], -self.weight * keep * beside[:size]))
        return Model(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _windows(self) -> list[tuple[slice, Tensor]]:
        """Blocks of frames, and the same with a neighbour at each side."""
        size, n = max(self.solver.width - 2, 1), self.frames
        found = []
        for first in range(0, n, size):
            last = min(first + size, n)
            window = torch.arange(max(first - 1, 0), min(last + 1, n), device=self.orient.device)
            found.append((slice(first, last), window))
        return found

    def _identity(self, count: int) -> Identity:
        return self.solver.kernels.identity(self.betas.expand(count, -1).contiguous())

    def _joint_targets(self, index: Tensor) -> Tensor:
        if not self.solver.plans[-1].tables.joint_masses.any():
            return torch.zeros(index.numel(), 24, 3, dtype=torch.float64, device=index.device)
        targets = self.goal(padded(index, self.solver.width)).targets
        return self.solver._joint_targets(targets)[: index.numel()]

    def _look(self, index: Tensor, poses: Tensor) -> _Look:
        solver, plan = self.solver, self.solver.plans[-1]
        index = padded(index, solver.width)
        shape = self._identity(index.numel())
        targets = self.goal(index).targets
        transforms, points = solver._evaluate(plan.vertices, poses[index], shape)
        skin = solver.kernels.skin(solver.skinning, transforms, points)
        extra = solver.kernels.extra_energy(
            plan.tables, shape, solver._joint_targets(targets), poses[index]
        )
        return _Look(transforms, points, targets, skin, skin - targets, extra)

    def _forces(self, look: _Look, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (n,24,12) and corrective pull (n,207) of residuals (V,3,n) in the root frame."""
        solver, vertices = self.solver, self.solver.plans[-1].vertices
        count = residual.shape[2]
        wanted = look.skin.clone()
        wanted[:, :, :count] -= residual
        _, moments, pull = solver.kernels.residual_moments(
            vertices, look.transforms, look.points, wanted
        )
        corrective = vertices.pose_basis.T @ pull.view(-1, pull.shape[2])
        moments = moments.permute(2, 0, 1)[:count].double().contiguous()
        return moments, corrective.T[:count].double().contiguous()


class _Look(NamedTuple):
    """A padded block of frames with its vertices, root frame."""

    transforms: Tensor  # (24,12,n)
    points: Tensor  # (V,3,n)
    targets: Tensor  # (V,3,n) m
    skin: Tensor  # (V,3,n) m
    residual: Tensor  # (V,3,n) m
    extra: Tensor  # (n,) joint and prior terms

    @property
    def mass(self) -> float:
        return 1.0 / self.skin.shape[0]


def _turn_points(turn: Tensor, points: Tensor) -> Tensor:
    """turn (n,3,3) times points (V,3,n)."""
    rows = [sum(turn[:, i, j] * points[:, j] for j in range(3)) for i in range(3)]
    return torch.stack(rows, dim=1)


def _padded(values: Tensor, before: int, after: int) -> Tensor:
    """Zeros around the last dimension."""
    return torch.nn.functional.pad(values, (before, after))


# --- smoothing -------------------------------------------------------------------------------


def smooth(problem: SequenceProblem, poses: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the coupled problem from poses (n,49) inside the limits.

    Levenberg-Marquardt over the whole sequence: a step is taken if the objective falls, damping is
    per frame. Returns poses (n,49), steps (n,) and whether each frame settled (n,).
    """
    n, tolerance = poses.shape[0], problem.solver._tolerance(problem.solver.plans[-1])
    view = problem.view(poses)
    damping = torch.full((n,), 1e-4, dtype=torch.float64, device=poses.device)
    moved = torch.full_like(damping, torch.inf)
    steps = torch.zeros(n, dtype=torch.int64, device=poses.device)
    for _ in range(rounds):
        model = problem.linearise(poses, view)
        before = view.shares.sum()
        for _ in range(_TRIES):
            step = _step(problem, model, poses, damping)
            trial = problem.view(poses + step)
            worse = trial.shares > view.shares
            if trial.shares.sum() <= before:
                break
            # a higher sum has a frame whose share rose: that one has to shorten its step
            damping = torch.where(worse, (10.0 * damping).clamp(min=1e-4), damping)
        else:
            # nothing falls any more: at the optimum to rounding
            return poses, steps, torch.ones_like(worse)
        poses, view, moved = poses + step, trial, step.abs().amax(dim=1)
        steps += 1
        damping = torch.where(worse, damping, 0.2 * damping).clamp(min=1e-8)
        flat = before - view.shares.sum() <= _FLAT * before
        if flat or bool((moved < tolerance).all()):
            return poses, steps, torch.ones_like(worse)
    return poses, steps, moved < tolerance


def _step(problem: SequenceProblem, model: Model, poses: Tensor, damping: Tensor) -> Tensor:
    """Damped Gauss-Newton step (n,49) inside the limits: what would cross a bound is set onto it,
    the others are solved again."""
    solver = problem.solver
    free = solver.plans[-1].tables.free
    q, g = (t.cpu().numpy()[:, free] for t in (poses, model.gradient))
    lower, upper = solver.lower[free], solver.upper[free]
    chosen = torch.as_tensor(np.nonzero(free)[0], device=poses.device)
    diagonal, beside = (
        t[:, chosen][:, :, chosen].cpu().numpy() for t in (model.diagonal, model.beside)
    )
    scale = np.diagonal(diagonal, axis1=1, axis2=2) + 1e-9
    extra = damping.cpu().numpy()[:, None] * scale
    held = ((q <= lower) & (g > 0)) | ((q >= upper) & (g < 0))
    step = np.zeros_like(q)
    for _ in range(_ACTIVE_SET_PASSES):
        placed = np.where(held, step, 0.0)
        right = -(g + _times(diagonal, beside, placed))
        solved = solve_block_tridiagonal(diagonal, beside, extra, held, right)
        step = np.where(held, placed, solved)
        bounded = np.clip(q + step, lower, upper) - q
        crossed = (q + step != q + bounded) & ~held
        step = np.where(crossed, bounded, step)
        held = held | crossed
        if not crossed.any():
            break
    out = np.zeros(poses.shape)
    out[:, free] = np.clip(q + step, lower, upper) - q
    return torch.as_tensor(out).to(poses.device)


def _times(diagonal: np.ndarray, beside: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The block-tridiagonal matrix times values (n,f)."""
    out = np.einsum("tij,tj->ti", diagonal, values)
    out[:-1] += np.einsum("tij,tj->ti", beside, values[1:])
    out[1:] += np.einsum("tji,tj->ti", beside, values[:-1])
    return out


def solve_block_tridiagonal(
    diagonal: np.ndarray,
    beside: np.ndarray,
    extra: np.ndarray,
    held: np.ndarray,
    right: np.ndarray,
) -> np.ndarray:
    """Solve a symmetric positive block-tridiagonal system, (n,f).

    diagonal: (n,f,f); beside: (n-1,f,f), rows of a block and columns of the next; extra: (n,f)
    added to the diagonal; held: (n,f) bool, unknowns that are zero; right: (n,f). Banded Cholesky
    in float64: time and memory grow with n. Where the matrix is not positive to rounding, the
    diagonal is raised.
    """
    n, f = right.shape
    keep = (~held).astype(float)
    blocks = diagonal * keep[:, :, None] * keep[:, None, :]
    blocks[:, range(f), range(f)] += np.where(held, 1.0, extra)
    below = (beside * keep[:-1, :, None] * keep[1:, None, :]).transpose(0, 2, 1)
    band = np.zeros((2 * f, n, f))
    for column in range(f):
        band[: f - column, :, column] = blocks[:, column:, column].T
        band[f - column : 2 * f - column, :-1, column] = below[:, :, column].T
    band = band.reshape(2 * f, n * f)
    values = (right * keep).reshape(-1)
    lift = 0.0
    while True:
        raised = band.copy()
        raised[0] *= 1.0 + lift
        try:
            factor = cholesky_banded(raised, lower=True, check_finite=False)
            return cho_solve_banded((factor, True), values, check_finite=False).reshape(n, f)
        except LinAlgError:
            lift = max(10.0 * lift, 1e-10)


# --- judgement -------------------------------------------------------------------------------


def _judge(
    problem: SequenceProblem,
    result: FitResult,
    rows: Tensor,
    frames: Tensor,
    poses: Tensor,
    settled: Tensor,
) -> None:
    """Write errors, limits and status of the listed frames into their rows of the result."""
    solver = problem.solver
    for index, row in zip(frames.split(solver.width), rows.split(solver.width), strict=True):
        look = problem._look(index, poses)
        _, totals, largest = solver.kernels.judge(
            solver.skinning, solver.region, look.transforms, look.points, look.targets
        )
        count = index.numel()
        mean = totals.sum(dim=0) * look.mass
        parts = totals / solver.region_counts
        result.vertex_error_mean[row] = mean[:count].float()
        result.vertex_error_max[row] = largest[:count].float()
        for name, part in zip(REGIONS, parts, strict=True):
            result.region_errors[name][row] = part[:count].float()
    active = solver.active_limits(poses[frames])
    result.active_limits[rows] = active
    error = result.vertex_error_mean[rows]
    limited = active.any(dim=1) & (error > solver.config.limited_above)
    _judge_unlimited(problem, result, rows, frames, limited)
    for row, on_limit, done in zip(
        rows.tolist(), limited.tolist(), settled[frames].tolist(), strict=True
    ):
        result.status[row] = status_of(done, on_limit)


def _judge_unlimited(
    problem: SequenceProblem, result: FitResult, rows: Tensor, frames: Tensor, limited: Tensor
) -> None:
    """`unlimited_error` of rows that are limited now; NaN in the others."""
    known = result.unlimited_error[rows]
    known = torch.where(limited, known, torch.nan)
    wanted = torch.nonzero(limited & torch.isnan(known))[:, 0]
    if wanted.numel():
        solution = problem.solver.without_limits().solve(
            lambda index: problem.goal(frames[wanted[index]]),
            problem.betas.expand(wanted.numel(), -1),
        )
        known[wanted] = solution.error_mean.float()
    # the pose within limits is feasible without them too
    result.unlimited_error[rows] = torch.minimum(known, result.vertex_error_mean[rows])


__all__ = [
    "NEIGHBOUR_START",
    "Model",
    "SequenceConfig",
    "SequenceProblem",
    "View",
    "fit_sequence",
    "smooth",
    "solve_block_tridiagonal",
]
