"""Which numbers of a stage's Gauss-Newton matrix are not 0, and which sums give them.

Few bones share vertices, so most subtree moments U_jl (docs/solver.md) are 0 or equal to another:
what a hand shares with all below the pelvis is what it shares with its arm. Each sum is made once.
The matrix is eliminated from the leaves of the tree on, so that it stays sparse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skel_fit.skeleton import Skeleton
from skel_fit.solver.tables import StageTables


class Pattern(NamedTuple):
    """The numbers that are needed. f free parameters, *places* from the root of the tree on; B
    blocks of 4x4; E entries of the matrix' lower triangle."""

    blocks: np.ndarray  # (1,) B
    pairs: np.ndarray  # (Q,3) a pair of the stage, its block T_kl, and that of T_lk or -1
    sums: np.ndarray  # (S,3) block = block + block, in this order
    block_of: np.ndarray  # (24,24) the block U_jl, j <= l; -1: 0
    parameters: np.ndarray  # (f,) of each place
    first: np.ndarray  # (f+1,) entries of a place's line: first[n] to first[n + 1]
    column: np.ndarray  # (E,) place of each, rising below its line's
    entry: np.ndarray  # (f,f) of a line and a column; -1: 0


def pattern_of(skeleton: Skeleton[np.ndarray], stage: StageTables[np.ndarray]) -> Pattern:
    """Of a stage's free parameters and pairs of bones."""
    parents, owner = skeleton.parents, skeleton.joint_of_parameter
    free = np.flatnonzero(stage.free)
    order = free[np.argsort(owner[free], kind="stable")]
    joints = owner[order]
    sums = _Sums([int(p) for p in parents], stage.pair_first, stage.pair_second)
    wanted = sorted({int(j) for j in joints})
    found = {(j, l): sums.below(j, l) for j in wanted for l in wanted if j <= l}
    number = sums.needed([block for block in found.values() if block is not None])
    block_of = np.full((len(parents), len(parents)), -1, np.int64)
    for (j, l), block in found.items():
        block_of[j, l] = -1 if block is None else number[block]
    filled = _filled(np.array([[block_of[j, l] >= 0 for j in joints] for l in joints]))
    lines = [np.flatnonzero(filled[n, :n]) for n in range(len(order))]
    first = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    entry = np.full(filled.shape, -1, np.int64)
    for n, line in enumerate(lines):
        entry[n, line] = np.arange(first[n], first[n + 1])
    pairs = [
        (n, number.get(sums.own[k, l], -1), number.get(sums.own[l, k], -1) if k != l else -1)
        for n, (k, l) in enumerate(sums.pairs)
    ]
    made = [(number[s], number[a], number[b]) for s, (a, b) in sums.made.items() if s in number]
    return Pattern(
        np.array([len(number)]),
        _table([pair for pair in pairs if max(pair[1:]) >= 0]),
        _table(made),
        block_of,
        order.astype(np.int64),
        first.astype(np.int64),
        np.concatenate([*lines, []]).astype(np.int64),
        entry,
    )


class _Sums:
    """The sums over two subtrees, each made of two others and once; blocks by number."""

    def __init__(self, parents: list[int], first: np.ndarray, second: np.ndarray) -> None:
        self.pairs = [(int(k), int(l)) for k, l in zip(first, second, strict=True)]
        self.own: dict[tuple[int, int], int] = {}  # T_kl
        for k, l in self.pairs:
            self.own[k, l] = len(self.own)
            self.own.setdefault((l, k), len(self.own))
        self.children = [[c for c, p in enumerate(parents) if p == j] for j in range(len(parents))]
        self.made: dict[int, tuple[int, int]] = {}
        self._known: dict[tuple[int, int], int] = {}
        self._side: dict[tuple[int, int], int | None] = {}
        self._both: dict[tuple[int, int], int | None] = {}

    def _add(self, a: int | None, b: int | None) -> int | None:
        if a is None or b is None:
            return b if a is None else a
        parts = min(a, b), max(a, b)
        if parts not in self._known:
            self._known[parts] = len(self.own) + len(self.made)
            self.made[self._known[parts]] = parts
        return self._known[parts]

    def _beside(self, j: int, l: int) -> int | None:
        """Of all below j with l itself; None: 0."""
        if (j, l) not in self._side:
            total = self.own.get((j, l))
            for child in self.children[j]:
                total = self._add(total, self._beside(child, l))
            self._side[j, l] = total
        return self._side[j, l]

    def below(self, j: int, l: int) -> int | None:
        """Of all below j with all below l; None: 0."""
        if (j, l) not in self._both:
            total = self._beside(j, l)
            for child in self.children[l]:
                total = self._add(total, self.below(j, child))
            self._both[j, l] = total
        return self._both[j, l]

    def needed(self, blocks: list[int]) -> dict[int, int]:
        """A new number, in the order in which they are made, of these and what they are made of."""
        marked, left = set[int](), list(blocks)
        while left:
            block = left.pop()
            if block not in marked:
                marked.add(block)
                left.extend(self.made.get(block, ()))
        return {block: number for number, block in enumerate(sorted(marked))}


def _filled(known: np.ndarray) -> np.ndarray:
    """(f,f) bool: below the diagonal, what is not 0 of a matrix or becomes so while it is
    eliminated from its last line on."""
    filled = np.tril(known | known.T)
    for n in range(len(filled) - 1, 0, -1):
        line = np.flatnonzero(filled[n, :n])
        filled[np.ix_(line, line)] = True
    return np.tril(filled)


def _table(rows: Sequence[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 3)
