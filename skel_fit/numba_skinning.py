"""Correctives and linear blend skinning of many rows, and the gradient, LANES rows side by side
(numba).

Twin: `SKEL._skin`. Vertices are taken in tiles, so that what a row stores one after the other is
read and written in whole cache lines and turned to lanes where it is small, and so that the basis
of a tile is in the cache while all rows pass. The order of a row's sums does not depend on others.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skel_fit.numba_compile import kernel
from skel_fit.numba_lanes import LANES, add_product, load, multiply_add, spread, store

_TILE = 24
"""Vertices of a tile."""
_MAP = 12 * LANES
"""Numbers of an affine map, rows side by side."""


@njit(inline="always")
def _corrected(basis, width, features, group, count, shaped, begin, rows, first, tile):
    """Corrected rest vertices of a tile, (3, _TILE, LANES).

    basis: flat (3, V, width); features: (groups, F LANES); shaped: (n or 1, 3, V)."""
    vertices, used = shaped.shape[2], features.shape[1] // LANES
    tile[:] = 0
    for c in range(3):
        start, to = (c * vertices + first) * width, c * _TILE * LANES
        own = group * features.shape[1]
        add_product(basis, start, width, 1, count, used, features, own, tile, to)
    if shaped.shape[0] == 1:
        for c in range(3):
            for t in range(count):
                rest = shaped[0, c, first + t]
                for lane in range(LANES):
                    tile[(c * _TILE + t) * LANES + lane] += rest
    elif rows == LANES:  # a number that the compiler knows
        _own_rest(shaped, begin, LANES, first, count, tile)
    else:
        _own_rest(shaped, begin, rows, first, count, tile)


@njit(inline="always")
def _own_rest(shaped, begin, rows, first, count, tile):
    """Adds rest vertices (n, 3, V) of each row to a tile."""
    for lane in range(rows):
        for c in range(3):
            rest = shaped[begin + lane, c]
            for t in range(count):
                tile[(c * _TILE + t) * LANES + lane] += rest[first + t]


@njit(inline="always")
def _product(maps, a, step, x, y, z):
    """Three numbers of an affine map, `step` apart, times a point's."""
    rest = multiply_add(load(maps, a + step), y, load(maps, a + 2 * step) * z)
    return multiply_add(load(maps, a), x, rest)


@njit(inline="always")
def _blended(starts, bones, weights, maps, group, first, count, tile):
    """Points of a tile to their linear blend by maps (groups, 24, 12 LANES), in place."""
    for t in range(count):
        at = t * LANES
        x, y = load(tile, at), load(tile, at + _TILE * LANES)
        z = load(tile, at + 2 * _TILE * LANES)
        u = v = w = spread(np.float32(0))
        for n in range(starts[first + t], starts[first + t + 1]):
            share, a = spread(weights[n]), (group * maps.shape[1] + bones[n]) * _MAP
            u = multiply_add(share, _product(maps, a, LANES, x, y, z), u)
            u = multiply_add(share, load(maps, a + 3 * LANES), u)
            v = multiply_add(share, _product(maps, a + 4 * LANES, LANES, x, y, z), v)
            v = multiply_add(share, load(maps, a + 7 * LANES), v)
            w = multiply_add(share, _product(maps, a + 8 * LANES, LANES, x, y, z), w)
            w = multiply_add(share, load(maps, a + 11 * LANES), w)
        store(tile, at, u)
        store(tile, at + _TILE * LANES, v)
        store(tile, at + 2 * _TILE * LANES, w)


@njit(inline="always")
def _stored(moved, trans, begin, rows, first, count, out):
    """A tile, and the translations of its rows, to out (n, 3V)."""
    for lane in range(rows):
        target = out[begin + lane]
        for t in range(count):
            for i in range(3):
                target[3 * (first + t) + i] = (
                    moved[(i * _TILE + t) * LANES + lane] + trans[begin + lane, i]
                )


@kernel()
def skin_block(
    starts, bones, weights, basis, width, features, shaped, maps, trans, block, end, points, out
):
    """Skin of n rows, vertices `block` to `end`.

    starts (V+1,), bones, weights: bones of each vertex and their weights, one list; basis: flat
    (3, V, width); features (groups, F LANES) what moves vertices along its first F columns, rows
    side by side; shaped (n or 1, 3, V) rest vertices; maps (groups, 24, 12 LANES) affine maps;
    trans (n,3); points (groups, V, 3 LANES) where corrected rest vertices are kept for the
    gradient, or (0, 0, 0); out (n, 3V)."""
    tile = np.zeros(3 * _TILE * LANES, out.dtype)
    for first in range(block, end, _TILE):
        count = min(_TILE, end - first)
        for group in range(maps.shape[0]):
            begin = group * LANES
            rows = min(LANES, out.shape[0] - begin)
            _corrected(basis, width, features, group, count, shaped, begin, rows, first, tile)
            if points.shape[0] > 0:
                for t in range(count):
                    at = (group * points.shape[1] + first + t) * 3 * LANES
                    for c in range(3):
                        store(points, at + c * LANES, load(tile, (c * _TILE + t) * LANES))
            _blended(starts, bones, weights, maps, group, first, count, tile)
            if rows == LANES:  # a number that the compiler knows
                _stored(tile, trans, begin, LANES, first, count, out)
            else:
                _stored(tile, trans, begin, rows, first, count, out)


@njit(inline="always")
def _loaded(grad, begin, rows, first, count, pull):
    """grad (n, 3V) of a tile and its rows to lanes."""
    for lane in range(rows):
        source = grad[begin + lane]
        for t in range(count):
            for i in range(3):
                pull[(i * _TILE + t) * LANES + lane] = source[3 * (first + t) + i]


@njit(inline="always")
def _add_outer(sums, a, pull, x, y, z):
    """Adds pull [x, y, z, 1] to a row of the sums of an affine map."""
    store(sums, a, multiply_add(pull, x, load(sums, a)))
    store(sums, a + LANES, multiply_add(pull, y, load(sums, a + LANES)))
    store(sums, a + 2 * LANES, multiply_add(pull, z, load(sums, a + 2 * LANES)))
    one = spread(np.float32(1))
    store(sums, a + 3 * LANES, multiply_add(pull, one, load(sums, a + 3 * LANES)))


@njit(inline="always")
def _turned_back(starts, bones, weights, maps, points, group, first, count, tile, sums):
    """Pulls of a tile to the rest pose, in place; what the maps get is added to `sums`."""
    for t in range(count):
        at, point = t * LANES, (group * points.shape[1] + first + t) * 3 * LANES
        x, y, z = load(points, point), load(points, point + LANES), load(points, point + 2 * LANES)
        f, g = load(tile, at), load(tile, at + _TILE * LANES)
        h = load(tile, at + 2 * _TILE * LANES)
        u = v = w = spread(np.float32(0))
        for n in range(starts[first + t], starts[first + t + 1]):
            share, a = spread(weights[n]), (group * maps.shape[1] + bones[n]) * _MAP
            u = multiply_add(share, _product(maps, a, 4 * LANES, f, g, h), u)
            v = multiply_add(share, _product(maps, a + LANES, 4 * LANES, f, g, h), v)
            w = multiply_add(share, _product(maps, a + 2 * LANES, 4 * LANES, f, g, h), w)
            _add_outer(sums, a, share * f, x, y, z)
            _add_outer(sums, a + 4 * LANES, share * g, x, y, z)
            _add_outer(sums, a + 8 * LANES, share * h, x, y, z)
        store(tile, at, u)
        store(tile, at + _TILE * LANES, v)
        store(tile, at + 2 * _TILE * LANES, w)


@kernel()
def skin_block_gradients(
    starts, bones, weights, basis, width, points, maps, grad, block, end,
    grad_features, grad_maps, grad_shaped,
):  # fmt: skip
    """Gradient of `skin_block`: grad (n, 3V) of its result -> the shares of these vertices in
    grad_features and grad_maps, as `features` and `maps`, and their grad_shaped, as `shaped`, or
    (0, 0, 0). To all three is added."""
    tile = np.zeros(3 * _TILE * LANES, grad.dtype)
    vertices, used = starts.shape[0] - 1, grad_features.shape[1] // LANES
    for first in range(block, end, _TILE):
        count = min(_TILE, end - first)
        for group in range(maps.shape[0]):
            begin = group * LANES
            rows = min(LANES, grad.shape[0] - begin)
            if rows == LANES:  # a number that the compiler knows
                _loaded(grad, begin, LANES, first, count, tile)
            else:
                tile[:] = 0
                _loaded(grad, begin, rows, first, count, tile)
            _turned_back(starts, bones, weights, maps, points, group, first, count, tile, grad_maps)
            for c in range(3):
                start, own = (c * vertices + first) * width, group * grad_features.shape[1]
                add_product(
                    basis, start, 1, width, used, count, tile, c * _TILE * LANES, grad_features, own
                )
            if grad_shaped.shape[0] > 0:
                for lane in range(rows):
                    share = grad_shaped[begin + lane if grad_shaped.shape[0] > 1 else 0]
                    for c in range(3):
                        for t in range(count):
                            share[c, first + t] += tile[(c * _TILE + t) * LANES + lane]
