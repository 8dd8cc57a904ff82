"""Kinematics of SKEL and SMPL in Triton: a program is a row, a lane is a joint.

Twins of the same names: `skel_fit.kinematics`, `numba_kinematics`, `kernels_torch`. Sources:
docs/reference/skel-model.md, docs/solver.md. Metres, radians, float64. Joints are padded to 32
lanes; the last lane is a bone that never moves, the parent of the root. 3x3 matrices are tuples of
nine values, row by row.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES: tl.constexpr = tl.constexpr(32)
SLOTS: tl.constexpr = tl.constexpr(64)
"""Places of the 49 parameters; those behind them hold zero."""
_PI = tl.constexpr(3.141592653589793)
_ROOT_HALF = tl.constexpr(0.7071067811865476)


# --- small helpers --------------------------------------------------------------------------


@triton.jit
def multiply(a, b):
    """a b."""
    return (
        a[0] * b[0] + a[1] * b[3] + a[2] * b[6],
        a[0] * b[1] + a[1] * b[4] + a[2] * b[7],
        a[0] * b[2] + a[1] * b[5] + a[2] * b[8],
        a[3] * b[0] + a[4] * b[3] + a[5] * b[6],
        a[3] * b[1] + a[4] * b[4] + a[5] * b[7],
        a[3] * b[2] + a[4] * b[5] + a[5] * b[8],
        a[6] * b[0] + a[7] * b[3] + a[8] * b[6],
        a[6] * b[1] + a[7] * b[4] + a[8] * b[7],
        a[6] * b[2] + a[7] * b[5] + a[8] * b[8],
    )


@triton.jit
def transposed(a):
    """a^T."""
    return (a[0], a[3], a[6], a[1], a[4], a[7], a[2], a[5], a[8])


@triton.jit
def turn(a, v):
    """a v of a vector of three values."""
    return (
        a[0] * v[0] + a[1] * v[1] + a[2] * v[2],
        a[3] * v[0] + a[4] * v[1] + a[5] * v[2],
        a[6] * v[0] + a[7] * v[1] + a[8] * v[2],
    )


@triton.jit
def load3(pointer, stride, mask):
    """Three values `stride` apart, 0 where masked."""
    return (
        tl.load(pointer, mask=mask, other=0.0),
        tl.load(pointer + stride, mask=mask, other=0.0),
        tl.load(pointer + 2 * stride, mask=mask, other=0.0),
    )


@triton.jit
def load9(pointer, stride, mask):
    """Nine values `stride` apart, 0 where masked."""
    a = load3(pointer, stride, mask)
    b = load3(pointer + 3 * stride, stride, mask)
    c = load3(pointer + 6 * stride, stride, mask)
    return (a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2])


@triton.jit
def store9(pointer, stride, a, mask):
    """Nine values `stride` apart."""
    for e in tl.static_range(9):
        tl.store(pointer + e * stride, a[e], mask=mask)


@triton.jit
def gather3(v, index):
    """Three values of other lanes."""
    return (tl.gather(v[0], index, 0), tl.gather(v[1], index, 0), tl.gather(v[2], index, 0))


@triton.jit
def gather9(a, index):
    """Nine values of other lanes."""
    x = gather3((a[0], a[1], a[2]), index)
    y = gather3((a[3], a[4], a[5]), index)
    z = gather3((a[6], a[7], a[8]), index)
    return (x[0], x[1], x[2], y[0], y[1], y[2], z[0], z[1], z[2])


@triton.jit
def identity_where(still, a):
    """The identity where `still`, a elsewhere."""
    return (
        tl.where(still, 1.0, a[0]),
        tl.where(still, 0.0, a[1]),
        tl.where(still, 0.0, a[2]),
        tl.where(still, 0.0, a[3]),
        tl.where(still, 1.0, a[4]),
        tl.where(still, 0.0, a[5]),
        tl.where(still, 0.0, a[6]),
        tl.where(still, 0.0, a[7]),
        tl.where(still, 1.0, a[8]),
    )


@triton.jit
def rotation_about_axis(axis, angle):
    """Rotation by |axis| angle about axis (an axis need not have unit length)."""
    length = tl.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    x, y, z = axis[0] / length, axis[1] / length, axis[2] / length
    c, s = tl.cos(length * angle), tl.sin(length * angle)
    v = 1.0 - c
    return (
        c + x * x * v,
        x * y * v - z * s,
        x * z * v + y * s,
        x * y * v + z * s,
        c + y * y * v,
        y * z * v - x * s,
        x * z * v - y * s,
        y * z * v + x * s,
        c + z * z * v,
    )


@triton.jit
def arc(length, angle):
    """End of a constant-curvature arc and its derivative: X, Y, dX, dY."""
    small = tl.abs(angle) < 2e-2
    t = tl.where(small, 1.0, angle)
    c, s = tl.cos(t), tl.sin(t)
    a2 = angle * angle
    x = tl.where(small, angle * (0.5 - a2 / 24.0 + a2 * a2 / 720.0), (1.0 - c) / t)
    y = tl.where(small, 1.0 - a2 / 6.0 + a2 * a2 / 120.0, s / t)
    dx = tl.where(small, 0.5 - a2 / 8.0 + a2 * a2 / 144.0, (t * s - (1.0 - c)) / (t * t))
    dy = tl.where(small, angle * (-1.0 / 3.0 + a2 / 30.0 - a2 * a2 / 840.0), (t * c - s) / (t * t))
    return length * x, length * y, length * dx, length * dy


@triton.jit
def atan2(y, x):
    """atan2, 0 at the origin: a polynomial good to 1e-5, then one step that makes it exact."""
    ax, ay = tl.abs(x), tl.abs(y)
    large, small = tl.maximum(ax, ay), tl.minimum(ax, ay)
    lost = large == 0.0
    t = small / tl.where(lost, 1.0, large)
    u = t * t
    angle = 0.180141 + u * (-0.085133 + u * 0.0208351)
    angle = t * (0.999866 + u * (-0.3302995 + u * angle))
    angle = tl.where(ay > ax, -angle + 0.5 * _PI, angle)
    angle = tl.where(x < 0.0, -angle + _PI, angle)
    angle = tl.where(y < 0.0, -angle, angle)
    length = tl.where(lost, 1.0, tl.sqrt(x * x + y * y))
    miss = (y * tl.cos(angle) - x * tl.sin(angle)) / length
    return tl.where(lost, 0.0, angle + miss * (1.0 + miss * miss / 6.0))


# --- the bones of one row -------------------------------------------------------------------


@triton.jit
def chain(rotation, position, ancestors, JUMPS: tl.constexpr):
    """World rotations and positions from those seen from the parent, by doubling: after a jump a
    lane knows its way twice as far up. ancestors (JUMPS, 32) lanes."""
    lane = tl.arange(0, LANES)
    for jump in tl.static_range(JUMPS):
        index = tl.load(ancestors + jump * LANES + lane)
        above, place = gather9(rotation, index), gather3(position, index)
        moved = turn(above, position)
        position = (place[0] + moved[0], place[1] + moved[1], place[2] + moved[2])
        rotation = multiply(above, rotation)
    return rotation, position


@triton.jit
def _offset(lane, parent, q, joints, lengths):
    """Local translation of each joint, and its derivatives by the first two of its angles."""
    inside = lane < 24
    rest = load3(joints + 3 * lane, 1, inside)
    above = load3(joints + 3 * parent, 1, parent < 24)
    x, y, z = rest[0] - above[0], rest[1] - above[1], rest[2] - above[2]
    spine = (lane >= 11) & (lane <= 13)
    length = tl.load(lengths + lane - 11, mask=spine, other=0.0)
    x0, y0, dx0, dy0 = arc(length, q[0])
    x1, y1, dx1, dy1 = arc(length, q[1])
    right, scapula = lane == 14, (lane == 14) | (lane == 19)
    side = tl.where(right, 1.0, -1.0).to(tl.float64)
    w, h = 0.25 * tl.load(lengths + 3), 0.5 * tl.load(lengths + 4)
    abduction, elevation = side * q[0], side * q[1] - 0.25 * _PI
    ca, sa = tl.cos(abduction), tl.sin(abduction)
    ce, se = tl.cos(elevation), tl.sin(elevation)
    offset = (
        x - x0 + tl.where(scapula, -side * w * (ce * ca - _ROOT_HALF), 0.0),
        y + (y0 + y1 - 2.0 * length) + tl.where(scapula, -h * (se + _ROOT_HALF), 0.0),
        z - x1 + tl.where(scapula, w * sa, 0.0),
    )
    first = (
        tl.where(scapula, w * ce * sa, -dx0),
        tl.where(scapula, 0.0, dy0),
        tl.where(scapula, side * w * ca, 0.0),
    )
    second = (
        tl.where(scapula, w * se * ca, 0.0),
        tl.where(scapula, -side * h * ce, dy1),
        tl.where(scapula, 0.0, -dx1),
    )
    return rest, offset, first, second


@triton.jit
def bones(q, joints, frames, lengths, axes, slots, ancestors, JUMPS: tl.constexpr):
    """Bones of one row at parameters q (64,).

    joints, frames, lengths: pointers to the row's; axes (3,3,32): slot, component, joint; slots
    (3,32): the parameters of each joint. Returns per joint: rest position, local rotation, world
    rotation and position, the parent's world rotation, the axes of its three angles seen from the
    parent, and what its first two angles do to its own offset.
    """
    lane = tl.arange(0, LANES)
    inside, parent = lane < 24, tl.load(ancestors + lane)
    angles = (
        tl.gather(q, tl.load(slots + lane), 0),
        tl.gather(q, tl.load(slots + LANES + lane), 0),
        tl.gather(q, tl.load(slots + 2 * LANES + lane), 0),
    )
    axis0 = load3(axes + lane, LANES, lane < LANES)
    axis1 = load3(axes + 3 * LANES + lane, LANES, lane < LANES)
    axis2 = load3(axes + 6 * LANES + lane, LANES, lane < LANES)
    frame = load9(frames + 9 * lane, 1, inside)
    outer = rotation_about_axis(axis2, angles[2])
    inner = multiply(outer, rotation_about_axis(axis1, angles[1]))
    whole = multiply(inner, rotation_about_axis(axis0, angles[0]))
    local = identity_where(lane >= 24, multiply(multiply(frame, whole), transposed(frame)))
    first = turn(frame, turn(inner, axis0))
    second = turn(frame, turn(outer, axis1))
    third = turn(frame, axis2)
    rest, offset, speed0, speed1 = _offset(lane, parent, angles, joints, lengths)
    # the root's translation: parameters 46, 47, 48
    root = lane == 0
    offset = (
        offset[0] + tl.where(root, tl.gather(q, lane * 0 + 46, 0), 0.0),
        offset[1] + tl.where(root, tl.gather(q, lane * 0 + 47, 0), 0.0),
        offset[2] + tl.where(root, tl.gather(q, lane * 0 + 48, 0), 0.0),
    )
    rotation, position = chain(local, offset, ancestors, JUMPS)
    above = gather9(rotation, parent)
    return rest, local, rotation, position, above, first, second, third, speed0, speed1


@triton.jit
def skinning_shift(rotation, position, rest):
    """Last column of the skinning transforms: p - R J."""
    moved = turn(rotation, rest)
    return (position[0] - moved[0], position[1] - moved[1], position[2] - moved[2])


@triton.jit
def load_parameters(pointer):
    """(64,) parameters of one row, 0 behind them."""
    d = tl.arange(0, SLOTS)
    return tl.load(pointer + d, mask=d < 49, other=0.0)


@triton.jit
def _store_transforms(out, row, n, rotation, shift):
    """(24,12,n) column `row`, of the output's dtype."""
    lane = tl.arange(0, LANES)
    inside = lane < 24
    to = out + 12 * n * lane.to(tl.int64) + row
    for i in tl.static_range(3):
        for c in tl.static_range(3):
            tl.store(to + (4 * i + c) * n, rotation[3 * i + c], mask=inside)
        tl.store(to + (4 * i + 3) * n, shift[i], mask=inside)


@triton.jit
def _store_features(out, betas, local, place, row, used, size):
    """Row of (n, 1+K+207): 1, betas and R - I of the joints with a place."""
    lane, k = tl.arange(0, LANES), tl.arange(0, LANES)
    to = out + row * (1 + size + 207)
    tl.store(to + k, (k == 0).to(tl.float64), mask=k == 0)
    tl.store(to + 1 + k, tl.load(betas + row * size + k, mask=k < size), mask=k < size)
    for e in tl.static_range(9):
        value = local[e] - 1.0 if e % 4 == 0 else local[e]
        tl.store(to + 1 + size + 9 * place + e, value, mask=used & (lane < 24))


@triton.jit
def pose_bones(
    poses, betas, joints, frames, lengths, axes, slots, ancestors, feature_of_joint,
    feature_source, transforms, features, n, size, JUMPS: tl.constexpr,
):  # fmt: skip
    """Skinning transforms (24,12,n) and features (n,1+K+207) of poses (n,49); 0 for the joints that
    SKEL lacks: feature_source (32,) is -1 there."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    q = load_parameters(poses + 49 * row)
    rest, local, rotation, position, _, _, _, _, _, _ = bones(
        q, joints + 72 * row, frames + 216 * row, lengths + 5 * row, axes, slots, ancestors, JUMPS
    )
    _store_transforms(transforms, row, n, rotation, skinning_shift(rotation, position, rest))
    place = tl.load(feature_of_joint + lane)
    _store_features(features, betas, local, place, row, place >= 0, size)
    lacking = (lane < 23) & (tl.load(feature_source + lane) < 0)
    for e in tl.static_range(9):
        to = features + row * (1 + size + 207) + 1 + size + 9 * lane + e
        tl.store(to, lane.to(tl.float64) * 0.0, mask=lacking)


@triton.jit
def extra_energy(
    poses, joints, frames, lengths, axes, slots, ancestors, prior, joint_masses, joint_targets,
    out, JUMPS: tl.constexpr,
):  # fmt: skip
    """Joint and prior terms (n,) of the objective."""
    row = tl.program_id(0).to(tl.int64)
    q = load_parameters(poses + 49 * row)
    made = bones(
        q, joints + 72 * row, frames + 216 * row, lengths + 5 * row, axes, slots, ancestors, JUMPS
    )
    value = extra_of(q, made[3], prior, joint_masses, joint_targets + 72 * row)
    tl.store(out + row, value)


@triton.jit
def extra_of(q, position, prior, joint_masses, joint_targets):
    """Joint and prior terms of one row at a pose with these joint positions."""
    lane = tl.arange(0, LANES)
    target = load3(joint_targets + 3 * lane, 1, lane < 24)
    x, y, z = position[0] - target[0], position[1] - target[1], position[2] - target[2]
    joint = tl.sum(tl.load(joint_masses + lane) * (x * x + y * y + z * z), 0)
    return joint + tl.sum(tl.load(prior + tl.arange(0, SLOTS)) * q * q, 0)


@triton.jit
def shaped_joints(joint, template, directions, betas, size):
    """Rest positions of joints (32,), 0 beyond the last; betas: the row's."""
    inside = joint < 24
    rest = load3(template + 3 * joint, 1, inside)
    for k in range(size):
        beta = tl.load(betas + k)
        along = load3(directions + 3 * size * joint + k, size, inside)
        rest = (rest[0] + along[0] * beta, rest[1] + along[1] * beta, rest[2] + along[2] * beta)
    return rest


@triton.jit
def _minimal_rotation(a, b):
    """Smallest rotation from direction a to direction b; zero where one has no length."""
    la = tl.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])
    lb = tl.sqrt(b[0] * b[0] + b[1] * b[1] + b[2] * b[2])
    defined = ((la > 0.0) & (lb > 0.0)).to(tl.float64)
    la, lb = tl.where(la > 0.0, la, 1.0), tl.where(lb > 0.0, lb, 1.0)
    a = (a[0] / la, a[1] / la, a[2] / la)
    b = (b[0] / lb, b[1] / lb, b[2] / lb)
    x, y = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2]
    z = a[0] * b[1] - a[1] * b[0]
    cosine = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    square = tl.maximum(x * x + y * y + z * z, 1e-30)
    f = tl.where(cosine > 0.0, 1.0 / (1.0 + tl.maximum(cosine, 0.0)), (1.0 - cosine) / square)
    return (
        defined * (1.0 - f * (y * y + z * z)),
        defined * (f * x * y - z),
        defined * (f * x * z + y),
        defined * (f * x * y + z),
        defined * (1.0 - f * (x * x + z * z)),
        defined * (f * y * z - x),
        defined * (f * x * z - y),
        defined * (f * y * z + x),
        defined * (1.0 - f * (x * x + y * y)),
    )


@triton.jit
def _of_lane(values, lane, wanted):
    """The value of one lane."""
    return tl.sum(tl.where(lane == wanted, values, 0.0), 0)


@triton.jit
def identity(
    betas, template, directions, ancestors, aligned, bone_sum, bone_source, rest_frames,
    joints, frames, lengths, size,
):  # fmt: skip
    """Rest joints (n,24,3), joint frames (n,24,3,3) and lengths (n,5) of betas (n,K).

    bone_sum (32,32): which offsets make up each bone's direction."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside, parent = lane < 24, tl.load(ancestors + lane)
    rest = shaped_joints(lane, template, directions, betas + row * size, size)
    above = shaped_joints(parent, template, directions, betas + row * size, size)
    x, y, z = rest[0] - above[0], rest[1] - above[1], rest[2] - above[2]
    summed = tl.load(bone_sum + LANES * lane[:, None] + lane[None, :])
    target = (
        tl.sum(summed * x[None, :], 1),
        tl.sum(summed * y[None, :], 1),
        tl.sum(summed * z[None, :], 1),
    )
    turned = _minimal_rotation(load3(bone_source + 3 * lane, 1, inside), target)
    still = (tl.load(aligned + lane, mask=inside, other=0) == 0) | (lane >= 24)
    frame = multiply(identity_where(still, turned), load9(rest_frames + 9 * lane, 1, inside))
    for c in tl.static_range(3):
        tl.store(joints + 72 * row + 3 * lane + c, rest[c], mask=inside)
    store9(frames + 216 * row + 9 * lane, 1, frame, inside)
    spine = (lane >= 11) & (lane <= 13)
    tl.store(lengths + 5 * row + lane - 11, tl.abs(y), mask=spine)
    wide, high = row.to(tl.float64) * 0.0, row.to(tl.float64) * 0.0
    for c in tl.static_range(3):
        across = _of_lane(rest[c], lane, 19) - _of_lane(rest[c], lane, 14)
        up = _of_lane(rest[c], lane, 12) - _of_lane(rest[c], lane, 11)
        wide, high = wide + across * across, high + up * up
    tl.store(lengths + 5 * row + 3, tl.sqrt(wide))
    tl.store(lengths + 5 * row + 4, tl.sqrt(high))


@triton.jit
def pose_smpl(
    poses, betas, template, directions, ancestors,
    joints, rotations, transforms, features, n, size, JUMPS: tl.constexpr,
):  # fmt: skip
    """SMPL kinematics of poses (n,72) with the global orientation left out: rest joints (n,24,3),
    world rotations (n,24,3,3), transforms (24,12,n), features (n,1+K+207)."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside, parent = lane < 24, tl.load(ancestors + lane)
    rest = shaped_joints(lane, template, directions, betas + row * size, size)
    above = shaped_joints(parent, template, directions, betas + row * size, size)
    v = load3(poses + 72 * row + 3 * lane, 1, inside & (lane > 0))
    # the angle of a vector of length zero: any axis does
    angle = tl.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    still = angle < 1e-150
    axis = (tl.where(still, 1.0, v[0]), tl.where(still, 0.0, v[1]), tl.where(still, 0.0, v[2]))
    local = rotation_about_axis(axis, tl.where(still, 0.0, 1.0).to(tl.float64))
    offset = (rest[0] - above[0], rest[1] - above[1], rest[2] - above[2])
    rotation, position = chain(local, offset, ancestors, JUMPS)
    for c in tl.static_range(3):
        tl.store(joints + 72 * row + 3 * lane + c, rest[c], mask=inside)
    store9(rotations + 216 * row + 9 * lane, 1, rotation, inside)
    _store_transforms(transforms, row, n, rotation, skinning_shift(rotation, position, rest))
    _store_features(features, betas, local, lane - 1, row, lane > 0, size)


# --- the closed-form start ------------------------------------------------------------------


@triton.jit
def _violation(value, low, high):
    excess = tl.maximum(tl.maximum(low - value, value - high), 0.0)
    return excess * excess


@triton.jit
def _wrapped(angle):
    """An angle of at most three half turns without whole turns."""
    return tl.where(angle > _PI, angle - 2.0 * _PI, angle)


@triton.jit
def _clamped(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _about_one_axis(wanted, axis):
    """Angle about an axis nearest to a rotation (nine values)."""
    sine = (
        axis[0] * (wanted[7] - wanted[5])
        + axis[1] * (wanted[2] - wanted[6])
        + axis[2] * (wanted[3] - wanted[1])
    )
    carried = turn(wanted, axis)
    along = axis[0] * carried[0] + axis[1] * carried[1] + axis[2] * carried[2]
    return atan2(sine, wanted[0] + wanted[4] + wanted[8] - along)


@triton.jit
def _euler(wanted, stride, a, b, c):
    """x, y, z with R_a(x) R_b(y) R_c(z) the rotation stored at `wanted`; axes are scalars."""
    parity = tl.where((a + 1) % 3 == b, 1.0, -1.0).to(tl.float64)
    aa, ab = tl.load(wanted + (4 * a) * stride), tl.load(wanted + (3 * a + b) * stride)
    ac, bb = tl.load(wanted + (3 * a + c) * stride), tl.load(wanted + (4 * b) * stride)
    bc, cb = tl.load(wanted + (3 * b + c) * stride), tl.load(wanted + (3 * c + b) * stride)
    cc = tl.load(wanted + (4 * c) * stride)
    cosine = tl.sqrt(aa * aa + ab * ab)
    clear = cosine > 1e-7
    y = atan2(parity * ac, cosine)
    z = tl.where(clear, atan2(-parity * ab, aa), 0.0)
    x = tl.where(clear, atan2(-parity * bc, cc), atan2(parity * cb, bb))
    return x, y, z


@triton.jit
def start_poses(
    rotations, frames, lower, upper, branch, axes, slots, ancestors, euler, euler_sign,
    poses, scratch, n, ROWS: tl.constexpr,
):  # fmt: skip
    """Closed-form start: the wanted world rotations (n,24,3,3) projected onto the joints, root to
    leaves. Here a lane is a row. scratch (25,9,n): world rotations, and the one wanted."""
    lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = lane < n
    row = lane.to(tl.int64)
    zero = tl.zeros((ROWS,), tl.float64)
    still = identity_where(row >= 0, (zero, zero, zero, zero, zero, zero, zero, zero, zero))
    store9(scratch + row, n, still, here)
    for d in range(49):
        tl.store(poses + 49 * row + d, zero, mask=here)
    for j in range(1, 24):
        tl.debug_barrier()
        parent = tl.load(ancestors + j)
        above = load9(scratch + 9 * n * parent + row, n, here)
        frame = load9(frames + 216 * row + 9 * j, 1, here)
        goal = multiply(transposed(above), load9(rotations + 216 * row + 9 * j, 1, here))
        wanted = multiply(transposed(frame), multiply(goal, frame))
        store9(scratch + 216 * n + row, n, wanted, here)
        tl.debug_barrier()
        # as vectors: a mask of lanes is one
        first, second = tl.load(slots + j + 0 * lane), tl.load(slots + 32 + j + 0 * lane)
        third = tl.load(slots + 64 + j + 0 * lane)
        axis0 = (tl.load(axes + j), tl.load(axes + 32 + j), tl.load(axes + 64 + j))
        axis1 = (tl.load(axes + 96 + j), tl.load(axes + 128 + j), tl.load(axes + 160 + j))
        axis2 = (tl.load(axes + 192 + j), tl.load(axes + 224 + j), tl.load(axes + 256 + j))
        one, two, three = second == 63, (second < 63) & (third == 63), third < 63
        x, y, z = _euler(
            scratch + 216 * n + row,
            n,
            tl.load(euler + 3 * j),
            tl.load(euler + 3 * j + 1),
            tl.load(euler + 3 * j + 2),
        )
        sign_x, sign_y = tl.load(euler_sign + 3 * j), tl.load(euler_sign + 3 * j + 1)
        sign_z = tl.load(euler_sign + 3 * j + 2)
        z1, y1 = sign_z * _wrapped(z + _PI), sign_y * _wrapped(-y + _PI)
        x1 = sign_x * _wrapped(x + _PI)
        x, y, z = sign_x * x, sign_y * y, sign_z * z
        # limits of the padding are infinite
        low0, high0 = tl.load(lower + first), tl.load(upper + first)
        low1, high1 = tl.load(lower + second), tl.load(upper + second)
        low2, high2 = tl.load(lower + third), tl.load(upper + third)
        cost = _violation(z, low0, high0) + _violation(y, low1, high1) + _violation(x, low2, high2)
        other = (
            _violation(z1, low0, high0) + _violation(y1, low1, high1) + _violation(x1, low2, high2)
        )
        switch = three & ((other < cost) != (tl.load(branch + j) == 1))
        angle0 = tl.where(one, _about_one_axis(wanted, axis0), tl.where(switch, z1, z))
        angle1 = tl.where(two, x, tl.where(switch, y1, y))
        angle2 = tl.where(switch, x1, x)
        angle0 = _clamped(angle0, low0, high0)
        angle1 = tl.where(one, 0.0, _clamped(angle1, low1, high1))
        angle2 = tl.where(three, _clamped(angle2, low2, high2), 0.0)
        tl.store(poses + 49 * row + first, angle0, mask=here)
        tl.store(poses + 49 * row + second, angle1, mask=here & (second < 63))
        tl.store(poses + 49 * row + third, angle2, mask=here & (third < 63))
        turned = multiply(rotation_about_axis(axis1, angle1), rotation_about_axis(axis0, angle0))
        turned = multiply(rotation_about_axis(axis2, angle2), turned)
        local = multiply(multiply(frame, turned), transposed(frame))
        store9(scratch + 9 * n * j + row, n, multiply(above, local), here)
