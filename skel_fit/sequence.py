"""Fit a moving body: frames as in `fit_skel`, then one branch through time, then smoothing.

Method: docs/sequences.md. Frames are fitted one by one, so nothing depends on how a sequence is cut
into blocks; what couples them afterwards treats the whole sequence at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from smplx import SMPL
from torch import Tensor

from skel_fit.anatomy import REGIONS
from skel_fit.crew import each, rows_over_threads
from skel_fit.fit import FitResult, fit_skel, solver_of, status_of
from skel_fit.inputs import Numbers, smpl_inputs
from skel_fit.recipe import FitConfig, SequenceConfig, check_sequence
from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.skel import SKEL
from skel_fit.solver.branches import (
    Candidates,
    Describer,
    candidates,
    cheapest_path,
    continuous_root,
    either_end,
    lock_ties,
    suspicious_steps,
)
from skel_fit.solver.engine import STARTS
from skel_fit.solver.smoothing import SequenceProblem, smooth
from skel_fit.status import Status, costly_rows, limited_rows

TIES = (1e-5, 1e-4, 1e-3)
"""m^2/rad^2 between neighbouring frames at a lock (the first) and around a jump: a radian weighs as
much as 0.3 mm of RMS distance beside the 15 mm that two skins differ by anyway."""
DEAREST = 2e-4
"""m of RMS distance that levelling a jump may cost the frames at its ends, on average."""
SMOOTH_STEP = 0.3
"""rad between two frames of the target below which no angle has a reason to jump."""
NEIGHBOUR_START = len(STARTS)
"""`FitResult.start` of a frame that was fitted again from its neighbour's pose."""
_PART = 1024  # frames between two reports of progress
_FRAMES_SHARE, _PATH_SHARE = 0.3, 0.4  # of the work, when frames and path are done

Progress = Callable[[float], None]
"""Told about which share of the work is done, an estimate that grows from 0 to 1."""


@rows_over_threads()
def fit_sequence(
    skel: SKEL,
    smpl: SMPL,
    poses: Numbers,
    betas: Numbers,
    transl: Numbers,
    config: FitConfig | None = None,
    smoothing: SequenceConfig | None = None,
    *,
    vertex_weights: np.ndarray | None = None,
    progress: Progress = lambda share: None,
) -> FitResult:
    """Fit SKEL to consecutive frames of one SMPL body.

    poses: (T, 72) SMPL axis-angle, rad, or as `fit_skel` takes them; betas: (10,), or (T, 10) with
    equal rows; transl: (T, 3) m. Numpy in, numpy out.
    The result is that of `fit_skel` with, over time, continuous angles (root angles count whole
    turns), the cheapest path through the fits of all frames and those that start from a neighbour's
    pose (`start` NEIGHBOUR_START), and the smoothing asked for. The middle angle of a ball joint
    whose limit is its lock may pass it: the same rotation has angles inside. `alone_error` says how
    well each frame fits on its own. Rejected frames are stepped over: the others are fitted as if
    those were not there. With `config.betas` "fit" all frames share one fitted shape.

    vertex_weights: (6890,) as in `fit_skel`; they count in the smoothing too. progress: called
    between the steps of a long sequence, by this thread.

    Raises ValueError where `fit_skel` does, where betas change, and for a recipe that frees the
    root.
    """
    config, smoothing = config or FitConfig(), smoothing or SequenceConfig()
    check_sequence(config)
    (poses, betas, transl), arrays = smpl_inputs(poses, _per_frame(betas, len(poses)), transl)
    _check_one_shape(betas)

    def fitted(part: slice) -> FitResult:
        some = poses[part], betas[part], transl[part]
        one = torch.zeros(len(some[0]), dtype=torch.int64) if config.betas == "fit" else None
        return fit_skel(skel, smpl, *some, config, identity=one, vertex_weights=vertex_weights)

    result = frames_alone(fitted, len(poses), config, progress)
    result = replace(result, alone_error=result.vertex_error_mean)
    good = torch.tensor([not s.is_rejected for s in result.status], device=result.poses.device)
    frames = torch.nonzero(good)[:, 0]
    if not frames.numel():
        progress(1.0)
        return result.numpy() if arrays else result
    solver = solver_of(skel, smpl, config, vertex_weights)
    poses, betas = (t.detach().to(solver.device, torch.float64)[frames] for t in (poses, betas))
    run = result.take(frames)
    local = axis_angle_to_matrix(poses.view(len(poses), 24, 3)[:, 1:])
    steps = largest_turns(local)
    problem = SequenceProblem(
        solver,
        solver.smpl_goal(poses, betas),
        run.betas[0].double(),
        axis_angle_to_matrix(poses[:, :3]),
        displacement_weights(smoothing, steps),
    )
    found = result.put(frames, coupled_frames(problem, run, steps, smoothing, progress))
    progress(1.0)
    return found.numpy() if arrays else found


class MovingRoot(Protocol):
    """A root that the fit moves: where the frames of a run are in the root frames of their goals,
    and where that puts SKEL in the world."""

    def local(self, run: FitResult) -> Tensor:
        """Poses (n,49) of all frames in their root frames, float64."""

    def world(self, frames: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Root angles (k,3) and translations (k,3) of these frames (k,) at poses (k,49)."""


def frames_alone(
    fitted: Callable[[slice], FitResult], count: int, config: FitConfig, progress: Progress
) -> FitResult:
    """All frames on their own; part after part where no frame depends on another."""
    size = max(count, 1) if config.betas == "fit" else _PART
    parts = []
    for first in range(0, max(count, 1), size):
        progress(_FRAMES_SHARE * first / max(count, 1))
        parts.append(fitted(slice(first, first + size)))
    return parts[0] if len(parts) == 1 else FitResult.joined(parts)


def largest_turns(local: Tensor) -> Tensor:
    """(T-1,) rad: largest rotation between neighbouring frames among joints (T,J,3,3), each turned
    against its parent."""
    between = local[1:] @ local[:-1].transpose(2, 3)
    cosine = (between.diagonal(dim1=2, dim2=3).sum(dim=2) - 1.0) / 2.0
    return cosine.clamp(-1.0, 1.0).arccos().amax(dim=1)


def displacement_weights(config: SequenceConfig, target_steps: Tensor) -> Tensor:
    """(n-1,) weight of the displacement error of steps of `largest_turns` (n-1,) rad.

    Less for a step above SMOOTH_STEP: between poses that are far apart the residuals of two skins
    differ by themselves, and to hold them together would draw both frames away from their targets.
    """
    share = (SMOOTH_STEP / target_steps.double()).clamp(max=1.0).square()
    return config.smoothing * share


def _per_frame(betas: Numbers, count: int) -> Numbers:
    """One row a frame of a shape that is given once."""
    if isinstance(betas, Tensor) and betas.ndim == 1:
        return betas.expand(count, -1)
    if isinstance(betas, np.ndarray) and betas.ndim == 1:
        return np.broadcast_to(betas, (count, len(betas)))
    return betas


def _check_one_shape(betas: Tensor) -> None:
    """Raises ValueError where rows (T,10) differ."""
    finite = torch.nonzero(torch.isfinite(betas).all(dim=1))[:, 0]
    differs = (betas[finite] != betas[finite[:1]]).any(dim=1)
    if differs.any():
        row, first = int(finite[differs][0]), int(finite[0])
        raise ValueError(f"betas: frame {row} differs from frame {first}; a sequence has one shape")


def coupled_frames(
    problem: SequenceProblem,
    run: FitResult,
    target_steps: Tensor,
    config: SequenceConfig,
    progress: Progress,
    root: MovingRoot | None = None,
) -> FitResult:
    """Branches, charts and smoothing of frames that follow one another.

    run: the frames on their own; target_steps: (n-1,) rad, `largest_turns` of the target; root:
    None where the recipe freezes it, then `run` keeps its own.
    """
    solver = problem.solver
    first = run.poses.double()
    alone = torch.nn.functional.pad(first[:, 3:], (3, 3)) if root is None else root.local(run)
    describer = Describer(solver.lower, solver.upper, config.jump)
    progress(_FRAMES_SHARE)
    run, inside, settled = _one_branch(problem, run, alone, describer, target_steps)
    chart = describer.describe(inside.cpu().numpy())
    poses = chart.described(inside)
    problem = replace(problem, bounds=chart.bounds(solver.lower, solver.upper))
    progress(_PATH_SHARE)
    poses, steps, done = _coupled(problem, poses, target_steps, config, progress)
    settled = torch.where(steps > 0, done, settled)
    inside = chart.inside(poses)
    moved = torch.nonzero((inside != alone).any(dim=1))[:, 0]
    turned = first[:, :3]
    if root is not None and moved.numel():
        found, trans = root.world(moved, inside[moved])
        turned = turned.index_copy(0, moved, found)
        run = replace(run, trans=run.trans.index_copy(0, moved, trans.float()))
    turned = torch.as_tensor(continuous_root(turned.cpu().numpy())).to(poses)
    angles = torch.cat([turned, poses[:, 3:46]], dim=1)
    run = replace(run, poses=angles.float(), iterations=run.iterations + steps)
    return _judged(problem, run, moved, poses, inside, settled) if moved.numel() else run


def _one_branch(
    problem: SequenceProblem,
    run: FitResult,
    alone: Tensor,
    describer: Describer,
    target_steps: Tensor,
) -> tuple[FitResult, Tensor, Tensor]:
    """The run with the cheapest path through what fits its frames; poses (n,49) inside the limits;
    which frames settled."""
    n, device = problem.frames, alone.device
    settled = torch.tensor([s != Status.MAX_ITER for s in run.status], device=device)
    jumps = suspicious_steps(alone.cpu().numpy(), describer, target_steps.cpu().numpy())
    if not jumps.size:
        return run, alone, settled
    own = Candidates(
        np.arange(n),
        alone.cpu().numpy(),
        problem.energies(alone).cpu().numpy(),
        settled.cpu().numpy(),
        run.iterations.cpu().numpy(),
    )
    found = candidates(problem, own, jumps)
    chosen = cheapest_path(found, describer, n)
    led = torch.as_tensor(chosen >= n).to(device)
    more = torch.zeros(n, dtype=run.iterations.dtype)
    extra = slice(n, None)
    more.index_add_(
        0, torch.as_tensor(found.frame[extra]), torch.as_tensor(found.iterations[extra])
    )
    run = replace(
        run,
        start=torch.where(led, NEIGHBOUR_START, run.start),
        iterations=run.iterations + more.to(device),
    )
    poses, done = (torch.as_tensor(c[chosen]).to(device) for c in (found.poses, found.settled))
    return run, poses, done


class _Path(NamedTuple):
    """Where the frames of a run are on the way to their end."""

    poses: Tensor  # (n,49), described
    steps: Tensor  # (n,)
    settled: Tensor  # (n,) bool
    tied: Tensor  # (n-1,) bool: steps around which neighbours are held together

    def moved(self, frames: Tensor, poses: Tensor, steps: Tensor, settled: Tensor) -> _Path:
        """The path with the listed frames elsewhere."""
        return self._replace(
            poses=self.poses.index_copy(0, frames, poses),
            steps=self.steps.index_add(0, frames, steps),
            settled=self.settled.index_copy(0, frames, settled),
        )


def _coupled(
    problem: SequenceProblem,
    poses: Tensor,
    target_steps: Tensor,
    config: SequenceConfig,
    progress: Progress,
) -> tuple[Tensor, Tensor, Tensor]:
    """Described poses (n,49) after the smoothing asked for, and frames at a lock or a jump tied to
    their neighbours. Returns poses, steps (n,), settled (n,)."""
    n = problem.frames
    steps = torch.zeros(n, dtype=torch.int64, device=poses.device)
    settled = torch.ones(n, dtype=torch.bool, device=poses.device)
    if n < 2:
        return poses, steps, settled
    path = _Path(poses, steps, settled, torch.zeros_like(settled[1:]))
    # jumps go first: smoothing from both sides of one would end in two optima
    uncoupled = replace(problem, weights=torch.zeros_like(problem.weights))
    path = _levelled(uncoupled, path, target_steps, config)
    if config.smoothing > 0.0:
        path = _levelled(problem, path, target_steps, config, whole=True, progress=progress)
    return path.poses, path.steps, path.settled


def _levelled(
    problem: SequenceProblem,
    path: _Path,
    target_steps: Tensor,
    config: SequenceConfig,
    *,
    whole: bool = False,
    progress: Progress = lambda share: None,
) -> _Path:
    """The path with ties at locks and at jumps that the target does not make. Ties of jumps grow
    until none is left, as long as that costs hardly any residual.

    whole: every frame moves in the first pass, not only those that are tied.
    """
    before: Tensor | None = None  # poses after the first pass
    energies: Tensor | None = None

    def told(steps: int) -> None:
        # few steps are usual: each takes a part of what is left
        progress(1.0 - (1.0 - _PATH_SHARE) * 0.7**steps)

    for strength in TIES:
        large = (path.poses[1:, 3:46] - path.poses[:-1, 3:46]).abs().amax(dim=1) > config.jump
        jumps = large & (target_steps < SMOOTH_STEP)
        if before is not None and not jumps.any():
            break
        path = path._replace(tied=path.tied | jumps)
        # smoothing makes the skin's own pull so much stronger
        pull = 1.0 + 2.0 * config.smoothing * whole
        ties = lock_ties(path.poses, path.tied, pull * TIES[0], pull * strength)
        moved = either_end(ties.any(dim=1))
        if whole and before is None:
            moved[:] = True
        frames = torch.nonzero(moved)[:, 0]
        if not frames.numel():
            break
        part = replace(problem, ties=ties)
        part = part if frames.numel() == problem.frames else part.subset(frames)
        found, taken, done = smooth(part, path.poses[frames], config.rounds, told)
        if before is not None:
            if energies is None:
                energies = problem.energies(before).sqrt()
            cost = part.energies(found).sqrt() - energies[frames]
            if cost[either_end(jumps)[frames]].mean() > DEAREST:
                break
        path = path.moved(frames, found, taken, done)
        if before is None:
            before = path.poses
    return path


def _judged(
    problem: SequenceProblem,
    run: FitResult,
    frames: Tensor,
    poses: Tensor,
    inside: Tensor,
    settled: Tensor,
) -> FitResult:
    """The run with errors, limits and status of the listed frames at poses (n,49), which are
    `inside` the table of limits."""
    solver = problem.solver

    def judged(index: Tensor) -> Tensor:
        look = problem.look(index, poses)
        _, totals, largest = solver.kernels.judged(
            solver.plans[-1].vertices, solver.region, look.posed, look.targets
        )
        errors = torch.cat(
            [
                totals.sum(dim=0)[None] / look.skin.shape[0],
                largest[None],
                totals / solver.region_counts,
            ]
        )
        return errors[:, : index.numel()]

    parts = list(each(judged, frames.split(solver.width), solver.device))
    mean, largest, *regions = torch.cat(parts, dim=1).float()
    active = solver.active_limits(inside[frames])
    on_limit = active.any(dim=1)
    costly = costly_rows(solver.config, mean.double(), on_limit)
    unlimited = _unlimited(problem, run.unlimited_error[frames], mean, frames, costly)
    limited = limited_rows(solver.config, mean.double(), unlimited.double(), on_limit)
    status = list(run.status)
    flags = zip(frames.tolist(), settled[frames].tolist(), limited.tolist(), strict=True)
    for frame, done, outside in flags:
        status[frame] = status_of(done, outside)
    return replace(
        run,
        vertex_error_mean=run.vertex_error_mean.index_copy(0, frames, mean),
        vertex_error_max=run.vertex_error_max.index_copy(0, frames, largest),
        region_errors={
            name: run.region_errors[name].index_copy(0, frames, part)
            for name, part in zip(REGIONS, regions, strict=True)
        },
        active_limits=run.active_limits.index_copy(0, frames, active),
        unlimited_error=run.unlimited_error.index_copy(0, frames, unlimited),
        status=status,
    )


def _unlimited(
    problem: SequenceProblem, known: Tensor, error: Tensor, frames: Tensor, costly: Tensor
) -> Tensor:
    """`unlimited_error` of the listed frames that limits may cost much now; NaN in the others."""
    known = torch.where(costly, known, torch.nan)
    wanted = torch.nonzero(costly & torch.isnan(known))[:, 0]
    if wanted.numel():
        solution = problem.solver.without_limits().solve(
            lambda index: problem.goal(frames[wanted[index]]),
            problem.betas.expand(wanted.numel(), -1),
        )
        known = known.index_copy(0, wanted, solution.error_mean.float())
    # the pose within limits is feasible without them too
    return torch.minimum(known, error)


__all__ = [
    "NEIGHBOUR_START",
    "MovingRoot",
    "SequenceConfig",
    "coupled_frames",
    "fit_sequence",
    "frames_alone",
]
