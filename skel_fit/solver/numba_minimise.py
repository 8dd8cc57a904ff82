"""The inner solver: Levenberg-Marquardt on 24 bone transforms, ABREAST rows at a time (numba).

The vertices enter through moments only. Derivation: docs/solver.md. Twins of the same
names: `search_torch`, `curvature`, `box_step`. A row that is done waits for the others of its
group: what is computed for it then is not kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.numba_abreast import ABREAST, abreast, any_row, if_at_most, if_less, magnitude
from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import (
    JOINTS,
    bones,
    make_work,
    make_work_abreast,
    side_by_side,
    skinning_transforms,
    twists,
)

_FRESH_CURVATURE = 0.1
"""After a step smaller than this (rad) the next one uses the same Gauss-Newton matrix."""


@njit(inline="always")
def unpack(packed, out):
    """Symmetric 4x4 from xx xy xz x1 yy yz y1 zz z1 11."""
    n = 0
    for i in range(4):
        for c in range(i, 4):
            out[i, c] = packed[n]
            out[c, i] = packed[n]
            n += 1


@kernel()
def times_moments(stage, moments, change, work, out):
    """out (24,3,4) = change M with M given by its non-zero symmetric blocks."""
    block = work.block
    for k in range(JOINTS):
        for i in range(3):
            for c in range(4):
                out[k, i, c] = 0.0
    for n in range(stage.pair_first.shape[0]):
        k, l = stage.pair_first[n], stage.pair_second[n]
        unpack(moments[n], block)
        for i in range(3):
            a0, a1, a2, a3 = change[k, i, 0], change[k, i, 1], change[k, i, 2], change[k, i, 3]
            for c in range(4):
                out[l, i, c] += (
                    a0 * block[0, c] + a1 * block[1, c] + a2 * block[2, c] + a3 * block[3, c]
                )
        if k != l:
            for i in range(3):
                a0, a1, a2, a3 = change[l, i, 0], change[l, i, 1], change[l, i, 2], change[l, i, 3]
                for c in range(4):
                    out[k, i, c] += (
                        a0 * block[0, c] + a1 * block[1, c] + a2 * block[2, c] + a3 * block[3, c]
                    )


@kernel()
def gradient_of(skeleton, stage, transforms, force, corrective, q, work, gradient):
    """Half the gradient (49,) of the model objective; force (24,3,4) = change M + C."""
    subtree = work.subtree
    for k in range(JOINTS):
        for i in range(3):
            f0, f1, f2, f3 = force[k, i, 0], force[k, i, 1], force[k, i, 2], force[k, i, 3]
            for c in range(3):
                subtree[k, i, c] = (
                    f0 * transforms[k, c, 0]
                    + f1 * transforms[k, c, 1]
                    + f2 * transforms[k, c, 2]
                    + f3 * transforms[k, c, 3]
                )
            subtree[k, i, 3] = f3
    for k in range(JOINTS - 1, 0, -1):
        p = skeleton.parents[k]
        for i in range(3):
            for c in range(4):
                subtree[p, i, c] += subtree[k, i, c]
    for d in range(NUM_PARAMETERS):
        gradient[d] = stage.prior[d] * q[d]
        if not stage.free[d]:
            continue
        j = skeleton.joint_of_parameter[d]
        s = subtree[j]
        if d >= 46:
            gradient[d] += s[d - 46, 3]
            continue
        a, e = work.axes[d], work.shift[d]
        gradient[d] += (
            a[0] * (s[2, 1] - s[1, 2])
            + a[1] * (s[0, 2] - s[2, 0])
            + a[2] * (s[1, 0] - s[0, 1])
            + e[0] * s[0, 3]
            + e[1] * s[1, 3]
            + e[2] * s[2, 3]
        )
        f = skeleton.feature_of_joint[j]
        if f >= 0:
            # b . ([a]x R): the exact term of the pose correctives, local axis in the parent's frame
            b, r, a = corrective, work.local[j], work.local_axes[d]
            for c in range(3):
                b0, b1, b2 = b[9 * f + c], b[9 * f + 3 + c], b[9 * f + 6 + c]
                gradient[d] += (
                    b0 * (a[1] * r[2, c] - a[2] * r[1, c])
                    + b1 * (a[2] * r[0, c] - a[0] * r[2, c])
                    + b2 * (a[0] * r[1, c] - a[1] * r[0, c])
                )


@njit(inline="always")
def _blocks(stage, pattern, transforms, moments, joint_moments, work, blocks):
    """blocks (B,4,4) of the pattern: T_kl of pairs of bones, then their sums."""
    block, half = work.block, work.half
    for s in range(pattern.pairs.shape[0]):
        n, here, there = pattern.pairs[s, 0], pattern.pairs[s, 1], pattern.pairs[s, 2]
        k, l = stage.pair_first[n], stage.pair_second[n]
        unpack(moments[n], block)
        if k == l and stage.joint_masses[k] > 0.0:
            for i in range(4):
                for c in range(4):
                    block[i, c] += joint_moments[k, i, c]
        a, b = transforms[k], transforms[l]
        for i in range(4):
            m0, m1, m2, m3 = block[i, 0], block[i, 1], block[i, 2], block[i, 3]
            for c in range(3):
                half[i, c] = m0 * b[c, 0] + m1 * b[c, 1] + m2 * b[c, 2] + m3 * b[c, 3]
            half[i, 3] = m3
        for c in range(4):
            h0, h1, h2, h3 = half[0, c], half[1, c], half[2, c], half[3, c]
            for i in range(3):
                block[i, c] = a[i, 0] * h0 + a[i, 1] * h1 + a[i, 2] * h2 + a[i, 3] * h3
            block[3, c] = h3
        for i in range(4):
            for c in range(4):
                if here >= 0:
                    blocks[here, i, c] = block[i, c]
                if there >= 0:
                    blocks[there, c, i] = block[i, c]
    for s in range(pattern.sums.shape[0]):
        total = blocks[pattern.sums[s, 0]]
        a, b = blocks[pattern.sums[s, 1]], blocks[pattern.sums[s, 2]]
        for i in range(4):
            for c in range(4):
                total[i, c] = a[i, c] + b[i, c]


@kernel()
def curvature(
    skeleton, stage, pattern, transforms, moments, joint_moments, work, blocks, diagonal, entries
):
    """Half the Gauss-Newton matrix from subtree second moments (docs/solver.md), by the pattern:
    diagonal (f,), entries (E,); blocks (B,4,4) is scratch."""
    _blocks(stage, pattern, transforms, moments, joint_moments, work, blocks)
    for n in range(pattern.parameters.shape[0]):
        r = pattern.parameters[n]
        l = skeleton.joint_of_parameter[r]
        a0, a1, a2 = work.axes[r, 0], work.axes[r, 1], work.axes[r, 2]
        e0, e1, e2 = work.shift[r, 0], work.shift[r, 1], work.shift[r, 2]
        previous = -1
        f0 = f1 = f2 = g0 = g1 = g2 = 0.0
        begin, end = pattern.first[n], pattern.first[n + 1]
        for at in range(begin, end + 1):
            m = pattern.column[at] if at < end else n
            p = pattern.parameters[m]
            j = skeleton.joint_of_parameter[p]
            if pattern.block_of[j, l] < 0:
                entries[at] = 0.0
                continue
            if j != previous:
                previous = j
                b = blocks[pattern.block_of[j, l]]
                trace = b[0, 0] + b[1, 1] + b[2, 2]
                # force and torque that the twist of r exerts through the vertices that j shares
                f0 = a1 * b[3, 2] - a2 * b[3, 1] + e0 * b[3, 3]
                f1 = a2 * b[3, 0] - a0 * b[3, 2] + e1 * b[3, 3]
                f2 = a0 * b[3, 1] - a1 * b[3, 0] + e2 * b[3, 3]
                g0 = (
                    a0 * trace
                    - (b[0, 0] * a0 + b[1, 0] * a1 + b[2, 0] * a2)
                    + b[1, 3] * e2
                    - b[2, 3] * e1
                )
                g1 = (
                    a1 * trace
                    - (b[0, 1] * a0 + b[1, 1] * a1 + b[2, 1] * a2)
                    + b[2, 3] * e0
                    - b[0, 3] * e2
                )
                g2 = (
                    a2 * trace
                    - (b[0, 2] * a0 + b[1, 2] * a1 + b[2, 2] * a2)
                    + b[0, 3] * e1
                    - b[1, 3] * e0
                )
            a, e = work.axes[p], work.shift[p]
            value = a[0] * g0 + a[1] * g1 + a[2] * g2 + e[0] * f0 + e[1] * f1 + e[2] * f2
            if at < end:
                entries[at] = value
            else:
                diagonal[n] = value + stage.prior[r]


@kernel()
def whole_matrix(pattern, diagonal, entries, out):
    """The matrix (49,49) of its diagonal and entries; 0 by parameters that are not free."""
    out[:] = 0.0
    for n in range(pattern.parameters.shape[0]):
        r = pattern.parameters[n]
        out[r, r] = diagonal[n]
        for at in range(pattern.first[n], pattern.first[n + 1]):
            p = pattern.parameters[pattern.column[at]]
            out[r, p] = entries[at]
            out[p, r] = entries[at]


class Step(NamedTuple):
    """Scratch of a damped step of ABREAST rows; places as in `Pattern`."""

    diagonal: np.ndarray  # (f,) of the Gauss-Newton matrix
    entries: np.ndarray  # (E,)
    pivots: np.ndarray  # (f,) of the factor
    factor: np.ndarray  # (E,)
    slope: np.ndarray  # (f,) gradient, and what held parameters add to it
    open: np.ndarray  # (f,) 1 where a parameter may move, 0 where it is held
    held: np.ndarray  # (f,) step of those that are held
    found: np.ndarray  # (f,) step of the others
    news: np.ndarray  # (f,) step of those held since the last solution


@njit(inline="always")
def make_step(pattern):
    """Fresh scratch."""
    f, e = pattern.parameters.shape[0], pattern.column.shape[0]
    return Step(
        abreast(np.zeros((f, ABREAST))),
        abreast(np.zeros((e, ABREAST))),
        abreast(np.empty((f, ABREAST))),
        abreast(np.empty((e, ABREAST))),
        abreast(np.empty((f, ABREAST))),
        abreast(np.empty((f, ABREAST))),
        abreast(np.empty((f, ABREAST))),
        abreast(np.empty((f, ABREAST))),
        abreast(np.empty((f, ABREAST))),
    )


@njit(inline="always")
def _solve_open(pattern, damping, step):
    """step.found = -(H + damping diag H)^-1 slope on the open parameters (LDL^T from the leaves of
    the tree), 0 on the others."""
    pivots, factor, found = step.pivots, step.factor, step.found
    f = pattern.parameters.shape[0]
    for n in range(f):
        own, diagonal = step.open[n], step.diagonal[n]
        pivots[n] = if_less(0.5, own, diagonal + damping * (diagonal + 1e-9), 1.0)
        found[n] = -own * step.slope[n]
        for at in range(pattern.first[n], pattern.first[n + 1]):
            factor[at] = own * step.open[pattern.column[at]] * step.entries[at]
    for n in range(f - 1, -1, -1):
        pivots[n] = if_less(pivots[n], 1e-16, 1e-16, pivots[n])
        inverse, own = 1.0 / pivots[n], found[n]
        begin, end = pattern.first[n], pattern.first[n + 1]
        for at in range(begin, end):
            m = pattern.column[at]
            ratio = factor[at] * inverse
            pivots[m] -= ratio * factor[at]
            found[m] -= ratio * own
            for other in range(begin, at):
                factor[pattern.entry[m, pattern.column[other]]] -= ratio * factor[other]
    for n in range(f):
        value = found[n]
        for at in range(pattern.first[n], pattern.first[n + 1]):
            value -= factor[at] * found[pattern.column[at]]
        found[n] = value / pivots[n]


@njit(inline="always")
def _bounded(stage, d, value):
    """Within the limits of a parameter."""
    value = if_less(value, stage.lower[d], stage.lower[d], value)
    return if_less(stage.upper[d], value, stage.upper[d], value)


@kernel()
def bounded_step(stage, pattern, q, gradient, damping, step, move):
    """move (49,): a damped step inside the limits, 0 where not free. Parameters that it would carry
    over a bound are set to the bound and the others are solved once more."""
    f = pattern.parameters.shape[0]
    damped = damping[0]
    for n in range(f):
        d = pattern.parameters[n]
        slope = gradient[d]
        below = if_at_most(q[d], stage.lower[d], if_less(0.0, slope, 1.0, 0.0 * slope), 0.0)
        above = if_at_most(stage.upper[d], q[d], if_less(slope, 0.0, 1.0, 0.0 * slope), 0.0)
        step.open[n] = if_less(0.5, below + above, 0.0, 1.0)
        step.slope[n] = slope
        step.held[n] = 0.0
    for _ in range(8):
        _solve_open(pattern, damped, step)
        crossed = damped * 0.0
        for n in range(f):
            d = pattern.parameters[n]
            aim = q[d] + step.found[n]
            bound = _bounded(stage, d, aim)
            over = if_less(0.0, magnitude(bound - aim), step.open[n], 0.0)
            crossed += over
            step.open[n] = step.open[n] - over
            step.news[n] = if_less(0.5, over, bound - q[d], 0.0)
            step.held[n] = step.held[n] + step.news[n]
        if not any_row(crossed):
            break
        for n in range(f):
            own = step.news[n]
            for at in range(pattern.first[n], pattern.first[n + 1]):
                m, value = pattern.column[at], step.entries[at]
                step.slope[n] = step.slope[n] + value * step.news[m]
                step.slope[m] = step.slope[m] + value * own
    for n in range(f):
        d = pattern.parameters[n]
        aim = q[d] + step.held[n] + step.open[n] * step.found[n]
        move[d] = _bounded(stage, d, aim) - q[d]


@njit(inline="always")
def _extra_energy(stage, work, joint_targets, q):
    """Joint and prior terms of the objective at the pose that `work` holds."""
    value = 0.0
    for d in range(NUM_PARAMETERS):
        value += stage.prior[d] * q[d] * q[d]
    for j in range(JOINTS):
        mass = stage.joint_masses[j]
        if mass > 0.0:
            for c in range(3):
                miss = work.positions[j, c] - joint_targets[j, c]
                value += mass * miss * miss
    return value


@njit(inline="always")
def model_change(change, force_change, moments, local, local0, corrective, skeleton):
    """<change, change M + 2 C> + 2 b.(f - f0): the model's change of the vertex term."""
    value = 0.0
    for k in range(JOINTS):
        for i in range(3):
            for c in range(4):
                value += change[k, i, c] * (force_change[k, i, c] + 2.0 * moments[k, i, c])
    for s in range(23):
        source = skeleton.feature_source[s]
        if source >= 0:
            for i in range(3):
                for c in range(3):
                    value += (
                        2.0
                        * corrective[9 * s + 3 * i + c]
                        * (local[source, i, c] - local0[source, i, c])
                    )
    return value


@kernel()
def extra_energy(skeleton, stage, joints, frames, lengths, joint_targets, poses, out):
    """Joint and prior terms (n,) of the objective."""
    work, of_joints = make_work(), stage.joint_masses.max() > 0.0
    for row in range(poses.shape[0]):
        if of_joints:
            bones(skeleton, poses[row], joints[row], frames[row], lengths[row], work)
        out[row] = _extra_energy(stage, work, joint_targets[row], poses[row])


class Group(NamedTuple):
    """ABREAST rows under way: what a round knows of them, and where it takes them."""

    joints: np.ndarray  # (24,3)
    frames: np.ndarray  # (24,3,3)
    lengths: np.ndarray  # (5,)
    pair_moments: np.ndarray  # (P,10)
    joint_targets: np.ndarray  # (24,3)
    moments: np.ndarray  # (24,3,4) at the start
    corrective: np.ndarray  # (207,) there
    damping: np.ndarray  # (1,)
    steps: np.ndarray  # (1,)
    q: np.ndarray  # (49,) from the start to the end


@njit(inline="always")
def _make_group(pairs):
    """Its arrays, with the rows last."""
    return Group(
        np.empty((JOINTS, 3, ABREAST)),
        np.empty((JOINTS, 3, 3, ABREAST)),
        np.empty((5, ABREAST)),
        np.empty((pairs, 10, ABREAST)),
        np.empty((JOINTS, 3, ABREAST)),
        np.empty((JOINTS, 3, 4, ABREAST)),
        np.empty((207, ABREAST)),
        np.empty((1, ABREAST)),
        np.empty((1, ABREAST)),
        np.empty((NUM_PARAMETERS, ABREAST)),
    )


@njit(inline="always")
def _abreast(group):
    """The same arrays as numbers of all rows."""
    return Group(
        abreast(group.joints),
        abreast(group.frames),
        abreast(group.lengths),
        abreast(group.pair_moments),
        abreast(group.joint_targets),
        abreast(group.moments),
        abreast(group.corrective),
        abreast(group.damping),
        abreast(group.steps),
        abreast(group.q),
    )


class Search(NamedTuple):
    """Scratch of a search of ABREAST rows."""

    start: np.ndarray  # (24,3,4) transforms at the start
    transforms: np.ndarray  # (24,3,4)
    change: np.ndarray  # (24,3,4) of the transforms since the start
    product: np.ndarray  # (24,3,4) change times second moments
    force: np.ndarray  # (24,3,4)
    joint_moments: np.ndarray  # (24,4,4)
    local: np.ndarray  # (24,3,3) local rotations at the start
    gradient: np.ndarray  # (49,)
    move: np.ndarray  # (49,)
    trial: np.ndarray  # (49,)
    blocks: np.ndarray  # (B,4,4)
    diagonal: np.ndarray  # (f,) of a matrix that is made for some of the rows
    entries: np.ndarray  # (E,)


@njit(inline="always")
def _make_search(pattern):
    """Fresh scratch."""
    f, e = pattern.parameters.shape[0], pattern.column.shape[0]
    return Search(
        abreast(np.empty((JOINTS, 3, 4, ABREAST))),
        abreast(np.empty((JOINTS, 3, 4, ABREAST))),
        abreast(np.empty((JOINTS, 3, 4, ABREAST))),
        abreast(np.empty((JOINTS, 3, 4, ABREAST))),
        abreast(np.empty((JOINTS, 3, 4, ABREAST))),
        abreast(np.empty((JOINTS, 4, 4, ABREAST))),
        abreast(np.empty((JOINTS, 3, 3, ABREAST))),
        abreast(np.empty((NUM_PARAMETERS, ABREAST))),
        abreast(np.zeros((NUM_PARAMETERS, ABREAST))),
        abreast(np.empty((NUM_PARAMETERS, ABREAST))),
        abreast(np.empty((pattern.blocks[0], 4, 4, ABREAST))),
        abreast(np.empty((f, ABREAST))),
        abreast(np.empty((e + 1, ABREAST))),
    )


@njit(inline="always")
def _forces(stage, group, work, product, force):
    """force (24,3,4) = moments + product, and what joints are pulled by."""
    for k in range(JOINTS):
        mass, rest = stage.joint_masses[k], group.joints[k]
        for i in range(3):
            for c in range(4):
                force[k, i, c] = group.moments[k, i, c] + product[k, i, c]
            if mass > 0.0:
                miss = mass * (work.positions[k, i] - group.joint_targets[k, i])
                for c in range(3):
                    force[k, i, c] += miss * rest[c]
                force[k, i, 3] += miss


@njit(inline="always")
def _begin(skeleton, stage, group, work, search):
    """The search at the start; energy of joints and priors there."""
    bones(skeleton, group.q, group.joints, group.frames, group.lengths, work)
    skinning_transforms(work, group.joints, search.start)
    for k in range(JOINTS):
        mass, rest = stage.joint_masses[k], group.joints[k]
        for i in range(3):
            for c in range(4):
                search.transforms[k, i, c] = search.start[k, i, c]
                search.product[k, i, c] = 0.0
            for c in range(3):
                search.local[k, i, c] = work.local[k, i, c]
                search.joint_moments[k, i, c] = mass * rest[i] * rest[c]
            search.joint_moments[k, i, 3] = mass * rest[i]
            search.joint_moments[k, 3, i] = mass * rest[i]
        search.joint_moments[k, 3, 3] = mass
    _forces(stage, group, work, search.product, search.force)
    for d in range(NUM_PARAMETERS):
        search.trial[d] = group.q[d]
    return _extra_energy(stage, work, group.joint_targets, group.q)


@njit(inline="always")
def _tried(skeleton, stage, group, work, search):
    """Energy of the trial."""
    bones(skeleton, search.trial, group.joints, group.frames, group.lengths, work)
    skinning_transforms(work, group.joints, search.transforms)
    for k in range(JOINTS):
        for i in range(3):
            for c in range(4):
                search.change[k, i, c] = search.transforms[k, i, c] - search.start[k, i, c]
    times_moments(stage, group.pair_moments, search.change, work, search.product)
    extra = _extra_energy(stage, work, group.joint_targets, search.trial)
    return extra + model_change(
        search.change, search.product, group.moments, work.local, search.local,
        group.corrective, skeleton,
    )  # fmt: skip


@njit(inline="always")
def _renewed(skeleton, stage, pattern, group, work, search, fresh, step):
    """The matrix at the present pose, for the fresh rows."""
    curvature(
        skeleton, stage, pattern, search.transforms, group.pair_moments, search.joint_moments,
        work, search.blocks, search.diagonal, search.entries,
    )  # fmt: skip
    for n in range(step.diagonal.shape[0]):
        step.diagonal[n] = if_less(0.5, fresh, search.diagonal[n], step.diagonal[n])
    for n in range(step.entries.shape[0]):
        step.entries[n] = if_less(0.5, fresh, search.entries[n], step.entries[n])


@kernel()
def _minimise_group(skeleton, stage, pattern, group, work, search, step, max_steps, tolerance):
    """Levenberg-Marquardt on the model around the start of each row."""
    energy = _begin(skeleton, stage, group, work, search)
    damping = group.damping
    largest = energy * 0.0
    running = fresh = largest + 1.0
    for _ in range(max_steps):
        twists(skeleton, work)
        gradient_of(
            skeleton, stage, search.transforms, search.force, group.corrective, search.trial,
            work, search.gradient,
        )  # fmt: skip
        if any_row(fresh):
            _renewed(skeleton, stage, pattern, group, work, search, fresh, step)
        group.steps[0] += running
        trying, accepted = running, running * 0.0
        for _ in range(6):
            bounded_step(stage, pattern, group.q, search.gradient, damping, step, search.move)
            size = largest * 0.0
            for d in range(NUM_PARAMETERS):
                moved = magnitude(search.move[d])
                size = if_less(size, moved, moved, size)
                search.trial[d] = if_less(0.5, trying, group.q[d] + search.move[d], search.trial[d])
            largest = if_less(0.5, trying, size, largest)
            found = _tried(skeleton, stage, group, work, search)
            better = if_at_most(found, energy, trying, 0.0)
            energy = if_less(0.5, better, found, energy)
            accepted += better
            trying -= better
            less, more = 0.2 * damping[0], 10.0 * damping[0]
            less = if_less(less, 1e-8, 1e-8, less)
            more = if_less(more, 1e-5, 1e-5, if_less(1e4, more, 1e4, more))
            damping[0] = if_less(0.5, better, less, if_less(0.5, trying, more, damping[0]))
            trying = if_less(largest, 0.1 * tolerance, 0.0, trying)
            if not any_row(trying):
                break
        for d in range(NUM_PARAMETERS):
            group.q[d] = if_less(0.5, accepted, search.trial[d], group.q[d])
        running = if_less(largest, tolerance, 0.0, accepted)
        if not any_row(running):
            break
        fresh = if_less(_FRESH_CURVATURE, largest, running, 0.0)
        _forces(stage, group, work, search.product, search.force)


@njit(inline="always")
def _keep_best(
    row, total, poses, moments, corrective,
    best_poses, best_energy, best_moments, best_corrective, damping, failures,
):  # fmt: skip
    """The candidate of a row is its best so far, or the damping grows."""
    if total <= best_energy[row]:
        best_energy[row] = total
        for d in range(NUM_PARAMETERS):
            best_poses[row, d] = poses[row, d]
        for k in range(JOINTS):
            for e in range(12):
                best_moments[row, k, e] = moments[k, e, row]
        for f in range(207):
            best_corrective[row, f] = corrective[f, row]
    else:
        failures[row] += 1
        damping[row] = max(damping[row] * 30.0, 1e-3)


@kernel()
def minimise(
    skeleton, stage, pattern, joints, frames, lengths, pair_moments, joint_targets,
    poses, energy, moments, corrective, active, max_steps, tolerance,
    best_poses, best_energy, best_moments, best_corrective, damping, failures, step_size, steps,
):  # fmt: skip
    """One round for each active row: keep the better of candidate and best, then step from it.

    poses (n,49) holds the candidate at which energy (n,), moments (24,12,n) and corrective
    (207,n) were evaluated, and receives the next one; best_* hold the best state so far.
    step_size (n,) is the largest parameter change from the best pose; 0 where nothing moved."""
    listed, extra = np.flatnonzero(active), np.empty(poses.shape[0])
    extra_energy(skeleton, stage, joints, frames, lengths, joint_targets, poses, extra)
    own, rows = _make_group(stage.pair_first.shape[0]), np.empty(ABREAST, np.int64)
    group = _abreast(own)
    work, search, step = make_work_abreast(), _make_search(pattern), make_step(pattern)
    for begin in range(0, listed.shape[0], ABREAST):
        count = min(ABREAST, listed.shape[0] - begin)
        for lane in range(ABREAST):
            rows[lane] = listed[begin + min(lane, count - 1)]
        for lane in range(count):
            _keep_best(
                rows[lane], energy[rows[lane]] + extra[rows[lane]], poses, moments, corrective,
                best_poses, best_energy, best_moments, best_corrective, damping, failures,
            )  # fmt: skip
        side_by_side(joints, rows, own.joints)
        side_by_side(frames, rows, own.frames)
        side_by_side(lengths, rows, own.lengths)
        side_by_side(pair_moments, rows, own.pair_moments)
        side_by_side(joint_targets, rows, own.joint_targets)
        side_by_side(best_moments, rows, own.moments)
        side_by_side(best_corrective, rows, own.corrective)
        side_by_side(damping, rows, own.damping)
        side_by_side(best_poses, rows, own.q)
        own.steps[:] = 0.0
        _minimise_group(skeleton, stage, pattern, group, work, search, step, max_steps, tolerance)
        for lane in range(count):
            row, largest = rows[lane], 0.0
            for d in range(NUM_PARAMETERS):
                poses[row, d] = own.q[d, lane]
                largest = max(largest, abs(poses[row, d] - best_poses[row, d]))
            step_size[row], damping[row] = largest, own.damping[0, lane]
            steps[row] += np.int64(own.steps[0, lane])
