"""The closed-form start of the solver, one row at a time (numba). Twin: `kernels_torch`.

Angles nearest to wanted bone rotations (docs/reference/fitting.md#start). Radians, float64.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import (
    JOINTS,
    multiply,
    multiply_transposed,
    rotation_about_axis,
)


@njit(inline="always")
def wrap_angle(angle):
    """The angle in (-pi, pi]."""
    return angle - 2.0 * math.pi * math.ceil((angle - math.pi) / (2.0 * math.pi))


@njit(inline="always")
def violation(value, low, high):
    excess = max(low - value, value - high, 0.0)
    return excess * excess


@kernel()
def project_joint(skeleton, j, wanted, lower, upper, branch, q):
    """Angles of joint j nearest to the wanted joint rotation (bone space), inside the limits.

    branch 0 takes the Euler branch with less limit violation, branch 1 the other one."""
    first = skeleton.first_parameter[j]
    count = skeleton.first_parameter[j + 1] - first
    if count == 1:
        a = skeleton.axes[first]
        sine = (
            a[0] * (wanted[2, 1] - wanted[1, 2])
            + a[1] * (wanted[0, 2] - wanted[2, 0])
            + a[2] * (wanted[1, 0] - wanted[0, 1])
        )
        cosine = wanted[0, 0] + wanted[1, 1] + wanted[2, 2]
        for i in range(3):
            for c in range(3):
                cosine -= a[i] * wanted[i, c] * a[c]
        angle = math.atan2(sine, cosine)
        q[first] = min(max(angle, lower[first]), upper[first])
        return
    # wanted = R_a(x) R_b(y) R_c(z) about coordinate axes; the first parameter is the innermost (c)
    a, b, c = skeleton.euler[j, 0], skeleton.euler[j, 1], skeleton.euler[j, 2]
    parity = 1.0 if (a + 1) % 3 == b else -1.0
    sine = parity * wanted[a, c]
    cosine = math.sqrt(wanted[a, a] ** 2 + wanted[a, b] ** 2)
    y = math.atan2(sine, cosine)
    if cosine > 1e-7:
        z = math.atan2(-parity * wanted[a, b], wanted[a, a])
        x = math.atan2(-parity * wanted[b, c], wanted[c, c])
    else:
        z = 0.0
        x = math.atan2(parity * wanted[c, b], wanted[b, b])
    last = first + count - 1
    sign_x, sign_z = skeleton.euler_sign[j, 0], skeleton.euler_sign[j, 2]
    if count == 2:
        q[first] = min(max(sign_z * z, lower[first]), upper[first])
        q[last] = min(max(sign_x * x, lower[last]), upper[last])
        return
    sign_y = skeleton.euler_sign[j, 1]
    x0, y0, z0 = sign_x * x, sign_y * y, sign_z * z
    x1, y1, z1 = (
        sign_x * wrap_angle(x + math.pi),
        sign_y * wrap_angle(math.pi - y),
        sign_z * wrap_angle(z + math.pi),
    )
    cost0 = (
        violation(z0, lower[first], upper[first])
        + violation(y0, lower[first + 1], upper[first + 1])
        + violation(x0, lower[last], upper[last])
    )
    cost1 = (
        violation(z1, lower[first], upper[first])
        + violation(y1, lower[first + 1], upper[first + 1])
        + violation(x1, lower[last], upper[last])
    )
    if (cost1 < cost0) != (branch == 1):
        x0, y0, z0 = x1, y1, z1
    q[first] = min(max(z0, lower[first]), upper[first])
    q[first + 1] = min(max(y0, lower[first + 1]), upper[first + 1])
    q[last] = min(max(x0, lower[last]), upper[last])


@kernel()
def start_poses(skeleton, rotations, frames, lower, upper, branch, poses):
    """Closed-form start: project each bone's wanted world rotation (n,24,3,3) onto its joint,
    walking down the tree, so that children make up for what a joint cannot take.
    docs/reference/fitting.md#start. branch (24,) int; poses (n,49) out, root and translation 0."""
    for row in range(rotations.shape[0]):
        q = poses[row]
        for d in range(NUM_PARAMETERS):
            q[d] = 0.0
        world = np.empty((JOINTS, 3, 3))
        axis_rotation = np.empty((3, 3))
        achieved = np.empty((3, 3))
        product = np.empty((3, 3))
        wanted = np.empty((3, 3))
        for j in range(JOINTS):
            p = skeleton.parents[j]
            frame = frames[row, j]
            if p < 0:
                for i in range(3):
                    for c in range(3):
                        world[j, i, c] = 1.0 if i == c else 0.0
                continue
            # Q^T (R_parent^T R_wanted) Q
            for i in range(3):
                for c in range(3):
                    value = 0.0
                    for k in range(3):
                        value += world[p, k, i] * rotations[row, j, k, c]
                    product[i, c] = value
            multiply(product, frame, achieved)
            for i in range(3):
                for c in range(3):
                    value = 0.0
                    for k in range(3):
                        value += frame[k, i] * achieved[k, c]
                    wanted[i, c] = value
            project_joint(skeleton, j, wanted, lower, upper, branch[j], q)
            for i in range(3):
                for c in range(3):
                    achieved[i, c] = 1.0 if i == c else 0.0
            for d in range(skeleton.first_parameter[j], skeleton.first_parameter[j + 1]):
                rotation_about_axis(skeleton.axes[d], q[d], axis_rotation)
                multiply(axis_rotation, achieved, product)
                for i in range(3):
                    for c in range(3):
                        achieved[i, c] = product[i, c]
            multiply(frame, achieved, product)
            multiply_transposed(product, frame, achieved)
            multiply(world[p], achieved, world[j])
