"""Means of per-row numbers with bootstrap intervals; videos are drawn, not their frames.

Source: docs/reference/evaluation.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

FEWEST_GROUPS = 10  # fewer cannot be resampled meaningfully
_DRAWN_AT_ONCE = 2_000_000  # units; 16 MB an array


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval.

    rows: how many entered; drawn: what the bootstrap drew, `groups` or `rows`.
    """

    value: float
    low: float
    high: float
    rows: int
    drawn: Literal["groups", "rows"] = "rows"

    def times(self, factor: float) -> Estimate:
        """In other units."""
        return replace(
            self, value=factor * self.value, low=factor * self.low, high=factor * self.high
        )


def estimate(
    numerators: np.ndarray,
    denominators: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean over columns of sum(numerators) / sum(denominators), with a bootstrap interval.

    numerators: (N,) or (N, K); denominators: same shape or (N,), 1 if None, 0 where a row does not
    count. groups: (N,) label of the unit that is drawn (a video: its frames are not independent);
    each row by itself if None or with fewer than 10 of them, which makes the interval too narrow
    for video. With K = 1 this is a weighted mean, with
    hits and visibilities of K keypoints it is PCK / 100. Columns with nothing to count drop out.
    The interval is NaN for fewer than two rows.
    """
    top = np.asarray(numerators, np.float64)
    top = top[:, None] if top.ndim == 1 else top
    bottom = np.ones(len(top)) if denominators is None else np.asarray(denominators, np.float64)
    bottom = np.broadcast_to(bottom[:, None] if bottom.ndim == 1 else bottom, top.shape)
    top = np.where(bottom > 0, top, 0.0)
    rows = int((bottom > 0).any(1).sum())
    drawn: Literal["groups", "rows"] = "rows"
    if groups is not None and len(np.unique(groups)) >= FEWEST_GROUPS:
        drawn = "groups"
        _, label = np.unique(groups, return_inverse=True)
        units = int(label.max()) + 1
        top = np.stack([np.bincount(label, column, units) for column in top.T], 1)
        bottom = np.stack([np.bincount(label, column, units) for column in bottom.T], 1)
    value = float(_ratio(top.sum(0), bottom.sum(0)))
    if rows < 2:
        return Estimate(value, math.nan, math.nan, rows, drawn)
    generator = np.random.default_rng(seed)
    count, results = len(top), np.empty(resamples)
    for start in range(0, resamples, max(1, _DRAWN_AT_ONCE // count)):
        part = results[start : start + max(1, _DRAWN_AT_ONCE // count)]
        picks = generator.integers(0, count, (len(part), count))
        picks += np.arange(len(part))[:, None] * count
        drawn_often = np.bincount(picks.ravel(), minlength=len(part) * count)
        weight = drawn_often.reshape(len(part), count).astype(np.float64)
        part[:] = _ratio(weight @ top, weight @ bottom)
    low, high = np.nanpercentile(results, [2.5, 97.5])
    return Estimate(value, float(low), float(high), rows, drawn)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Mean over the last axis of top / bottom where there is something to count, else NaN."""
    counted = bottom > 0
    ratio = np.divide(top, bottom, out=np.zeros_like(top), where=counted)
    columns = counted.sum(-1)
    mean = ratio.sum(-1) / np.maximum(columns, 1)
    return np.where(columns > 0, mean, math.nan)
