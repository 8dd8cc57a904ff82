"""Passes over the vertices, LANES rows side by side (numba). Twins: `kernels_torch`.

A pass takes the vertices in tiles and does with a tile all that it is for: correctives, skin,
residual, and what the residual does to bones and correctives. Between the two products the tile's
part of the corrective basis stays in the cache, and nothing of a vertex goes to memory. Only the
rows that are asked for are worked on, whatever their place in the block; no sum of one depends on
which others there are.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skel_fit.numba_compile import kernel
from skel_fit.numba_kinematics import JOINTS
from skel_fit.numba_lanes import (
    LANES,
    add_product,
    larger,
    load,
    multiply_add,
    spread_from,
    square_root,
    store,
)

_TILE = 24
"""Vertices of a tile."""
_MAP = 12 * LANES
"""Numbers of a bone's 3x4 transform, rows side by side."""


@njit(inline="always")
def _places(rows):
    """The rows (m,), filled up to whole groups of LANES with the last of them."""
    groups = (rows.shape[0] + LANES - 1) // LANES
    out = np.empty(groups * LANES, np.int64)
    for at in range(out.shape[0]):
        out[at] = rows[min(at, rows.shape[0] - 1)]
    return out


@njit(inline="always")
def _side_by_side(values, lines, places):
    """Those lines of values (C,n), the places side by side: flat (groups, lines, LANES)."""
    out = np.empty(places.shape[0] * lines.shape[0], values.dtype)
    for group in range(places.shape[0] // LANES):
        for k in range(lines.shape[0]):
            at = (group * lines.shape[0] + k) * LANES
            for lane in range(LANES):
                out[at + lane] = values[lines[k], places[group * LANES + lane]]
    return out


@njit(inline="always")
def _maps(transforms, places):
    """Transforms (24,12,n) of the places side by side: flat (groups, 24, 12, LANES)."""
    lines = np.arange(JOINTS * 12)
    return _side_by_side(transforms.reshape(JOINTS * 12, transforms.shape[2]), lines, places)


@njit(inline="always")
def _corrected(basis, first, count, posed, group, tile):
    """Corrected rest vertices of a tile: flat (vertices, 3, LANES)."""
    width = basis.shape[1]
    tile[:] = 0
    left, start = basis.reshape(-1), 3 * first * width
    add_product(left, start, width, 1, 3 * count, width, posed, group * width * LANES, tile, 0)


@njit(inline="always")
def _wanted(targets, places, group, first, count, out):
    """Targets (V,3,n) of a tile, the places side by side: flat (vertices, 3, LANES)."""
    for t in range(count):
        for i in range(3):
            source, at = targets[first + t, i], (3 * t + i) * LANES
            for lane in range(LANES):
                out[at + lane] = source[places[group * LANES + lane]]


@njit(inline="always")
def _line(maps, a, x, y, z):
    """A line of a 3x4 transform times [x, y, z, 1]."""
    rest = multiply_add(load(maps, a + 2 * LANES), z, load(maps, a + 3 * LANES))
    return multiply_add(load(maps, a), x, multiply_add(load(maps, a + LANES), y, rest))


@njit(inline="always")
def _column(maps, a, x, y, z):
    """A column of a transform's rotation times (x, y, z)."""
    rest = multiply_add(load(maps, a + 4 * LANES), y, load(maps, a + 8 * LANES) * z)
    return multiply_add(load(maps, a), x, rest)


@njit(inline="always")
def _blended(begin, end, bones, weights, maps, group, tile, at):
    """A vertex of a tile to its linear blend, in three vectors."""
    x, y, z = load(tile, at), load(tile, at + LANES), load(tile, at + 2 * LANES)
    u = x - x
    v, w = u, u
    for n in range(begin, end):
        share, a = spread_from(weights, n), (group * JOINTS + bones[n]) * _MAP
        u = multiply_add(share, _line(maps, a, x, y, z), u)
        v = multiply_add(share, _line(maps, a + 4 * LANES, x, y, z), v)
        w = multiply_add(share, _line(maps, a + 8 * LANES, x, y, z), w)
    return u, v, w


@njit(inline="always")
def _add_to(sums, a, vector):
    store(sums, a, load(sums, a) + vector)


@njit(inline="always")
def _add_outer(sums, a, pull, x, y, z):
    """Adds pull [x, y, z, 1] to a line of the sums of a bone."""
    store(sums, a, multiply_add(pull, x, load(sums, a)))
    store(sums, a + LANES, multiply_add(pull, y, load(sums, a + LANES)))
    store(sums, a + 2 * LANES, multiply_add(pull, z, load(sums, a + 2 * LANES)))
    _add_to(sums, a + 3 * LANES, pull)


@njit(inline="always")
def _turned_back(begin, end, bones, weights, maps, group, pull, tile, at, sums):
    """What the pull on a vertex does: to its bones, added to `sums`, and to its correctives, in
    place of its corrected rest position."""
    f, g, h = pull
    x, y, z = load(tile, at), load(tile, at + LANES), load(tile, at + 2 * LANES)
    u = x - x
    v, w = u, u
    for n in range(begin, end):
        share, a = spread_from(weights, n), (group * JOINTS + bones[n]) * _MAP
        u = multiply_add(share, _column(maps, a, f, g, h), u)
        v = multiply_add(share, _column(maps, a + LANES, f, g, h), v)
        w = multiply_add(share, _column(maps, a + 2 * LANES, f, g, h), w)
        _add_outer(sums, a, share * f, x, y, z)
        _add_outer(sums, a + 4 * LANES, share * g, x, y, z)
        _add_outer(sums, a + 8 * LANES, share * h, x, y, z)
    store(tile, at, u)
    store(tile, at + LANES, v)
    store(tile, at + 2 * LANES, w)


@kernel()
def skin(starts, bones, weights, basis, lines, transforms, features, out):
    """Skin (V,3,n) of all rows: transforms (24,12,n), features (C,n) of which basis (3V,lines)
    asks for some lines."""
    places = _places(np.arange(transforms.shape[2]))
    posed, maps = _side_by_side(features, lines, places), _maps(transforms, places)
    tile = np.empty(3 * _TILE * LANES, basis.dtype)
    for first in range(0, out.shape[0], _TILE):
        count = min(_TILE, out.shape[0] - first)
        for group in range(places.shape[0] // LANES):
            start = group * LANES
            real = min(LANES, out.shape[2] - start)
            _corrected(basis, first, count, posed, group, tile)
            for t in range(count):
                at, k = 3 * t * LANES, first + t
                u, v, w = _blended(starts[k], starts[k + 1], bones, weights, maps, group, tile, at)
                store(tile, at, u)
                store(tile, at + LANES, v)
                store(tile, at + 2 * LANES, w)
                for i in range(3):
                    for lane in range(real):
                        out[k, i, start + lane] = tile[at + i * LANES + lane]


@kernel()
def evidence(
    starts, bones, weights, masses, basis, lines, shape_size, transforms, features, targets, rows,
    energy, moments, corrective,
):  # fmt: skip
    """Of the listed rows: energy (n,) = sum m |r|^2; moments (24,12,n) = C_k = sum m w r [x;1]^T;
    corrective (207,n) = P^T m (sum w R)^T r. Theory: docs/solver.md.

    basis (3V,lines): of [1, betas, features] (C,n) the lines that are not 0 always; the first
    1+shape_size do not depend on the pose."""
    places = _places(rows)
    posed, maps = _side_by_side(features, lines, places), _maps(transforms, places)
    groups, width = places.shape[0] // LANES, basis.shape[1]
    turning, left = width - 1 - shape_size, basis.reshape(-1)
    tile, wanted = (
        np.empty(3 * _TILE * LANES, basis.dtype),
        np.empty(3 * _TILE * LANES, basis.dtype),
    )
    sums = np.zeros(groups * JOINTS * _MAP, basis.dtype)
    pulls = np.zeros(groups * turning * LANES, basis.dtype)
    squares = np.zeros(groups * LANES, basis.dtype)
    vertices = masses.shape[0]
    for first in range(0, vertices, _TILE):
        count = min(_TILE, vertices - first)
        for group in range(groups):
            _corrected(basis, first, count, posed, group, tile)
            _wanted(targets, places, group, first, count, wanted)
            square = load(squares, group * LANES)
            for t in range(count):
                at, k = 3 * t * LANES, first + t
                begin, end, mass = starts[k], starts[k + 1], spread_from(masses, k)
                u, v, w = _blended(begin, end, bones, weights, maps, group, tile, at)
                u, v = u - load(wanted, at), v - load(wanted, at + LANES)
                w = w - load(wanted, at + 2 * LANES)
                square = multiply_add(mass, u * u + v * v + w * w, square)
                pull = mass * u, mass * v, mass * w
                _turned_back(begin, end, bones, weights, maps, group, pull, tile, at, sums)
            store(squares, group * LANES, square)
            add_product(
                left, 3 * first * width + 1 + shape_size, 1, width, turning, 3 * count,
                tile, 0, pulls, group * turning * LANES,
            )  # fmt: skip
    for at in range(rows.shape[0]):
        group, lane, row = at // LANES, at % LANES, rows[at]
        energy[row] = squares[at]
        for k in range(JOINTS):
            for e in range(12):
                moments[k, e, row] = sums[((group * JOINTS + k) * 12 + e) * LANES + lane]
        for f in range(corrective.shape[0]):
            corrective[f, row] = 0.0
        for f in range(turning):
            line = lines[1 + shape_size + f] - 1 - shape_size
            corrective[line, row] = pulls[(group * turning + f) * LANES + lane]


@kernel()
def judge(
    starts, bones, weights, masses, region, basis, lines, transforms, features, targets, rows,
    energy, totals, largest,
):  # fmt: skip
    """Exact final residual of the listed rows: energy (n,) as in `evidence`; totals (regions,n)
    sums of distances per region; largest (n,) maximum distance. region (V,) int."""
    places = _places(rows)
    posed, maps = _side_by_side(features, lines, places), _maps(transforms, places)
    groups, regions, vertices = places.shape[0] // LANES, totals.shape[0], region.shape[0]
    tile, wanted = (
        np.empty(3 * _TILE * LANES, basis.dtype),
        np.empty(3 * _TILE * LANES, basis.dtype),
    )
    sums = np.zeros(groups * regions * LANES, basis.dtype)
    squares, worst = np.zeros(groups * LANES, basis.dtype), np.zeros(groups * LANES, basis.dtype)
    for first in range(0, vertices, _TILE):
        count = min(_TILE, vertices - first)
        for group in range(groups):
            _corrected(basis, first, count, posed, group, tile)
            _wanted(targets, places, group, first, count, wanted)
            square, most = load(squares, group * LANES), load(worst, group * LANES)
            for t in range(count):
                at, k = 3 * t * LANES, first + t
                u, v, w = _blended(starts[k], starts[k + 1], bones, weights, maps, group, tile, at)
                u, v = u - load(wanted, at), v - load(wanted, at + LANES)
                w = w - load(wanted, at + 2 * LANES)
                distance = u * u + v * v + w * w
                square = multiply_add(spread_from(masses, k), distance, square)
                most = larger(distance, most)
                _add_to(sums, (group * regions + region[k]) * LANES, square_root(distance))
            store(squares, group * LANES, square)
            store(worst, group * LANES, most)
    for at in range(rows.shape[0]):
        group, lane, row = at // LANES, at % LANES, rows[at]
        energy[row], largest[row] = squares[at], np.sqrt(worst[at])
        for k in range(regions):
            totals[k, row] = sums[(group * regions + k) * LANES + lane]
