"""Kinematics of SKEL and SMPL, one row at a time (numba); of SKEL's bones also ABREAST rows.

Twins of the same names: `skel_fit.rotations`, `skel_fit.kinematics`, `kernels_torch`. Sources:
docs/reference/skel-model.md, docs/solver.md. Metres, radians, float64.

Results are promised to the last bit: the compiler fuses products and sums as it sees them, so that
even another signature moves the last digit of every converted row. Hence the long argument lists.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.numba_abreast import ABREAST, abreast, if_less, magnitude, sine_cosine
from skel_fit.numba_compile import kernel

JOINTS = 24


# --- small 3x3 helpers ----------------------------------------------------------------------


@njit(inline="always")
def multiply(a, b, out):
    """out = a b, 3x3."""
    for i in range(3):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        for j in range(3):
            out[i, j] = a0 * b[0, j] + a1 * b[1, j] + a2 * b[2, j]


@njit(inline="always")
def multiply_transposed(a, b, out):
    """out = a b^T, 3x3."""
    for i in range(3):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        for j in range(3):
            out[i, j] = a0 * b[j, 0] + a1 * b[j, 1] + a2 * b[j, 2]


@njit(inline="always")
def rotation_about_axis(axis, angle, out):
    """out = rotation by |axis| angle about axis (an axis need not have unit length)."""
    length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    x, y, z = axis[0] / length, axis[1] / length, axis[2] / length
    s, c = sine_cosine(length * angle)
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
def arc(length, angle):
    """End of a constant-curvature arc and its derivative: X, Y, dX, dY."""
    t, size = angle, magnitude(angle)
    t2 = t * t
    s, c = sine_cosine(t)
    far = if_less(size, 2e-2, 1.0 + t2, t)  # both answers are worked out: none divides by zero
    small_x = length * t * (0.5 - t2 / 24.0 + t2 * t2 / 720.0)
    small_y = length * (1.0 - t2 / 6.0 + t2 * t2 / 120.0)
    small_dx = length * (0.5 - t2 / 8.0 + t2 * t2 / 144.0)
    small_dy = length * t * (-1.0 / 3.0 + t2 / 30.0 - t2 * t2 / 840.0)
    x = if_less(size, 2e-2, small_x, length * (1.0 - c) / far)
    y = if_less(size, 2e-2, small_y, length * s / far)
    dx = if_less(size, 2e-2, small_dx, length * (t * s - (1.0 - c)) / (far * far))
    dy = if_less(size, 2e-2, small_dy, length * (t * c - s) / (far * far))
    return x, y, dx, dy


# --- identity: what depends on the shape alone ----------------------------------------------


@njit(inline="always")
def minimal_rotation(source, target, out):
    """Minimal rotation taking source/|source| to target/|target| (identity if antiparallel, and
    where a vector has no length: the float twin is zero there, as the published model)."""
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


@kernel()
def identity(skeleton, betas, joints, frames, lengths):
    """Rest joints (n,24,3), joint frames Q = K Ra^T (n,24,3,3), lengths (n,5): spine arcs l of
    11, 12, 13, scapula width W and height H."""
    for row in range(betas.shape[0]):
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
                minimal_rotation(skeleton.bone_source[j], target, alignment)
                multiply(alignment, skeleton.rest_frames[j], frames[row, j])
            else:
                for c in range(3):  # assigning arrays would take seconds to compile
                    for k in range(3):
                        frames[row, j, c, k] = skeleton.rest_frames[j, c, k]
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
    """Scratch of one row, or of ABREAST."""

    rotations: np.ndarray  # (24,3,3) world rotations
    positions: np.ndarray  # (24,3) world joint positions
    local: np.ndarray  # (24,3,3) local rotations R_i
    axes: np.ndarray  # (49,3) world axis of each angle
    local_axes: np.ndarray  # (49,3) the same in the parent's frame
    velocity: np.ndarray  # (49,3) derivative of the joint's own offset, world
    shift: np.ndarray  # (49,3) linear part of the twist
    offset: np.ndarray  # (3,)
    scratch: np.ndarray  # (3,3,3)
    block: np.ndarray  # (4,4)
    half: np.ndarray  # (4,4)
    subtree: np.ndarray  # (24,3,4)


@kernel()
def make_work():
    """Fresh scratch."""
    return Work(
        np.empty((JOINTS, 3, 3)),
        np.empty((JOINTS, 3)),
        np.empty((JOINTS, 3, 3)),
        np.zeros((NUM_PARAMETERS, 3)),
        np.zeros((NUM_PARAMETERS, 3)),
        np.zeros((NUM_PARAMETERS, 3)),
        np.zeros((NUM_PARAMETERS, 3)),
        np.empty(3),
        np.empty((3, 3, 3)),
        np.empty((4, 4)),
        np.empty((4, 4)),
        np.empty((JOINTS, 3, 4)),
    )


@njit(inline="always")
def make_work_abreast():
    """Fresh scratch for ABREAST rows."""
    return Work(
        abreast(np.empty((JOINTS, 3, 3, ABREAST))),
        abreast(np.empty((JOINTS, 3, ABREAST))),
        abreast(np.empty((JOINTS, 3, 3, ABREAST))),
        abreast(np.zeros((NUM_PARAMETERS, 3, ABREAST))),
        abreast(np.zeros((NUM_PARAMETERS, 3, ABREAST))),
        abreast(np.zeros((NUM_PARAMETERS, 3, ABREAST))),
        abreast(np.zeros((NUM_PARAMETERS, 3, ABREAST))),
        abreast(np.empty((3, ABREAST))),
        abreast(np.empty((3, 3, 3, ABREAST))),
        abreast(np.empty((4, 4, ABREAST))),
        abreast(np.empty((4, 4, ABREAST))),
        abreast(np.empty((JOINTS, 3, 4, ABREAST))),
    )


@kernel()
def bones(skeleton, q, joints, frames, lengths, work):
    """World rotations, joint positions, local rotations, world axes and offset velocities of one
    row, into `work`. Derivatives: docs/solver.md."""
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
            rotation_about_axis(axis, q[d], rotation)
            multiply(joint_rotation, rotation, product)
            for i in range(3):
                for k in range(3):
                    joint_rotation[i, k] = product[i, k]
        multiply(frame, joint_rotation, product)
        multiply_transposed(product, frame, work.local[j])
        for c in range(3):
            offset[c] = joints[j, c] - (joints[p, c] if p >= 0 else 0.0)
        if 11 <= j <= 13:
            x0, y0, dx0, dy0 = arc(lengths[j - 11], q[first])
            x1, y1, dx1, dy1 = arc(lengths[j - 11], q[first + 1])
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
            sa, ca = sine_cosine(abduction)
            se, ce = sine_cosine(elevation)
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
            multiply(parent, work.local[j], work.rotations[j])
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
def twists(skeleton, work):
    """shift (49,3) = d - a x p_joint: the linear part of each parameter's twist."""
    for d in range(NUM_PARAMETERS):
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


@njit(inline="always")
def skinning_transforms(work, joints, out):
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


@njit(inline="always")
def side_by_side(values, rows, out):
    """ABREAST of the rows of values (n,...) to out (...,ABREAST)."""
    lines, flat = values.reshape(values.shape[0], -1), out.reshape(-1, ABREAST)
    for e in range(lines.shape[1]):
        for lane in range(ABREAST):
            flat[e, lane] = lines[rows[lane], e]


@kernel()
def pose_bones(skeleton, poses, betas, joints, frames, lengths, transforms, features):
    """Skinning transforms (24,12,n) and GEMM features (1 + K + 207, n) = [1, betas, R - I] of n
    rows; poses (n,49)."""
    n, shape_size = poses.shape[0], betas.shape[1]
    q, sizes = np.empty((NUM_PARAMETERS, ABREAST)), np.empty((5, ABREAST))
    rest, turns = np.empty((JOINTS, 3, ABREAST)), np.empty((JOINTS, 3, 3, ABREAST))
    moved, turned = np.empty((JOINTS, 3, 4, ABREAST)), np.empty((JOINTS, 3, 3, ABREAST))
    local, work, rows = abreast(turned), make_work_abreast(), np.empty(ABREAST, np.int64)
    for begin in range(0, n, ABREAST):
        real = min(ABREAST, n - begin)
        for lane in range(ABREAST):
            rows[lane] = begin + min(lane, real - 1)
        side_by_side(poses, rows, q)
        side_by_side(joints, rows, rest)
        side_by_side(frames, rows, turns)
        side_by_side(lengths, rows, sizes)
        bones(skeleton, abreast(q), abreast(rest), abreast(turns), abreast(sizes), work)
        skinning_transforms(work, abreast(rest), abreast(moved))
        for k in range(JOINTS):
            for i in range(3):
                for c in range(3):
                    local[k, i, c] = work.local[k, i, c] - (1.0 if i == c else 0.0)
        for lane in range(real):
            row = begin + lane
            features[0, row] = 1.0
            for k in range(shape_size):
                features[1 + k, row] = betas[row, k]
        for k in range(JOINTS):
            for e in range(12):
                for lane in range(real):
                    transforms[k, e, begin + lane] = moved[k, e // 4, e % 4, lane]
        for s in range(23):
            source, to = skeleton.feature_source[s], 1 + shape_size + 9 * s
            for e in range(9):
                for lane in range(real):
                    moves = turned[source, e // 3, e % 3, lane] if source >= 0 else 0.0
                    features[to + e, begin + lane] = moves


@kernel()
def pose_frames(
    skeleton, sources, apose_rot, poses, joints, frames, lengths,
    positions, orientations, affine, features,
):  # fmt: skip
    """What the forward pass needs of n posed skeletons, without translation.

    sources (S,) joints of the corrective features, in their order; apose_rot (24,3,3); poses
    (n,46); joints, frames, lengths of `identity`, n or 1 rows. Out: positions (n,24,3),
    orientations (n,24,3,3) of the bones, affine (n,24,3,4) of the skin, features (n, 9S or more):
    R - I first.
    """
    work, q = make_work(), np.zeros(NUM_PARAMETERS)
    turned, transforms = np.empty((3, 3)), np.empty((JOINTS, 3, 4))
    for row in range(poses.shape[0]):
        own = row if joints.shape[0] > 1 else 0
        for d in range(poses.shape[1]):
            q[d] = poses[row, d]
        bones(skeleton, q, joints[own], frames[own], lengths[own], work)
        skinning_transforms(work, joints[own], transforms)
        for j in range(JOINTS):
            multiply(work.rotations[j], frames[own, j], turned)
            multiply(turned, apose_rot[j], orientations[row, j])
            for i in range(3):
                positions[row, j, i] = work.positions[j, i]
                for c in range(4):
                    affine[row, j, i, c] = transforms[j, i, c]
        for s in range(sources.shape[0]):
            for i in range(3):
                for c in range(3):
                    features[row, 9 * s + 3 * i + c] = work.local[sources[s], i, c] - (
                        1.0 if i == c else 0.0
                    )


@njit(inline="always")
def _add_torque(turned, c, g0, g1, g2, torque):
    """Adds column c of a rotation (3,3) times (cross product) the gradient of that column."""
    r0, r1, r2 = turned[0, c], turned[1, c], turned[2, c]
    torque[0] += r1 * g2 - r2 * g1
    torque[1] += r2 * g0 - r0 * g2
    torque[2] += r0 * g1 - r1 * g0


@kernel()
def pose_frames_gradients(
    skeleton, sources, apose_rot, poses, joints, frames, lengths,
    positions, orientations, affine, features, out,
):  # fmt: skip
    """Gradient by the angles of what `pose_frames` gives: out (n,46), from those of its results.

    A gradient acts on a bone as a force and a torque about the origin. Both add up over what is
    below a joint, and an angle takes its share along its twist (docs/solver.md)."""
    work, q = make_work(), np.zeros(NUM_PARAMETERS)
    turned, product = np.empty((3, 3)), np.empty((3, 3))
    torque, force, own_torque = np.empty((JOINTS, 3)), np.empty((JOINTS, 3)), np.empty((JOINTS, 3))
    for row in range(poses.shape[0]):
        own = row if joints.shape[0] > 1 else 0
        for d in range(poses.shape[1]):
            q[d] = poses[row, d]
        bones(skeleton, q, joints[own], frames[own], lengths[own], work)
        twists(skeleton, work)
        torque[:] = 0.0
        own_torque[:] = 0.0
        for j in range(JOINTS):
            pull, rotation, rest = affine[row, j], work.rotations[j], joints[own, j]
            multiply(rotation, frames[own, j], product)
            multiply(product, apose_rot[j], turned)
            for c in range(3):
                turn = orientations[row, j]
                _add_torque(turned, c, turn[0, c], turn[1, c], turn[2, c], torque[j])
                g0 = pull[0, c] - pull[0, 3] * rest[c]
                g1 = pull[1, c] - pull[1, 3] * rest[c]
                g2 = pull[2, c] - pull[2, 3] * rest[c]
                _add_torque(rotation, c, g0, g1, g2, torque[j])
            for c in range(3):
                force[j, c] = pull[c, 3] + positions[row, j, c]
            p, f = work.positions[j], force[j]
            torque[j, 0] += p[1] * f[2] - p[2] * f[1]
            torque[j, 1] += p[2] * f[0] - p[0] * f[2]
            torque[j, 2] += p[0] * f[1] - p[1] * f[0]
        for j in range(JOINTS - 1, 0, -1):
            for c in range(3):
                torque[skeleton.parents[j], c] += torque[j, c]
                force[skeleton.parents[j], c] += force[j, c]
        for s in range(sources.shape[0]):
            for c in range(3):
                _add_torque(
                    work.local[sources[s]], c, features[row, 9 * s + c],
                    features[row, 9 * s + 3 + c], features[row, 9 * s + 6 + c],
                    own_torque[sources[s]],
                )  # fmt: skip
        for d in range(poses.shape[1]):
            j = skeleton.joint_of_parameter[d]
            total = 0.0
            for c in range(3):
                total += work.axes[d, c] * torque[j, c] + work.shift[d, c] * force[j, c]
                total += work.local_axes[d, c] * own_torque[j, c]
            out[row, d] = total


# --- the SMPL side --------------------------------------------------------------------------


@kernel()
def pose_smpl(smpl_tree, poses, betas, joints, rotations, transforms, features):
    """SMPL kinematics with the global orientation left out (fitting happens in that frame).

    poses (n,72) axis-angle; joints (n,24,3) rest joints out; rotations (n,24,3,3) global rotations
    out; transforms (24,12,n); features (1+K+207, n).
    """
    shape_size = betas.shape[1]
    for row in range(poses.shape[0]):
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
                axis_angle_to_matrix(
                    poses[row, 3 * j], poses[row, 3 * j + 1], poses[row, 3 * j + 2], local
                )
                for i in range(3):
                    for c in range(3):
                        features[1 + shape_size + 9 * (j - 1) + 3 * i + c, row] = local[i, c] - (
                            1.0 if i == c else 0.0
                        )
                parent = rotations[row, p]
                multiply(parent, local, rotations[row, j])
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
def axis_angle_to_matrix(x, y, z, out):
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
