"""Covariance of the angles at an optimum, one row at a time (numba). Twin: `sandwich`."""

from __future__ import annotations

import math

import numpy as np

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import (
    JOINTS,
    bones,
    make_work,
    skinning_transforms,
    twists,
)
from skel_fit.solver.numba_minimise import curvature, whole_matrix


@kernel()
def _carried(work, wrenches, carried):
    """carried (24,6,K) = torque about the origin and force on each bone and all below it, of
    fields with wrenches (24,6,K)."""
    for k in range(JOINTS):
        r, p, own, out = work.rotations[k], work.positions[k], wrenches[k], carried[k]
        for f in range(own.shape[1]):
            f0 = r[0, 0] * own[0, f] + r[0, 1] * own[1, f] + r[0, 2] * own[2, f]
            f1 = r[1, 0] * own[0, f] + r[1, 1] * own[1, f] + r[1, 2] * own[2, f]
            f2 = r[2, 0] * own[0, f] + r[2, 1] * own[1, f] + r[2, 2] * own[2, f]
            t0 = r[0, 0] * own[3, f] + r[0, 1] * own[4, f] + r[0, 2] * own[5, f]
            t1 = r[1, 0] * own[3, f] + r[1, 1] * own[4, f] + r[1, 2] * own[5, f]
            t2 = r[2, 0] * own[3, f] + r[2, 1] * own[4, f] + r[2, 2] * own[5, f]
            out[0, f] = t0 + p[1] * f2 - p[2] * f1
            out[1, f] = t1 + p[2] * f0 - p[0] * f2
            out[2, f] = t2 + p[0] * f1 - p[1] * f0
            out[3, f] = f0
            out[4, f] = f1
            out[5, f] = f2


@kernel()
def scores_of(skeleton, stage, work, wrenches, pulls, carried, scores):
    """scores (49,K) = J^T F of a row whose kinematics and twists `work` holds."""
    _carried(work, wrenches, carried)
    fields = wrenches.shape[2]
    for k in range(JOINTS - 1, 0, -1):
        above, own = carried[skeleton.parents[k]], carried[k]
        for e in range(6):
            for f in range(fields):
                above[e, f] += own[e, f]
    for d in range(NUM_PARAMETERS):
        if not stage.free[d]:
            continue
        j = skeleton.joint_of_parameter[d]
        a, s, own, out = work.axes[d], work.shift[d], carried[j], scores[d]
        for f in range(fields):
            out[f] = (
                a[0] * own[0, f] + a[1] * own[1, f] + a[2] * own[2, f]
                + s[0] * own[3, f] + s[1] * own[4, f] + s[2] * own[5, f]
            )  # fmt: skip
        feature = skeleton.feature_of_joint[j]
        if d >= 46 or feature < 0:
            continue
        # pull . ([a]x R), local axis in the parent's frame
        a, r = work.local_axes[d], work.local[j]
        for c in range(3):
            t0 = a[1] * r[2, c] - a[2] * r[1, c]
            t1 = a[2] * r[0, c] - a[0] * r[2, c]
            t2 = a[0] * r[1, c] - a[1] * r[0, c]
            b0, b1, b2 = (
                pulls[9 * feature + c],
                pulls[9 * feature + 3 + c],
                pulls[9 * feature + 6 + c],
            )
            for f in range(fields):
                out[f] += t0 * b0[f] + t1 * b1[f] + t2 * b2[f]


@kernel()
def invert(matrix, count, factor, inverse):
    """inverse (count,count) of a symmetric positive matrix, by Cholesky; `factor` is scratch."""
    for i in range(count):
        row = factor[i]
        for j in range(i + 1):
            other = factor[j]
            value = matrix[i, j]
            for m in range(j):
                value -= row[m] * other[m]
            if i == j:
                row[i] = 1.0 / math.sqrt(max(value, 1e-18))
            else:
                row[j] = value * other[j]
    # the factor's inverse, transposed: row j of `inverse` is its column j
    for j in range(count):
        column = inverse[j]
        for i in range(j):
            column[i] = 0.0
        column[j] = factor[j, j]
        for i in range(j + 1, count):
            value = 0.0
            row = factor[i]
            for m in range(j, i):
                value -= row[m] * column[m]
            column[i] = value * row[i]
    for i in range(count):
        first = inverse[i]
        for j in range(i + 1):
            second = inverse[j]
            value = 0.0
            for m in range(i, count):
                value += first[m] * second[m]
            factor[i, j] = value
    for i in range(count):
        for j in range(i + 1):
            inverse[i, j] = factor[i, j]
            inverse[j, i] = factor[i, j]


@kernel()
def _spread(inverse, count, index, prior, ridge, scores, noise, sums, variance, share):
    """Variances and shares of one row, at the places `index` names."""
    fields = scores.shape[1]
    for i in range(count):
        row = inverse[i]
        for f in range(fields):
            sums[f] = 0.0
        from_prior = 0.0
        for m in range(count):
            weight, other = row[m], scores[index[m]]
            from_prior += weight * weight * (prior[index[m]] + ridge)
            for f in range(fields):
                sums[f] += weight * other[f]
        value = noise * (row[i] - from_prior)
        for f in range(fields):
            value += sums[f] * sums[f]
        variance[index[i]] = value
        share[index[i]] = 1.0 - from_prior / row[i]


@kernel()
def _sandwich_row(
    skeleton, stage, pattern, joints, frames, lengths, pair_moments, q, wrenches, pulls,
    noise, ridge, variance, share,
):  # fmt: skip
    """variance, share (49,) of a row at q (49,)."""
    fields = wrenches.shape[2]
    work = make_work()
    transforms = np.empty((JOINTS, 3, 4))
    joint_moments = np.zeros((JOINTS, 4, 4))
    hessian = np.empty((NUM_PARAMETERS, NUM_PARAMETERS))
    factor = np.empty((NUM_PARAMETERS, NUM_PARAMETERS))
    blocks, sides = np.empty((pattern.blocks[0], 4, 4)), np.empty(pattern.column.shape[0] + 1)
    diagonal = np.empty(pattern.parameters.shape[0])
    index = np.empty(NUM_PARAMETERS, np.int64)
    matrix = np.empty((NUM_PARAMETERS, NUM_PARAMETERS))
    inverse = np.empty((NUM_PARAMETERS, NUM_PARAMETERS))
    carried = np.empty((JOINTS, 6, fields))
    scores = np.zeros((NUM_PARAMETERS, fields))
    sums = np.empty(fields)
    homogeneous = np.ones(4)
    for k in range(JOINTS):
        for c in range(3):
            homogeneous[c] = joints[k, c]
        for i in range(4):
            for c in range(4):
                joint_moments[k, i, c] = stage.joint_masses[k] * homogeneous[i] * homogeneous[c]
    bones(skeleton, q, joints, frames, lengths, work)
    skinning_transforms(work, joints, transforms)
    twists(skeleton, work)
    curvature(
        skeleton, stage, pattern, transforms, pair_moments, joint_moments, work, blocks, diagonal,
        sides,
    )  # fmt: skip
    whole_matrix(pattern, diagonal, sides, hessian)
    scores_of(skeleton, stage, work, wrenches, pulls, carried, scores)
    count = 0
    for d in range(NUM_PARAMETERS):
        if stage.free[d]:
            index[count] = d
            count += 1
    for i in range(count):
        for j in range(count):
            matrix[i, j] = hessian[index[i], index[j]]
        matrix[i, i] += ridge
    invert(matrix, count, factor, inverse)
    _spread(inverse, count, index, stage.prior, ridge, scores, noise, sums, variance, share)


@kernel()
def sandwich(
    skeleton, stage, pattern, joints, frames, lengths, pair_moments, poses, wrenches, pulls,
    noise, ridge, variance, share,
):  # fmt: skip
    """variance, share (n,49) of rows at poses (n,49); wrenches (24,6,K), pulls (207,K)."""
    for row in range(poses.shape[0]):
        _sandwich_row(
            skeleton, stage, pattern, joints[row], frames[row], lengths[row], pair_moments[row],
            poses[row], wrenches, pulls, noise, ridge, variance[row], share[row],
        )  # fmt: skip
