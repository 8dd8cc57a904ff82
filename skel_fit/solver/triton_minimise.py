"""The inner solver in Triton: Levenberg-Marquardt on 24 bone transforms, a program is a row.

Twins of the same names: `numba_minimise`, `search_torch`, `curvature`, `box_step`; theory:
docs/solver.md. The matrix of a row (64x64, padded) stays in registers from its making to the step;
vectors of joints cross over to parameters, and bones to their neighbours, through a few kilobytes
of scratch. How many steps a row takes is decided where it runs: nothing asks the host.
"""

# mypy: disable-error-code="assignment"
# Triton grows tuples in place.

from __future__ import annotations

import triton
import triton.language as tl

from skel_fit.solver.triton_kinematics import (
    LANES,
    SLOTS,
    bones,
    extra_of,
    load3,
    load9,
    load_parameters,
    multiply,
    skinning_shift,
    transposed,
    turn,
)

_FRESH_CURVATURE = tl.constexpr(0.1)
_TRIES = tl.constexpr(6)
_PASSES = tl.constexpr(8)

# Places in a row's scratch, in lanes of 32 joints.
_TRANSFORMS = tl.constexpr(0)  # 16: current transforms, with the row 0 0 0 1
_START = tl.constexpr(16)  # 12: transforms at the start of the round
_LOCAL = tl.constexpr(28)  # 9: local rotations there
_CHANGE = tl.constexpr(37)  # 12: current transforms less those of the start
_SUMS = tl.constexpr(49)  # 9: subtree torque and force, pull on the correctives
_TWISTS = tl.constexpr(58)  # 12 x 64: [skew(a) | e] of each parameter
_LOCAL_AXES = tl.constexpr(82)  # 3 x 64: axes seen from the parent
SCRATCH = 88 * 32
"""float64 values of scratch of one row."""


@triton.jit
def keep_best(
    poses, energy, moments, corrective, active, joints, frames, lengths, axes, slots, ancestors,
    prior, joint_masses, joint_targets,
    best_poses, best_energy, best_moments, best_corrective, damping, failures,
    n, JUMPS: tl.constexpr,
):  # fmt: skip
    """Each active row's candidate becomes its best where its objective is no higher, and raises the
    damping elsewhere. moments (24,12,n) and corrective (207,n) of the fit's dtype, energy (n,)."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    if tl.load(active + row).to(tl.int32) != 0:
        q = load_parameters(poses + 49 * row)
        made = bones(
            q,
            joints + 72 * row,
            frames + 216 * row,
            lengths + 5 * row,
            axes,
            slots,
            ancestors,
            JUMPS,
        )
        extra = extra_of(q, made[3], prior, joint_masses, joint_targets + 72 * row)
        total = tl.load(energy + row) + extra
        if total <= tl.load(best_energy + row):
            tl.store(best_energy + row, total)
            d = tl.arange(0, SLOTS)
            tl.store(best_poses + 49 * row + d, q, mask=d < 49)
            for e in tl.static_range(12):
                value = tl.load(moments + (12 * lane + e) * n + row, mask=lane < 24, other=0.0)
                to = best_moments + 288 * row + 12 * lane + e
                tl.store(to, value.to(tl.float64), mask=lane < 24)
            f = tl.arange(0, 256)
            value = tl.load(corrective + f * n + row, mask=f < 207, other=0.0)
            tl.store(best_corrective + 207 * row + f, value.to(tl.float64), mask=f < 207)
        else:
            tl.store(failures + row, tl.load(failures + row) + 1)
            tl.store(damping + row, tl.maximum(30.0 * tl.load(damping + row), 1e-3))


@triton.jit
def unsettled(active, step_size, failures, out, n, TOLERANCE: tl.constexpr, ROWS: tl.constexpr):
    """Which active rows moved by more than the tolerance and have not failed three times."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    moves = tl.load(step_size + row, mask=here, other=0.0) > TOLERANCE
    hopes = tl.load(failures + row, mask=here, other=3) < 3
    left = (tl.load(active + row, mask=here, other=0) != 0) & moves & hopes
    tl.store(out + row, left, mask=here)


# --- evaluation of the model ----------------------------------------------------------------


@triton.jit
def _put(scratch, place, values, COUNT: tl.constexpr):
    """Store COUNT vectors of joints at a place of the scratch."""
    lane = tl.arange(0, LANES)
    for e in tl.static_range(COUNT):
        tl.store(scratch + (place + e) * 32 + lane, values[e])


@triton.jit
def _with_shift(rotation, shift):
    """The twelve elements of 3x4 transforms."""
    return (
        rotation[0], rotation[1], rotation[2], shift[0],
        rotation[3], rotation[4], rotation[5], shift[1],
        rotation[6], rotation[7], rotation[8], shift[2],
    )  # fmt: skip


@triton.jit
def _times_moments(scratch, moments, neighbours, pair_of_neighbour, DEGREE: tl.constexpr):
    """change M (24,3,4) as twelve vectors of joints; the change is read from the scratch.

    neighbours (32,DEGREE): bones that share vertices with a bone, -1 behind the last; moments: the
    row's (P,10)."""
    at = tl.arange(0, LANES)[:, None] * DEGREE + tl.arange(0, DEGREE)[None, :]
    other, pair = tl.load(neighbours + at), tl.load(pair_of_neighbour + at)
    there = other >= 0
    m = moments + 10 * pair
    m00 = tl.load(m, mask=there, other=0.0)
    m01 = tl.load(m + 1, mask=there, other=0.0)
    m02 = tl.load(m + 2, mask=there, other=0.0)
    m03 = tl.load(m + 3, mask=there, other=0.0)
    m11 = tl.load(m + 4, mask=there, other=0.0)
    m12 = tl.load(m + 5, mask=there, other=0.0)
    m13 = tl.load(m + 6, mask=there, other=0.0)
    m22 = tl.load(m + 7, mask=there, other=0.0)
    m23 = tl.load(m + 8, mask=there, other=0.0)
    m33 = tl.load(m + 9, mask=there, other=0.0)
    change = scratch + _CHANGE * 32 + other
    out = ()
    for i in tl.static_range(3):
        a0 = tl.load(change + (4 * i) * 32, mask=there, other=0.0)
        a1 = tl.load(change + (4 * i + 1) * 32, mask=there, other=0.0)
        a2 = tl.load(change + (4 * i + 2) * 32, mask=there, other=0.0)
        a3 = tl.load(change + (4 * i + 3) * 32, mask=there, other=0.0)
        out = out + (
            tl.sum(a0 * m00 + a1 * m01 + a2 * m02 + a3 * m03, 1),
            tl.sum(a0 * m01 + a1 * m11 + a2 * m12 + a3 * m13, 1),
            tl.sum(a0 * m02 + a1 * m12 + a2 * m22 + a3 * m23, 1),
            tl.sum(a0 * m03 + a1 * m13 + a2 * m23 + a3 * m33, 1),
        )
    return out


@triton.jit
def _sum_below(values, end):
    """Sums (32,) of values over each joint's subtree, joints [j, end_j)."""
    joint, below = tl.arange(0, LANES)[:, None], tl.arange(0, LANES)[None, :]
    inside = (below >= joint) & (below < end[:, None])
    return tl.sum(tl.where(inside, values[None, :], 0.0), 1)


@triton.jit
def _gradient(scratch, force, pull, q, end, owner, free, prior):
    """Half the gradient (64,): `force` (3x4 as twelve vectors) is change M + C with its joint
    terms, `pull` what the exact term of the correctives adds per joint. Transforms and twists are
    read from the scratch."""
    lane, d = tl.arange(0, LANES), tl.arange(0, SLOTS)
    a = scratch + _TRANSFORMS * 32 + lane
    s = ()
    for i in tl.static_range(3):
        for c in tl.static_range(3):
            s = s + (
                force[4 * i] * tl.load(a + (4 * c) * 32)
                + force[4 * i + 1] * tl.load(a + (4 * c + 1) * 32)
                + force[4 * i + 2] * tl.load(a + (4 * c + 2) * 32)
                + force[4 * i + 3] * tl.load(a + (4 * c + 3) * 32),
            )
    sums = (
        _sum_below(s[7] - s[5], end),
        _sum_below(s[2] - s[6], end),
        _sum_below(s[3] - s[1], end),
        _sum_below(force[3], end),
        _sum_below(force[7], end),
        _sum_below(force[11], end),
        pull[0],
        pull[1],
        pull[2],
    )
    tl.debug_barrier()
    _put(scratch, _SUMS, sums, 9)
    tl.debug_barrier()
    at = scratch + _SUMS * 32 + owner
    twist = scratch + _TWISTS * 32 + d
    axis = scratch + _LOCAL_AXES * 32 + d
    gradient = (
        tl.load(twist + 9 * 64) * tl.load(at)
        + tl.load(twist + 2 * 64) * tl.load(at + 32)
        + tl.load(twist + 4 * 64) * tl.load(at + 64)
        + tl.load(twist + 3 * 64) * tl.load(at + 96)
        + tl.load(twist + 7 * 64) * tl.load(at + 128)
        + tl.load(twist + 11 * 64) * tl.load(at + 160)
    )
    for c in tl.static_range(3):
        gradient += tl.load(axis + c * 64) * tl.load(at + (6 + c) * 32)
    return tl.where(free, gradient + prior * q, 0.0)


@triton.jit
def _curvature(scratch, moments, pair_of, rest, joint_mass, end, owner, free, prior):
    """Half the Gauss-Newton matrix (64,64): sum over c, d of S_p[:,c] U[c,d] S_r[:,d] with U the
    subtree sums of A_k M_kl A_l^T and S the twists, which the scratch holds with the transforms.

    pair_of (32,32): the moments' place, -1 where two bones share no vertex."""
    lane = tl.arange(0, LANES)
    k, l = lane[:, None], lane[None, :]
    pair = tl.load(pair_of + 32 * k + l)
    there = pair >= 0
    m = moments + 10 * pair
    mass = tl.where(k == l, joint_mass[:, None], 0.0)
    # joints are points of their own bones: rank-one moments on the diagonal
    j0, j1, j2 = rest[0][:, None], rest[1][:, None], rest[2][:, None]
    ends = tl.broadcast_to(end[:, None], (LANES, LANES))
    ends_across = tl.broadcast_to(end[None, :], (LANES, LANES))
    rows = tl.broadcast_to(owner[:, None], (SLOTS, LANES))
    columns = tl.broadcast_to(owner[None, :], (SLOTS, SLOTS))
    a = scratch + _TRANSFORMS * 32
    parameter = tl.arange(0, SLOTS)
    twists = scratch + _TWISTS * 32
    matrix = tl.zeros((SLOTS, SLOTS), tl.float64)
    for d in range(4):
        across = a + (4 * d) * 32 + l
        a0, a1, a2 = tl.load(across), tl.load(across + 32), tl.load(across + 64)
        a3 = tl.load(across + 96)
        m01 = tl.load(m + 1, mask=there, other=0.0) + mass * j0 * j1
        m02 = tl.load(m + 2, mask=there, other=0.0) + mass * j0 * j2
        m03 = tl.load(m + 3, mask=there, other=0.0) + mass * j0
        m12 = tl.load(m + 5, mask=there, other=0.0) + mass * j1 * j2
        m13 = tl.load(m + 6, mask=there, other=0.0) + mass * j1
        m23 = tl.load(m + 8, mask=there, other=0.0) + mass * j2
        m00 = tl.load(m, mask=there, other=0.0) + mass * j0 * j0
        m11 = tl.load(m + 4, mask=there, other=0.0) + mass * j1 * j1
        m22 = tl.load(m + 7, mask=there, other=0.0) + mass * j2 * j2
        m33 = tl.load(m + 9, mask=there, other=0.0) + mass
        h0 = m00 * a0 + m01 * a1 + m02 * a2 + m03 * a3
        h1 = m01 * a0 + m11 * a1 + m12 * a2 + m13 * a3
        h2 = m02 * a0 + m12 * a1 + m22 * a2 + m23 * a3
        h3 = m03 * a0 + m13 * a1 + m23 * a2 + m33 * a3
        for c in range(4):
            down = a + (4 * c) * 32 + k
            u = tl.load(down) * h0 + tl.load(down + 32) * h1
            u += tl.load(down + 64) * h2 + tl.load(down + 96) * h3
            # a subtree is a run of joints: sums from each joint on, less those from its end on
            u = tl.cumsum(u, 0, reverse=True)
            u = u - tl.gather(u, ends, 0)
            u = tl.cumsum(u, 1, reverse=True)
            u = u - tl.gather(u, ends_across, 1)
            wide = tl.gather(tl.gather(u, rows, 0), columns, 1)
            outer = tl.zeros((SLOTS, SLOTS), tl.float64)
            for i in tl.static_range(3):
                left = tl.load(twists + (4 * i + c) * 64 + parameter)
                right = tl.load(twists + (4 * i + d) * 64 + parameter)
                outer += left[:, None] * right[None, :]
            matrix += outer * wide
    matrix = tl.where(free[:, None] & free[None, :], matrix, 0.0)
    same = parameter[:, None] == parameter[None, :]
    return matrix + tl.where(same & free[:, None], prior[:, None], 0.0)


# --- one damped step ------------------------------------------------------------------------


@triton.jit
def _solve(matrix, extra, right, held, first, last):
    """x (64,) of (matrix + diag extra) x = right with the held unknowns taken out, by elimination
    upwards and downwards at once; pivots are floored. Unknowns outside [first, last) are held."""
    i = tl.arange(0, SLOTS)
    r, c = i[:, None], i[None, :]
    same = r == c
    a = tl.where(held[:, None] | held[None, :], 0.0, matrix)
    a += tl.where(same, tl.where(held, 1.0, extra)[:, None], 0.0)
    x = tl.where(held, 0.0, right)
    pivots = x * 0.0 + 1.0
    for k in range(first, last):
        column = tl.sum(tl.where(c == k, a, 0.0), 1)
        pivot = tl.maximum(tl.sum(tl.where(i == k, column, 0.0), 0), 1e-16)
        value = tl.sum(tl.where(i == k, x, 0.0), 0)
        factor = tl.where(i == k, 0.0, column / pivot)
        # what is left of the matrix is symmetric: its row is its column
        a -= factor[:, None] * tl.where(i >= k, column, 0.0)[None, :]
        x -= factor * value
        pivots = tl.where(i == k, pivot, pivots)
    return x / pivots


@triton.jit
def dense_step(at, gradient, matrix, damping, lower, upper, free, first, last):
    """Damped step (64,) inside the limits: what it would carry over a bound is set to the bound and
    the others are solved once more."""
    i = tl.arange(0, SLOTS)
    diagonal = tl.sum(tl.where(i[:, None] == i[None, :], matrix, 0.0), 1)
    extra = damping * (diagonal + 1e-9)
    outward = ((at <= lower) & (gradient > 0.0)) | ((at >= upper) & (gradient < 0.0))
    held = outward | (free == 0)
    step, shifted = at * 0.0, gradient
    turns = 0
    while turns < _PASSES:
        solved = _solve(matrix, extra, -shifted, held, first, last)
        step = tl.where(held, step, solved)
        bound = tl.minimum(tl.maximum(at + step, lower), upper)
        crossed = (bound != at + step) & (held == 0)
        placed = tl.where(crossed, bound - at, 0.0)
        step = tl.where(crossed, placed, step)
        held = held | crossed
        shifted += tl.sum(matrix * placed[None, :], 1)
        any_crossed = tl.max(crossed.to(tl.int32), 0)
        turns = tl.where(any_crossed > 0, turns + 1, _PASSES)
    inside = tl.minimum(tl.maximum(at + step, lower), upper) - at
    return tl.where(free, inside, 0.0)


# --- one round of a row ---------------------------------------------------------------------


@triton.jit
def _put_twists(scratch, slots, lane, axis, local_axis, speed, position, SLOT: tl.constexpr):
    """Twist and local axis of the parameter that each joint has in one of its slots."""
    d = tl.load(slots + SLOT * 32 + lane)
    used = d < 49
    e0 = speed[0] - (axis[1] * position[2] - axis[2] * position[1])
    e1 = speed[1] - (axis[2] * position[0] - axis[0] * position[2])
    e2 = speed[2] - (axis[0] * position[1] - axis[1] * position[0])
    to = scratch + _TWISTS * 32 + d
    tl.store(to + 64, -axis[2], mask=used)
    tl.store(to + 2 * 64, axis[1], mask=used)
    tl.store(to + 3 * 64, e0, mask=used)
    tl.store(to + 4 * 64, axis[2], mask=used)
    tl.store(to + 6 * 64, -axis[0], mask=used)
    tl.store(to + 7 * 64, e1, mask=used)
    tl.store(to + 8 * 64, -axis[1], mask=used)
    tl.store(to + 9 * 64, axis[0], mask=used)
    tl.store(to + 11 * 64, e2, mask=used)
    for c in tl.static_range(3):
        tl.store(scratch + _LOCAL_AXES * 32 + c * 64 + d, local_axis[c], mask=used)


@triton.jit
def _clear(scratch):
    """Twists of the translation, zeros behind the parameters, the row 0 0 0 1 of transforms."""
    lane, d = tl.arange(0, LANES), tl.arange(0, SLOTS)
    zero = tl.zeros((SLOTS,), tl.float64)
    for e in tl.static_range(12):
        moves = (d == 46 + e // 4) & (e % 4 == 3)
        tl.store(scratch + _TWISTS * 32 + e * 64 + d, moves.to(tl.float64))
    for c in tl.static_range(3):
        tl.store(scratch + _LOCAL_AXES * 32 + c * 64 + d, zero)
    for e in tl.static_range(4):
        one = ((lane < 24) & (e == 3)).to(tl.float64)
        tl.store(scratch + (_TRANSFORMS + 12 + e) * 32 + lane, one)


@triton.jit
def minimise(
    active, joints, frames, lengths, pair_moments, joint_targets,
    axes, slots, ancestors, feature_of_joint, ends, owners,
    free, lower, upper, prior, joint_masses, neighbours, pair_of_neighbour, pair_of,
    poses, best_poses, best_moments, best_corrective, damping, step_size, steps, scratch,
    pairs, first, last, max_steps, TOLERANCE: tl.constexpr,
    DEGREE: tl.constexpr, JUMPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One round of each active row: Levenberg-Marquardt on the model around its best pose.

    poses (n,49) receives the next candidate; step_size (n,) its largest change from the best pose;
    steps (n,) counts. Only parameters in [first, last) are free."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(active + row).to(tl.int32) != 0:
        lane, d = tl.arange(0, LANES), tl.arange(0, SLOTS)
        inside = lane < 24
        scratch += row * SIZE
        joints += 72 * row
        frames += 216 * row
        lengths += 5 * row
        joint_targets += 72 * row
        best_moments += 288 * row
        best_corrective += 207 * row
        moments = pair_moments + row * pairs * 10
        end, owner = tl.load(ends + lane), tl.load(owners + d)
        moving = tl.load(free + d) != 0
        low, high, weight = tl.load(lower + d), tl.load(upper + d), tl.load(prior + d)
        joint_mass = tl.load(joint_masses + lane)
        place = tl.load(feature_of_joint + lane)
        corrected = (place >= 0) & inside
        b = load9(best_corrective + 9 * place, 1, corrected)
        _clear(scratch)
        start = load_parameters(best_poses + 49 * row)
        q, trial = start, start
        gradient, matrix = start * 0.0, tl.zeros((SLOTS, SLOTS), tl.float64)
        level = tl.load(damping + row)
        energy, largest = level * 0.0, level * 0.0
        done, fresh, tries, running = 0, 1, 0, 1
        while running > 0:
            tl.debug_barrier()
            rest, local, rotation, position, above, first_axis, second_axis, third_axis, v0, v1 = (
                bones(trial, joints, frames, lengths, axes, slots, ancestors, JUMPS)
            )
            shift = skinning_shift(rotation, position, rest)
            now = _with_shift(rotation, shift)
            if fresh > 0:
                _put(scratch, _START, now, 12)
                _put(scratch, _LOCAL, local, 9)
            tl.debug_barrier()
            for e in tl.static_range(12):
                before = tl.load(scratch + (_START + e) * 32 + lane)
                tl.store(scratch + (_CHANGE + e) * 32 + lane, now[e] - before)
            tl.debug_barrier()
            product = _times_moments(scratch, moments, neighbours, pair_of_neighbour, DEGREE)
            value = extra_of(trial, position, prior, joint_masses, joint_targets)
            for e in tl.static_range(12):
                change = tl.load(scratch + (_CHANGE + e) * 32 + lane)
                moment = tl.load(best_moments + 12 * lane + e, mask=inside, other=0.0)
                value += tl.sum(change * (product[e] + 2.0 * moment), 0)
            for e in tl.static_range(9):
                turned = local[e] - tl.load(scratch + (_LOCAL + e) * 32 + lane)
                value += 2.0 * tl.sum(tl.where(corrected, b[e] * turned, 0.0), 0)
            if (value <= energy) | (fresh > 0):
                # taken: the trial is where the row stands now
                energy, q, tries = value, trial, 0
                level = tl.where(fresh > 0, level, tl.maximum(0.2 * level, 1e-8))
                running = tl.where(
                    (fresh == 0) & ((largest < TOLERANCE) | (done >= max_steps)), 0, 1
                )
                if running > 0:
                    done += 1
                    _put(scratch, _TRANSFORMS, now, 12)
                    axis = turn(above, first_axis)
                    speed = turn(above, v0)
                    _put_twists(scratch, slots, lane, axis, first_axis, speed, position, 0)
                    axis = turn(above, second_axis)
                    speed = turn(above, v1)
                    _put_twists(scratch, slots, lane, axis, second_axis, speed, position, 1)
                    axis = turn(above, third_axis)
                    still = (v0[0] * 0.0, v0[0] * 0.0, v0[0] * 0.0)
                    _put_twists(scratch, slots, lane, axis, third_axis, still, position, 2)
                    w = multiply(b, transposed(local))
                    pull = (w[7] - w[5], w[2] - w[6], w[3] - w[1])
                    target = load3(joint_targets + 3 * lane, 1, inside)
                    force = ()
                    for i in tl.static_range(3):
                        miss = joint_mass * (position[i] - target[i])
                        for c in tl.static_range(4):
                            moment = tl.load(
                                best_moments + 12 * lane + 4 * i + c, mask=inside, other=0.0
                            )
                            if c < 3:
                                force = force + (moment + product[4 * i + c] + miss * rest[c],)
                            else:
                                force = force + (moment + product[4 * i + c] + miss,)
                    gradient = _gradient(scratch, force, pull, trial, end, owner, moving, weight)
                    if (fresh > 0) | (largest > _FRESH_CURVATURE):
                        matrix = _curvature(
                            scratch, moments, pair_of, rest, joint_mass, end, owner, moving, weight
                        )
                    fresh = 0
            else:
                level = tl.minimum(tl.maximum(10.0 * level, 1e-5), 1e4)
                tries += 1
                running = tl.where((largest < 0.1 * TOLERANCE) | (tries >= _TRIES), 0, 1)
            if running > 0:
                step = dense_step(q, gradient, matrix, level, low, high, moving, first, last)
                largest = tl.max(tl.abs(step), 0)
                trial = q + step
        tl.store(poses + 49 * row + d, q, mask=d < 49)
        tl.store(damping + row, level)
        tl.store(steps + row, tl.load(steps + row) + done)
        moved = tl.where(d < 49, tl.abs(q - start), 0.0)
        tl.store(step_size + row, tl.max(moved, 0))
