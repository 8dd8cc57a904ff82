"""One branch through time: angles of the same bodies that hardly change from frame to frame.

Several angles give one rotation, and a frame on its own may end in another optimum than its
neighbours. Method: docs/sequences.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import DOFS, JOINT_NAMES, PERIODIC
from skel_fit.solver.engine import Solver
from skel_fit.solver.smoothing import SequenceProblem

_TURN = 2.0 * math.pi
# Three turns about orthogonal axes, no moving offset: two triples of angles give one rotation.
_BALLS = tuple(DOFS[JOINT_NAMES.index(n)] for n in ("femur_r", "femur_l", "humerus_r", "humerus_l"))
_PERIODIC = np.flatnonzero(PERIODIC)
_LOCK_COSINE = 1e-5
_NO_WORSE, _BETTER = 1.001, 0.999  # objective ratios that count as equal, as lower
_NEARER = 0.1  # rad


def continuous_root(angles: np.ndarray) -> np.ndarray:
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
    half = 0.5 * math.remainder(defined - (previous[2] - sign * previous[0]), _TURN)
    return np.array([previous[0] - sign * half, angles[1], previous[2] + half])


def relabelled(poses: Tensor, solver: Solver) -> Tensor:
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


class Followed(NamedTuple):
    """What following a branch did to n frames."""

    refitted: Tensor  # (n,) bool
    settled: Tensor  # (n,) bool
    iterations: Tensor  # (n,)


def follow(
    problem: SequenceProblem, poses: Tensor, energy: Tensor, jump: float, step: int
) -> tuple[Tensor, Tensor, Followed]:
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
            return poses, energy, Followed(refitted, settled, iterations)
        found = problem.refine(fronts, poses[fronts - step])
        behind = poses[fronts - step]
        pairs = zip(found.poses.cpu().numpy(), behind.cpu().numpy(), strict=True)
        near = np.stack([_nearest_pose(own, other, solver) for own, other in pairs])
        named = torch.as_tensor(near).to(poses.device)
        gain = (poses[fronts] - behind).norm(dim=1) - (named - behind).norm(dim=1)
        as_good = (found.energy <= lowest[fronts] * _NO_WORSE) & (gain > _NEARER)
        take = as_good | (found.energy < energy[fronts] * _BETTER)
        iterations[fronts] += found.iterations
        fronts, named = fronts[take], named[take]
        poses[fronts], energy[fronts] = named, found.energy[take]
        lowest[fronts] = torch.minimum(lowest[fronts], energy[fronts])
        refitted[fronts], settled[fronts] = True, found.settled[take]
        fronts = fronts + step
