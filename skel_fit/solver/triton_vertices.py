"""Passes over the vertices in Triton: a program is a tile of rows and a share of the vertices.

Twins of the same names: `kernels_torch`, `numba_vertices`. Skinning weights are dense (V, 32), zero
behind the 24 bones: blending transforms and summing moments are then small matrix products, in full
precision, with no scatter and one fixed order of summation. A row is a column of every tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

BONES: tl.constexpr = tl.constexpr(32)


@triton.jit
def _blended(weights, transforms, e, rows, here, n):
    """(TILE, ROWS) element e of the blended transforms."""
    bone = tl.arange(0, BONES)[:, None]
    a = tl.load(
        transforms + (12 * bone + e) * n + rows[None, :],
        mask=(bone < 24) & here[None, :],
        other=0.0,
    )
    return tl.dot(weights, a, input_precision="tf32x3", out_dtype=weights.dtype)


@triton.jit
def _coordinate(source, vertex, c, rows, mask, n):
    """(TILE, ROWS) one coordinate of vertices (V,3,n)."""
    return tl.load(
        source + (3 * vertex[:, None].to(tl.int64) + c) * n + rows[None, :], mask=mask, other=0.0
    )


@triton.jit
def _place(first, TILE: tl.constexpr, ROWS: tl.constexpr, n, count):
    """Vertices of a tile, rows of this program, and which of them exist."""
    vertex = first + tl.arange(0, TILE)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return vertex, rows, vertex < count, rows < n


@triton.jit
def _moved(weights, transforms, i, x, y, z, rows, here, n):
    """(TILE, ROWS) coordinate i of the posed vertices, and the blended rotation's row i."""
    a = _blended(weights, transforms, 4 * i, rows, here, n)
    b = _blended(weights, transforms, 4 * i + 1, rows, here, n)
    c = _blended(weights, transforms, 4 * i + 2, rows, here, n)
    d = _blended(weights, transforms, 4 * i + 3, rows, here, n)
    return a * x + b * y + c * z + d, a, b, c


@triton.jit
def skin(weights, transforms, points, out, n, count, TILE: tl.constexpr, ROWS: tl.constexpr):
    """Linear blend skinning: out (V,3,n) from points (V,3,n) and transforms (24,12,n)."""
    vertex, rows, there, here = _place(tl.program_id(1) * TILE, TILE, ROWS, n, count)
    i = tl.program_id(2)
    mask = there[:, None] & here[None, :]
    bone = tl.arange(0, BONES)
    w = tl.load(weights + vertex[:, None] * BONES + bone[None, :], mask=there[:, None], other=0.0)
    x = _coordinate(points, vertex, 0, rows, mask, n)
    y = _coordinate(points, vertex, 1, rows, mask, n)
    z = _coordinate(points, vertex, 2, rows, mask, n)
    moved, _, _, _ = _moved(w, transforms, i, x, y, z, rows, here, n)
    to = out + (3 * vertex[:, None].to(tl.int64) + i) * n + rows[None, :]
    tl.store(to, moved, mask=mask)


@triton.jit
def _moment(total, weights, values):
    """total (BONES, ROWS) + weights^T values."""
    return tl.dot(
        tl.trans(weights), values, acc=total, input_precision="tf32x3", out_dtype=total.dtype
    )


@triton.jit
def residual_moments(
    weights, masses, active, transforms, points, targets, energy, moments, pull, n, count, share,
    TILE: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One fused pass over `share` vertices: weighted squared residual, its bone moments and its
    pull on the offsets.

    energy (S,n) = sum m |r|^2; moments (S,24,12,n) = sum m w r [x;1]^T, for each of S shares; pull
    (V,3,n) = m (sum w R)^T r. Tiles without an active row are left as they are."""
    part = tl.program_id(1)
    _, rows, _, here = _place(0, TILE, ROWS, n, count)
    awake = tl.load(active + rows, mask=here, other=0)
    if tl.max(awake.to(tl.int32), 0) > 0:
        bone = tl.arange(0, BONES)
        kept = (bone < 24)[:, None] & here[None, :]
        first, last = part * share, tl.minimum((part + 1) * share, count)
        square = tl.zeros((ROWS,), DTYPE)
        # one coordinate of the residual at a time: a third of the registers
        for i in range(3):
            mx = tl.zeros((BONES, ROWS), DTYPE)
            my, mz, m1 = mx, mx, mx
            for tile in range(first, last, TILE):
                vertex = tile + tl.arange(0, TILE)
                there = vertex < last
                mask = there[:, None] & here[None, :]
                at = weights + vertex[:, None] * BONES + bone[None, :]
                w = tl.load(at, mask=there[:, None], other=0.0)
                mass = tl.load(masses + vertex, mask=there, other=0.0)[:, None]
                x = _coordinate(points, vertex, 0, rows, mask, n)
                y = _coordinate(points, vertex, 1, rows, mask, n)
                z = _coordinate(points, vertex, 2, rows, mask, n)
                r, a, b, c = _moved(w, transforms, i, x, y, z, rows, here, n)
                r = r - _coordinate(targets, vertex, i, rows, mask, n)
                square += tl.sum(mass * r * r, 0)
                r = mass * r
                mx, my = _moment(mx, w, r * x), _moment(my, w, r * y)
                mz, m1 = _moment(mz, w, r * z), _moment(m1, w, r)
                to = pull + 3 * vertex[:, None].to(tl.int64) * n + rows[None, :]
                before = mask & (i > 0)
                px = tl.load(to, mask=before, other=0.0) + a * r
                py = tl.load(to + n, mask=before, other=0.0) + b * r
                pz = tl.load(to + 2 * n, mask=before, other=0.0) + c * r
                tl.store(to, px, mask=mask)
                tl.store(to + n, py, mask=mask)
                tl.store(to + 2 * n, pz, mask=mask)
            to = moments + part * 288 * n + rows[None, :]
            to += (12 * bone[:, None].to(tl.int64) + 4 * i) * n
            tl.store(to, mx, mask=kept)
            tl.store(to + n, my, mask=kept)
            tl.store(to + 2 * n, mz, mask=kept)
            tl.store(to + 3 * n, m1, mask=kept)
            tl.debug_barrier()
        tl.store(energy + part * n + rows, square, mask=here)


@triton.jit
def judge(
    weights, member, transforms, points, targets, squares, totals, largest, n, count, share,
    TILE: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Of each of S shares of the vertices: squares (S,n), distances by region (S,16,n), largest
    squared distance (S,n). member (V,16): 1 in the vertex's region."""
    part = tl.program_id(1)
    _, rows, _, here = _place(0, TILE, ROWS, n, count)
    bone, region = tl.arange(0, BONES), tl.arange(0, 16)
    total = tl.zeros((16, ROWS), DTYPE)
    square, worst = tl.zeros((ROWS,), DTYPE), tl.zeros((ROWS,), DTYPE)
    for tile in range(part * share, tl.minimum((part + 1) * share, count), TILE):
        vertex = tile + tl.arange(0, TILE)
        there = vertex < tl.minimum((part + 1) * share, count)
        mask = there[:, None] & here[None, :]
        w = tl.load(
            weights + vertex[:, None] * BONES + bone[None, :], mask=there[:, None], other=0.0
        )
        mine = tl.load(
            member + vertex[:, None] * 16 + region[None, :], mask=there[:, None], other=0.0
        )
        x = _coordinate(points, vertex, 0, rows, mask, n)
        y = _coordinate(points, vertex, 1, rows, mask, n)
        z = _coordinate(points, vertex, 2, rows, mask, n)
        distance = x * 0.0
        for i in range(3):
            r, _a, _b, _c = _moved(w, transforms, i, x, y, z, rows, here, n)
            r = r - _coordinate(targets, vertex, i, rows, mask, n)
            distance += r * r
        square += tl.sum(distance, 0)
        worst = tl.maximum(worst, tl.max(distance, 0))
        total = _moment(total, mine, tl.sqrt(distance))
    tl.store(squares + part * n + rows, square, mask=here)
    tl.store(largest + part * n + rows, worst, mask=here)
    to = totals + (16 * part + region[:, None]) * n + rows[None, :]
    tl.store(to, total, mask=here[None, :])
