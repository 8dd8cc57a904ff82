"""Linear blend skinning of many rows and its gradient, LANES rows side by side (numba).

Twin: `skel._blend`. Vertices are taken in tiles, so that what a row stores one after the other is
read and written in whole cache lines, and turned to lanes where it is small.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skel_fit.numba_compile import kernel

LANES = 16
"""Rows side by side: a vector register or two."""
_TILE = 16
"""Vertices of a tile."""


@njit(inline="always")
def _mapped(a, first, lane, x, y, z):
    """One row of an affine map applied to a point."""
    return (
        a[first * LANES + lane] * x
        + a[(first + 1) * LANES + lane] * y
        + a[(first + 2) * LANES + lane] * z
        + a[(first + 3) * LANES + lane]
    )


@njit(inline="always")
def _turned_back(a, column, lane, x, y, z):
    """One column of the linear part of an affine map times a vector."""
    return (
        a[column * LANES + lane] * x
        + a[(4 + column) * LANES + lane] * y
        + a[(8 + column) * LANES + lane] * z
    )


@njit(inline="always")
def _load_points(shaped, offsets, begin, rows, first, block, count, tile):
    """Corrected rest vertices of a tile to lanes, (vertex, 3, LANES).

    shaped (n or 1, 3, V), offsets (3, block, n) of the block that begins at vertex `block`."""
    shared = shaped.shape[0] == 1
    for c in range(3):
        if shared:
            for t in range(count):
                for lane in range(rows):
                    tile[(3 * t + c) * LANES + lane] = shaped[0, c, first + t]
        else:
            for lane in range(rows):
                source = shaped[begin + lane, c]
                for t in range(count):
                    tile[(3 * t + c) * LANES + lane] = source[first + t]
        for t in range(count):
            source = offsets[c, first - block + t]
            place = (3 * t + c) * LANES
            for lane in range(rows):
                tile[place + lane] += source[begin + lane]


@kernel()
def skin_block(starts, bones, weights, maps, shaped, offsets, trans, block, out):
    """Skin of n rows, the vertices from `block` on that `offsets` has.

    starts (V+1,), bones, weights: bones of each vertex and their weights, one list; maps
    (groups, 24, 12 LANES) affine maps, rows side by side; shaped (n or 1, 3, V) rest vertices;
    offsets (3, vertices of the block, n) correctives; trans (n,3); out (n, 3V)."""
    point = np.zeros(3 * LANES, out.dtype)
    tile = np.zeros(3 * _TILE * LANES, out.dtype)
    end = block + offsets.shape[1]
    for group in range(maps.shape[0]):
        begin = group * LANES
        rows = min(LANES, out.shape[0] - begin)
        for first in range(block, end, _TILE):
            count = min(_TILE, end - first)
            _load_points(shaped, offsets, begin, rows, first, block, count, tile)
            for t in range(count):
                v = first + t
                point[:] = tile[3 * t * LANES : 3 * (t + 1) * LANES]
                moved = tile[3 * t * LANES : 3 * (t + 1) * LANES]
                moved[:] = 0
                for n in range(starts[v], starts[v + 1]):
                    w = weights[n]
                    a = maps[group, bones[n]]
                    for lane in range(LANES):
                        x = point[lane]
                        y = point[LANES + lane]
                        z = point[2 * LANES + lane]
                        moved[lane] += w * _mapped(a, 0, lane, x, y, z)
                        moved[LANES + lane] += w * _mapped(a, 4, lane, x, y, z)
                        moved[2 * LANES + lane] += w * _mapped(a, 8, lane, x, y, z)
            for lane in range(rows):
                target = out[begin + lane]
                for t in range(count):
                    for i in range(3):
                        target[3 * (first + t) + i] = (
                            tile[(3 * t + i) * LANES + lane] + trans[begin + lane, i]
                        )


@kernel()
def skin_block_gradients(
    starts, bones, weights, maps, shaped, offsets, grad, block, grad_points, grad_maps
):
    """Gradient of `skin_block`: grad (n, 3V) of its result -> grad_points (3, vertices of the
    block, n) of shaped + offsets, and grad_maps as `maps`: the share of the block."""
    outer = np.zeros(12 * LANES, grad.dtype)  # gradient times [x;1]
    tile = np.zeros(3 * _TILE * LANES, grad.dtype)
    pull = np.zeros(3 * _TILE * LANES, grad.dtype)
    back = np.zeros(3 * LANES, grad.dtype)
    end = block + offsets.shape[1]
    for group in range(maps.shape[0]):
        begin = group * LANES
        rows = min(LANES, grad.shape[0] - begin)
        sums = grad_maps[group]
        sums[:] = 0
        for first in range(block, end, _TILE):
            count = min(_TILE, end - first)
            _load_points(shaped, offsets, begin, rows, first, block, count, tile)
            for lane in range(rows):
                source = grad[begin + lane]
                for e in range(3 * count):
                    pull[e * LANES + lane] = source[3 * first + e]
            for t in range(count):
                v = first + t
                at = 3 * t * LANES
                for i in range(3):
                    for lane in range(LANES):
                        g = pull[at + i * LANES + lane]
                        outer[4 * i * LANES + lane] = g * tile[at + lane]
                        outer[(4 * i + 1) * LANES + lane] = g * tile[at + LANES + lane]
                        outer[(4 * i + 2) * LANES + lane] = g * tile[at + 2 * LANES + lane]
                        outer[(4 * i + 3) * LANES + lane] = g
                back[:] = 0
                for n in range(starts[v], starts[v + 1]):
                    w = weights[n]
                    a = maps[group, bones[n]]
                    total = sums[bones[n]]
                    for e in range(12 * LANES):
                        total[e] += w * outer[e]
                    for lane in range(LANES):
                        x = pull[at + lane]
                        y = pull[at + LANES + lane]
                        z = pull[at + 2 * LANES + lane]
                        back[lane] += w * _turned_back(a, 0, lane, x, y, z)
                        back[LANES + lane] += w * _turned_back(a, 1, lane, x, y, z)
                        back[2 * LANES + lane] += w * _turned_back(a, 2, lane, x, y, z)
                for c in range(3):
                    target = grad_points[c, v - block]
                    for lane in range(rows):
                        target[begin + lane] = back[c * LANES + lane]
