"""Fused CPU kernels of the reduced solver (numba); each has a plain twin in `kernels_torch`.

Rows are independent by construction: a row is scalar code of its own, or one lane of a loop whose
length is fixed, so the order of its operations never depends on its neighbours.
Derivation: docs/solver.md. All lengths in metres, angles in radians.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from skel_fit.solver.tables import (
    LANES,
    PARAMETERS,
    REGIONS,
    Identity,
    SearchState,
    Skeleton,
    SmplTree,
    SparseWeights,
    StageTables,
    VertexSet,
)

JOINTS = 24
_OPTIONS = {"cache": True, "fastmath": {"contract"}, "error_model": "numpy"}


# --- small 3x3 helpers ----------------------------------------------------------------------


@njit(inline="always")
def _multiply(a, b, out):
    """out = a b, 3x3."""
    for i in range(3):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        for j in range(3):
            out[i, j] = a0 * b[0, j] + a1 * b[1, j] + a2 * b[2, j]


@njit(inline="always")
def _multiply_transposed(a, b, out):
    """out = a b^T, 3x3."""
    for i in range(3):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        for j in range(3):
            out[i, j] = a0 * b[j, 0] + a1 * b[j, 1] + a2 * b[j, 2]


@njit(inline="always")
def _axis_rotation(axis, angle, out):
    """out = rotation by |axis| angle about axis (an axis need not have unit length)."""
    length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    x, y, z = axis[0] / length, axis[1] / length, axis[2] / length
    c, s = math.cos(length * angle), math.sin(length * angle)
    v = 1.0 - c
    out[0, 0] = c + x * x * v
    out[0, 1] = x * y * v - z * s
    out[0, 2] = x * z * v + y * s
    out[1, 0] = x * y * v + z * s
    out[1, 1] = c + y * y * v
    out[1, 2] = y * z * v - x * s
    out[2, 0] = x * z * v - y * s
    out[2, 1] = y * z * v + x * s
    out[2, 2] = c + z * z * v


@njit(inline="always")
def _arc(length, angle):
    """End of a constant-curvature arc and its derivative: X, Y, dX, dY (skel-model.md 3.6)."""
    t = angle
    if abs(t) < 2e-2:
        t2 = t * t
        x = length * t * (0.5 - t2 / 24.0 + t2 * t2 / 720.0)
        y = length * (1.0 - t2 / 6.0 + t2 * t2 / 120.0)
        dx = length * (0.5 - t2 / 8.0 + t2 * t2 / 144.0)
        dy = length * t * (-1.0 / 3.0 + t2 / 30.0 - t2 * t2 / 840.0)
        return x, y, dx, dy
    c, s = math.cos(t), math.sin(t)
    x = length * (1.0 - c) / t
    y = length * s / t
    dx = length * (t * s - (1.0 - c)) / (t * t)
    dy = length * (t * c - s) / (t * t)
    return x, y, dx, dy


# --- identity: what depends on the shape alone ----------------------------------------------


@njit(inline="always")
def _minimal_rotation(source, target, out):
    """Minimal rotation taking source/|source| to target/|target| (identity if antiparallel)."""
    ns = math.sqrt(source[0] ** 2 + source[1] ** 2 + source[2] ** 2)
    nt = math.sqrt(target[0] ** 2 + target[1] ** 2 + target[2] ** 2)
    for i in range(3):
        for j in range(3):
            out[i, j] = 1.0 if i == j else 0.0
    if ns == 0.0 or nt == 0.0:
        return
    a0, a1, a2 = source[0] / ns, source[1] / ns, source[2] / ns
    b0, b1, b2 = target[0] / nt, target[1] / nt, target[2] / nt
    x, y, z = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
    c = a0 * b0 + a1 * b1 + a2 * b2
    s = math.sqrt(x * x + y * y + z * z) + 2.2204e-16
    f = (1.0 - c) / (s * s)
    out[0, 0] += -f * (y * y + z * z)
    out[0, 1] += -z + f * x * y
    out[0, 2] += y + f * x * z
    out[1, 0] += z + f * x * y
    out[1, 1] += -f * (x * x + z * z)
    out[1, 2] += -x + f * y * z
    out[2, 0] += -y + f * x * z
    out[2, 1] += x + f * y * z
    out[2, 2] += -f * (x * x + y * y)


@njit(parallel=True, **_OPTIONS)
def identity(skeleton, betas, joints, frames, lengths):
    """Rest joints (n,24,3), joint frames Q = K Ra^T (n,24,3,3), lengths (n,5): spine arcs l of
    11, 12, 13, scapula width W and height H. skel-model.md 3.3, 3.4, 3.6."""
    for row in prange(betas.shape[0]):
        rest = joints[row]
        for j in range(JOINTS):
            for c in range(3):
                value = skeleton.joint_template[j, c]
                for k in range(betas.shape[1]):
                    value += skeleton.joint_directions[j, c, k] * betas[row, k]
                rest[j, c] = value
        target = np.empty(3)
        alignment = np.empty((3, 3))
        for j in range(JOINTS):
            if skeleton.aligned[j]:
                for c in range(3):
                    target[c] = 0.0
                    for k in range(JOINTS):
                        if skeleton.bone_sum[j, k] != 0:
                            target[c] += rest[k, c] - rest[skeleton.parents[k], c]
                _minimal_rotation(skeleton.bone_source[j], target, alignment)
                _multiply(alignment, skeleton.rest_frames[j], frames[row, j])
            else:
                frames[row, j] = skeleton.rest_frames[j]
        lengths[row, 0] = abs(rest[11, 1] - rest[0, 1])
        lengths[row, 1] = abs(rest[12, 1] - rest[11, 1])
        lengths[row, 2] = abs(rest[13, 1] - rest[12, 1])
        width, height = 0.0, 0.0
        for c in range(3):
            width += (rest[19, c] - rest[14, c]) ** 2
            height += (rest[12, c] - rest[11, c]) ** 2
        lengths[row, 3] = math.sqrt(width)
        lengths[row, 4] = math.sqrt(height)


# --- kinematics of one row ------------------------------------------------------------------


class Work(NamedTuple):
    """Scratch of one row."""

    rotations: np.ndarray  # (24,3,3) world rotations
    positions: np.ndarray  # (24,3) world joint positions
    local: np.ndarray  # (24,3,3) local rotations R_i
    axes: np.ndarray  # (49,3) world axis of each angle
    local_axes: np.ndarray  # (49,3) the same in the parent's frame
    velocity: np.ndarray  # (49,3) derivative of the joint's own offset, world
    shift: np.ndarray  # (49,3) linear part of the twist
    offset: np.ndarray  # (3,)
    scratch: np.ndarray  # (3,3,3)
    second: np.ndarray  # (24,24,4,4) subtree second moments
    factor: np.ndarray  # (49,49)
    index: np.ndarray  # (49,)
    fixed: np.ndarray  # (49,) bool
    shifted: np.ndarray  # (49,)


@njit(cache=True)
def make_work():
    """Fresh scratch."""
    return Work(
        np.empty((JOINTS, 3, 3)),
        np.empty((JOINTS, 3)),
        np.empty((JOINTS, 3, 3)),
        np.zeros((PARAMETERS, 3)),
        np.zeros((PARAMETERS, 3)),
        np.zeros((PARAMETERS, 3)),
        np.zeros((PARAMETERS, 3)),
        np.empty(3),
        np.empty((3, 3, 3)),
        np.empty((JOINTS, JOINTS, 4, 4)),
        np.empty((PARAMETERS, PARAMETERS)),
        np.empty(PARAMETERS, np.int64),
        np.empty(PARAMETERS, np.bool_),
        np.empty(PARAMETERS),
    )


@njit(**_OPTIONS)
def _kinematics(skeleton, q, joints, frames, lengths, work):
    """World rotations, joint positions, local rotations, world axes and offset velocities of one
    row, into `work`. skel-model.md 2.3, 3.5-3.7; derivatives: docs/solver.md."""
    rotation, joint_rotation, product = work.scratch[0], work.scratch[1], work.scratch[2]
    offset = work.offset
    for j in range(JOINTS):
        p = skeleton.parents[j]
        first, last = skeleton.first_parameter[j], skeleton.first_parameter[j + 1]
        frame = frames[j]
        for i in range(3):
            for k in range(3):
                joint_rotation[i, k] = 1.0 if i == k else 0.0
        for d in range(last - 1, first - 1, -1):
            axis = skeleton.axes[d]
            # axis of this angle after the later rotations of the same joint, in the parent's frame
            a0 = (
                joint_rotation[0, 0] * axis[0]
                + joint_rotation[0, 1] * axis[1]
                + joint_rotation[0, 2] * axis[2]
            )
            a1 = (
                joint_rotation[1, 0] * axis[0]
                + joint_rotation[1, 1] * axis[1]
                + joint_rotation[1, 2] * axis[2]
            )
            a2 = (
                joint_rotation[2, 0] * axis[0]
                + joint_rotation[2, 1] * axis[1]
                + joint_rotation[2, 2] * axis[2]
            )
            for c in range(3):
                work.local_axes[d, c] = frame[c, 0] * a0 + frame[c, 1] * a1 + frame[c, 2] * a2
                work.velocity[d, c] = 0.0
            _axis_rotation(axis, q[d], rotation)
            _multiply(joint_rotation, rotation, product)
            for i in range(3):
                for k in range(3):
                    joint_rotation[i, k] = product[i, k]
        _multiply(frame, joint_rotation, product)
        _multiply_transposed(product, frame, work.local[j])
        for c in range(3):
            offset[c] = joints[j, c] - (joints[p, c] if p >= 0 else 0.0)
        if 11 <= j <= 13:
            x0, y0, dx0, dy0 = _arc(lengths[j - 11], q[first])
            x1, y1, dx1, dy1 = _arc(lengths[j - 11], q[first + 1])
            offset[0] -= x0
            offset[1] += y0 + y1 - 2.0 * lengths[j - 11]
            offset[2] -= x1
            work.velocity[first, 0] = -dx0
            work.velocity[first, 1] = dy0
            work.velocity[first + 1, 1] = dy1
            work.velocity[first + 1, 2] = -dx1
        elif j == 14 or j == 19:
            side = 1.0 if j == 14 else -1.0
            w, h = 0.25 * lengths[3], 0.5 * lengths[4]
            abduction, elevation = side * q[first], side * q[first + 1] - 0.25 * math.pi
            ca, sa = math.cos(abduction), math.sin(abduction)
            ce, se = math.cos(elevation), math.sin(elevation)
            root_half = math.sqrt(0.5)
            offset[0] += -side * w * (ce * ca - root_half)
            offset[1] += -h * (se + root_half)
            offset[2] += w * sa
            work.velocity[first, 0] = w * ce * sa
            work.velocity[first, 2] = side * w * ca
            work.velocity[first + 1, 0] = w * se * ca
            work.velocity[first + 1, 1] = -side * h * ce
        if p < 0:
            for i in range(3):
                work.positions[j, i] = offset[i] + q[46 + i]
                for k in range(3):
                    work.rotations[j, i, k] = work.local[j, i, k]
            for d in range(first, last):
                for c in range(3):
                    work.axes[d, c] = work.local_axes[d, c]
        else:
            parent = work.rotations[p]
            _multiply(parent, work.local[j], work.rotations[j])
            for i in range(3):
                work.positions[j, i] = (
                    work.positions[p, i]
                    + parent[i, 0] * offset[0]
                    + parent[i, 1] * offset[1]
                    + parent[i, 2] * offset[2]
                )
            for d in range(first, last):
                a0, a1, a2 = work.local_axes[d, 0], work.local_axes[d, 1], work.local_axes[d, 2]
                v0, v1, v2 = work.velocity[d, 0], work.velocity[d, 1], work.velocity[d, 2]
                for i in range(3):
                    work.axes[d, i] = parent[i, 0] * a0 + parent[i, 1] * a1 + parent[i, 2] * a2
                    work.velocity[d, i] = parent[i, 0] * v0 + parent[i, 1] * v1 + parent[i, 2] * v2


@njit(inline="always")
def _transforms(work, joints, out):
    """Skinning transforms A_k = [R_k | p_k - R_k J_k] (24,3,4)."""
    for k in range(JOINTS):
        r = work.rotations[k]
        for i in range(3):
            out[k, i, 0] = r[i, 0]
            out[k, i, 1] = r[i, 1]
            out[k, i, 2] = r[i, 2]
            out[k, i, 3] = work.positions[k, i] - (
                r[i, 0] * joints[k, 0] + r[i, 1] * joints[k, 1] + r[i, 2] * joints[k, 2]
            )


@njit(parallel=True, **_OPTIONS)
def pose_bones(skeleton, poses, betas, joints, frames, lengths, transforms, features):
    """Skinning transforms (24,12,n) and GEMM features (1 + K + 207, n) = [1, betas, R - I] of n
    rows; poses (n,49)."""
    n = poses.shape[0]
    shape_size = betas.shape[1]
    for row in prange(n):
        work = make_work()
        a = np.empty((JOINTS, 3, 4))
        _kinematics(skeleton, poses[row], joints[row], frames[row], lengths[row], work)
        _transforms(work, joints[row], a)
        for k in range(JOINTS):
            for i in range(3):
                for c in range(4):
                    transforms[k, 4 * i + c, row] = a[k, i, c]
        features[0, row] = 1.0
        for k in range(shape_size):
            features[1 + k, row] = betas[row, k]
        for s in range(23):
            source = skeleton.feature_source[s]
            for i in range(3):
                for c in range(3):
                    value = 0.0
                    if source >= 0:
                        value = work.local[source, i, c] - (1.0 if i == c else 0.0)
                    features[1 + shape_size + 9 * s + 3 * i + c, row] = value


# --- the SMPL side --------------------------------------------------------------------------


@njit(parallel=True, **_OPTIONS)
def pose_smpl(smpl_tree, poses, betas, joints, rotations, transforms, features):
    """SMPL kinematics with the global orientation left out (fitting happens in that frame).

    poses (n,72) axis-angle; joints (n,24,3) rest joints out; rotations (n,24,3,3) global rotations
    out; transforms (24,12,n); features (1+K+207, n). skel-model.md 1.3.
    """
    shape_size = betas.shape[1]
    for row in prange(poses.shape[0]):
        rest = joints[row]
        local = np.empty((3, 3))
        positions = np.empty((JOINTS, 3))
        features[0, row] = 1.0
        for k in range(shape_size):
            features[1 + k, row] = betas[row, k]
        for j in range(JOINTS):
            for c in range(3):
                value = smpl_tree.joint_template[j, c]
                for k in range(shape_size):
                    value += smpl_tree.joint_directions[j, c, k] * betas[row, k]
                rest[j, c] = value
        for j in range(JOINTS):
            p = smpl_tree.parents[j]
            if p < 0:
                for i in range(3):
                    positions[j, i] = rest[j, i]
                    for c in range(3):
                        rotations[row, j, i, c] = 1.0 if i == c else 0.0
            else:
                _rodrigues(poses[row, 3 * j], poses[row, 3 * j + 1], poses[row, 3 * j + 2], local)
                for i in range(3):
                    for c in range(3):
                        features[1 + shape_size + 9 * (j - 1) + 3 * i + c, row] = local[i, c] - (
                            1.0 if i == c else 0.0
                        )
                parent = rotations[row, p]
                _multiply(parent, local, rotations[row, j])
                for i in range(3):
                    value = positions[p, i]
                    for c in range(3):
                        value += parent[i, c] * (rest[j, c] - rest[p, c])
                    positions[j, i] = value
            for i in range(3):
                shift = positions[j, i]
                for c in range(3):
                    transforms[j, 4 * i + c, row] = rotations[row, j, i, c]
                    shift -= rotations[row, j, i, c] * rest[j, c]
                transforms[j, 4 * i + 3, row] = shift


@njit(inline="always")
def _rodrigues(x, y, z, out):
    """Rotation matrix of an axis-angle vector; smplx adds 1e-8 to each component of the norm."""
    angle = math.sqrt((x + 1e-8) ** 2 + (y + 1e-8) ** 2 + (z + 1e-8) ** 2)
    x, y, z = x / angle, y / angle, z / angle
    s, v = math.sin(angle), 1.0 - math.cos(angle)
    out[0, 0] = 1.0 - v * (y * y + z * z)
    out[0, 1] = v * x * y - s * z
    out[0, 2] = v * x * z + s * y
    out[1, 0] = v * x * y + s * z
    out[1, 1] = 1.0 - v * (x * x + z * z)
    out[1, 2] = v * y * z - s * x
    out[2, 0] = v * x * z - s * y
    out[2, 1] = v * y * z + s * x
    out[2, 2] = 1.0 - v * (x * x + y * y)


# --- closed-form start ----------------------------------------------------------------------


@njit(inline="always")
def _wrap(angle):
    """The angle in (-pi, pi]."""
    return angle - 2.0 * math.pi * math.ceil((angle - math.pi) / (2.0 * math.pi))


@njit(inline="always")
def _violation(value, low, high):
    excess = max(low - value, value - high, 0.0)
    return excess * excess


@njit(**_OPTIONS)
def _project_joint(skeleton, j, wanted, lower, upper, branch, q):
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
        sign_x * _wrap(x + math.pi),
        sign_y * _wrap(math.pi - y),
        sign_z * _wrap(z + math.pi),
    )
    cost0 = (
        _violation(z0, lower[first], upper[first])
        + _violation(y0, lower[first + 1], upper[first + 1])
        + _violation(x0, lower[last], upper[last])
    )
    cost1 = (
        _violation(z1, lower[first], upper[first])
        + _violation(y1, lower[first + 1], upper[first + 1])
        + _violation(x1, lower[last], upper[last])
    )
    if (cost1 < cost0) != (branch == 1):
        x0, y0, z0 = x1, y1, z1
    q[first] = min(max(z0, lower[first]), upper[first])
    q[first + 1] = min(max(y0, lower[first + 1]), upper[first + 1])
    q[last] = min(max(x0, lower[last]), upper[last])


@njit(parallel=True, **_OPTIONS)
def start_poses(skeleton, rotations, frames, lower, upper, branch, poses):
    """Closed-form start: project each bone's wanted world rotation (n,24,3,3) onto its joint,
    walking down the tree, so that children make up for what a joint cannot take.
    fitting.md section 3. branch (24,) int; poses (n,49) out, root and translation 0."""
    for row in prange(rotations.shape[0]):
        q = poses[row]
        for d in range(PARAMETERS):
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
                        value += world[p, k, i] * rotations[row, skeleton.start_source[j], k, c]
                    product[i, c] = value
            _multiply(product, frame, achieved)
            for i in range(3):
                for c in range(3):
                    value = 0.0
                    for k in range(3):
                        value += frame[k, i] * achieved[k, c]
                    wanted[i, c] = value
            _project_joint(skeleton, j, wanted, lower, upper, branch[j], q)
            for i in range(3):
                for c in range(3):
                    achieved[i, c] = 1.0 if i == c else 0.0
            for d in range(skeleton.first_parameter[j], skeleton.first_parameter[j + 1]):
                _axis_rotation(skeleton.axes[d], q[d], axis_rotation)
                _multiply(axis_rotation, achieved, product)
                for i in range(3):
                    for c in range(3):
                        achieved[i, c] = product[i, c]
            _multiply(frame, achieved, product)
            _multiply_transposed(product, frame, achieved)
            _multiply(world[p], achieved, world[j])


# --- vertex passes: LANES rows side by side -------------------------------------------------


@njit(inline="always")
def _blend(first, last, bones, weights, transforms, blend):
    """blend (12, LANES) = sum of w A over the bones of one vertex."""
    w = weights[first]
    a = transforms[bones[first]]
    for e in range(12):
        for lane in range(LANES):
            blend[e, lane] = w * a[e, lane]
    for n in range(first + 1, last):
        w = weights[n]
        a = transforms[bones[n]]
        for e in range(12):
            for lane in range(LANES):
                blend[e, lane] += w * a[e, lane]


@njit(inline="always")
def _lanes_of(transforms, group):
    """Contiguous copy (24,12,LANES) of one group of rows."""
    out = np.empty((transforms.shape[0], 12, LANES), transforms.dtype)
    for k in range(transforms.shape[0]):
        for e in range(12):
            for lane in range(LANES):
                out[k, e, lane] = transforms[k, e, group * LANES + lane]
    return out


@njit(parallel=True, **_OPTIONS)
def skin(first, bones, weights, transforms, points, out):
    """Linear blend skinning: out (V,3,n) from points (V,3,n) and transforms (24,12,n)."""
    for group in prange(transforms.shape[2] // LANES):
        lanes = _lanes_of(transforms, group)
        blend = np.empty((12, LANES), points.dtype)
        start = group * LANES
        for v in range(points.shape[0]):
            _blend(first[v], first[v + 1], bones, weights, lanes, blend)
            x = points[v, 0, start : start + LANES]
            y = points[v, 1, start : start + LANES]
            z = points[v, 2, start : start + LANES]
            for i in range(3):
                result = out[v, i, start : start + LANES]
                for lane in range(LANES):
                    result[lane] = (
                        blend[4 * i, lane] * x[lane]
                        + blend[4 * i + 1, lane] * y[lane]
                        + blend[4 * i + 2, lane] * z[lane]
                        + blend[4 * i + 3, lane]
                    )


@njit(parallel=True, **_OPTIONS)
def residual_moments(
    first, bones, weights, masses, transforms, points, targets, energy, moments, pull
):
    """One fused pass: weighted squared residual, its bone moments and its pull on the offsets.

    energy (n,) = sum m |r|^2; moments (24,12,n) = C_k = sum m w r [x;1]^T; pull (V,3,n) =
    m (sum w R)^T r. Derivation: docs/solver.md, reference fitting.md section 3."""
    vertices = points.shape[0]
    for group in prange(transforms.shape[2] // LANES):
        lanes = _lanes_of(transforms, group)
        sums = np.zeros((JOINTS, 12, LANES), points.dtype)
        blend = np.empty((12, LANES), points.dtype)
        residual = np.empty((3, LANES), points.dtype)
        outer = np.empty((12, LANES), points.dtype)
        total = np.zeros(LANES)
        start = group * LANES
        for v in range(vertices):
            begin, end = first[v], first[v + 1]
            mass = masses[v]
            _blend(begin, end, bones, weights, lanes, blend)
            x = points[v, 0, start : start + LANES]
            y = points[v, 1, start : start + LANES]
            z = points[v, 2, start : start + LANES]
            for i in range(3):
                target = targets[v, i, start : start + LANES]
                for lane in range(LANES):
                    r = mass * (
                        blend[4 * i, lane] * x[lane]
                        + blend[4 * i + 1, lane] * y[lane]
                        + blend[4 * i + 2, lane] * z[lane]
                        + blend[4 * i + 3, lane]
                        - target[lane]
                    )
                    residual[i, lane] = r
                    outer[4 * i, lane] = r * x[lane]
                    outer[4 * i + 1, lane] = r * y[lane]
                    outer[4 * i + 2, lane] = r * z[lane]
                    outer[4 * i + 3, lane] = r
            for lane in range(LANES):
                total[lane] += (
                    residual[0, lane] * residual[0, lane]
                    + residual[1, lane] * residual[1, lane]
                    + residual[2, lane] * residual[2, lane]
                ) / mass
            for n in range(begin, end):
                w = weights[n]
                s = sums[bones[n]]
                for e in range(12):
                    for lane in range(LANES):
                        s[e, lane] += w * outer[e, lane]
            for i in range(3):
                result = pull[v, i, start : start + LANES]
                for lane in range(LANES):
                    result[lane] = (
                        blend[i, lane] * residual[0, lane]
                        + blend[4 + i, lane] * residual[1, lane]
                        + blend[8 + i, lane] * residual[2, lane]
                    )
        for lane in range(LANES):
            energy[start + lane] = total[lane]
        for k in range(JOINTS):
            for e in range(12):
                for lane in range(LANES):
                    moments[k, e, start + lane] = sums[k, e, lane]


@njit(parallel=True, **_OPTIONS)
def judge(first, bones, weights, region, transforms, points, targets, squares, totals, largest):
    """Exact final residual: squares (n,) sum of squared distances; totals (REGIONS, n) sums of
    distances per region; largest (n,) maximum distance. region (V,) int."""
    for group in prange(transforms.shape[2] // LANES):
        lanes = _lanes_of(transforms, group)
        blend = np.empty((12, LANES), points.dtype)
        distance = np.empty(LANES, points.dtype)
        square = np.zeros(LANES)
        sums = np.zeros((totals.shape[0], LANES))
        worst = np.zeros(LANES, points.dtype)
        start = group * LANES
        for v in range(points.shape[0]):
            _blend(first[v], first[v + 1], bones, weights, lanes, blend)
            x = points[v, 0, start : start + LANES]
            y = points[v, 1, start : start + LANES]
            z = points[v, 2, start : start + LANES]
            for lane in range(LANES):
                distance[lane] = 0.0
            for i in range(3):
                target = targets[v, i, start : start + LANES]
                for lane in range(LANES):
                    r = (
                        blend[4 * i, lane] * x[lane]
                        + blend[4 * i + 1, lane] * y[lane]
                        + blend[4 * i + 2, lane] * z[lane]
                        + blend[4 * i + 3, lane]
                        - target[lane]
                    )
                    distance[lane] += r * r
            part = sums[region[v]]
            for lane in range(LANES):
                square[lane] += distance[lane]
                d = math.sqrt(distance[lane])
                part[lane] += d
                worst[lane] = max(worst[lane], d)
        for lane in range(LANES):
            squares[start + lane] = square[lane]
            largest[start + lane] = worst[lane]
            for part in range(totals.shape[0]):
                totals[part, start + lane] = sums[part, lane]


# --- the inner solver: Levenberg-Marquardt on 24 bone transforms ----------------------------


@njit(inline="always")
def _unpack(packed, out):
    """Symmetric 4x4 from xx xy xz x1 yy yz y1 zz z1 11."""
    n = 0
    for i in range(4):
        for c in range(i, 4):
            out[i, c] = packed[n]
            out[c, i] = packed[n]
            n += 1


@njit(**_OPTIONS)
def _times_moments(stage, moments, change, out):
    """out (24,3,4) = change M with M given by its non-zero symmetric blocks."""
    block = np.empty((4, 4))
    for k in range(JOINTS):
        for i in range(3):
            for c in range(4):
                out[k, i, c] = 0.0
    for n in range(stage.pair_first.shape[0]):
        k, l = stage.pair_first[n], stage.pair_second[n]
        _unpack(moments[n], block)
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


@njit(**_OPTIONS)
def _gradient(skeleton, stage, transforms, force, corrective, q, work, gradient):
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
    for d in range(PARAMETERS):
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


@njit(**_OPTIONS)
def _curvature(skeleton, stage, transforms, moments, joint_moments, work, hessian):
    """Half the Gauss-Newton matrix (49,49) from subtree second moments (fitting.md section 3)."""
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
        _unpack(moments[n], block)
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
    for r in range(PARAMETERS):
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
    for d in range(PARAMETERS):
        if stage.free[d]:
            hessian[d, d] += stage.prior[d]


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
def _bounded_step(stage, q, hessian, gradient, damping, work, step):
    """Damped step inside the limits: parameters that it would carry over a bound are set to the
    bound and the others are solved once more. Returns the number of held parameters."""
    index, fixed, shifted = work.index, work.fixed, work.shifted
    held = 0
    for d in range(PARAMETERS):
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
        for d in range(PARAMETERS):
            if not fixed[d]:
                index[count] = d
                count += 1
        _solve_damped(hessian, shifted, damping, index, count, work.factor, step)
        crossed = False
        for n in range(count):
            d = index[n]
            bound = min(max(q[d] + step[d], stage.lower[d]), stage.upper[d])
            if bound != q[d] + step[d]:
                crossed = True
                fixed[d] = True
                step[d] = bound - q[d]
                for m in range(PARAMETERS):
                    if stage.free[m]:
                        shifted[m] += hessian[m, d] * step[d]
        if not crossed:
            break
    for d in range(PARAMETERS):
        if stage.free[d]:
            step[d] = min(max(q[d] + step[d], stage.lower[d]), stage.upper[d]) - q[d]
    return held


@njit(inline="always")
def _extra_energy(stage, work, joint_targets, q):
    """Joint and prior terms of the objective at the pose that `work` holds."""
    value = 0.0
    for d in range(PARAMETERS):
        value += stage.prior[d] * q[d] * q[d]
    for j in range(JOINTS):
        mass = stage.joint_masses[j]
        if mass > 0.0:
            for c in range(3):
                value += mass * (work.positions[j, c] - joint_targets[j, c]) ** 2
    return value


@njit(inline="always")
def _model_change(change, force_change, moments, local, local0, corrective, skeleton):
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


@njit(parallel=True, **_OPTIONS)
def extra_energy(skeleton, stage, joints, frames, lengths, joint_targets, poses, out):
    """Joint and prior terms (n,) of the objective."""
    for row in prange(poses.shape[0]):
        work = make_work()
        _kinematics(skeleton, poses[row], joints[row], frames[row], lengths[row], work)
        out[row] = _extra_energy(stage, work, joint_targets[row], poses[row])


@njit(**_OPTIONS)
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
    gradient = np.zeros(PARAMETERS)
    hessian = np.zeros((PARAMETERS, PARAMETERS))
    step = np.zeros(PARAMETERS)
    trial = np.empty(PARAMETERS)
    homogeneous = np.ones(4)

    _kinematics(skeleton, start, joints, frames, lengths, work)
    _transforms(work, joints, transforms0)
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
    for d in range(PARAMETERS):
        q[d] = start[d]
    energy = _extra_energy(stage, work, joint_targets, q)
    steps = 0
    for _ in range(max_steps):
        _twists(skeleton, work)
        _gradient(skeleton, stage, transforms, force, corrective, q, work, gradient)
        _curvature(skeleton, stage, transforms, pair_moments, joint_moments, work, hessian)
        steps += 1
        accepted = False
        largest = 0.0
        for _ in range(6):
            _bounded_step(stage, q, hessian, gradient, damping, work, step)
            largest = 0.0
            for d in range(PARAMETERS):
                trial[d] = q[d] + step[d]
                largest = max(largest, abs(step[d]))
            _kinematics(skeleton, trial, joints, frames, lengths, work)
            _transforms(work, joints, transforms)
            for k in range(JOINTS):
                for i in range(3):
                    for c in range(4):
                        change[k, i, c] = transforms[k, i, c] - transforms0[k, i, c]
            _times_moments(stage, pair_moments, change, product)
            trial_energy = _extra_energy(stage, work, joint_targets, trial) + _model_change(
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
        for d in range(PARAMETERS):
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


@njit(inline="always")
def _twists(skeleton, work):
    """shift (49,3) = d - a x p_joint: the linear part of each parameter's twist."""
    for d in range(PARAMETERS):
        if d >= 46:
            for c in range(3):
                work.axes[d, c] = 0.0
                work.shift[d, c] = 1.0 if c == d - 46 else 0.0
            continue
        p = work.positions[skeleton.joint_of_parameter[d]]
        a = work.axes[d]
        work.shift[d, 0] = work.velocity[d, 0] - (a[1] * p[2] - a[2] * p[1])
        work.shift[d, 1] = work.velocity[d, 1] - (a[2] * p[0] - a[0] * p[2])
        work.shift[d, 2] = work.velocity[d, 2] - (a[0] * p[1] - a[1] * p[0])


@njit(parallel=True, **_OPTIONS)
def minimise(
    skeleton, stage, joints, frames, lengths, pair_moments, joint_targets,
    poses, energy, moments, corrective, active, max_steps, tolerance,
    best_poses, best_energy, best_moments, best_corrective, damping, failures, step_size, steps,
):  # fmt: skip
    """One round for each active row: keep the better of candidate and best, then step from it.

    poses (n,49) holds the candidate at which energy (n,), moments (24,12,n) and corrective
    (207,n) were evaluated, and receives the next one; best_* hold the best state so far.
    step_size (n,) is the largest parameter change from the best pose; 0 where nothing moved."""
    for row in prange(poses.shape[0]):
        if not active[row]:
            continue
        work = make_work()
        _kinematics(skeleton, poses[row], joints[row], frames[row], lengths[row], work)
        total = energy[row] + _extra_energy(stage, work, joint_targets[row], poses[row])
        if total <= best_energy[row]:
            best_energy[row] = total
            best_poses[row] = poses[row]
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
        for d in range(PARAMETERS):
            largest = max(largest, abs(poses[row, d] - best_poses[row, d]))
        step_size[row] = largest


# --- tensors in, tensors out ----------------------------------------------------------------


class NumbaKernels:
    """The kernels behind the interface of `kernels_torch.TorchKernels` (CPU tensors)."""

    def __init__(self, skeleton: Skeleton, smpl_tree: SmplTree | None, dtype: torch.dtype) -> None:
        self.skeleton, self.smpl_tree, self.dtype = skeleton, smpl_tree, dtype

    def pose_smpl(self, poses: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        """poses (n,72), betas (n,K), float64 -> rest joints (n,24,3), global rotations
        (n,24,3,3), transforms (24,12,n), features (1+K+207,n), global orientation left out."""
        n = poses.shape[0]
        joints, rotations = poses.new_empty(n, 24, 3), poses.new_empty(n, 24, 3, 3)
        transforms = torch.empty(24, 12, n, dtype=self.dtype)
        features = torch.empty(1 + betas.shape[1] + 207, n, dtype=self.dtype)
        pose_smpl(self.smpl_tree, *_arrays(poses, betas, joints, rotations, transforms, features))
        return joints, rotations, transforms, features

    def identity(self, betas: Tensor) -> Identity:
        """betas (n,K) -> rest joints, joint frames and lengths."""
        n = betas.shape[0]
        made = Identity(
            betas, betas.new_empty(n, 24, 3), betas.new_empty(n, 24, 3, 3), betas.new_empty(n, 5)
        )
        identity(self.skeleton, *_arrays(*made))
        return made

    def start(
        self, rotations: Tensor, shape: Identity, lower: Tensor, upper: Tensor, branch: Tensor
    ) -> Tensor:
        """Closed-form start (n,49) from SMPL global rotations (n,24,3,3)."""
        poses = rotations.new_zeros(rotations.shape[0], PARAMETERS)
        start_poses(self.skeleton, *_arrays(rotations, shape.frames, lower, upper, branch, poses))
        return poses

    def pose_bones(self, poses: Tensor, shape: Identity) -> tuple[Tensor, Tensor]:
        """Skinning transforms (24,12,n) and features (1+K+207,n) of poses (n,49)."""
        n = poses.shape[0]
        transforms = torch.empty(24, 12, n, dtype=self.dtype)
        features = torch.empty(1 + shape.betas.shape[1] + 207, n, dtype=self.dtype)
        pose_bones(self.skeleton, *_arrays(poses, *shape, transforms, features))
        return transforms, features

    def skin(self, skinning: SparseWeights, transforms: Tensor, points: Tensor) -> Tensor:
        """Skinned points (V,3,n)."""
        out = torch.empty_like(points)
        skin(*skinning, *_arrays(transforms, points, out))
        return out

    def residual_moments(
        self, vertices: VertexSet, transforms: Tensor, points: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """energy (n,), moments (24,12,n), pull (V,3,n)."""
        n = points.shape[2]
        energy = torch.empty(n, dtype=torch.float64)
        moments, pull = torch.empty(24, 12, n, dtype=self.dtype), torch.empty_like(points)
        residual_moments(
            *vertices.skinning,
            vertices.masses,
            *_arrays(transforms, points, targets, energy, moments, pull),
        )
        return energy, moments, pull

    def judge(
        self,
        skinning: SparseWeights,
        region: np.ndarray,
        transforms: Tensor,
        points: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of squared distances (n,), sums of distances (regions,n), largest distance (n,)."""
        n = points.shape[2]
        squares, largest = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.float64)
        totals = torch.empty(len(REGIONS), n, dtype=torch.float64)
        judge(*skinning, region, *_arrays(transforms, points, targets, squares, totals, largest))
        return squares, totals, largest

    def extra_energy(
        self, stage: StageTables, shape: Identity, joint_targets: Tensor, poses: Tensor
    ) -> Tensor:
        """Joint and prior terms (n,) of the objective."""
        out = poses.new_empty(poses.shape[0])
        extra_energy(self.skeleton, stage, *_arrays(*shape[1:], joint_targets, poses, out))
        return out

    def minimise(
        self,
        stage: StageTables,
        shape: Identity,
        pair_moments: Tensor,
        joint_targets: Tensor,
        evaluated: tuple[Tensor, Tensor, Tensor],
        active: Tensor,
        max_steps: int,
        tolerance: float,
        state: SearchState,
    ) -> None:
        """One round (in place on `state`) for the active rows; `evaluated` is (energy, moments,
        corrective (207,n)) at state.poses."""
        energy, moments, corrective = evaluated
        minimise(
            self.skeleton,
            stage,
            *_arrays(*shape[1:], pair_moments, joint_targets, state.poses),
            *_arrays(energy, moments, corrective, active),
            max_steps,
            tolerance,
            *_arrays(*state[1:]),
        )


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.numpy() for tensor in tensors)
