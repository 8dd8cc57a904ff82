"""Frames of one motion as one problem: every frame's fit to its points, and second differences that
cost. Method: docs/photo.md#video.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solveh_banded

from skel_fit.anatomy import NUM_POSES
from skel_fit.keypoint_fit import Problem, Search

COUNT = NUM_POSES + 3
"""Unknowns a frame: angles and translation. Betas stay as they are."""
_STEPS, _ENOUGH = 12, 1e-3
"""Steps at most, and share of the objective below which a step's gain ends them."""
_LONGEST = 0.5
"""rad or m that an unknown moves in a step at most."""
_DAMPING, _LESS, _MORE, _LEAST_DAMPING = 1e-2, 0.3, 10.0, 1e-6


def minimised(
    problem: Problem,
    at: np.ndarray,
    rows: np.ndarray,
    frames: int,
    used: np.ndarray,
    stiffness: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Unknowns (frames, 59) with a low sum of the objectives of the rows that are `used` and of
    stiffness |second difference|^2, and the cost a landmark (rows,) of each row there.

    problem: its rows are the frames `rows` (n,); used: (n,) bool; at: (frames, 59) where the search
    starts. Damped Gauss-Newton steps of all frames at once, inside the limits; only steps that
    lower the whole are taken, and where a frame gets worse its damping grows.
    """
    lower, upper = problem.beliefs.lower[:COUNT], problem.beliefs.upper[:COUNT]
    damping = np.full(frames, _DAMPING)
    here = at.copy()
    here[:, :COUNT] = here[:, :COUNT].clip(lower, upper)
    found = problem.search(here[rows], 0, derivatives=True)
    used = used & np.isfinite(found.energies).all(1)
    energies = _energies(found, used)
    total = energies.sum() + stiffness * _bends(here)
    for _ in range(_STEPS):
        matrices, gradients = np.zeros((frames, COUNT, COUNT)), np.zeros((frames, COUNT))
        matrices[rows[used]] = found.hessians[used, :COUNT, :COUNT]
        gradients[rows[used]] = found.gradients[used, :COUNT]
        gradients += stiffness * _by_bending(here[:, :COUNT])
        step = _step(matrices, gradients, here[:, :COUNT], lower, upper, damping, stiffness)
        there = here.copy()
        there[:, :COUNT] = (here[:, :COUNT] + step).clip(lower, upper)
        tried = problem.search(there[rows], 0, derivatives=True)
        new = _energies(tried, used)
        now = new.sum() + stiffness * _bends(there)
        if np.isfinite(now) and now < total:
            gain, here, found, energies, total = total - now, there, tried, new, now
            damping = np.maximum(damping * _LESS, _LEAST_DAMPING)
            if gain < _ENOUGH * total:
                break
        else:
            damping[rows[~(new <= energies)]] *= _MORE
    return here, problem.costs(found)


def _energies(found: Search, used: np.ndarray) -> np.ndarray:
    energies: np.ndarray = np.where(used, found.energies.sum(1), 0.0)
    return energies


def _bends(at: np.ndarray) -> float:
    """Sum of squared second differences."""
    return float((np.diff(at[:, :COUNT], 2, axis=0) ** 2).sum())


def _by_bending(values: np.ndarray) -> np.ndarray:
    """Half the gradient of the squared second differences of (n, m)."""
    bend = np.diff(values, 2, axis=0)
    out = np.zeros_like(values)
    out[:-2] += bend
    out[1:-1] -= 2 * bend
    out[2:] += bend
    return out


def _step(
    matrices: np.ndarray, gradients: np.ndarray, at: np.ndarray, lower: np.ndarray,
    upper: np.ndarray, damping: np.ndarray, stiffness: float,
) -> np.ndarray:  # fmt: skip
    """(n, m) one damped step; what would leave its limits stays."""
    stuck = ((at <= lower) & (gradients > 0)) | ((at >= upper) & (gradients < 0))
    diagonal = np.arange(matrices.shape[1])
    damped = matrices.copy()
    damped[:, diagonal, diagonal] += damping[:, None] * (matrices[:, diagonal, diagonal] + 1.0)
    damped[stuck] = 0.0
    damped.swapaxes(1, 2)[stuck] = 0.0
    held, unknown = np.nonzero(stuck)
    damped[held, unknown, unknown] = 1e12
    step = solved(damped, np.where(stuck, 0.0, -gradients), stiffness)
    step[stuck] = 0.0
    clipped: np.ndarray = step.clip(-_LONGEST, _LONGEST)
    return clipped


def smoothed(values: np.ndarray, precisions: np.ndarray, stiffness: float) -> np.ndarray:
    """(n, m) x with least sum of (x - v)' H (x - v) + stiffness |second difference|^2.

    values (n, m); precisions (n, m, m), zero where a frame says nothing.
    """
    if len(values) < 3:
        return values.copy()
    return solved(precisions, np.einsum("tij,tj->ti", precisions, values), stiffness)


def solved(precisions: np.ndarray, right: np.ndarray, stiffness: float) -> np.ndarray:
    """(n, m) x with H_t x_t + stiffness (D'D x)_t = right_t, D the second differences."""
    n, m = right.shape
    diagonals = _second_differences(n) * stiffness  # (3, n): offsets 0, 1, 2
    band = np.zeros((2 * m + 1, n * m))
    rows, columns = np.triu_indices(m)
    for t in range(n):
        block = precisions[t]
        band[2 * m + rows - columns, t * m + columns] = block[rows, columns]
        # a frame that says nothing, at an end, still has an answer
        band[2 * m, t * m : (t + 1) * m] += diagonals[0, t] + 1e-9
    for offset in (1, 2):
        for t in range(offset, n):
            band[2 * m - offset * m, t * m : (t + 1) * m] = diagonals[offset, t - offset]
    found: np.ndarray = solveh_banded(band, right.reshape(-1), overwrite_ab=True)
    return found.reshape(n, m)


def _second_differences(n: int) -> np.ndarray:
    """(3, n) diagonals 0, 1, 2 of D'D, D the second differences of n values."""
    out = np.zeros((3, n))
    for t in range(n - 2):
        part = np.array([1.0, -2.0, 1.0])
        for i in range(3):
            for j in range(i, 3):
                out[j - i, t + i] += part[i] * part[j]
    return out
