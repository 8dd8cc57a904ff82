"""Pose and shape at once: Gauss-Newton steps of the betas that every pose answers (docs/solver.md).

The poses of a row are eliminated from its equations, so that what is left are ten equations of the
shape, which rows of one identity add up. Between two steps each row is refined at its new shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.crew import each
from skel_fit.solver.blocks import GoalOf, Solution, padded
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.sandwich import RIDGE
from skel_fit.solver.search_torch import Search

ROUNDS = 12
"""At most so many steps between two searches of the poses."""
SETTLED = 5e-5
"""m: a shape is settled when a step would move its skin by less (root mean square)."""
_ENDED = 5e-4  # m: a step below it that lowers nothing was the last one
_PERTURBED = 0.25  # vertices are almost linear in betas: a large step loses no accuracy
_PRIOR = 1e-8  # m^2 per squared coefficient and row: holds directions that no mesh shows
_LARGEST = 2.0  # of a coefficient in one step
_HARDER, _EASIER = 10.0, 0.1


@dataclass(frozen=True)
class ShapedSolution:
    """Poses and shapes of n rows; rows of an identity have one shape."""

    solution: Solution
    betas: Tensor  # (n,10) float64
    rounds: Tensor  # (n,) int64 accepted steps


def solve_with_shapes(
    solver: Solver, goal: GoalOf, betas: Tensor, identity: Tensor | None = None
) -> ShapedSolution:
    """Poses and betas (n,10), float64, that lower the objective together, from given betas.

    identity: (n,) int64; rows of one number get one shape. Their betas must be equal before. None:
    a shape for each row. What becomes of an identity depends on its own rows alone, in their order.
    Raises ValueError where the betas of an identity differ.
    """
    if solver.device.type == "cpu":
        solver = (
            solver.narrow()
        )  # an identity may stand alone; ten fields of a wide block are large
    people = People.of(identity, betas)
    solution = solver.solve(goal, betas)
    rounds = np.zeros(people.count, np.int64)
    for _ in range(2):  # the first shape may have led poses astray: they are searched for again
        betas = descend(solver, goal, betas, solution, people, rounds)
        everything = torch.arange(betas.shape[0], device=solver.device)
        solution.improve(everything, solver.solve(goal, betas))
    accepted = torch.as_tensor(rounds[people.place], device=solver.device)
    return ShapedSolution(solution, betas, accepted)


@dataclass(frozen=True)
class People:
    """Which rows share a shape. Sums over them are taken row after row, on the host: they do not
    depend on blocks."""

    place: np.ndarray  # (n,) number of each row's identity, 0..k-1
    count: int

    @staticmethod
    def of(identity: Tensor | None, betas: Tensor) -> People:
        """identity (n,) or None. Raises ValueError where betas (n,10) differ within an identity."""
        if identity is None:
            return People(np.arange(betas.shape[0]), betas.shape[0])
        names, first, place = np.unique(
            identity.cpu().numpy(), return_index=True, return_inverse=True
        )
        given = betas.cpu().numpy()
        if not np.array_equal(given, given[first[place]]):
            raise ValueError("rows of one identity start from different betas")
        return People(place, names.size)

    def sums(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums (k, ...) of the values (m, ...) of these rows."""
        out = np.zeros((self.count, *values.shape[1:]))
        np.add.at(out, self.place[rows], values)
        return out


class Equations(NamedTuple):
    """Of the shape of each row, float64; sums of squares are mass-weighted means, m^2."""

    normal: Tensor  # (n,10,10) with the angles eliminated
    right: Tensor  # (n,10)
    plain: Tensor  # (n,10,10) with the angles held: how far a step moves the skin
    answer: Tensor  # (n,49,10) what the angles do for a unit step of each coefficient
    own: Tensor  # (n,49) and what they do besides


def descend(
    solver: Solver,
    goal: GoalOf,
    betas: Tensor,
    solution: Solution,
    people: People,
    rounds: np.ndarray,
) -> Tensor:
    """Steps until the shape of each identity is settled; betas (n,10). `solution` and the accepted
    steps `rounds` (k,) in place."""
    device, betas = solver.device, betas.clone()
    damping = np.zeros(people.count)
    running = np.ones(people.count, bool)
    for _ in range(ROUNDS):
        rows = np.flatnonzero(running[people.place])
        if not rows.size:
            break
        index = torch.as_tensor(rows, device=device)
        found = equations(solver, goal, index, betas[index], solution.poses[index])
        step, moved = _steps(people, rows, found, damping)
        shift = torch.as_tensor(step[people.place[rows]], device=device)
        # a sum per row: a matrix product would choose its order by the number of rows
        turned = found.own + (found.answer * shift[:, None]).sum(dim=2)
        low, high = solver.bounds
        trial_betas = betas[index] + shift
        trial_poses = torch.minimum(torch.maximum(solution.poses[index] + turned, low), high)
        trial = solver.refine(_some(goal, index), trial_betas, trial_poses)
        before, after = (
            people.sums(rows, energy.cpu().numpy())
            for energy in (solution.energy[index], trial.energy)
        )
        better = after < before
        damping = np.where(better, _EASIER * damping, np.maximum(_HARDER * damping, 1e-3))
        accepted = torch.as_tensor(better[people.place[rows]], device=device)
        betas[index[accepted]] = trial_betas[accepted]
        solution.take(index, trial, accepted)
        rounds += running & better
        running &= ~((moved < SETTLED) | (~better & (moved < _ENDED)))
    return betas


def _some(goal: GoalOf, rows: Tensor) -> GoalOf:
    """The goals of these rows, numbered from 0."""
    return lambda part: goal(rows[part])


def equations(
    solver: Solver, goal: GoalOf, rows: Tensor, betas: Tensor, poses: Tensor
) -> Equations:
    """Of m rows, whose goals are numbered `rows`, at betas (m,10) and poses (m,49)."""
    kernels = solver.float_kernels()

    def made(part: Tensor) -> Equations:
        index = padded(part, solver.width)
        found = _block(solver, kernels, goal, rows[index], betas[index], poses[index])
        return Equations(*(values[: part.numel()] for values in found))

    parts = torch.arange(rows.numel(), device=solver.device).split(solver.block)
    return Equations(*map(torch.cat, zip(*each(made, parts, solver.device), strict=True)))


def _block(
    solver: Solver,
    kernels: TorchKernels,
    goal: GoalOf,
    rows: Tensor,
    betas: Tensor,
    poses: Tensor,
) -> Equations:
    """The equations of a block: one exact pass for the residual and one for each coefficient."""
    plan, targets = solver.plans[-1], goal(rows).targets
    vertices, shape = plan.vertices, solver.kernels.identity(betas)
    posed = solver.kernels.evaluate(vertices, poses, shape)
    skin = solver.kernels.skinned(vertices, posed)
    joints, joint_targets = kernels.bones(poses, shape).positions, solver.joint_targets(targets)

    def evidence(wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (n,24,12) and pull on the correctives (n,207) of what is missing to `wanted`."""
        _, moments, corrective = solver.kernels.evidence(vertices, posed, wanted)
        return moments.permute(2, 0, 1).double(), corrective.T.double()

    search = kernels.search(
        plan.tables,
        shape,
        solver.pair_moments(plan, shape),
        joint_targets,
        evidence(targets),
        poses,
    )
    bones, at = search.bones, search.start_transforms
    still = torch.zeros_like(at)
    own = search.gradient(bones, at, still, poses)
    count, size = betas.shape
    # derivatives of the skin by each coefficient, and the residual, row by row
    fields = skin.new_empty(count, size + 1, skin.shape[0] * 3)
    fields[:, size] = (skin - targets).flatten(0, 1).T
    slopes, mixed = [], []
    for k in range(size):
        moved = betas.clone()
        moved[:, k] += _PERTURBED
        other = solver.kernels.identity(moved)
        moved_rows = solver.kernels.evaluate(vertices, poses, other)
        column = solver.kernels.skinned(vertices, moved_rows)
        column -= skin
        slope = kernels.bones(poses, other).positions - joints
        moments, corrective = evidence(skin - column)
        seen = replace(
            search,
            moments=moments.view(-1, 24, 3, 4),
            corrective=corrective,
            joint_targets=joints - slope,
        )
        mixed.append(seen.gradient(bones, at, still, torch.zeros_like(poses)) / _PERTURBED)
        fields[:, k] = (column / _PERTURBED).flatten(0, 1).T
        slopes.append(slope / _PERTURBED)
    masses = torch.as_tensor(vertices.masses, dtype=skin.dtype, device=poses.device)
    masses = masses.repeat_interleave(3)
    products = _row_by_row(lambda own: (own * masses) @ own.T, fields).double()
    lever = torch.stack([*slopes, joints - joint_targets], dim=1).flatten(2)  # (n,11,72)
    held = lever * search.stage.joint_masses.repeat_interleave(3)
    products = products + _row_by_row(lambda a, b: a @ b.T, held, lever)
    plain, slope_of_shape = products[:, :size, :size], products[:, :size, size]
    return _reduced(search, own, torch.stack(mixed, dim=2), plain, slope_of_shape)


def _reduced(search: Search, own: Tensor, mixed: Tensor, plain: Tensor, slope: Tensor) -> Equations:
    """The angles that are free to answer eliminated; own (n,49) and slope (n,10) are half gradients
    by angles and shape, mixed (n,49,10) and plain (n,10,10) half Gauss-Newton matrices."""
    stage, at = search.stage, search.start
    outward = ((at <= stage.lower) & (own > 0)) | ((at >= stage.upper) & (own < 0))
    keep = (stage.free & ~outward).to(at.dtype)
    matrix = search.curvature(search.bones, search.start_transforms)
    matrix = matrix * keep[:, :, None] * keep[:, None, :]
    matrix = matrix + torch.diag_embed(1.0 - keep + RIDGE)
    right = torch.cat([mixed, own[:, :, None]], dim=2) * keep[:, :, None]
    solved = _row_by_row(
        lambda a, b: torch.cholesky_solve(b, torch.linalg.cholesky(a)), matrix, right
    )
    across = _row_by_row(lambda a, b: a.T @ b, mixed, solved)
    answer, alone = -solved[:, :, :-1], -solved[:, :, -1]
    return Equations(plain - across[:, :, :-1], across[:, :, -1] - slope, plain, answer, alone)


def _row_by_row(product: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """The product of each row's matrices, in memory of their own: of matrices in a row the library
    chooses the order of its sums by where they lie."""
    return torch.stack([product(*map(torch.clone, row)) for row in zip(*given, strict=True)])


def _steps(
    people: People, rows: np.ndarray, found: Equations, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Step (k,10) of each identity and how far it moves the skin (k,), m, angles held."""
    normal, right, plain = (
        people.sums(rows, part.cpu().numpy()) for part in (found.normal, found.right, found.plain)
    )
    count = people.sums(rows, np.ones(rows.size))
    step, moved = np.zeros_like(right), np.zeros(people.count)
    for k in np.flatnonzero(count):
        # the matrix leaves the correctives out, so an eigenvalue may be a little below 0
        values, vectors = np.linalg.eigh(normal[k])
        size = plain[k].diagonal().mean()
        values = np.maximum(values, 0.0) + damping[k] * size + _PRIOR * count[k]
        step[k] = vectors @ ((vectors.T @ right[k]) / values)
        step[k] *= min(1.0, _LARGEST / max(np.abs(step[k]).max(), 1e-12))
        moved[k] = np.sqrt(step[k] @ plain[k] @ step[k] / count[k])
    return step, moved
