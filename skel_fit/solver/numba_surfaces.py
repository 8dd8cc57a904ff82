"""Bare meshes as goals, a row at a time (numba). Twins: `kernels_torch`.

A vertex of SKEL's skin is a weighted mean of three source vertices (`surfaces.Meshes`), taken in
float64 from meshes of any float type where it is needed: no mapped mesh is kept.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import JOINTS
from skel_fit.solver.tables import LANES

_SWEEPS = 12
_TILE = 1024


@njit(inline="always")
def _mapped(mesh, columns, shares, v):
    """x, y, z of SKEL's vertex v on the source mesh (V_source, 3)."""
    # unsigned: an index that may be negative costs a branch a load
    a, b, c = np.uint64(columns[v, 0]), np.uint64(columns[v, 1]), np.uint64(columns[v, 2])
    wa, wb, wc = np.float64(shares[v, 0]), np.float64(shares[v, 1]), np.float64(shares[v, 2])
    x = wa * mesh[a, 0] + wb * mesh[b, 0] + wc * mesh[c, 0]
    y = wa * mesh[a, 1] + wb * mesh[b, 1] + wc * mesh[c, 1]
    z = wa * mesh[a, 2] + wb * mesh[b, 2] + wc * mesh[c, 2]
    return x, y, z


@njit(inline="always")
def _largest_eigenvector(a, vectors):
    """Column of the largest eigenvalue of a symmetric 4x4 matrix (destroyed), by Jacobi turns."""
    for i in range(4):
        for j in range(4):
            vectors[i, j] = 1.0 if i == j else 0.0
    scale = 0.0
    for i in range(4):
        for j in range(4):
            scale += a[i, j] * a[i, j]
    for _ in range(_SWEEPS):
        off = 0.0
        for p in range(3):
            for q in range(p + 1, 4):
                off += a[p, q] * a[p, q]
        if off < 1e-34 * scale:  # false with NaN and infinity, which reach the vectors
            break
        for p in range(3):
            for q in range(p + 1, 4):
                if a[p, q] == 0.0:
                    continue
                theta = (a[q, q] - a[p, p]) / (2.0 * a[p, q])
                t = 1.0 / (abs(theta) + math.sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(t * t + 1.0)
                s = t * c
                for k in range(4):
                    x, y = a[k, p], a[k, q]
                    a[k, p], a[k, q] = c * x - s * y, s * x + c * y
                for k in range(4):
                    x, y = a[p, k], a[q, k]
                    a[p, k], a[q, k] = c * x - s * y, s * x + c * y
                    x, y = vectors[k, p], vectors[k, q]
                    vectors[k, p], vectors[k, q] = c * x - s * y, s * x + c * y
    best = 0
    for k in range(1, 4):
        if a[k, k] > a[best, best]:
            best = k
    return best


@njit(inline="always")
def _nearest_rotation(spread, matrix, vectors, out):
    """R that maximises trace(R^T M), M = sum target source^T (3,3): the quaternion of Horn 1987
    ("Closed-form solution of absolute orientation using unit quaternions")."""
    xx, yx, zx = spread[0, 0], spread[0, 1], spread[0, 2]
    xy, yy, zy = spread[1, 0], spread[1, 1], spread[1, 2]
    xz, yz, zz = spread[2, 0], spread[2, 1], spread[2, 2]
    matrix[0, 0], matrix[1, 1] = xx + yy + zz, xx - yy - zz
    matrix[2, 2], matrix[3, 3] = yy - xx - zz, zz - xx - yy
    matrix[0, 1], matrix[0, 2], matrix[0, 3] = yz - zy, zx - xz, xy - yx
    matrix[1, 2], matrix[1, 3], matrix[2, 3] = xy + yx, zx + xz, yz + zy
    for i in range(1, 4):
        for j in range(i):
            matrix[i, j] = matrix[j, i]
    k = _largest_eigenvector(matrix, vectors)
    w, x, y, z = vectors[0, k], vectors[1, k], vectors[2, k], vectors[3, k]
    length = w * w + x * x + y * y + z * z
    two = 2.0 / length
    out[0, 0] = 1.0 - two * (y * y + z * z)
    out[1, 1] = 1.0 - two * (x * x + z * z)
    out[2, 2] = 1.0 - two * (x * x + y * y)
    out[0, 1], out[1, 0] = two * (x * y - w * z), two * (x * y + w * z)
    out[0, 2], out[2, 0] = two * (x * z + w * y), two * (x * z - w * y)
    out[1, 2], out[2, 1] = two * (y * z - w * x), two * (y * z + w * x)


@njit(inline="always")
def _shaped(betas, template, directions, rest):
    """Rest mesh (3V,) of a shape, a tile at a time that stays in the first cache."""
    for low in range(0, rest.shape[0], _TILE):
        part, still = rest[low : low + _TILE], template[low : low + _TILE]
        for d in range(part.shape[0]):
            part[d] = still[d]
        for k in range(betas.shape[0]):
            beta, direction = betas[k], directions[k, low : low + _TILE]
            for d in range(part.shape[0]):
                part[d] += beta * direction[d]


@njit(inline="always")
def _sums(points, rest, vertices, weights, begin, end, spread, middle, still):
    """Of one bone's vertices, weights adding up to 1: middle and still (3,) of mesh and rest, and
    spread (3,3) = sum w mesh rest^T about them."""
    a = b = c = d = e = f = g = h = k = 0.0
    mx = my = mz = rx = ry = rz = 0.0
    for n in range(begin, end):
        w, v = weights[n], np.uint64(3 * vertices[n])
        x, y, z = w * points[v], w * points[v + np.uint64(1)], w * points[v + np.uint64(2)]
        p, q, r = rest[v], rest[v + np.uint64(1)], rest[v + np.uint64(2)]
        a += x * p
        b += x * q
        c += x * r
        d += y * p
        e += y * q
        f += y * r
        g += z * p
        h += z * q
        k += z * r
        mx += x
        my += y
        mz += z
        rx += w * p
        ry += w * q
        rz += w * r
    middle[0], middle[1], middle[2] = mx, my, mz
    still[0], still[1], still[2] = rx, ry, rz
    spread[0, 0], spread[0, 1], spread[0, 2] = a - mx * rx, b - mx * ry, c - mx * rz
    spread[1, 0], spread[1, 1], spread[1, 2] = d - my * rx, e - my * ry, f - my * rz
    spread[2, 0], spread[2, 1], spread[2, 2] = g - mz * rx, h - mz * ry, k - mz * rz


@kernel()
def place_rows(
    source, columns, shares, rows, betas, template, directions, first, vertices, weights,
    rotations, seen, home,
):  # fmt: skip
    """Best rotation of each bone's own vertices, rest -> mesh, and where the pelvis' lie.

    source (m,V_source,3), rows (n,) of it, betas (n,K); template (3V,), directions (K,3V);
    vertices[first[j]:first[j+1]] of bone j and how much they count, weights, in sum 1. Out,
    float64: rotations (n,24,3,3), seen (n,3) and home (n,3): middle of the pelvis bone's vertices
    in the mesh and at rest. NaN or infinity in a mesh makes NaN in its row of rotations."""
    count = columns.shape[0]
    rest, points = np.empty(3 * count), np.empty(3 * count)
    middle, still = np.empty(3), np.empty(3)
    spread, matrix, vectors = np.empty((3, 3)), np.empty((4, 4)), np.empty((4, 4))
    for row in range(rows.shape[0]):
        _shaped(betas[row], template, directions, rest)
        mesh = source[rows[row]]
        # from one of its vertices: products of small numbers keep their digits
        x0, y0, z0 = _mapped(mesh, columns, shares, 0)
        for v in range(count):
            x, y, z = _mapped(mesh, columns, shares, v)
            points[3 * v], points[3 * v + 1], points[3 * v + 2] = x - x0, y - y0, z - z0
        for j in range(JOINTS):
            _sums(points, rest, vertices, weights, first[j], first[j + 1], spread, middle, still)
            _nearest_rotation(spread, matrix, vectors, rotations[row, j])
            if j == 0:
                seen[row, 0], seen[row, 1], seen[row, 2] = (
                    middle[0] + x0, middle[1] + y0, middle[2] + z0,
                )  # fmt: skip
                for i in range(3):
                    home[row, i] = still[i]


@kernel()
def root_frame(source, columns, shares, rows, orient, seen, home, targets):
    """Meshes in the root frame: targets (V,3,n) = orient^T (mesh - seen) + home, of the rows (n,)
    of source (m,V_source,3); orient (m,3,3), seen and home (m,3) of all its rows, float64."""
    count, n = columns.shape[0], rows.shape[0]
    moved = np.empty((LANES, 3 * count), targets.dtype)
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        for lane in range(width):
            row = rows[start + lane]
            mesh, turn = source[row], orient[row]
            a, b, c = turn[0, 0], turn[1, 0], turn[2, 0]
            d, e, f = turn[0, 1], turn[1, 1], turn[2, 1]
            g, h, k = turn[0, 2], turn[1, 2], turn[2, 2]
            x0, y0, z0 = seen[row, 0], seen[row, 1], seen[row, 2]
            x1, y1, z1 = home[row, 0], home[row, 1], home[row, 2]
            for v in range(count):
                x, y, z = _mapped(mesh, columns, shares, v)
                x, y, z = x - x0, y - y0, z - z0
                moved[lane, 3 * v] = (a * x + b * y + c * z) + x1
                moved[lane, 3 * v + 1] = (d * x + e * y + f * z) + y1
                moved[lane, 3 * v + 2] = (g * x + h * y + k * z) + z1
        for v in range(count):
            for i in range(3):
                for lane in range(width):
                    targets[v, i, start + lane] = moved[lane, 3 * v + i]
