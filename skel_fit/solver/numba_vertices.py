"""Passes over the vertices, LANES rows side by side (numba). Twins: `kernels_torch`.

All scratch of a pass lives in one array: the compiler then knows what overlaps and turns every
loop over lanes into vector instructions without run-time checks.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import JOINTS
from skel_fit.solver.tables import LANES

# places in the scratch, in units of LANES: the blended 3x4 transform comes first
_RESIDUAL = 12  # 3
_OUTER = 15  # 12: residual times [x;1]
_POINT = 27  # 3
_TARGET = 30  # 3
_PULL = 33  # 3
_SQUARE = 36  # 1
_WORST = 37  # 1
_SCRATCH = 38


@njit(inline="always")
def _lanes_of(transforms, group):
    """Contiguous copy (24, 12 LANES) of one group of rows."""
    out = np.empty((transforms.shape[0], 12 * LANES), transforms.dtype)
    for k in range(transforms.shape[0]):
        for e in range(12):
            for lane in range(LANES):
                out[k, e * LANES + lane] = transforms[k, e, group * LANES + lane]
    return out


@njit(inline="always")
def _blend(begin, end, bones, weights, transforms, scratch):
    """Blend the transforms of one vertex into the head of the scratch."""
    w = weights[begin]
    a = transforms[bones[begin]]
    for e in range(12 * LANES):
        scratch[e] = w * a[e]
    for n in range(begin + 1, end):
        w = weights[n]
        a = transforms[bones[n]]
        for e in range(12 * LANES):
            scratch[e] += w * a[e]


@njit(inline="always")
def _load(source, start, scratch, place):
    """Copy one vertex (3, n) of a group of rows into the scratch."""
    for i in range(3):
        for lane in range(LANES):
            scratch[(place + i) * LANES + lane] = source[i, start + lane]


@njit(inline="always")
def _apply(scratch, lane, i, x, y, z):
    """Row i of the blended transform applied to a point."""
    return (
        scratch[4 * i * LANES + lane] * x
        + scratch[(4 * i + 1) * LANES + lane] * y
        + scratch[(4 * i + 2) * LANES + lane] * z
        + scratch[(4 * i + 3) * LANES + lane]
    )


@kernel()
def skin(first, bones, weights, transforms, points, out):
    """Linear blend skinning: out (V,3,n) from points (V,3,n) and transforms (24,12,n)."""
    for group in range(transforms.shape[2] // LANES):
        lanes = _lanes_of(transforms, group)
        scratch = np.zeros(_SCRATCH * LANES, points.dtype)
        start = group * LANES
        for v in range(points.shape[0]):
            _blend(first[v], first[v + 1], bones, weights, lanes, scratch)
            _load(points[v], start, scratch, _POINT)
            for lane in range(LANES):
                x = scratch[_POINT * LANES + lane]
                y = scratch[(_POINT + 1) * LANES + lane]
                z = scratch[(_POINT + 2) * LANES + lane]
                for i in range(3):
                    scratch[(_PULL + i) * LANES + lane] = _apply(scratch, lane, i, x, y, z)
            result = out[v]
            for i in range(3):
                for lane in range(LANES):
                    result[i, start + lane] = scratch[(_PULL + i) * LANES + lane]


@kernel()
def residual_moments(
    first, bones, weights, masses, transforms, points, targets, energy, moments, pull
):
    """One fused pass: weighted squared residual, its bone moments and its pull on the offsets.

    energy (n,) = sum m |r|^2; moments (24,12,n) = C_k = sum m w r [x;1]^T; pull (V,3,n) =
    m (sum w R)^T r. Theory: docs/solver.md."""
    for group in range(transforms.shape[2] // LANES):
        lanes = _lanes_of(transforms, group)
        sums = np.zeros((JOINTS, 12 * LANES), points.dtype)
        s = np.zeros(_SCRATCH * LANES, points.dtype)
        start = group * LANES
        for v in range(points.shape[0]):
            begin, end = first[v], first[v + 1]
            mass = masses[v]
            _blend(begin, end, bones, weights, lanes, s)
            _load(points[v], start, s, _POINT)
            _load(targets[v], start, s, _TARGET)
            for lane in range(LANES):
                x = s[_POINT * LANES + lane]
                y = s[(_POINT + 1) * LANES + lane]
                z = s[(_POINT + 2) * LANES + lane]
                r0 = mass * (_apply(s, lane, 0, x, y, z) - s[_TARGET * LANES + lane])
                r1 = mass * (_apply(s, lane, 1, x, y, z) - s[(_TARGET + 1) * LANES + lane])
                r2 = mass * (_apply(s, lane, 2, x, y, z) - s[(_TARGET + 2) * LANES + lane])
                s[_OUTER * LANES + lane] = r0 * x
                s[(_OUTER + 1) * LANES + lane] = r0 * y
                s[(_OUTER + 2) * LANES + lane] = r0 * z
                s[(_OUTER + 3) * LANES + lane] = r0
                s[(_OUTER + 4) * LANES + lane] = r1 * x
                s[(_OUTER + 5) * LANES + lane] = r1 * y
                s[(_OUTER + 6) * LANES + lane] = r1 * z
                s[(_OUTER + 7) * LANES + lane] = r1
                s[(_OUTER + 8) * LANES + lane] = r2 * x
                s[(_OUTER + 9) * LANES + lane] = r2 * y
                s[(_OUTER + 10) * LANES + lane] = r2 * z
                s[(_OUTER + 11) * LANES + lane] = r2
                for i in range(3):
                    s[(_PULL + i) * LANES + lane] = (
                        s[i * LANES + lane] * r0
                        + s[(4 + i) * LANES + lane] * r1
                        + s[(8 + i) * LANES + lane] * r2
                    )
                s[_SQUARE * LANES + lane] += (r0 * r0 + r1 * r1 + r2 * r2) / mass
            for n in range(begin, end):
                w = weights[n]
                total = sums[bones[n]]
                for e in range(12 * LANES):
                    total[e] += w * s[_OUTER * LANES + e]
            result = pull[v]
            for i in range(3):
                for lane in range(LANES):
                    result[i, start + lane] = s[(_PULL + i) * LANES + lane]
        for lane in range(LANES):
            energy[start + lane] = s[_SQUARE * LANES + lane]
        for k in range(JOINTS):
            for e in range(12):
                for lane in range(LANES):
                    moments[k, e, start + lane] = sums[k, e * LANES + lane]


@kernel()
def judge(first, bones, weights, region, transforms, points, targets, squares, totals, largest):
    """Exact final residual: squares (n,) sum of squared distances; totals (regions, n) sums of
    distances per region; largest (n,) maximum distance. region (V,) int."""
    for group in range(transforms.shape[2] // LANES):
        lanes = _lanes_of(transforms, group)
        s = np.zeros(_SCRATCH * LANES, points.dtype)
        sums = np.zeros((totals.shape[0], LANES), points.dtype)
        start = group * LANES
        for v in range(points.shape[0]):
            _blend(first[v], first[v + 1], bones, weights, lanes, s)
            _load(points[v], start, s, _POINT)
            _load(targets[v], start, s, _TARGET)
            for lane in range(LANES):
                x = s[_POINT * LANES + lane]
                y = s[(_POINT + 1) * LANES + lane]
                z = s[(_POINT + 2) * LANES + lane]
                r0 = _apply(s, lane, 0, x, y, z) - s[_TARGET * LANES + lane]
                r1 = _apply(s, lane, 1, x, y, z) - s[(_TARGET + 1) * LANES + lane]
                r2 = _apply(s, lane, 2, x, y, z) - s[(_TARGET + 2) * LANES + lane]
                square = r0 * r0 + r1 * r1 + r2 * r2
                s[_SQUARE * LANES + lane] += square
                s[_RESIDUAL * LANES + lane] = math.sqrt(square)
                s[_WORST * LANES + lane] = max(s[_WORST * LANES + lane], square)
            part = sums[region[v]]
            for lane in range(LANES):
                part[lane] += s[_RESIDUAL * LANES + lane]
        for lane in range(LANES):
            squares[start + lane] = s[_SQUARE * LANES + lane]
            largest[start + lane] = math.sqrt(s[_WORST * LANES + lane])
            for k in range(totals.shape[0]):
                totals[k, start + lane] = sums[k, lane]
