"""Frames coupled to their neighbours: the pass over their vertices, the curvature between two, and
their banded system (numba). Twins: `kernels_torch`, `curvature`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import JOINTS


@kernel()
def couple(skin, targets, turns, masses, weights, wanted, own, between):
    """Frames side by side, one vertex after the other, so that loops over frames are vectors.

    skin, targets, wanted (V,3,n); turns (3,3,k) global orientations of the first k frames; masses
    (V,); weights (k-1,) of the steps; own (k,) and between (k-1,), zero before, float64: weighted
    squares of residuals and of their changes in the world. wanted = skin - the coupled residual,
    skin itself from k on.
    """
    k, n = turns.shape[2], skin.shape[2]
    residual, world = np.empty((3, n), skin.dtype), np.empty((3, k), skin.dtype)
    change, coupled = np.empty((3, k), skin.dtype), np.empty((3, k), skin.dtype)
    for v in range(skin.shape[0]):
        mass = masses[v]
        for i in range(3):
            for t in range(n):
                residual[i, t] = skin[v, i, t] - targets[v, i, t]
        for i in range(3):
            for t in range(k):
                world[i, t] = (
                    turns[i, 0, t] * residual[0, t]
                    + turns[i, 1, t] * residual[1, t]
                    + turns[i, 2, t] * residual[2, t]
                )
                own[t] += mass * np.float64(world[i, t]) * world[i, t]
            for t in range(k - 1):
                change[i, t] = world[i, t + 1] - world[i, t]
                between[t] += mass * np.float64(change[i, t]) * change[i, t]
            for t in range(k):
                coupled[i, t] = world[i, t]
            for t in range(k - 1):
                coupled[i, t] -= weights[t] * change[i, t]
            for t in range(k - 1):
                coupled[i, t + 1] += weights[t] * change[i, t]
        for i in range(3):
            for t in range(k):
                wanted[v, i, t] = skin[v, i, t] - (
                    turns[0, i, t] * coupled[0, t]
                    + turns[1, i, t] * coupled[1, t]
                    + turns[2, i, t] * coupled[2, t]
                )
            for t in range(k, n):
                wanted[v, i, t] = skin[v, i, t]


@kernel()
def eliminate(blocks, beside, factors, sides, out):
    """Block Cholesky down a chain of n frames, each with a next one; whether it is positive.

    blocks (n,f,f); beside (n,f,f), rows of a frame and columns of the next; factors, sides
    (n,f,f): upper factors U and U^-T beside; out (n,f): the right side before, U^-T of what is left
    of it after. Every inner loop runs along a row.
    """
    n, f = out.shape
    for t in range(n):
        upper, value = factors[t], out[t]
        for i in range(f):
            for j in range(i, f):
                upper[i, j] = blocks[t, i, j]
        if t:
            before = sides[t - 1]
            for m in range(f):
                for i in range(f):
                    share = before[m, i]
                    for j in range(i, f):
                        upper[i, j] -= share * before[m, j]
                for i in range(f):
                    value[i] -= before[m, i] * out[t - 1, m]
        for m in range(f):
            if not upper[m, m] > 0.0:
                return False
            root = np.sqrt(upper[m, m])
            for j in range(m, f):
                upper[m, j] /= root
            for i in range(m + 1, f):
                share = upper[m, i]
                for j in range(i, f):
                    upper[i, j] -= share * upper[m, j]
        for m in range(f):
            value[m] /= upper[m, m]
            for i in range(m + 1, f):
                value[i] -= upper[m, i] * value[m]
        side = sides[t]
        for i in range(f):
            for j in range(f):
                side[i, j] = beside[t, i, j]
        for m in range(f):
            for j in range(f):
                side[m, j] /= upper[m, m]
            for i in range(m + 1, f):
                share = upper[m, i]
                for j in range(f):
                    side[i, j] -= share * side[m, j]
    return True


@kernel()
def substitute(factors, sides, following, out):
    """The way back of `eliminate`: out (n,f) becomes the solution; following (f,): that of the
    frame after the chain."""
    n, f = out.shape
    for t in range(n - 1, -1, -1):
        upper, value = factors[t], out[t]
        after = following if t == n - 1 else out[t + 1]
        for m in range(f):
            total = 0.0
            for j in range(f):
                total += sides[t, m, j] * after[j]
            value[m] -= total
        for m in range(f - 1, -1, -1):
            total = value[m]
            for j in range(m + 1, f):
                total -= upper[m, j] * value[j]
            value[m] = total / upper[m, m]


@kernel()
def twist_products(parents, owner, pair_first, pair_second, blocks, first, second, out):
    """out (n,p,p) = J_first^T J_second of n pairs of poses, correctives held.

    first, second: (axes (n,p,3), shift (n,p,3), transforms (n,24,3,4)); blocks (n,P,4,4).
    """
    u = np.empty((JOINTS, JOINTS, 4, 4))
    half = np.empty((4, 4))
    torque, force = np.empty((JOINTS, 3)), np.empty((JOINTS, 3))
    for row in range(out.shape[0]):
        _subtree_products(
            parents, pair_first, pair_second, blocks[row], first[2][row], second[2][row], half, u
        )
        for q in range(owner.shape[0]):
            a0, a1, a2 = second[0][row, q, 0], second[0][row, q, 1], second[0][row, q, 2]
            e0, e1, e2 = second[1][row, q, 0], second[1][row, q, 1], second[1][row, q, 2]
            for j in range(JOINTS):
                b = u[j, owner[q]]
                trace = b[0, 0] + b[1, 1] + b[2, 2]
                force[j, 0] = a1 * b[3, 2] - a2 * b[3, 1] + e0 * b[3, 3]
                force[j, 1] = a2 * b[3, 0] - a0 * b[3, 2] + e1 * b[3, 3]
                force[j, 2] = a0 * b[3, 1] - a1 * b[3, 0] + e2 * b[3, 3]
                for i in range(3):
                    torque[j, i] = -(b[0, i] * a0 + b[1, i] * a1 + b[2, i] * a2)
                torque[j, 0] += a0 * trace + b[1, 3] * e2 - b[2, 3] * e1
                torque[j, 1] += a1 * trace + b[2, 3] * e0 - b[0, 3] * e2
                torque[j, 2] += a2 * trace + b[0, 3] * e1 - b[1, 3] * e0
            for p in range(owner.shape[0]):
                j = owner[p]
                total = 0.0
                for i in range(3):
                    total += first[0][row, p, i] * torque[j, i] + first[1][row, p, i] * force[j, i]
                out[row, p, q] = total


@njit(inline="always")
def _subtree_products(parents, pair_first, pair_second, blocks, first, second, half, u):
    """u (24,24,4,4): sums of Abar_k(first) M_kl Abar_l(second)^T below two joints."""
    for k in range(JOINTS):
        for l in range(JOINTS):
            for i in range(4):
                for c in range(4):
                    u[k, l, i, c] = 0.0
    for n in range(pair_first.shape[0]):
        k, l = pair_first[n], pair_second[n]
        _product(first[k], blocks[n], second[l], half, u[k, l])
        if k != l:
            _product(first[l], blocks[n], second[k], half, u[l, k])
    for k in range(JOINTS - 1, 0, -1):
        for l in range(JOINTS):
            for i in range(4):
                for c in range(4):
                    u[parents[k], l, i, c] += u[k, l, i, c]
    for k in range(JOINTS - 1, 0, -1):
        for l in range(JOINTS):
            for i in range(4):
                for c in range(4):
                    u[l, parents[k], i, c] += u[l, k, i, c]


@njit(inline="always")
def _product(a, block, b, half, out):
    """out (4,4) = Abar M Bbar^T of a symmetric M; a, b (3,4), completed by the row 0 0 0 1."""
    for i in range(4):
        for c in range(3):
            half[i, c] = (
                block[i, 0] * b[c, 0]
                + block[i, 1] * b[c, 1]
                + block[i, 2] * b[c, 2]
                + block[i, 3] * b[c, 3]
            )
        half[i, 3] = block[i, 3]
    for c in range(4):
        for i in range(3):
            out[i, c] = (
                a[i, 0] * half[0, c]
                + a[i, 1] * half[1, c]
                + a[i, 2] * half[2, c]
                + a[i, 3] * half[3, c]
            )
        out[3, c] = half[3, c]
