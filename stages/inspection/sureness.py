"""How sure the angles of a dataset are, for the report: a pass over two columns, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.calibration import why_unknown
from pipeline.dataset import Dataset
from skel_fit.anatomy import POSE_NAMES
from skel_fit.calibration import OBSERVED

_EDGES = np.geomspace(1e-5, 4.0, 1025)
"""Of the bins that quantiles are read from, radians: 1.3 % apart."""


@dataclass(frozen=True)
class AngleSureness:
    """Of one angle. median, p95: standard deviation, degrees; None: in no row known."""

    name: str
    median: float | None
    p95: float | None
    data: float
    prior: float
    limit: float


def sureness(dataset: Dataset) -> dict[str, Any] | None:
    """For the page: `angles` that were fitted, and `unknown`, pair -> why it has no standard
    deviations. None: a dataset of an older version."""
    columns = ("skel_poses_sd", "skel_poses_observed", "smpl_gender", "skel_gender")
    if any(name not in dataset for name in columns):
        return None
    counts = np.zeros((len(POSE_NAMES), len(_EDGES) + 1), np.int64)
    rests = {name: np.zeros(len(POSE_NAMES), np.int64) for name in ("data", "prior", "limit")}
    pairs: set[str] = set()
    for part in dataset.chunks(columns):
        for angle, values in enumerate(part["skel_poses_sd"].T):
            known = values[np.isfinite(values)]
            counts[angle] += np.bincount(np.searchsorted(_EDGES, known), minlength=counts.shape[1])
        for name, total in rests.items():
            total += (part["skel_poses_observed"] == OBSERVED[name]).sum(axis=0)
        joined = np.char.add(np.char.add(part["smpl_gender"], ":"), part["skel_gender"])
        pairs |= set(np.unique(joined).tolist())
    fitted = np.sum(list(rests.values()), axis=0)
    angles = [
        AngleSureness(
            POSE_NAMES[angle],
            _quantile(counts[angle], 0.5),
            _quantile(counts[angle], 0.95),
            *(float(rests[name][angle] / fitted[angle]) for name in ("data", "prior", "limit")),
        )
        for angle in np.flatnonzero(fitted)
    ]
    return {"angles": angles, "unknown": why_unknown(dataset.plan, pairs)}


def _quantile(counts: np.ndarray, share: float) -> float | None:
    """Degrees: the upper edge of the bin that holds the quantile."""
    total = counts.sum()
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(np.degrees(_EDGES[min(place, len(_EDGES) - 1)]))
