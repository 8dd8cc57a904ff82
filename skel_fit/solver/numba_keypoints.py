"""Fits to points in pictures, one row at a time (numba). Derivation: docs/photo.md.

A point is linear in the bone transforms, so a step visits (point, bone) pairs and never the skin.
59 unknowns: 46 angles, the translation, 10 betas. Twin: `dense_keypoints`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import (
    JOINTS,
    arc,
    bones,
    identity,
    make_work,
    multiply,
    twists,
)
from skel_fit.solver.numba_start import project_joint

BETAS = 10
UNKNOWNS = NUM_PARAMETERS + BETAS
NEAR = 0.1
"""Metres: a point that counts stays at least this far in front of a camera."""
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Of kernels that only kernels call: half of the time to compile them went into wrappers."""
_DAMPING = 1e-3
_CLIP = 0.5
"""rad: the largest change of an angle in one step."""
_ROOT_FREE = 3
"""The first angles are the root's, which has no prior."""


class PointTables(NamedTuple):
    """Points of a SKEL body by (point, bone) pairs; the place of a point is the sum over its pairs
    of R (rest + by_shape betas + by_feature f) + share c, with R, c of the bone and f the
    corrective features."""

    first: np.ndarray  # (K+1,) pairs of each point
    bone: np.ndarray  # (P,)
    share: np.ndarray  # (P,)
    rest: np.ndarray  # (P,3) m
    by_shape: np.ndarray  # (P,3,10)
    feature_row: np.ndarray  # (P,) row of `by_feature`, -1: no correctives
    by_feature: np.ndarray  # (F,3,207)
    chain_first: np.ndarray  # (K+1,) angles of each point
    chain: np.ndarray  # (C,) angles that move it
    origin: np.ndarray  # (K,) weights of the point that relative 3D points are measured from
    bone_slopes: np.ndarray  # (24,3,10) derivative of each bone's direction by the betas
    spans: np.ndarray  # (S,2) pairs of points: from, to


class Seen(NamedTuple):
    """What n rows are fitted to, through V cameras."""

    pixels: np.ndarray  # (n,V,K,2)
    weights: np.ndarray  # (n,V,K) 0: not seen
    sigmas: np.ndarray  # (n,V) px
    lenses: np.ndarray  # (n,V,5) fx, fy, cx, cy, skew, px
    turns: np.ndarray  # (n,V,3,3) world -> camera
    shifts: np.ndarray  # (n,V,3) m
    places: np.ndarray  # (n,K,3) m, the world's axes
    place_weights: np.ndarray  # (n,K)
    place_sigma: float  # m
    relative: bool  # places are measured from the origin of the points
    spans: np.ndarray  # (n,S,3) m, from one point to another, the world's axes
    span_weights: np.ndarray  # (n,S)
    span_sigma: float  # m


class Beliefs(NamedTuple):
    """Limits and priors of n rows."""

    lower: np.ndarray  # (59,)
    upper: np.ndarray  # (59,)
    free: np.ndarray  # (59,) bool
    pose_mean: np.ndarray  # (n,43)
    pose_precision: np.ndarray  # (43,43) rad^-2
    shape_mean: np.ndarray  # (n,10)
    shape_precision: float


class _Place(NamedTuple):
    """A body with its points."""

    unknowns: np.ndarray  # (59,)
    betas: np.ndarray  # (1,10)
    joints: np.ndarray  # (1,24,3)
    frames: np.ndarray  # (1,24,3,3)
    lengths: np.ndarray  # (1,5)
    arms: np.ndarray  # (P,3) rest place of each pair, correctives in it
    moved: np.ndarray  # (P,3) its part of the point's place
    points: np.ndarray  # (K,3)
    origin: np.ndarray  # (3,)
    parts: np.ndarray  # (V,K) robust squared distance of every point seen


class _Slopes(NamedTuple):
    """Derivatives of one row."""

    gradient: np.ndarray  # (59,) half of it
    hessian: np.ndarray  # (59,59) upper triangle of half the Gauss-Newton matrix
    jacobian: np.ndarray  # (3,59) of one point
    sum_jacobian: np.ndarray  # (3,59) of the 3D points' weighted sum
    origin_jacobian: np.ndarray  # (3,59)
    root: np.ndarray  # (3,59)
    below: np.ndarray  # (24,4) what of a point is below each joint: place and share
    pull: np.ndarray  # (207,) half gradient by the corrective features
    spins: np.ndarray  # (24,3,10) of each world rotation by the betas
    local_spins: np.ndarray  # (24,3,10) of each local rotation
    speeds: np.ndarray  # (24,3,10) of each joint's place
    frame_spins: np.ndarray  # (24,3,10)
    forces: np.ndarray  # (K,3) half gradient by each point
    metric: np.ndarray  # (K,3,3) curvature by each point
    factor: np.ndarray  # (59,59)
    step: np.ndarray  # (59,)
    shifted: np.ndarray  # (59,)
    fixed: np.ndarray  # (59,) bool
    chosen: np.ndarray  # (59,)
    bound: np.ndarray  # (59,)


@kernel(**_INNER)
def _make_place(pairs, views, count):
    return _Place(
        np.zeros(UNKNOWNS),
        np.zeros((1, BETAS)),
        np.zeros((1, JOINTS, 3)),
        np.zeros((1, JOINTS, 3, 3)),
        np.zeros((1, 5)),
        np.zeros((pairs, 3)),
        np.zeros((pairs, 3)),
        np.zeros((count, 3)),
        np.zeros(3),
        np.zeros((views, count)),
    )


@kernel(**_INNER)
def _make_slopes(count):
    return _Slopes(
        np.zeros(UNKNOWNS),
        np.zeros((UNKNOWNS, UNKNOWNS)),
        np.zeros((3, UNKNOWNS)),
        np.zeros((3, UNKNOWNS)),
        np.zeros((3, UNKNOWNS)),
        np.zeros((3, UNKNOWNS)),
        np.zeros((JOINTS, 4)),
        np.zeros(207),
        np.zeros((JOINTS, 3, BETAS)),
        np.zeros((JOINTS, 3, BETAS)),
        np.zeros((JOINTS, 3, BETAS)),
        np.zeros((JOINTS, 3, BETAS)),
        np.zeros((count, 3)),
        np.zeros((count, 3, 3)),
        np.zeros((UNKNOWNS, UNKNOWNS)),
        np.zeros(UNKNOWNS),
        np.zeros(UNKNOWNS),
        np.zeros(UNKNOWNS, np.bool_),
        np.zeros(UNKNOWNS, np.int64),
        np.zeros(UNKNOWNS),
    )


# --- where the points are ---------------------------------------------------------------------


@kernel(**_INNER)
def _features(skeleton, work, feature):
    """feature (207,) = R - I of the joints that drive correctives."""
    for s in range(23):
        source = skeleton.feature_source[s]
        for i in range(3):
            for c in range(3):
                value = 0.0
                if source >= 0:
                    value = work.local[source, i, c] - (1.0 if i == c else 0.0)
                feature[9 * s + 3 * i + c] = value


@kernel(**_INNER)
def _put(skeleton, table, place, work, feature):
    """Points of the unknowns that `place` holds; kinematics stay in `work`."""
    for b in range(BETAS):
        place.betas[0, b] = place.unknowns[NUM_PARAMETERS + b]
    identity(skeleton, place.betas, place.joints, place.frames, place.lengths)
    bones(skeleton, place.unknowns, place.joints[0], place.frames[0], place.lengths[0], work)
    _features(skeleton, work, feature)
    count = table.first.shape[0] - 1
    for k in range(count):
        for c in range(3):
            place.points[k, c] = 0.0
        for n in range(table.first[k], table.first[k + 1]):
            row = table.feature_row[n]
            l, share = table.bone[n], table.share[n]
            for c in range(3):
                value = table.rest[n, c]
                for b in range(BETAS):
                    value += table.by_shape[n, c, b] * place.betas[0, b]
                if row >= 0:
                    basis = table.by_feature[row, c]
                    extra = 0.0
                    for f in range(207):
                        extra += basis[f] * feature[f]
                    value += extra
                place.arms[n, c] = value
            r, arm = work.rotations[l], place.arms[n]
            for c in range(3):
                value = (
                    r[c, 0] * arm[0] + r[c, 1] * arm[1] + r[c, 2] * arm[2]
                    + share * work.positions[l, c]
                )  # fmt: skip
                place.moved[n, c] = value
                place.points[k, c] += value
    for c in range(3):
        place.origin[c] = 0.0
        for k in range(count):
            place.origin[c] += table.origin[k] * place.points[k, c]


# --- the objective ----------------------------------------------------------------------------


@njit(inline="always")
def _project(seen, row, view, point, camera):
    """camera (3,) = the point in the camera's frame."""
    turn, shift = seen.turns[row, view], seen.shifts[row, view]
    for c in range(3):
        camera[c] = turn[c, 0] * point[0] + turn[c, 1] * point[1] + turn[c, 2] * point[2] + shift[c]


@kernel(**_INNER)
def _span_miss(table, seen, row, s, place, miss):
    """Squared length of how far span s of the body is from the one that was seen, m; miss (3,)."""
    a, b = table.spans[s, 0], table.spans[s, 1]
    distance = 0.0
    for c in range(3):
        miss[c] = place.points[b, c] - place.points[a, c] - seen.spans[row, s, c]
        distance += miss[c] * miss[c]
    return distance


@kernel(**_INNER)
def _data_energy(table, seen, row, cauchy, place, parts):
    """Robust squared distances in standard deviations; parts (V,K) of each point that is seen.
    Infinite where one is behind its camera."""
    camera, miss_of_span = np.empty(3), np.empty(3)
    squared, total = cauchy * cauchy, 0.0
    for v in range(seen.weights.shape[1]):
        fx, fy = seen.lenses[row, v, 0], seen.lenses[row, v, 1]
        cx, cy, skew = seen.lenses[row, v, 2], seen.lenses[row, v, 3], seen.lenses[row, v, 4]
        per_variance = 1.0 / seen.sigmas[row, v] ** 2
        for k in range(seen.weights.shape[2]):
            weight = seen.weights[row, v, k]
            parts[v, k] = 0.0
            if weight <= 0.0:
                continue
            _project(seen, row, v, place.points[k], camera)
            if not camera[2] >= NEAR:
                return np.inf
            ex = (fx * camera[0] + skew * camera[1]) / camera[2] + cx - seen.pixels[row, v, k, 0]
            ey = fy * camera[1] / camera[2] + cy - seen.pixels[row, v, k, 1]
            value = squared * math.log1p((ex * ex + ey * ey) * per_variance / squared)
            parts[v, k] = value
            total += weight * value
    per_variance = 1.0 / (seen.place_sigma * seen.place_sigma)
    for k in range(seen.place_weights.shape[1]):
        weight = seen.place_weights[row, k]
        if weight <= 0.0:
            continue
        distance = 0.0
        for c in range(3):
            miss = place.points[k, c] - seen.places[row, k, c]
            if seen.relative:
                miss -= place.origin[c]
            distance += miss * miss
        total += weight * squared * math.log1p(distance * per_variance / squared)
    per_variance = 1.0 / (seen.span_sigma * seen.span_sigma)
    for s in range(seen.span_weights.shape[1]):
        weight = seen.span_weights[row, s]
        if weight <= 0.0:
            continue
        distance = _span_miss(table, seen, row, s, place, miss_of_span)
        total += weight * squared * math.log1p(distance * per_variance / squared)
    return total


@kernel(**_INNER)
def _prior_energy(beliefs, row, unknowns):
    """Squared distances from the priors."""
    total = 0.0
    mean = beliefs.pose_mean[row]
    for i in range(43):
        away = unknowns[_ROOT_FREE + i] - mean[i]
        other = 0.0
        for j in range(43):
            other += beliefs.pose_precision[i, j] * (unknowns[_ROOT_FREE + j] - mean[j])
        total += away * other
    for b in range(BETAS):
        total += (
            beliefs.shape_precision
            * (unknowns[NUM_PARAMETERS + b] - beliefs.shape_mean[row, b]) ** 2
        )
    return total


# --- derivatives ------------------------------------------------------------------------------


@kernel(**_INNER)
def _shape_motion(skeleton, table, place, work, slopes):
    """How world rotations turn and joints move with the betas (docs/photo.md#shape)."""
    away = np.empty(3)
    q, lengths, joints = place.unknowns, place.lengths[0], place.joints[0]
    offset_slope = np.empty(3)
    length_slope = np.empty((5, BETAS))
    directions = skeleton.joint_directions
    for b in range(BETAS):
        for n in range(3):
            j = 11 + n
            p = skeleton.parents[j]
            sign = 1.0 if joints[j, 1] >= joints[p, 1] else -1.0
            length_slope[n, b] = sign * (directions[j, 1, b] - directions[p, 1, b])
        wide, high = 0.0, 0.0
        for c in range(3):
            wide += (joints[19, c] - joints[14, c]) * (directions[19, c, b] - directions[14, c, b])
            high += (joints[12, c] - joints[11, c]) * (directions[12, c, b] - directions[11, c, b])
        length_slope[3, b] = wide / lengths[3]
        length_slope[4, b] = high / lengths[4]
    target = np.empty(3)
    for j in range(JOINTS):
        if not skeleton.aligned[j]:
            for c in range(3):
                for b in range(BETAS):
                    slopes.frame_spins[j, c, b] = 0.0
            continue
        for c in range(3):
            target[c] = 0.0
            for k in range(JOINTS):
                if skeleton.bone_sum[j, k] != 0:
                    target[c] += joints[k, c] - joints[skeleton.parents[k], c]
        _minimal_spin(skeleton.bone_source[j], target, table.bone_slopes[j], slopes.frame_spins[j])
    for j in range(JOINTS):
        p = skeleton.parents[j]
        first = skeleton.first_parameter[j]
        local, spin = work.local[j], slopes.frame_spins[j]
        for b in range(BETAS):
            for c in range(3):
                slopes.local_spins[j, c, b] = spin[c, b] - (
                    local[c, 0] * spin[0, b] + local[c, 1] * spin[1, b] + local[c, 2] * spin[2, b]
                )
            for c in range(3):
                offset_slope[c] = directions[j, c, b] - (directions[p, c, b] if p >= 0 else 0.0)
            if 11 <= j <= 13:
                x0, y0, _, _ = arc(1.0, q[first])
                x1, y1, _, _ = arc(1.0, q[first + 1])
                slope = length_slope[j - 11, b]
                offset_slope[0] -= x0 * slope
                offset_slope[1] += (y0 + y1 - 2.0) * slope
                offset_slope[2] -= x1 * slope
            elif j == 14 or j == 19:
                side = 1.0 if j == 14 else -1.0
                w, h = 0.25 * length_slope[3, b], 0.5 * length_slope[4, b]
                abduction, elevation = side * q[first], side * q[first + 1] - 0.25 * math.pi
                root_half = math.sqrt(0.5)
                offset_slope[0] -= (
                    side * w * (math.cos(elevation) * math.cos(abduction) - root_half)
                )
                offset_slope[1] -= h * (math.sin(elevation) + root_half)
                offset_slope[2] += w * math.sin(abduction)
            if p < 0:
                for c in range(3):
                    slopes.spins[j, c, b] = slopes.local_spins[j, c, b]
                    slopes.speeds[j, c, b] = offset_slope[c]
                continue
            parent = work.rotations[p]
            for c in range(3):
                away[c] = work.positions[j, c] - work.positions[p, c]
                slopes.spins[j, c, b] = slopes.spins[p, c, b] + (
                    parent[c, 0] * slopes.local_spins[j, 0, b]
                    + parent[c, 1] * slopes.local_spins[j, 1, b]
                    + parent[c, 2] * slopes.local_spins[j, 2, b]
                )
            t0, t1, t2 = slopes.spins[p, 0, b], slopes.spins[p, 1, b], slopes.spins[p, 2, b]
            slopes.speeds[j, 0, b] = slopes.speeds[p, 0, b] + t1 * away[2] - t2 * away[1]
            slopes.speeds[j, 1, b] = slopes.speeds[p, 1, b] + t2 * away[0] - t0 * away[2]
            slopes.speeds[j, 2, b] = slopes.speeds[p, 2, b] + t0 * away[1] - t1 * away[0]
            for c in range(3):
                slopes.speeds[j, c, b] += (
                    parent[c, 0] * offset_slope[0]
                    + parent[c, 1] * offset_slope[1]
                    + parent[c, 2] * offset_slope[2]
                )


@kernel(**_INNER)
def _minimal_spin(source, target, slope, out):
    """out (3,10): how the smallest rotation that takes source to target turns when the target
    changes by slope (3,10). From the quaternion (1 + a.b, a x b)."""
    ns = math.sqrt(source[0] ** 2 + source[1] ** 2 + source[2] ** 2)
    nt = math.sqrt(target[0] ** 2 + target[1] ** 2 + target[2] ** 2)
    a0, a1, a2 = source[0] / ns, source[1] / ns, source[2] / ns
    b0, b1, b2 = target[0] / nt, target[1] / nt, target[2] / nt
    v0, v1, v2 = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
    whole = 1.0 + a0 * b0 + a1 * b1 + a2 * b2
    for b in range(BETAS):
        if not whole > 1e-12:  # opposite, or without length: the rotation does not turn
            out[0, b] = out[1, b] = out[2, b] = 0.0
            continue
        along = b0 * slope[0, b] + b1 * slope[1, b] + b2 * slope[2, b]
        d0 = (slope[0, b] - b0 * along) / nt
        d1 = (slope[1, b] - b1 * along) / nt
        d2 = (slope[2, b] - b2 * along) / nt
        e0, e1, e2 = a1 * d2 - a2 * d1, a2 * d0 - a0 * d2, a0 * d1 - a1 * d0
        less = a0 * d0 + a1 * d1 + a2 * d2
        out[0, b] = e0 - (less * v0 + e1 * v2 - e2 * v1) / whole
        out[1, b] = e1 - (less * v1 + e2 * v0 - e0 * v2) / whole
        out[2, b] = e2 - (less * v2 + e0 * v1 - e1 * v0) / whole


@kernel(**_INNER)
def _pulls(seen, row, cauchy, place, slopes):
    """forces (K,3) and metric (K,3,3): half gradient and half Gauss-Newton matrix of the terms in
    pixels by each point's place, robust weights at this place."""
    camera, back = np.empty(3), np.empty((2, 3))
    squared = cauchy * cauchy
    for k in range(slopes.forces.shape[0]):
        for i in range(3):
            slopes.forces[k, i] = 0.0
            for c in range(3):
                slopes.metric[k, i, c] = 0.0
    for v in range(seen.weights.shape[1]):
        fx, fy = seen.lenses[row, v, 0], seen.lenses[row, v, 1]
        cx, cy, skew = seen.lenses[row, v, 2], seen.lenses[row, v, 3], seen.lenses[row, v, 4]
        per_variance = 1.0 / seen.sigmas[row, v] ** 2
        turn = seen.turns[row, v]
        for k in range(seen.weights.shape[2]):
            weight = seen.weights[row, v, k]
            if weight <= 0.0:
                continue
            _project(seen, row, v, place.points[k], camera)
            over = 1.0 / camera[2]
            x = (fx * camera[0] + skew * camera[1]) * over
            y = fy * camera[1] * over
            ex, ey = x + cx - seen.pixels[row, v, k, 0], y + cy - seen.pixels[row, v, k, 1]
            robust = 1.0 / (1.0 + (ex * ex + ey * ey) * per_variance / squared)
            scale = weight * robust * per_variance
            for c in range(3):
                back[0, c] = (fx * turn[0, c] + skew * turn[1, c] - x * turn[2, c]) * over
                back[1, c] = (fy * turn[1, c] - y * turn[2, c]) * over
            for i in range(3):
                slopes.forces[k, i] += scale * (back[0, i] * ex + back[1, i] * ey)
                for c in range(3):
                    slopes.metric[k, i, c] += scale * (
                        back[0, i] * back[0, c] + back[1, i] * back[1, c]
                    )


@kernel(**_INNER)
def _point_jacobian(skeleton, table, place, work, slopes, k, out):
    """out (3,59) = derivative of point k, correctives left out; zero outside its chain."""
    below = slopes.below
    for j in range(JOINTS):
        for c in range(4):
            below[j, c] = 0.0
    for i in range(3):
        for d in range(UNKNOWNS):
            out[i, d] = 0.0
        out[i, 46 + i] = 1.0
    for n in range(table.first[k], table.first[k + 1]):
        l, share = table.bone[n], table.share[n]
        for c in range(3):
            below[l, c] += place.moved[n, c]
        below[l, 3] += share
        r, arm = work.rotations[l], place.arms[n]
        h0 = r[0, 0] * arm[0] + r[0, 1] * arm[1] + r[0, 2] * arm[2]
        h1 = r[1, 0] * arm[0] + r[1, 1] * arm[1] + r[1, 2] * arm[2]
        h2 = r[2, 0] * arm[0] + r[2, 1] * arm[1] + r[2, 2] * arm[2]
        spins, speeds, by_shape = slopes.spins[l], slopes.speeds[l], table.by_shape[n]
        for b in range(BETAS):
            t0, t1, t2 = spins[0, b], spins[1, b], spins[2, b]
            d0, d1, d2 = by_shape[0, b], by_shape[1, b], by_shape[2, b]
            out[0, 49 + b] += (
                t1 * h2 - t2 * h1 + share * speeds[0, b]
                + r[0, 0] * d0 + r[0, 1] * d1 + r[0, 2] * d2
            )  # fmt: skip
            out[1, 49 + b] += (
                t2 * h0 - t0 * h2 + share * speeds[1, b]
                + r[1, 0] * d0 + r[1, 1] * d1 + r[1, 2] * d2
            )  # fmt: skip
            out[2, 49 + b] += (
                t0 * h1 - t1 * h0 + share * speeds[2, b]
                + r[2, 0] * d0 + r[2, 1] * d1 + r[2, 2] * d2
            )  # fmt: skip
    for j in range(JOINTS - 1, 0, -1):
        p = skeleton.parents[j]
        for c in range(4):
            below[p, c] += below[j, c]
    for n in range(table.chain_first[k], table.chain_first[k + 1]):
        d = table.chain[n]
        y = below[skeleton.joint_of_parameter[d]]
        a, e = work.axes[d], work.shift[d]
        out[0, d] = a[1] * y[2] - a[2] * y[1] + y[3] * e[0]
        out[1, d] = a[2] * y[0] - a[0] * y[2] + y[3] * e[1]
        out[2, d] = a[0] * y[1] - a[1] * y[0] + y[3] * e[2]


@kernel(**_INNER)
def _add_metric(metric, jacobian, root, hessian):
    """hessian += J^T W J, upper triangle, by the rows of a square root of W (3,3)."""
    trace = metric[0, 0] + metric[1, 1] + metric[2, 2]
    l00 = math.sqrt(max(metric[0, 0], 0.0))
    l10 = l20 = l11 = l21 = l22 = 0.0
    if metric[0, 0] > 1e-14 * trace:
        l10, l20 = metric[1, 0] / l00, metric[2, 0] / l00
    else:
        l00 = 0.0
    rest = metric[1, 1] - l10 * l10
    if rest > 1e-12 * trace:
        l11 = math.sqrt(rest)
        l21 = (metric[2, 1] - l20 * l10) / l11
    rest = metric[2, 2] - l20 * l20 - l21 * l21
    if rest > 1e-12 * trace:
        l22 = math.sqrt(rest)
    for d in range(UNKNOWNS):
        j0, j1, j2 = jacobian[0, d], jacobian[1, d], jacobian[2, d]
        root[0, d] = l00 * j0 + l10 * j1 + l20 * j2
        root[1, d] = l11 * j1 + l21 * j2
        root[2, d] = l22 * j2
    for i in range(3):
        if (i == 0 and l00 == 0.0) or (i == 1 and l11 == 0.0) or (i == 2 and l22 == 0.0):
            continue
        row = root[i]
        for d in range(UNKNOWNS):
            value = row[d]
            if value != 0.0:
                target = hessian[d]
                for e in range(d, UNKNOWNS):
                    target[e] += value * row[e]


@kernel(**_INNER)
def _span_pulls(skeleton, table, seen, row, cauchy, place, work, slopes):
    """Adds what the spans pull at their points to the forces, and their curvature to the matrix:
    a residual is the difference of two points, so it couples them."""
    squared = cauchy * cauchy
    per_variance = 1.0 / (seen.span_sigma * seen.span_sigma)
    miss, metric = np.empty(3), np.zeros((3, 3))
    jacobian, other = slopes.jacobian, slopes.origin_jacobian
    for s in range(seen.span_weights.shape[1]):
        weight = seen.span_weights[row, s]
        if weight <= 0.0:
            continue
        a, b = table.spans[s, 0], table.spans[s, 1]
        distance = _span_miss(table, seen, row, s, place, miss)
        weight *= per_variance / (1.0 + distance * per_variance / squared)
        _point_jacobian(skeleton, table, place, work, slopes, b, jacobian)
        _point_jacobian(skeleton, table, place, work, slopes, a, other)
        for c in range(3):
            slopes.forces[b, c] += weight * miss[c]
            slopes.forces[a, c] -= weight * miss[c]
            metric[c, c] = weight
            for d in range(UNKNOWNS):
                jacobian[c, d] -= other[c, d]
        _add_metric(metric, jacobian, slopes.root, slopes.hessian)


@kernel(**_INNER)
def _linearise(skeleton, table, seen, beliefs, row, cauchy, place, work, slopes):
    """Half gradient and half Gauss-Newton matrix (upper triangle) at `place`. The gradient is that
    of the objective; the matrix leaves the correctives out."""
    gradient, hessian = slopes.gradient, slopes.hessian
    twists(skeleton, work)
    _shape_motion(skeleton, table, place, work, slopes)
    _pulls(seen, row, cauchy, place, slopes)
    for d in range(UNKNOWNS):
        gradient[d] = 0.0
        for e in range(UNKNOWNS):
            hessian[d, e] = 0.0
    _span_pulls(skeleton, table, seen, row, cauchy, place, work, slopes)
    squared = cauchy * cauchy
    per_variance = 1.0 / (seen.place_sigma * seen.place_sigma)
    total = 0.0  # weight of the 3D points
    force = np.zeros(3)  # and their half gradient by the origin
    for i in range(3):
        for d in range(UNKNOWNS):
            slopes.sum_jacobian[i, d] = 0.0
            slopes.origin_jacobian[i, d] = 0.0
    for f in range(207):
        slopes.pull[f] = 0.0
    count = table.first.shape[0] - 1
    for k in range(count):
        weight = seen.place_weights[row, k]
        if weight > 0.0:
            distance = 0.0
            for c in range(3):
                miss = place.points[k, c] - seen.places[row, k, c]
                if seen.relative:
                    miss -= place.origin[c]
                distance += miss * miss
            weight *= per_variance / (1.0 + distance * per_variance / squared)
            for c in range(3):
                miss = place.points[k, c] - seen.places[row, k, c]
                if seen.relative:
                    miss -= place.origin[c]
                slopes.forces[k, c] += weight * miss
                slopes.metric[k, c, c] += weight
                force[c] += weight * miss
        else:
            weight = 0.0
        total += weight
        metric = slopes.metric[k]
        looked_at = metric[0, 0] + metric[1, 1] + metric[2, 2] > 0.0
        for c in range(3):
            looked_at = looked_at or slopes.forces[k, c] != 0.0
        is_origin = seen.relative and table.origin[k] != 0.0
        if not looked_at and not is_origin:
            continue
        jacobian = slopes.jacobian
        _point_jacobian(skeleton, table, place, work, slopes, k, jacobian)
        if looked_at:
            _add_metric(metric, jacobian, slopes.root, hessian)
        for i in range(3):
            share = table.origin[k]
            for d in range(UNKNOWNS):
                gradient[d] += slopes.forces[k, i] * jacobian[i, d]
                slopes.sum_jacobian[i, d] += weight * jacobian[i, d]
                slopes.origin_jacobian[i, d] += share * jacobian[i, d]
    if seen.relative and total > 0.0:
        # each residual is J_k - J_o: what the sum of J_k^T J_k lacks
        for i in range(3):
            mine, own = slopes.sum_jacobian[i], slopes.origin_jacobian[i]
            for d in range(UNKNOWNS):
                gradient[d] -= force[i] * own[d]
                for e in range(d, UNKNOWNS):
                    hessian[d, e] += total * own[d] * own[e] - mine[d] * own[e] - own[d] * mine[e]
        for k in range(count):  # forces by each point, for the correctives below
            for i in range(3):
                slopes.forces[k, i] -= table.origin[k] * force[i]
    _corrective_gradient(skeleton, table, work, slopes)
    for i in range(43):
        value = 0.0
        for j in range(43):
            value += beliefs.pose_precision[i, j] * (
                place.unknowns[_ROOT_FREE + j] - beliefs.pose_mean[row, j]
            )
        gradient[_ROOT_FREE + i] += value
        for j in range(i, 43):
            hessian[_ROOT_FREE + i, _ROOT_FREE + j] += beliefs.pose_precision[i, j]
    for b in range(BETAS):
        gradient[NUM_PARAMETERS + b] += beliefs.shape_precision * (
            place.unknowns[NUM_PARAMETERS + b] - beliefs.shape_mean[row, b]
        )
        hessian[NUM_PARAMETERS + b, NUM_PARAMETERS + b] += beliefs.shape_precision


@kernel(**_INNER)
def _corrective_gradient(skeleton, table, work, slopes):
    """gradient += pull . df: the exact term of the pose correctives, by angles and betas."""
    pull, gradient = slopes.pull, slopes.gradient
    for k in range(slopes.forces.shape[0]):
        g = slopes.forces[k]
        if g[0] == 0.0 and g[1] == 0.0 and g[2] == 0.0:
            continue
        for n in range(table.first[k], table.first[k + 1]):
            row = table.feature_row[n]
            if row < 0:
                continue
            r = work.rotations[table.bone[n]]
            u0 = r[0, 0] * g[0] + r[1, 0] * g[1] + r[2, 0] * g[2]
            u1 = r[0, 1] * g[0] + r[1, 1] * g[1] + r[2, 1] * g[2]
            u2 = r[0, 2] * g[0] + r[1, 2] * g[1] + r[2, 2] * g[2]
            b0, b1, b2 = (
                table.by_feature[row, 0],
                table.by_feature[row, 1],
                table.by_feature[row, 2],
            )
            for f in range(207):
                pull[f] += u0 * b0[f] + u1 * b1[f] + u2 * b2[f]
    torque = np.empty(3)
    for s in range(23):
        j = skeleton.feature_source[s]
        if j < 0:
            continue
        r = work.local[j]
        # pull . ([a]x R) = a . torque, a in the parent's frame
        for c in range(3):
            torque[c] = 0.0
        for c in range(3):
            p0, p1, p2 = pull[9 * s + c], pull[9 * s + 3 + c], pull[9 * s + 6 + c]
            torque[0] += p2 * r[1, c] - p1 * r[2, c]
            torque[1] += p0 * r[2, c] - p2 * r[0, c]
            torque[2] += p1 * r[0, c] - p0 * r[1, c]
        for d in range(skeleton.first_parameter[j], skeleton.first_parameter[j + 1]):
            a = work.local_axes[d]
            gradient[d] += a[0] * torque[0] + a[1] * torque[1] + a[2] * torque[2]
        spin = slopes.local_spins[j]
        for b in range(BETAS):
            gradient[NUM_PARAMETERS + b] += (
                spin[0, b] * torque[0] + spin[1, b] * torque[1] + spin[2, b] * torque[2]
            )


# --- steps ------------------------------------------------------------------------------------


@kernel(**_INNER)
def _solve_damped(hessian, gradient, damping, index, count, factor, step):
    """step[index] = -(H + damping diag H)^-1 g on the listed parameters (LDL^T)."""
    for n in range(count):
        i = index[n]
        for m in range(n, count):
            factor[n, m] = hessian[i, index[m]]
        factor[n, n] += damping * (hessian[i, i] + 1e-9)
        step[i] = -gradient[i]
    for n in range(count):
        pivot = max(factor[n, n], 1e-16)
        factor[n, n] = pivot
        for m in range(n + 1, count):
            f = factor[n, m] / pivot
            if f != 0.0:
                row, source = factor[m], factor[n]
                for c in range(m, count):
                    row[c] -= f * source[c]
                step[index[m]] -= f * step[index[n]]
    for n in range(count - 1, -1, -1):
        value = step[index[n]]
        for m in range(n + 1, count):
            value -= factor[n, m] * step[index[m]]
        step[index[n]] = value / factor[n, n]


@kernel(**_INNER)
def _box_step(beliefs, at, slopes, damping):
    """Damped step (59,) inside the limits, by an active set. Twin: `box_step.dense_step`."""
    step, shifted, fixed, index = slopes.step, slopes.shifted, slopes.fixed, slopes.chosen
    gradient, hessian, bound = slopes.gradient, slopes.hessian, slopes.bound
    for d in range(UNKNOWNS):
        step[d] = 0.0
        shifted[d] = gradient[d]
        fixed[d] = (
            not beliefs.free[d]
            or (at[d] <= beliefs.lower[d] and gradient[d] > 0.0)
            or (at[d] >= beliefs.upper[d] and gradient[d] < 0.0)
        )
    for _ in range(8):
        count = 0
        for d in range(UNKNOWNS):
            if not fixed[d]:
                index[count] = d
                count += 1
        _solve_damped(hessian, shifted, damping, index, count, slopes.factor, step)
        crossed = False
        for n in range(count):
            d = index[n]
            bound[d] = min(max(at[d] + step[d], beliefs.lower[d]), beliefs.upper[d])
            if bound[d] != at[d] + step[d]:
                crossed = True
                fixed[d] = True
                step[d] = bound[d] - at[d]
                for m in range(UNKNOWNS):
                    value = hessian[m, d] if m <= d else hessian[d, m]
                    shifted[m] += value * step[d]
        if not crossed:
            break
    largest = 0.0
    for d in range(46):
        largest = max(largest, abs(step[d]))
    shrink = min(1.0, _CLIP / max(largest, 1e-30))
    for d in range(UNKNOWNS):
        step[d] = min(max(at[d] + shrink * step[d], beliefs.lower[d]), beliefs.upper[d]) - at[d]


@kernel(**_INNER)
def _fit_row(skeleton, table, seen, beliefs, row, cauchy, steps, tolerance, derivatives, here,
             there, work, feature, slopes, energy):  # fmt: skip
    """Levenberg-Marquardt from the unknowns of `here`. Returns steps done and whether the row
    settled; the best unknowns are in `here` with its points, and with `derivatives` those in
    `slopes`. energy (2,) out.

    One loop, so that each part is compiled once: it measures a candidate, takes or leaves it,
    and looks for the next one."""
    damping, done, tries, last = _DAMPING, 0, 0, False
    largest, total = 0.0, np.inf
    energy[0] = energy[1] = np.inf
    for d in range(UNKNOWNS):
        there.unknowns[d] = here.unknowns[d]
    while True:
        _put(skeleton, table, there, work, feature)
        data = _data_energy(table, seen, row, cauchy, there, there.parts)
        prior = _prior_energy(beliefs, row, there.unknowns)
        fresh = data + prior <= total and data < np.inf
        if fresh:
            gain = total - data - prior
            first = not total < np.inf
            total, energy[0], energy[1] = data + prior, data, prior
            _copy_place(there, here)
            if not first:
                damping = max(0.3 * damping, 1e-7)
                if largest < tolerance or gain < 1e-3 * tolerance * (1.0 + total):
                    last = True
        elif not total < np.inf:
            return done, False  # the start itself is behind a camera
        else:
            tries += 1
            damping = min(8.0 * damping, 1e6)
            if tries == 8 or largest < 0.01 * tolerance:
                last = True
        enough = last or done >= steps
        if fresh and (derivatives or not enough):
            _linearise(skeleton, table, seen, beliefs, row, cauchy, here, work, slopes)
            tries = 0
        if last or (fresh and done >= steps):
            return done, last
        if fresh:
            done += 1
        _box_step(beliefs, here.unknowns, slopes, damping)
        largest = 0.0
        for d in range(UNKNOWNS):
            there.unknowns[d] = here.unknowns[d] + slopes.step[d]
            largest = max(largest, abs(slopes.step[d]))


@kernel(**_INNER)
def _copy_place(source, target):
    for d in range(UNKNOWNS):
        target.unknowns[d] = source.unknowns[d]
    for n in range(source.arms.shape[0]):
        for c in range(3):
            target.arms[n, c] = source.arms[n, c]
            target.moved[n, c] = source.moved[n, c]
    for k in range(source.points.shape[0]):
        for c in range(3):
            target.points[k, c] = source.points[k, c]
    for j in range(JOINTS):
        for c in range(3):
            target.joints[0, j, c] = source.joints[0, j, c]
    for c in range(5):
        target.lengths[0, c] = source.lengths[0, c]
    for c in range(3):
        target.origin[c] = source.origin[c]
    for v in range(source.parts.shape[0]):
        for k in range(source.parts.shape[1]):
            target.parts[v, k] = source.parts[v, k]


@kernel(**_INNER)
def _variances(beliefs, slopes, out):
    """out (59,) = diagonal of the inverse of the matrix, unknowns that do not move left out."""
    index, factor, count = slopes.chosen, slopes.factor, 0
    for d in range(UNKNOWNS):
        out[d] = 0.0
        if beliefs.free[d]:
            index[count] = d
            count += 1
    for i in range(count):  # Cholesky, the reciprocal of the diagonal kept
        row = factor[i]
        for j in range(i + 1):
            other = factor[j]
            value = slopes.hessian[index[j], index[i]]
            for m in range(j):
                value -= row[m] * other[m]
            if i == j:
                row[i] = 1.0 / math.sqrt(max(value, 1e-12))
            else:
                row[j] = value * other[j]
    column = slopes.shifted
    for j in range(count):  # column j of the factor's inverse
        column[j] = factor[j, j]
        total = column[j] * column[j]
        for i in range(j + 1, count):
            value = 0.0
            row = factor[i]
            for m in range(j, i):
                value -= row[m] * column[m]
            column[i] = value * row[i]
            total += column[i] * column[i]
        out[index[j]] = total


@kernel()
def fit(
    skeleton, table, seen, beliefs, cauchy, steps, tolerance, with_variances,
    unknowns, energies, points, parts, done, settled, variances, gradients, hessians,
):  # fmt: skip
    """Fit rows from unknowns (n,59), changed in place; no steps: judge them as they are.

    energies (n,2) of data and priors, infinite behind a camera; points (n,K,3); parts (n,V,K)
    robust squared distance of every point seen; done (n,) steps; settled (n,) bool; variances
    (n,59); gradients (n,59), hessians (n,59,59): half of them, for the first rows that there is
    room for."""
    count = table.first.shape[0] - 1
    views = seen.weights.shape[1]
    here = _make_place(table.bone.shape[0], views, count)
    there = _make_place(table.bone.shape[0], views, count)
    work, slopes, feature = make_work(), _make_slopes(count), np.zeros(207)
    for row in range(unknowns.shape[0]):
        for d in range(UNKNOWNS):
            here.unknowns[d] = unknowns[row, d]
            if steps > 0:
                here.unknowns[d] = min(max(unknowns[row, d], beliefs.lower[d]), beliefs.upper[d])
        done[row], settled[row] = _fit_row(
            skeleton, table, seen, beliefs, row, cauchy, steps, tolerance,
            with_variances or row < hessians.shape[0], here, there, work, feature, slopes,
            energies[row],
        )  # fmt: skip
        for d in range(UNKNOWNS):
            unknowns[row, d] = here.unknowns[d]
            variances[row, d] = np.nan
        for k in range(count):
            for c in range(3):
                points[row, k, c] = here.points[k, c]
            for v in range(views):
                parts[row, v, k] = here.parts[v, k]
        if not energies[row, 0] < np.inf:
            continue
        if with_variances:
            _variances(beliefs, slopes, variances[row])
        if row < hessians.shape[0]:
            for d in range(UNKNOWNS):
                gradients[row, d] = slopes.gradient[d]
                for e in range(d, UNKNOWNS):
                    hessians[row, d, e] = slopes.hessian[d, e]
                    hessians[row, e, d] = slopes.hessian[d, e]


# --- starts -----------------------------------------------------------------------------------


@kernel(**_INNER)
def _torso_frame(places, torso, frame):
    """frame (3,3), columns: to the left, up, and their cross product, of left hip, right hip, left
    shoulder, right shoulder. Returns whether they span one."""
    for c in range(3):
        lh, rh = places[torso[0], c], places[torso[1], c]
        ls, rs = places[torso[2], c], places[torso[3], c]
        frame[c, 1] = ls + rs - lh - rh
        frame[c, 0] = lh - rh + ls - rs
    length = math.sqrt(frame[0, 1] ** 2 + frame[1, 1] ** 2 + frame[2, 1] ** 2)
    if not length > 1e-9:
        return False
    along = 0.0
    for c in range(3):
        frame[c, 1] /= length
        along += frame[c, 0] * frame[c, 1]
    for c in range(3):
        frame[c, 0] -= along * frame[c, 1]
    length = math.sqrt(frame[0, 0] ** 2 + frame[1, 0] ** 2 + frame[2, 0] ** 2)
    if not length > 1e-9:
        return False
    for c in range(3):
        frame[c, 0] /= length
    _third(frame)
    return True


@njit(inline="always")
def _third(frame):
    frame[0, 2] = frame[1, 0] * frame[2, 1] - frame[2, 0] * frame[1, 1]
    frame[1, 2] = frame[2, 0] * frame[0, 1] - frame[0, 0] * frame[2, 1]
    frame[2, 2] = frame[0, 0] * frame[1, 1] - frame[1, 0] * frame[0, 1]


@kernel(**_INNER)
def _add_rays(seen, row, k, place, normal, right):
    """Adds the equations that lay a point at `place` + t on its pixels. Returns how many views."""
    views = 0
    for v in range(seen.weights.shape[1]):
        weight = seen.weights[row, v, k]
        if weight <= 0.0:
            continue
        views += 1
        turn, shift = seen.turns[row, v], seen.shifts[row, v]
        fx, fy, skew = seen.lenses[row, v, 0], seen.lenses[row, v, 1], seen.lenses[row, v, 4]
        away_x = seen.lenses[row, v, 2] - seen.pixels[row, v, k, 0]
        away_y = seen.lenses[row, v, 3] - seen.pixels[row, v, k, 1]
        scale = weight / (fx * fx)
        for line in range(2):
            a0 = a1 = a2 = b = 0.0
            if line == 0:
                a0 = fx * turn[0, 0] + skew * turn[1, 0] + away_x * turn[2, 0]
                a1 = fx * turn[0, 1] + skew * turn[1, 1] + away_x * turn[2, 1]
                a2 = fx * turn[0, 2] + skew * turn[1, 2] + away_x * turn[2, 2]
                b = fx * shift[0] + skew * shift[1] + away_x * shift[2]
            else:
                a0 = fy * turn[1, 0] + away_y * turn[2, 0]
                a1 = fy * turn[1, 1] + away_y * turn[2, 1]
                a2 = fy * turn[1, 2] + away_y * turn[2, 2]
                b = fy * shift[1] + away_y * shift[2]
            b += a0 * place[0] + a1 * place[1] + a2 * place[2]
            normal[0, 0] += scale * a0 * a0
            normal[0, 1] += scale * a0 * a1
            normal[0, 2] += scale * a0 * a2
            normal[1, 1] += scale * a1 * a1
            normal[1, 2] += scale * a1 * a2
            normal[2, 2] += scale * a2 * a2
            right[0] -= scale * a0 * b
            right[1] -= scale * a1 * b
            right[2] -= scale * a2 * b
    return views


@kernel(**_INNER)
def _solve3(m, right, out):
    """Symmetric 3x3, upper triangle. Returns whether it could be solved."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    c00 = m[1, 1] * m[2, 2] - m[1, 2] * m[1, 2]
    c01 = m[0, 2] * m[1, 2] - m[0, 1] * m[2, 2]
    c02 = m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]
    c11 = m[0, 0] * m[2, 2] - m[0, 2] * m[0, 2]
    c12 = m[0, 1] * m[0, 2] - m[0, 0] * m[1, 2]
    c22 = m[0, 0] * m[1, 1] - m[0, 1] * m[0, 1]
    det = m[0, 0] * c00 + m[0, 1] * c01 + m[0, 2] * c02
    if not det > 1e-12 * trace**3:
        return False
    out[0] = (c00 * right[0] + c01 * right[1] + c02 * right[2]) / det
    out[1] = (c01 * right[0] + c11 * right[1] + c12 * right[2]) / det
    out[2] = (c02 * right[0] + c12 * right[1] + c22 * right[2]) / det
    return True


@kernel()
def start(skeleton, table, seen, torso, mean, facing, nearest, unknowns, known):
    """Starts of n rows: the unknowns `mean` (59,) with the torso turned and placed as seen.

    The torso comes from the 3D points, else from several views, else it stands along its picture
    and faces `facing` (rad about its length; 0: its left is the camera's right). nearest: m, of any
    point to a single camera. known (n,) int: 2 the torso's places are known, 1 supposed, 0 nothing
    can be placed."""
    count = table.first.shape[0] - 1
    here, work, feature = _make_place(table.bone.shape[0], 1, count), make_work(), np.zeros(207)
    model, wanted, turn = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    spot, zero, right, normal = np.zeros((count, 3)), np.zeros(3), np.zeros(3), np.zeros((3, 3))
    low, high = np.zeros(UNKNOWNS), np.zeros(UNKNOWNS)
    for d in range(UNKNOWNS):
        low[d], high[d] = -np.inf, np.inf
    camera, product = np.zeros(3), np.empty((3, 3))
    for row in range(unknowns.shape[0]):
        for d in range(UNKNOWNS):
            here.unknowns[d] = mean[row, d]
        for d in range(3):
            here.unknowns[d] = 0.0
            here.unknowns[46 + d] = 0.0
        _put(skeleton, table, here, work, feature)
        _torso_frame(here.points, torso, model)
        placed, rays = 2, 2
        for n in range(4):
            if not seen.place_weights[row, torso[n]] > 0.0:
                placed = 0
        if placed > 0:
            for k in range(count):
                for c in range(3):
                    spot[k, c] = seen.places[row, k, c]
        else:
            for n in range(4):
                k = torso[n]
                for i in range(3):
                    right[i] = 0.0
                    for c in range(3):
                        normal[i, c] = 0.0
                views = _add_rays(seen, row, k, zero, normal, right)
                if views < 2 or not _solve3(normal, right, spot[k]):
                    rays = 0
        known[row] = max(placed, rays)
        if known[row] > 0 and not _torso_frame(spot, torso, wanted):
            known[row] = 0
        if known[row] == 0:
            _supposed_torso(seen, row, torso, facing, wanted)
            known[row] = 1
        for i in range(3):  # wanted model^T
            for c in range(3):
                turn[i, c] = (
                    wanted[i, 0] * model[c, 0]
                    + wanted[i, 1] * model[c, 1]
                    + wanted[i, 2] * model[c, 2]
                )
        frame = here.frames[0, 0]
        multiply(turn, frame, product)
        for i in range(3):
            for c in range(3):
                wanted[i, c] = (
                    frame[0, i] * product[0, c] + frame[1, i] * product[1, c]
                    + frame[2, i] * product[2, c]
                )  # fmt: skip
        project_joint(skeleton, 0, wanted, low, high, 0, here.unknowns)
        _put(skeleton, table, here, work, feature)
        if not _placed(seen, row, here, normal, right, camera):
            known[row] = 0
        for c in range(3):
            here.unknowns[46 + c] = right[c]
        if seen.weights.shape[1] == 1:
            depth = np.inf
            for k in range(count):
                if seen.weights[row, 0, k] > 0.0:
                    for c in range(3):
                        spot[0, c] = here.points[k, c] + right[c]
                    _project(seen, row, 0, spot[0], camera)
                    depth = min(depth, camera[2])
            if depth < nearest:
                for c in range(3):
                    here.unknowns[46 + c] += (nearest - depth) * seen.turns[row, 0, 2, c]
        for d in range(UNKNOWNS):
            unknowns[row, d] = here.unknowns[d]


@kernel(**_INNER)
def _placed(seen, row, here, normal, out, scratch):
    """out (3,) = the translation that fits best; whether there is one."""
    for i in range(3):
        scratch[i] = 0.0
        for c in range(3):
            normal[i, c] = 0.0
    total = 0.0
    if not seen.relative:
        for c in range(3):
            out[c] = 0.0
        for k in range(here.points.shape[0]):
            weight = seen.place_weights[row, k]
            if weight > 0.0:
                total += weight
                for c in range(3):
                    out[c] += weight * (seen.places[row, k, c] - here.points[k, c])
        if total > 0.0:
            for c in range(3):
                out[c] /= total
            return True
    for k in range(here.points.shape[0]):
        _add_rays(seen, row, k, here.points[k], normal, scratch)
    return _solve3(normal, scratch, out)


@kernel(**_INNER)
def _supposed_torso(seen, row, torso, facing, frame):
    """A torso that lies along its picture in the first view, in the world's axes."""
    up_x, up_y, whole = 0.0, -1.0, True
    for n in range(4):
        if not seen.weights[row, 0, torso[n]] > 0.0:
            whole = False
    if whole:
        pixels = seen.pixels[row, 0]
        up_x = pixels[torso[2], 0] + pixels[torso[3], 0] - pixels[torso[0], 0] - pixels[torso[1], 0]
        up_y = pixels[torso[2], 1] + pixels[torso[3], 1] - pixels[torso[0], 1] - pixels[torso[1], 1]
        length = math.sqrt(up_x * up_x + up_y * up_y)
        if length > 1e-9:
            up_x, up_y = up_x / length, up_y / length
        else:
            up_x, up_y = 0.0, -1.0
    c, s = math.cos(facing), math.sin(facing)
    turn = seen.turns[row, 0]
    for i in range(3):
        # camera axes: up (up_x, up_y, 0); across it (-up_y, up_x, 0); away from the camera z
        frame[i, 1] = up_x * turn[0, i] + up_y * turn[1, i]
        frame[i, 0] = c * (-up_y * turn[0, i] + up_x * turn[1, i]) + s * turn[2, i]
    _third(frame)
