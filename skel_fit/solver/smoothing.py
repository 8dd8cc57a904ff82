"""Frames of one body coupled by the velocity of its skin, and their Gauss-Newton minimisation.

Theory: docs/sequences.md. The whole sequence is one problem; only passes over vertices go through
windows of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.crew import each
from skel_fit.kinematics import Identity
from skel_fit.solver.blocks import Goal, GoalOf, Posed, Solution, padded
from skel_fit.solver.box_step import Box, box_step, damping_of
from skel_fit.solver.curvature import Pairs, Twists, unpacked
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.tables import Chain

if TYPE_CHECKING:
    from skel_fit.solver.engine import Kernels

_MOST_LIFT = 1e3
"""Share by which a diagonal is raised at the most; a finite system needs far less."""
_FLAT = 1e-6  # relative fall of the objective that is no progress any more
_TRIES = 8
_ACTIVE_SET_PASSES = 5
_SMALL_STEP = 0.1  # rad: below, the Gauss-Newton matrix is kept
_KEPT_BYTES = 1 << 29  # of target surfaces that are kept instead of posed again


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
    """sum_t E_t(q_t) + sum_t w_t mean_v |A_{t+1} r_{t+1} - A_t r_t|^2
    + sum_t ties_t (q_{t+1} - q_t)^2 over n frames, m^2.

    E_t is the objective of the last stage (docs/solver.md), r_t the residual of the skin in the
    root frame and A_t the global orientation: A r is the residual in the world, where the velocity
    error is the difference of neighbours. Poses are (n,49) as in `Solver`; memory is that of the
    poses and matrices, vertices are visited a block at a time.
    """

    solver: Solver
    goal: GoalOf
    betas: Tensor  # (10,) of SKEL, float64
    orient: Tensor  # (n,3,3) global orientation of each root frame
    weights: Tensor  # (n-1,) float64, w_t of the step from t to t+1
    ties: Tensor | None = None  # (n-1,49) m^2/rad^2
    bounds: tuple[np.ndarray, np.ndarray] | None = None  # (n,49) limits of each frame's description

    def subset(self, frames: Tensor) -> SequenceProblem:
        """Some of the frames in their order, as the problem of one another's neighbours."""
        following = frames[1:] == frames[:-1] + 1
        ties = None
        if self.ties is not None:
            ties = torch.where(following[:, None], self.ties[frames[:-1]], 0.0)
        chosen = frames.cpu().numpy()
        bounds = None if self.bounds is None else tuple(side[chosen] for side in self.bounds)
        return replace(
            self,
            goal=lambda rows: self.goal(frames[rows]),
            orient=self.orient[frames],
            weights=torch.where(following, self.weights[frames[:-1]], 0.0),
            ties=ties,
            bounds=bounds,
        )

    @property
    def frames(self) -> int:
        return self.orient.shape[0]

    def refine(self, frames: Tensor, starts: Tensor) -> Solution:
        """Frames fitted on their own from the given poses (k,49)."""
        return self.solver.narrow().refine(
            lambda rows: self.goal(frames[rows]),
            self.betas.expand(frames.numel(), -1),
            starts,
        )

    def energies(self, poses: Tensor) -> Tensor:
        """E_t of every frame, (n,) m^2."""

        def own(index: Tensor) -> Tensor:
            look = self.look(index, poses)
            squares = (look.skin - look.targets).double().square().sum(dim=1).T @ masses
            return (squares + look.extra)[: index.numel()]

        masses = torch.as_tensor(
            self.solver.plans[-1].vertices.masses, device=poses.device
        ).double()
        blocks = torch.arange(self.frames, device=poses.device).split(self.solver.width)
        return torch.cat(list(each(own, blocks, self.solver.device)))

    def view(self, poses: Tensor) -> View:
        """Visit every vertex of every frame once: shares of the objective, forces."""

        masses = self.solver.plans[-1].vertices.masses

        def seen(block: tuple[slice, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            inner, window = block
            look = self.look(window, poses)
            count = window.numel()
            turns, weights = self.orient[window], self.weights[window[:-1]]
            wanted, own, between = self.solver.kernels.couple(
                look.skin, look.targets, turns, masses, weights
            )
            own = own + look.extra[:count]
            between = between * weights
            # between frames: half a share each, so that a frame knows what its own step changed
            share = own + 0.5 * (_padded(between, 1, 0) + _padded(between, 0, 1))
            moments, corrective = self._forces(look, wanted, count)
            keep = slice(inner.start - int(window[0]), inner.stop - int(window[0]))
            return share[keep], moments[keep], corrective[keep]

        parts = list(each(seen, self._windows(), self.solver.device))
        view = View(*(torch.cat(part) for part in zip(*parts, strict=True)))
        if self.ties is None:
            return view
        tied = (self.ties * (poses[1:] - poses[:-1]).square()).sum(dim=1)
        halves = 0.5 * (_padded(tied, 1, 0) + _padded(tied, 0, 1))
        return view._replace(shares=view.shares + halves)

    def linearise(self, poses: Tensor, view: View) -> Model:
        """Gradient and Gauss-Newton matrix at poses (n,49), where `view` was taken."""
        return self.tied(self.untied(poses, view), poses)

    def untied(
        self, poses: Tensor, view: View, known: Model | None = None, moved: Tensor | None = None
    ) -> Model:
        """The model without the ties.

        known: a model whose matrix is kept where neither a frame nor its neighbours `moved` (n,)
        by `_SMALL_STEP`, rad: it hardly changes; the gradient is exact always.
        """
        solver, plan = self.solver, self.solver.plans[-1]
        curvature = solver.kernels.curvature
        kernels = TorchKernels(solver.skeleton, None, solver.dtype, solver.device, curvature)
        owner = kernels.skeleton.joint_of_parameter
        first, second = (
            torch.as_tensor(part, device=poses.device)
            for part in (plan.tables.pair_first, plan.tables.pair_second)
        )
        pairs = Pairs(first, second, kernels.subtree)
        keep = torch.as_tensor(plan.tables.free, device=poses.device).double()
        keep = keep[:, None] * keep
        around = _padded(self.weights, 1, 0) + _padded(self.weights, 0, 1)
        fresh = torch.ones(self.frames, dtype=torch.bool, device=poses.device)
        if moved is not None:
            large = (moved >= _SMALL_STEP).double()
            fresh = large + _padded(large[1:], 0, 1) + _padded(large[:-1], 1, 0) > 0

        def linear(block: tuple[slice, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            inner, window = block
            # the neighbour to the right is needed, the one to the left is not
            index = window[window >= inner.start]
            count, size = index.numel(), inner.stop - inner.start
            shape = self._identity(count)
            moments = solver.pair_moments(plan, shape)
            if known is not None and not fresh[index].any():
                forces = (view.moments[index], view.corrective[index])
                gradient = kernels.gradient(
                    plan.tables, shape, moments, self._joint_targets(index), forces, poses[index]
                )
                beside = known.beside[inner.start : inner.start + min(size, count - 1)]
                return gradient[:size], known.diagonal[inner], beside
            gradient, diagonal, bones = kernels.linearise(
                plan.tables,
                shape,
                moments * (1.0 + around[index])[:, None, None],
                self._joint_targets(index),
                (view.moments[index], view.corrective[index]),
                poses[index],
            )
            turned = Twists.turned(bones, shape.joints, self.orient[index])
            beside = curvature(
                turned.rows(slice(0, count - 1)),
                turned.rows(slice(1, count)),
                unpacked(moments)[: count - 1],
                pairs,
                owner,
            )
            strength = keep * self.weights[index[:-1], None, None]
            diagonal, beside = diagonal[:size], -strength[:size] * beside[:size]
            if known is not None:  # whatever window a frame is in
                new, pair = fresh[index], fresh[index[:-1]] | fresh[index[1:]]
                diagonal = torch.where(new[:size, None, None], diagonal, known.diagonal[inner])
                old = known.beside[inner.start : inner.start + len(beside)]
                beside = torch.where(pair[: len(beside), None, None], beside, old)
            return gradient[:size], diagonal, beside

        parts = list(each(linear, self._windows(), solver.device))
        return Model(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def tied(self, model: Model, poses: Tensor) -> Model:
        """The model with what holds neighbours together."""
        if self.ties is None:
            return model
        ties = self.ties * torch.as_tensor(self.solver.plans[-1].tables.free).to(poses)
        around = _padded_rows(ties, 0, 1) + _padded_rows(ties, 1, 0)
        return Model(
            model.gradient + _tie_gradient(poses, ties),
            model.diagonal + torch.diag_embed(around),
            model.beside - torch.diag_embed(ties),
        )

    def _windows(self) -> list[tuple[slice, Tensor]]:
        """Blocks of frames, and the same with a neighbour at each side."""
        size, n = max(self.solver.width - 2, 1), self.frames
        found = []
        for first in range(0, n, size):
            last = min(first + size, n)
            window = torch.arange(max(first - 1, 0), min(last + 1, n), device=self.orient.device)
            found.append((slice(first, last), window))
        return found

    def _identity(self, count: int) -> Identity[Tensor]:
        return self.solver.kernels.identity(self.betas.expand(count, -1).contiguous())

    def _joint_targets(self, index: Tensor) -> Tensor:
        if not self.solver.plans[-1].tables.joint_masses.any():
            return torch.zeros(index.numel(), 24, 3, dtype=torch.float64, device=index.device)
        targets = self.goal(padded(index, self.solver.width)).targets
        return self.solver.joint_targets(targets)[: index.numel()]

    def look(self, index: Tensor, poses: Tensor) -> Look:
        solver, plan = self.solver, self.solver.plans[-1]
        index = padded(index, solver.width)
        shape = self._identity(index.numel())
        targets = self.goal(index).targets
        posed = solver.kernels.evaluate(plan.vertices, poses[index], shape)
        skin = solver.kernels.skinned(plan.vertices, posed)
        extra = solver.kernels.extra_energy(
            plan.tables, shape, solver.joint_targets(targets), poses[index]
        )
        return Look(posed, targets, skin, extra)

    def _forces(self, look: Look, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Moments (k,24,12) and corrective pull (k,207) of the skin's way from points `wanted`
        (V,3,n), root frame, of the first k = `count` frames."""
        solver, vertices = self.solver, self.solver.plans[-1].vertices
        _, moments, corrective = solver.kernels.evidence(vertices, look.posed, wanted)
        moments = moments.permute(2, 0, 1)[:count].double().contiguous()
        return moments, corrective.T[:count].double().contiguous()


def _tie_gradient(poses: Tensor, ties: Tensor) -> Tensor:
    """Half gradient (n,49) of sum_t ties_t (q_{t+1} - q_t)^2."""
    pull = ties * (poses[1:] - poses[:-1])
    return _padded_rows(pull, 1, 0) - _padded_rows(pull, 0, 1)


def _padded_rows(values: Tensor, before: int, after: int) -> Tensor:
    """Zeros around the first dimension of (n,k)."""
    return torch.nn.functional.pad(values, (0, 0, before, after))


def remembered(goal: GoalOf) -> GoalOf:
    """The goal that keeps what it was asked for, up to `_KEPT_BYTES`."""
    kept: dict[bytes, Goal] = {}
    left = _KEPT_BYTES

    def ask(rows: Tensor) -> Goal:
        nonlocal left
        key = rows.cpu().numpy().tobytes()
        if key in kept:
            return kept[key]
        found = goal(rows)
        left -= found.targets.numel() * found.targets.element_size()
        if left > 0:
            kept[key] = found
        return found

    return ask


class Look(NamedTuple):
    """A padded block of frames with its vertices, root frame."""

    posed: Posed
    targets: Tensor  # (V,3,n) m
    skin: Tensor  # (V,3,n) m
    extra: Tensor  # (n,) joint and prior terms


def _padded(values: Tensor, before: int, after: int) -> Tensor:
    """Zeros around the last dimension."""
    return torch.nn.functional.pad(values, (before, after))


def smooth(
    problem: SequenceProblem,
    poses: Tensor,
    rounds: int,
    told: Callable[[int], None] = lambda steps: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the coupled problem from poses (n,49) inside the limits.

    Levenberg-Marquardt over the whole sequence: a step is taken if the objective falls, damping is
    per frame. `told` hears the number of steps before each. Returns poses (n,49), steps (n,) and
    whether each frame settled (n,).
    """
    n, tolerance = poses.shape[0], problem.solver.tolerance(problem.solver.plans[-1])
    problem = replace(problem, goal=remembered(problem.goal))
    view = problem.view(poses)
    model: Model | None = None
    damping = torch.full((n,), 1e-4, dtype=torch.float64, device=poses.device)
    moved = torch.full_like(damping, torch.inf)
    steps = torch.zeros(n, dtype=torch.int64, device=poses.device)
    worse = torch.zeros_like(steps, dtype=torch.bool)
    for step_number in range(rounds):
        told(step_number)
        model = problem.untied(poses, view, model, moved)
        tied = problem.tied(model, poses)
        before = view.shares.sum()
        for number in range(_TRIES):
            step, fall = _step(problem, tied, poses, damping)
            if fall < 0.0:  # what the limits left of it would raise the sum by the model itself
                damping = (10.0 * damping).clamp(min=1e-4)
                continue
            if fall <= _FLAT * before:  # not worth a look at every vertex
                last = step if number == 0 else torch.zeros_like(step)
                return poses + last, steps + 1, torch.ones_like(moved, dtype=torch.bool)
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


def _step(
    problem: SequenceProblem, model: Model, poses: Tensor, damping: Tensor
) -> tuple[Tensor, float]:
    """Damped Gauss-Newton step (n,49) of all frames together, inside the limits, and by how much
    the model says that the objective falls.

    On the host: the banded solver is there.
    """
    solver = problem.solver
    free = solver.plans[-1].tables.free
    at, gradient = (t.cpu()[:, free] for t in (poses, model.gradient))
    chosen = torch.as_tensor(np.nonzero(free)[0], device=poses.device)
    diagonal, beside = (
        t[:, chosen][:, :, chosen].cpu().numpy() for t in (model.diagonal, model.beside)
    )
    scale = torch.as_tensor(np.diagonal(diagonal, axis1=1, axis2=2).copy())
    extra = damping_of(scale, damping.cpu()).numpy()
    limits = problem.bounds or (solver.lower[None], solver.upper[None])
    lower, upper = (torch.as_tensor(bound[:, free]) for bound in limits)

    def solve(right: Tensor, held: Tensor) -> Tensor:
        found = solve_block_tridiagonal(
            solver.kernels, diagonal, beside, extra, held.numpy(), right.numpy()
        )
        return torch.as_tensor(found)

    def times(values: Tensor) -> Tensor:
        return torch.as_tensor(_times(diagonal, beside, values.numpy()))

    box = Box(lower, upper, torch.ones(at.shape[1], dtype=torch.bool))
    step = torch.zeros(poses.shape, dtype=poses.dtype)
    way = box_step(at, gradient, box, times, solve, _ACTIVE_SET_PASSES)
    step[:, free] = way
    return step.to(poses.device), -float((way * (2.0 * gradient + times(way))).sum())


def _times(diagonal: np.ndarray, beside: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The block-tridiagonal matrix times values (n,f)."""
    out = np.einsum("tij,tj->ti", diagonal, values)
    out[:-1] += np.einsum("tij,tj->ti", beside, values[1:])
    out[1:] += np.einsum("tji,tj->ti", beside, values[:-1])
    return out


def solve_block_tridiagonal(
    kernels: Kernels,
    diagonal: np.ndarray,
    beside: np.ndarray,
    extra: np.ndarray,
    held: np.ndarray,
    right: np.ndarray,
) -> np.ndarray:
    """Solve a symmetric positive block-tridiagonal system, (n,f).

    diagonal: (n,f,f); beside: (n-1,f,f), rows of a block and columns of the next; extra: (n,f)
    added to the diagonal; held: (n,f) bool, unknowns that are zero; right: (n,f). Block Cholesky in
    float64 from both ends to the frame in the middle, the two halves side by side on two threads:
    time and memory grow with n. Where the matrix is not positive to rounding, the diagonal is
    raised. Raises ArithmeticError where raising does not help: an entry is not finite.
    """
    system = _System(diagonal, beside, extra, (~held).astype(float), right)
    lift = 0.0
    while (found := system.solve(kernels, lift)) is None:
        lift = max(10.0 * lift, 1e-10)
        if lift > _MOST_LIFT:
            raise ArithmeticError("a banded system without a solution: entries are not finite")
    return found


@dataclass(frozen=True)
class _System:
    """What `solve_block_tridiagonal` was given; keep: (n,f) 0 where an unknown is held."""

    diagonal: np.ndarray
    beside: np.ndarray
    extra: np.ndarray
    keep: np.ndarray
    right: np.ndarray

    def solve(self, kernels: Kernels, lift: float) -> np.ndarray | None:
        """The solution, the diagonal raised by its share `lift`; None if it is not positive."""
        n = len(self.right)
        middle = n // 2
        ends = [np.arange(middle), np.arange(n - 1, middle, -1)]
        ends = [rows for rows in ends if len(rows)]

        def eliminated(rows: np.ndarray) -> Chain | None:
            step = int(np.sign(middle - rows[0]))
            blocks, beside = self._blocks(rows, lift), self._beside(rows, step)
            found: Chain | None = kernels.eliminate(blocks, beside, self._right(rows))
            return found

        chains = list(each(eliminated, ends, torch.device("cpu")))
        known = [chain for chain in chains if chain is not None]
        centre = np.arange(middle, middle + 1)
        block, value = self._blocks(centre, lift), self._right(centre)
        for chain in known:
            block -= chain.sides[-1].T @ chain.sides[-1]
            value -= chain.sides[-1].T @ chain.values[-1]
        last = kernels.eliminate(block, np.zeros_like(block), value)
        if last is None or len(known) < len(chains):
            return None
        out = np.empty_like(self.right)
        out[centre] = kernels.substitute(last, np.zeros(out.shape[1]))

        def substituted(end: tuple[np.ndarray, Chain]) -> None:
            out[end[0]] = kernels.substitute(end[1], out[middle])

        for _ in each(substituted, list(zip(ends, known, strict=True)), torch.device("cpu")):
            pass
        return out

    def _blocks(self, rows: np.ndarray, lift: float) -> np.ndarray:
        keep = self.keep[rows]
        blocks = self.diagonal[rows]
        blocks *= keep[:, :, None] * keep[:, None, :]
        along = np.arange(blocks.shape[1])
        blocks[:, along, along] += np.where(keep == 0.0, 1.0, self.extra[rows])
        blocks[:, along, along] *= 1.0 + lift
        return blocks

    def _beside(self, rows: np.ndarray, step: int) -> np.ndarray:
        """Blocks of the rows and the columns of the frames that follow by `step`, 1 or -1."""
        beside = self.beside[rows] if step > 0 else self.beside[rows - 1].swapaxes(1, 2).copy()
        beside *= self.keep[rows][:, :, None] * self.keep[rows + step][:, None, :]
        return beside

    def _right(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.right[rows] * self.keep[rows]
        return found
