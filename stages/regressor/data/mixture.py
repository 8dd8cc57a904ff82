"""Which row comes next where data sets are mixed by weights.

Each place of an epoch draws a data set by its weight and takes that set's next row; a set that ends
begins again in another order (docs/reference/checkpoints.md#mixtures). All of it is a function of
(seed, epoch), so a run that is resumed goes on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import InputError

_TOLERANCE = 1e-6


class Mixture:
    """The order of rows under weights.

    source: (N,) data set of each row; weights: (S,) of the sets, sum 1; rows: of an epoch.
    """

    def __init__(self, source: np.ndarray, weights: np.ndarray, rows: int, seed: int) -> None:
        self._sets = [np.flatnonzero(source == k) for k in range(len(weights))]
        self._weights, self.rows, self._seed = weights, rows, seed
        # Rows of each set that all epochs before have taken.
        self._before = [np.zeros(len(weights), np.int64)]

    def epoch(self, epoch: int) -> np.ndarray:
        """(rows,) row numbers of an epoch."""
        while len(self._before) <= epoch:
            drawn = np.bincount(self._draws(len(self._before) - 1), minlength=len(self._weights))
            self._before.append(self._before[-1] + drawn)
        draws = self._draws(epoch)
        order = np.empty(self.rows, np.int64)
        for k, begin in enumerate(self._before[epoch].tolist()):
            places = np.flatnonzero(draws == k)
            order[places] = self._stream(k, begin, len(places))
        return order

    def _draws(self, epoch: int) -> np.ndarray:
        # Four numbers: with two it would be the stream of the first permutation of a set.
        random = np.random.default_rng((self._seed, epoch, 0, 1))
        return random.choice(len(self._weights), size=self.rows, p=self._weights)

    def _stream(self, k: int, begin: int, count: int) -> np.ndarray:
        """`count` rows of set k from place `begin` of its endless stream of permutations."""
        rows = self._sets[k]
        parts: list[np.ndarray] = []
        while count:
            number, within = divmod(begin, len(rows))
            shuffled = np.random.default_rng((self._seed, k, number)).permutation(rows)
            part = shuffled[within : within + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def repeats(order: np.ndarray) -> list[int]:
    """How often each place's row stands before it in the order (n,)."""
    seen: dict[int, int] = {}
    found = []
    for row in order.tolist():
        found.append(seen.get(row, 0))
        seen[row] = found[-1] + 1
    return found


def mixture_weights(
    mixture: Mapping[str, float], directories: Sequence[Path], source: np.ndarray
) -> np.ndarray:
    """(S,) weights in the order of the data sets, which are called as their folders.

    Raises:
        InputError: they do not sum to 1, name another data set or lack one, or a set has no rows.
    """
    names = [directory.absolute().name for directory in directories]
    where = "data.mixture"
    if len(set(names)) < len(names):
        raise InputError(f"{where}: two data sets are called alike: {', '.join(names)}")
    unknown, missing = sorted(mixture.keys() - set(names)), sorted(set(names) - mixture.keys())
    if unknown or missing:
        raise InputError(
            f"{where}: its names are not those of the data sets given: "
            f"{', '.join(unknown) or 'none'} too many, {', '.join(missing) or 'none'} missing; "
            f"data sets are called as their folders ({', '.join(names)})"
        )
    total = math.fsum(mixture.values())
    if abs(total - 1) > _TOLERANCE:
        raise InputError(f"{where}: its weights sum to {total:g}, expected 1")
    rows = np.bincount(source, minlength=len(names))
    if empty := [name for name, count in zip(names, rows, strict=True) if not count]:
        raise InputError(f"{where}: no training rows in {', '.join(empty)}; leave them out")
    weights = np.array([mixture[name] for name in names])
    return weights / weights.sum()
