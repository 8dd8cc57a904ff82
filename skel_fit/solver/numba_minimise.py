"""The inner solver: Levenberg-Marquardt on 24 bone transforms, one row at a time (numba).

The vertices enter through moments only. Derivation: docs/solver.md. Twins of the same
names: `search_torch`, `curvature`, `box_step`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import (
    JOINTS,
    bones,
    make_work,
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
def times_moments(stage, moments, change, out):
    """out (24,3,4) = change M with M given by its non-zero symmetric blocks."""
    block = np.empty((4, 4))
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
    subtree = np.empty((JOINTS, 3, 4))
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


@kernel()
def curvature(skeleton, stage, transforms, moments, joint_moments, work, hessian):
    """Half the Gauss-Newton matrix (49,49) from subtree second moments (docs/solver.md)."""
    u = work.second
    for k in range(JOINTS):
        for l in range(JOINTS):
            for i in range(4):
                for c in range(4):
                    u[k, l, i, c] = 0.0
    block = np.empty((4, 4))
    half = np.empty((4, 4))
    for n in range(stage.pair_first.shape[0]):
        k, l = stage.pair_first[n], stage.pair_second[n]
        unpack(moments[n], block)
        if k == l:
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
                u[k, l, i, c] = a[i, 0] * h0 + a[i, 1] * h1 + a[i, 2] * h2 + a[i, 3] * h3
            u[k, l, 3, c] = h3
        if k != l:
            for i in range(4):
                for c in range(4):
                    u[l, k, c, i] = u[k, l, i, c]
    for k in range(JOINTS - 1, 0, -1):
        p = skeleton.parents[k]
        for l in range(JOINTS):
            for i in range(4):
                for c in range(4):
                    u[p, l, i, c] += u[k, l, i, c]
    for k in range(JOINTS - 1, 0, -1):
        p = skeleton.parents[k]
        for l in range(JOINTS):
            for i in range(4):
                for c in range(4):
                    u[l, p, i, c] += u[l, k, i, c]
    for r in range(NUM_PARAMETERS):
        if not stage.free[r]:
            continue
        l = skeleton.joint_of_parameter[r]
        a0, a1, a2 = work.axes[r, 0], work.axes[r, 1], work.axes[r, 2]
        e0, e1, e2 = work.shift[r, 0], work.shift[r, 1], work.shift[r, 2]
        previous = -1
        f0 = f1 = f2 = g0 = g1 = g2 = 0.0
        for p in range(r + 1):
            if not stage.free[p]:
                continue
            j = skeleton.joint_of_parameter[p]
            if j != previous:
                previous = j
                b = u[j, l]
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
            hessian[r, p] = value
            hessian[p, r] = value
    for d in range(NUM_PARAMETERS):
        if stage.free[d]:
            hessian[d, d] += stage.prior[d]


@kernel()
def solve_damped(hessian, gradient, damping, index, count, factor, step):
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


@kernel()
def dense_step(stage, q, hessian, gradient, damping, work, step):
    """Damped step inside the limits: parameters that it would carry over a bound are set to the
    bound and the others are solved once more. Returns the number of held parameters."""
    index, fixed, shifted = work.chosen, work.fixed, work.shifted
    held = 0
    for d in range(NUM_PARAMETERS):
        step[d] = 0.0
        fixed[d] = not stage.free[d]
        shifted[d] = gradient[d]
        if stage.free[d] and (
            (q[d] <= stage.lower[d] and gradient[d] > 0.0)
            or (q[d] >= stage.upper[d] and gradient[d] < 0.0)
        ):
            fixed[d] = True
            held += 1
    for _ in range(8):
        count = 0
        for d in range(NUM_PARAMETERS):
            if not fixed[d]:
                index[count] = d
                count += 1
        solve_damped(hessian, shifted, damping, index, count, work.factor, step)
        crossed = False
        for n in range(count):
            d = index[n]
            bound = min(max(q[d] + step[d], stage.lower[d]), stage.upper[d])
            if bound != q[d] + step[d]:
                crossed = True
                fixed[d] = True
                step[d] = bound - q[d]
                for m in range(NUM_PARAMETERS):
                    if stage.free[m]:
                        shifted[m] += hessian[m, d] * step[d]
        if not crossed:
            break
    for d in range(NUM_PARAMETERS):
        if stage.free[d]:
            step[d] = min(max(q[d] + step[d], stage.lower[d]), stage.upper[d]) - q[d]
    return held


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
                value += mass * (work.positions[j, c] - joint_targets[j, c]) ** 2
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
    for row in range(poses.shape[0]):
        work = make_work()
        bones(skeleton, poses[row], joints[row], frames[row], lengths[row], work)
        out[row] = _extra_energy(stage, work, joint_targets[row], poses[row])


@kernel()
def _minimise_row(
    skeleton, stage, work, joints, frames, lengths, pair_moments, joint_targets,
    start, moments, corrective, max_steps, tolerance, damping, q,
):  # fmt: skip
    """Levenberg-Marquardt on the model around `start`; q out. Returns damping, steps done."""
    transforms0 = np.empty((JOINTS, 3, 4))
    transforms = np.empty((JOINTS, 3, 4))
    change = np.zeros((JOINTS, 3, 4))
    product = np.zeros((JOINTS, 3, 4))
    force = np.empty((JOINTS, 3, 4))
    vertex_moments = np.empty((JOINTS, 3, 4))
    joint_moments = np.zeros((JOINTS, 4, 4))
    local0 = np.empty((JOINTS, 3, 3))
    gradient = np.zeros(NUM_PARAMETERS)
    hessian = np.zeros((NUM_PARAMETERS, NUM_PARAMETERS))
    step = np.zeros(NUM_PARAMETERS)
    trial = np.empty(NUM_PARAMETERS)
    homogeneous = np.ones(4)

    bones(skeleton, start, joints, frames, lengths, work)
    skinning_transforms(work, joints, transforms0)
    for k in range(JOINTS):
        mass = stage.joint_masses[k]
        for c in range(3):
            homogeneous[c] = joints[k, c]
        for i in range(3):
            miss = mass * (work.positions[k, i] - joint_targets[k, i])
            for c in range(4):
                transforms[k, i, c] = transforms0[k, i, c]
                vertex_moments[k, i, c] = moments[k, 4 * i + c]
                force[k, i, c] = moments[k, 4 * i + c] + miss * homogeneous[c]
            for c in range(3):
                local0[k, i, c] = work.local[k, i, c]
        for i in range(4):
            for c in range(4):
                joint_moments[k, i, c] = mass * homogeneous[i] * homogeneous[c]
    for d in range(NUM_PARAMETERS):
        q[d] = start[d]
    energy = _extra_energy(stage, work, joint_targets, q)
    steps = 0
    largest = 0.0
    for _ in range(max_steps):
        twists(skeleton, work)
        gradient_of(skeleton, stage, transforms, force, corrective, q, work, gradient)
        if steps == 0 or largest > _FRESH_CURVATURE:
            curvature(skeleton, stage, transforms, pair_moments, joint_moments, work, hessian)
        steps += 1
        accepted = False
        for _ in range(6):
            dense_step(stage, q, hessian, gradient, damping, work, step)
            largest = 0.0
            for d in range(NUM_PARAMETERS):
                trial[d] = q[d] + step[d]
                largest = max(largest, abs(step[d]))
            bones(skeleton, trial, joints, frames, lengths, work)
            skinning_transforms(work, joints, transforms)
            for k in range(JOINTS):
                for i in range(3):
                    for c in range(4):
                        change[k, i, c] = transforms[k, i, c] - transforms0[k, i, c]
            times_moments(stage, pair_moments, change, product)
            trial_energy = _extra_energy(stage, work, joint_targets, trial) + model_change(
                change, product, vertex_moments, work.local, local0, corrective, skeleton
            )
            if trial_energy <= energy:
                accepted = True
                damping = max(0.2 * damping, 1e-8)
                break
            damping = min(max(10.0 * damping, 1e-5), 1e4)
            if largest < 0.1 * tolerance:
                break
        if not accepted:
            break
        energy = trial_energy
        for d in range(NUM_PARAMETERS):
            q[d] = trial[d]
        if largest < tolerance:
            break
        for k in range(JOINTS):
            mass = stage.joint_masses[k]
            for c in range(3):
                homogeneous[c] = joints[k, c]
            for i in range(3):
                miss = mass * (work.positions[k, i] - joint_targets[k, i])
                for c in range(4):
                    force[k, i, c] = (
                        vertex_moments[k, i, c] + product[k, i, c] + miss * homogeneous[c]
                    )
    return damping, steps


@kernel()
def minimise(
    skeleton, stage, joints, frames, lengths, pair_moments, joint_targets,
    poses, energy, moments, corrective, active, max_steps, tolerance,
    best_poses, best_energy, best_moments, best_corrective, damping, failures, step_size, steps,
):  # fmt: skip
    """One round for each active row: keep the better of candidate and best, then step from it.

    poses (n,49) holds the candidate at which energy (n,), moments (24,12,n) and corrective
    (207,n) were evaluated, and receives the next one; best_* hold the best state so far.
    step_size (n,) is the largest parameter change from the best pose; 0 where nothing moved."""
    for row in range(poses.shape[0]):
        if not active[row]:
            continue
        work = make_work()
        bones(skeleton, poses[row], joints[row], frames[row], lengths[row], work)
        total = energy[row] + _extra_energy(stage, work, joint_targets[row], poses[row])
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
        done = 0
        damping[row], done = _minimise_row(
            skeleton, stage, work, joints[row], frames[row], lengths[row], pair_moments[row],
            joint_targets[row], best_poses[row], best_moments[row], best_corrective[row],
            max_steps, tolerance, damping[row], poses[row],
        )  # fmt: skip
        steps[row] += done
        largest = 0.0
        for d in range(NUM_PARAMETERS):
            largest = max(largest, abs(poses[row, d] - best_poses[row, d]))
        step_size[row] = largest
