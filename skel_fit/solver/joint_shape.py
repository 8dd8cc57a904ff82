"""Shapes of identities, solved together with the poses of their meshes: variable projection.

Alternating shape at fixed poses with poses at fixed shape creeps: long bones can be long, or bent
joints straight. Here each Gauss-Newton step of a shape counts on the poses to follow it: their
angles are eliminated from the normal equations, those on a limit held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skel_fit.solver.blocks import GoalOf, Solution, padded
from skel_fit.solver.crew import each
from skel_fit.solver.engine import Solver
from skel_fit.solver.tables import LANES, PARAMETERS

ROUNDS = 12
"""At most so many steps of a shape."""
_SETTLED = 2e-2
"""A shape whose largest coefficient moves by less has settled: some 0.1 mm of the skin."""
_SHAPE_STEP, _POSE_STEP = 0.25, 1e-3
_SHAPE_PRIOR = 1e-8  # m^2 per squared coefficient: keeps directions that the mesh does not show
_POSE_DAMPING = 1e-7  # m^2/rad^2: angles that the mesh does not show
_LONGEST = 4.0
"""A step of a coefficient is shortened to this."""
_GAIN = 1e-4
"""Share by which the objective must fall for a further round."""


@dataclass(frozen=True)
class ShapedSolution:
    """Poses and shapes of n meshes; rows of an identity have one shape."""

    solution: Solution
    betas: Tensor  # (n,10) float64
    rounds: Tensor  # (n,) int64 accepted steps


def solve_with_shapes(
    solver: Solver, goal: GoalOf, betas: Tensor, identity: Tensor
) -> ShapedSolution:
    """Fit n meshes and one shape for each identity, from betas (n,10), equal within an identity.

    identity: (n,) int64. What becomes of an identity depends on its own rows alone, in their order.
    """
    # a few rows at a time, always as many: an identity may stand alone or among thousands
    solver = solver.narrow()
    solution = solver.solve(goal, betas)
    names, place = torch.unique(identity, return_inverse=True)
    rounds = torch.zeros_like(identity)
    energy = _sum_by(place, names.numel(), solution.energy)
    going = torch.ones(names.numel(), dtype=torch.bool, device=betas.device)
    again = torch.zeros_like(going)
    for _ in range(ROUNDS):
        rows = torch.nonzero(going[place])[:, 0]
        if rows.numel() == 0:
            break
        steps, turns = _step(solver, goal, betas, solution, rows, place)
        moved = betas[rows] + steps
        poses = _within(solver, solution.poses[rows] + turns)
        tried = solver.refine(_listed(goal, rows), moved, poses)
        after = _sum_by(place[rows], names.numel(), tried.energy)
        better = after < energy
        large = torch.zeros_like(energy).scatter_reduce(
            0, place[rows], steps.abs().amax(dim=1), "amax"
        )
        slow = after > energy * (1.0 - _GAIN)
        taken = better[place[rows]]
        solution.take(rows, tried, taken)
        betas = betas.index_copy(0, rows, torch.where(taken[:, None], moved, betas[rows]))
        rounds[rows] += taken.long()
        energy = torch.where(going & better, after, energy)
        ended = going & (~better | (large < _SETTLED) | slow)
        # once: the usual starts, from the shape that was found; another basin may be better now
        fresh = torch.nonzero((ended & ~again)[place])[:, 0]
        again |= ended
        going &= ~ended
        if fresh.numel():
            tried = solver.solve(_listed(goal, fresh), betas[fresh])
            lower = tried.energy < solution.energy[fresh]
            solution.take(fresh, tried, lower)
            found = _sum_by(place, names.numel(), solution.energy)
            going |= ended & (found < energy * (1.0 - 100 * _GAIN))
            energy = found
    return ShapedSolution(solution, betas, rounds)


def _listed(goal: GoalOf, rows: Tensor) -> GoalOf:
    """The goals of some rows, numbered anew."""
    return lambda index: goal(rows[index])


def _sum_by(place: Tensor, count: int, values: Tensor) -> Tensor:
    """Sums (count,) in the order of rows."""
    sums = [0.0] * count
    for index, value in zip(place.tolist(), values.tolist(), strict=True):
        sums[index] += value
    return torch.tensor(sums, dtype=torch.float64, device=values.device)


def _within(solver: Solver, poses: Tensor) -> Tensor:
    low = torch.as_tensor(solver.lower, device=poses.device)
    high = torch.as_tensor(solver.upper, device=poses.device)
    return torch.minimum(torch.maximum(poses, low), high)


def _step(
    solver: Solver, goal: GoalOf, betas: Tensor, solution: Solution, rows: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps of the shapes (r,10), one for each identity, and what the poses (r,49) make of them."""
    size = betas.shape[1]
    count = int(place.max()) + 1
    normal = betas.new_zeros(count, size, size)
    right = betas.new_zeros(count, size)
    counted = [0] * count
    follow: list[tuple[Tensor, Tensor]] = []
    parts = rows.split(LANES)

    def equations(part: Tensor) -> tuple[Tensor, Tensor]:
        return _equations(solver, goal, betas, solution, padded(part, LANES))

    for part, (whole, slope) in zip(parts, each(equations, parts, solver.device), strict=True):
        for k, row in enumerate(part.tolist()):
            inner, mixed = whole[k, :PARAMETERS, :PARAMETERS], whole[k, :PARAMETERS, PARAMETERS:]
            # one system at a time: a batched solver may treat batches of other sizes otherwise
            gains = torch.linalg.solve(inner, torch.cat([mixed, slope[k, :PARAMETERS, None]], 1))
            identity = int(place[row])
            normal[identity] += whole[k, PARAMETERS:, PARAMETERS:] - mixed.T @ gains[:, :size]
            right[identity] += slope[k, PARAMETERS:] - mixed.T @ gains[:, size]
            counted[identity] += 1
            follow.append((gains[:, :size], gains[:, size]))
    eye = torch.eye(size, dtype=betas.dtype, device=betas.device)
    steps = torch.zeros_like(right)
    for k in range(count):
        if counted[k]:
            found = torch.linalg.solve(normal[k] + counted[k] * _SHAPE_PRIOR * eye, right[k])
            steps[k] = found / max(1.0, float(found.abs().max()) / _LONGEST)
    mine = steps[place[rows]]
    turns = torch.stack([own - gain @ step for (gain, own), step in zip(follow, mine, strict=True)])
    return mine, turns


def _equations(
    solver: Solver, goal: GoalOf, betas: Tensor, solution: Solution, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Normal equations (k,59,59) and their right sides (k,59): 49 of the pose, then the shape."""
    pose, start = solution.poses[index], betas[index]
    base = solver.skin_of(pose, start)
    columns = []
    held = _held(solver, pose)
    for k in range(PARAMETERS):
        moved = pose.clone()
        moved[:, k] += _POSE_STEP
        change = (solver.skin_of(moved, start) - base) / _POSE_STEP
        columns.append(change * (~held[:, k]).to(change))
    for k in range(start.shape[1]):
        moved = start.clone()
        moved[:, k] += _SHAPE_STEP
        columns.append((solver.skin_of(pose, moved) - base) / _SHAPE_STEP)
    jacobian = torch.stack(columns).flatten(1, 2).permute(2, 0, 1)  # (k,59,3V)
    residual = (goal(index).targets - base).flatten(0, 1).T[:, :, None]
    seen = jacobian if solver.weights is None else jacobian * solver.shape_masses.to(jacobian)
    vertices = base.shape[0]
    whole = (seen @ jacobian.transpose(1, 2)).double() / vertices
    slope = (seen @ residual)[:, :, 0].double() / vertices
    damping = whole.new_zeros(whole.shape[1])
    damping[:PARAMETERS] = _POSE_DAMPING
    whole = whole + torch.diag(damping)
    # a held angle has no column: its own equation says that it stays
    stays = torch.zeros_like(damping).expand(index.numel(), -1).clone()
    stays[:, :PARAMETERS] = held.to(stays)
    return whole + torch.diag_embed(stays), slope


def _held(solver: Solver, poses: Tensor) -> Tensor:
    """(n,49) bool: parameters that no stage moves, and angles on a limit."""
    active = torch.zeros_like(poses, dtype=torch.bool)
    active[:, :46] = solver.active_limits(poses)
    fixed = ~torch.as_tensor(solver.plans[-1].tables.free, device=poses.device)
    return active | fixed
