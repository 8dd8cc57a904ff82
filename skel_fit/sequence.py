"""Fit a moving body: frames as in `fit_skel`, then one branch through time, then smoothing.

Method: docs/sequences.md. Frames are fitted one by one, so nothing depends on how a sequence is cut
into blocks; what couples them afterwards treats the whole sequence at once.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import torch
from smplx import SMPL
from torch import Tensor

from skel_fit.anatomy import REGIONS
from skel_fit.fit import FitResult, fit_skel, solver_of, status_of
from skel_fit.recipe import FitConfig, SequenceConfig, check_sequence
from skel_fit.skel import SKEL
from skel_fit.solver.branches import continuous_root, follow, relabelled
from skel_fit.solver.engine import STARTS
from skel_fit.solver.smoothing import SequenceProblem, smooth
from skel_fit.status import Status

NEIGHBOUR_START = len(STARTS)
"""`FitResult.start` of a frame that was fitted again from its neighbour's pose."""


def fit_sequence(
    skel: SKEL,
    smpl: SMPL,
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
    solver = solver_of(skel, smpl, config)
    poses, betas = (t.detach().to(solver.device, torch.float64) for t in (poses, betas))
    runs = []
    for part, broken in _runs(result.status):
        run = result.rows(part)
        if not broken:
            problem = SequenceProblem(
                solver,
                solver.smpl_goal(poses[part], betas[part]),
                run.betas[0].double(),
                poses[part, :3],
                smoothing.smoothing,
            )
            run = _fit_run(problem, run, smoothing)
        runs.append(run)
    return FitResult.join(runs) if runs else result


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


def _runs(status: list[Status]) -> list[tuple[slice, bool]]:
    """Frames that follow one another, and whether they are rejected."""
    runs = []
    numbered = enumerate(found.is_rejected for found in status)
    for broken, members in groupby(numbered, key=lambda pair: pair[1]):
        frames = [frame for frame, _ in members]
        runs.append((slice(frames[0], frames[-1] + 1), broken))
    return runs


def _fit_run(problem: SequenceProblem, run: FitResult, config: SequenceConfig) -> FitResult:
    """Branches and smoothing of one unbroken run."""
    first = run.poses.double()
    root = continuous_root(first[:, :3].cpu().numpy())
    unchanged = relabelled(torch.nn.functional.pad(first[:, 3:], (3, 3)), problem.solver)
    poses, start, iterations = unchanged, run.start, run.iterations
    settled = torch.tensor([s != Status.MAX_ITER for s in run.status], device=poses.device)
    energy = problem.energies(poses)
    for step in (1, -1):
        poses, energy, found = follow(problem, poses, energy, config.jump, step)
        start = torch.where(found.refitted, NEIGHBOUR_START, start)
        settled = torch.where(found.refitted, found.settled, settled)
        iterations = iterations + found.iterations
    poses = relabelled(poses, problem.solver)
    if config.smoothing > 0.0 and poses.shape[0] > 1:
        poses, steps, settled = smooth(problem, poses, config.rounds)
        iterations = iterations + steps
    angles = torch.cat([torch.as_tensor(root).to(poses), poses[:, 3:46]], dim=1)
    run = replace(run, poses=angles.float(), start=start, iterations=iterations)
    moved = torch.nonzero((poses != unchanged).any(dim=1))[:, 0]
    return _judged(problem, run, moved, poses, settled) if moved.numel() else run


def _judged(
    problem: SequenceProblem, run: FitResult, frames: Tensor, poses: Tensor, settled: Tensor
) -> FitResult:
    """The run with errors, limits and status of the listed frames at poses (n,49)."""
    solver = problem.solver
    parts = []
    for index in frames.split(solver.width):
        look = problem.look(index, poses)
        _, totals, largest = solver.kernels.judge(
            solver.skinning, solver.region, look.transforms, look.points, look.targets
        )
        errors = torch.cat(
            [totals.sum(dim=0)[None] * look.mass, largest[None], totals / solver.region_counts]
        )
        parts.append(errors[:, : index.numel()])
    mean, largest, *regions = torch.cat(parts, dim=1).float()
    active = solver.active_limits(poses[frames])
    limited = active.any(dim=1) & (mean > solver.config.limited_above)
    status = list(run.status)
    flags = zip(frames.tolist(), settled[frames].tolist(), limited.tolist(), strict=True)
    for frame, done, on_limit in flags:
        status[frame] = status_of(done, on_limit)
    unlimited = _unlimited(problem, run.unlimited_error[frames], mean, frames, limited)
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
    problem: SequenceProblem, known: Tensor, error: Tensor, frames: Tensor, limited: Tensor
) -> Tensor:
    """`unlimited_error` of the listed frames that are limited now; NaN in the others."""
    known = torch.where(limited, known, torch.nan)
    wanted = torch.nonzero(limited & torch.isnan(known))[:, 0]
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
    "SequenceConfig",
    "fit_sequence",
]
