"""One branch through time: angles of the same bodies that hardly change from frame to frame.

Several angles give one rotation, and a frame on its own may end in another optimum than its
neighbours. Method: docs/sequences.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import DOFS, JOINT_NAMES, PERIODIC
from skel_fit.solver.smoothing import SequenceProblem

_TURN = 2.0 * math.pi
# Three turns about orthogonal axes, no moving offset: two triples of angles give one rotation.
_BALLS = tuple(
    np.array(DOFS[JOINT_NAMES.index(n)]) for n in ("femur_r", "femur_l", "humerus_r", "humerus_l")
)
_BALL_ANGLES = np.concatenate(_BALLS)
_PERIODIC = np.array([d for d in np.flatnonzero(PERIODIC) if d not in _BALL_ANGLES and d > 2])
_LOCK_COSINE = 1e-5
_AT_LOCK = (
    1e-3  # rad: a limit so near to a right angle is that of the description, not of the joint
)
_JUMP_COST = 1e3
_OUTSIDE_COST = 0.01  # a frame: angles stay in the table of limits where nothing is gained outside
_EXPLAINED = 1.5  # an angle may turn so much more than its joint and is still no jump
_SAME = 0.1  # rad: candidates so near to each other are one
_FARTHEST = 48  # frames that a branch is followed from where it was found
_SLACK = 5e-4  # m of RMS distance that a candidate may lose against the best
_UNIT = 1e-4  # m of RMS distance that weigh as much as one radian


class Chart(NamedTuple):
    """How each frame is described: angle = shift + sign * angle inside the table of limits."""

    sign: np.ndarray  # (n,49), 1 or -1
    shift: np.ndarray  # (n,49) rad, multiples of pi

    @staticmethod
    def table(n: int, width: int) -> Chart:
        """Angles as they are."""
        return Chart(np.ones((n, width)), np.zeros((n, width)))

    def described(self, inside: Tensor) -> Tensor:
        """Angles (n,49) in this chart."""
        return self._tensor(self.shift, inside) + self._tensor(self.sign, inside) * inside

    def inside(self, described: Tensor) -> Tensor:
        """Angles (n,49) in the table of limits."""
        moved = described - self._tensor(self.shift, described)
        return self._tensor(self.sign, described) * moved

    def bounds(self, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Limits (n,49) of the described angles."""
        ends = self.shift + self.sign * lower, self.shift + self.sign * upper
        return np.minimum(*ends), np.maximum(*ends)

    @staticmethod
    def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
        return torch.as_tensor(values).to(like)


def continuous_root(angles: np.ndarray) -> np.ndarray:
    """Root angles (T,3) of the same rotations, each triple the nearest to the one before."""
    out = angles.copy()
    for t in range(1, len(out)):
        own = _out_of_lock(out[t], out[t - 1])
        one, other = (_turned(v, out[t - 1]) for v in (own, _other(own)))
        nearer = np.square(other - out[t - 1]).sum() < np.square(one - out[t - 1]).sum() - 1e-9
        out[t] = other if nearer else one
    return out


def _out_of_lock(angles: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """At list = +-90 degrees only heading -+ tilt is defined: the split nearest to `previous`."""
    if abs(math.cos(angles[1])) > _LOCK_COSINE:
        return angles
    sign = math.copysign(1.0, math.sin(angles[1]))
    defined = angles[2] - sign * angles[0]
    half = 0.5 * math.remainder(defined - (previous[2] - sign * previous[0]), _TURN)
    return np.array([previous[0] - sign * half, angles[1], previous[2] + half])


def _other(angles: np.ndarray) -> np.ndarray:
    """The other triple (...,3) of the same rotation."""
    return angles * [1.0, -1.0, 1.0] + math.pi


def _turned(angles: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Angles plus the whole turns that bring them nearest to `near`."""
    return angles - _TURN * np.round((angles - near) / _TURN)


@dataclass(frozen=True)
class Describer:
    """Finds the description of bodies in which angles change least. Limits are (49,), rad."""

    lower: np.ndarray
    upper: np.ndarray
    jump: float

    def describe(self, poses: np.ndarray) -> Chart:
        """The chart of poses (n,49) along which angles change least from frame to frame.

        Where the middle limit of a ball joint is its lock, an angle may pass it: the same rotation
        has angles inside. Such descriptions cost a little and are left as soon as that is free.
        """
        n = len(poses)
        chart = Chart.table(n, poses.shape[1])
        if n < 2:
            return chart
        large = np.abs(np.diff(poses, axis=0)) > self.jump
        for ball in _BALLS:
            if large[:, ball].any():
                chart.sign[:, ball], chart.shift[:, ball] = self._ball(poses[:, ball], ball)
        for angle in _PERIODIC[large[:, _PERIODIC].any(axis=0)]:
            chart.shift[:, angle] = self._turns(poses[:, angle], angle)
        return chart

    def _turns(self, values: np.ndarray, angle: int) -> np.ndarray:
        """Whole turns of one angle (n,), inside its limits, each nearest to the frame before."""
        out = values.copy()
        for t in range(1, len(out)):
            moved = _turned(out[t], out[t - 1])
            if self.lower[angle] <= moved <= self.upper[angle]:
                out[t] = moved
        return out - values

    def _ball(self, values: np.ndarray, ball: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cheapest of the two triples in every frame (n,3): its signs and shifts, by dynamic
        programming."""
        n = len(values)
        both = np.stack([values, _other(values)])  # (2,n,3)
        told = np.empty((n, 2, 3))
        back = np.zeros((n, 2), int)
        told[0] = both[:, 0]
        cost = np.array([0.0, np.inf])
        for t in range(1, n):
            reached = np.empty((2, 2, 3))  # state, state before
            total = np.full((2, 2), np.inf)
            for before in np.flatnonzero(np.isfinite(cost)):
                previous = told[t - 1, before]
                for state in (0, 1):
                    found, price = self._told(both[state, t], values[t], previous, ball, state)
                    change = np.abs(found - previous)
                    reached[state, before] = found
                    price += math.sqrt(float(change @ change))
                    total[state, before] = (
                        cost[before] + price + _JUMP_COST * (change.max() > self.jump)
                    )
            back[t] = total.argmin(axis=1)
            told[t] = reached[(0, 1), back[t]]
            cost = total[(0, 1), back[t]]
        state, chosen = int(cost.argmin()), np.zeros(n, int)
        for t in range(n - 1, -1, -1):
            chosen[t] = state
            state = back[t, state]
        sign = np.where(chosen[:, None] == 1, [1.0, -1.0, 1.0], 1.0)
        return sign, told[np.arange(n), chosen] - sign * values

    def _told(
        self, triple: np.ndarray, inside: np.ndarray, near: np.ndarray, ball: np.ndarray, state: int
    ) -> tuple[np.ndarray, float]:
        """The triple with the whole turns nearest to `near` that are allowed, and its price."""
        lower, upper = self.lower[ball], self.upper[ball]
        moved = _turned(triple, near)
        within = (moved >= lower) & (moved <= upper)
        if state == 0:
            return np.where(within, moved, triple), 0.0
        if within.all():
            return moved, 0.0
        limit = upper[1] if inside[1] > 0 else -lower[1]
        return moved, _OUTSIDE_COST if limit > 0.5 * math.pi - _AT_LOCK else math.inf

    def distances(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Angular distance (a,b), rad, of poses (a,49) and (b,49), each joint described as near as
        it can be; a jump costs more than any path without one."""
        change = np.abs(after[None] - before[:, None])
        for ball in _BALLS:
            lower, upper = self.lower[ball], self.upper[ball]
            if np.isinf(upper).all() and np.isinf(lower).all():
                change[..., ball] = np.abs(_wrapped(change[..., ball]))
            other = np.abs(_wrapped(_other(after[None][..., ball]) - before[:, None][..., ball]))
            nearer = (np.square(other).sum(-1) < np.square(change[..., ball]).sum(-1))[..., None]
            change[..., ball] = np.where(nearer, other, change[..., ball])
        angles = _PERIODIC[np.isinf(self.upper[_PERIODIC])]
        change[..., angles] = np.abs(_wrapped(change[..., angles]))
        change = change[..., 3:46]
        jumps = (change > self.jump).sum(axis=-1)
        return np.sqrt(np.square(change).sum(axis=-1)) + _JUMP_COST * jumps


def _wrapped(angles: np.ndarray) -> np.ndarray:
    return _turned(angles, np.zeros(()))


class Candidates(NamedTuple):
    """Poses that fit a frame, one entry each, any order; the first n are the frames' own."""

    frame: np.ndarray  # (c,)
    poses: np.ndarray  # (c,49) inside the limits
    energy: np.ndarray  # (c,) m^2
    settled: np.ndarray  # (c,) bool
    iterations: np.ndarray  # (c,)

    def with_more(self, more: Candidates) -> Candidates:
        """These, then those."""
        return Candidates(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))


def suspicious_steps(
    poses: np.ndarray, describer: Describer, target_steps: np.ndarray
) -> np.ndarray:
    """Frames before the steps of poses (n,49) in which an angle jumps, however it is described, and
    by more than the target's own rotations (n-1,) rad explain."""
    described = describer.describe(poses).described(torch.as_tensor(poses)).numpy()
    change = np.abs(np.diff(described[:, 3:46], axis=0)).max(axis=1, initial=0.0)
    return np.flatnonzero(change > np.maximum(describer.jump, _EXPLAINED * target_steps))


def candidates(problem: SequenceProblem, own: Candidates, jumps: np.ndarray) -> Candidates:
    """The frames' own fits, and around steps in which angles jump the fits that start from the
    other side of the jump, followed forwards and backwards in time until they meet a fit that is
    there."""
    found = own
    fronts, steps = np.concatenate([jumps + 1, jumps]), np.repeat([1, -1], len(jumps))
    starts = own.poses[fronts - steps]
    for _ in range(_FARTHEST):
        if not fronts.size:
            break
        more = _fitted(problem, fronts, starts)
        keep = _new(found, more)
        more = Candidates(*(column[keep] for column in more))
        found = found.with_more(more)
        fronts, steps, starts = more.frame + steps[keep], steps[keep], more.poses
        inside = (fronts >= 0) & (fronts < problem.frames)
        fronts, steps, starts = fronts[inside], steps[inside], starts[inside]
    return found


def _fitted(problem: SequenceProblem, frames: np.ndarray, starts: np.ndarray) -> Candidates:
    device = problem.orient.device
    fit = problem.refine(torch.as_tensor(frames).to(device), torch.as_tensor(starts).to(device))
    columns = (fit.poses, fit.energy, fit.settled, fit.iterations)
    return Candidates(frames, *(column.cpu().numpy() for column in columns))


def _new(known: Candidates, found: Candidates) -> np.ndarray:
    """(c,) bool: found candidates that are good enough, and unlike all known ones of the frame."""
    keep = np.zeros(len(found.frame), bool)
    for k, frame in enumerate(found.frame):
        here = np.flatnonzero(known.frame == frame)
        unlike = np.abs(known.poses[here] - found.poses[k]).max(axis=1) > _SAME
        best = known.energy[here].min()
        keep[k] = unlike.all() and math.sqrt(found.energy[k]) < math.sqrt(best) + _SLACK
    return keep


def cheapest_path(found: Candidates, describer: Describer, frames: int) -> np.ndarray:
    """One candidate (n,) of every frame: the path with the smallest sum of residual and angular
    distance, by dynamic programming over the whole sequence."""
    order = np.argsort(found.frame, kind="stable")
    members = np.split(order, np.searchsorted(found.frame[order], np.arange(1, frames)))
    if len(order) == frames:
        return order
    loss = np.sqrt(found.energy)
    cost = np.zeros(len(members[0]))
    back = []
    for t, here in enumerate(members):
        own = (loss[here] - loss[here].min()) / _UNIT
        if t == 0:
            cost = own
            continue
        if len(here) == 1 and len(members[t - 1]) == 1:
            back.append(np.zeros(1, int))
            cost = cost + own
            continue
        total = cost[:, None] + describer.distances(found.poses[members[t - 1]], found.poses[here])
        back.append(total.argmin(axis=0))
        cost = total.min(axis=0) + own
    chosen, state = np.zeros(frames, int), int(cost.argmin())
    for t in range(frames - 1, -1, -1):
        chosen[t] = members[t][state]
        state = back[t - 1][state] if t else state
    return chosen


def lock_ties(described: Tensor, jumps: Tensor, lock: float, jump: float) -> Tensor:
    """Ties (n-1,49), m^2/rad^2, between neighbouring frames: `lock` where a ball joint is near its
    lock, `jump` around the listed steps (n-1,) bool.

    Near the lock the two outer angles turn about almost one axis: the skin hardly says how their
    sum is shared out, the neighbours do.
    """
    n = described.shape[0]
    ties = torch.zeros(n - 1, described.shape[1], dtype=described.dtype)
    values = described.detach().cpu()
    for ball in _BALLS:
        near = torch.cos(values[:, ball[1]]).abs() < _NEAR_LOCK
        pair = _spread(near)
        pair = pair[1:] & pair[:-1]
        ties[:, ball] = torch.where(pair[:, None], lock, ties[:, ball])
    around = _spread(either_end(jumps.cpu()), _AROUND_JUMP)
    pair = around[1:] & around[:-1]
    ties[:, 3:46] = torch.where(pair[:, None], jump, ties[:, 3:46])
    return ties.to(described.device)


def either_end(steps: Tensor) -> Tensor:
    """(n,) bool: frames at an end of a step (n-1,) bool."""
    return torch.nn.functional.pad(steps, (1, 0)) | torch.nn.functional.pad(steps, (0, 1))


_NEAR_LOCK = 0.25  # cosine of the middle angle below which the outer two are tied
_AROUND_JUMP = 4  # frames on each side of a jump that may move to level it


def _spread(flags: Tensor, by: int = 2) -> Tensor:
    """Flags (n,) and as many neighbours on each side."""
    wide = torch.nn.functional.max_pool1d(
        flags[None, None].to(torch.float32), 2 * by + 1, stride=1, padding=by
    )
    return wide[0, 0] > 0


__all__ = [
    "Candidates",
    "Chart",
    "Describer",
    "candidates",
    "cheapest_path",
    "continuous_root",
    "either_end",
    "lock_ties",
    "suspicious_steps",
]
