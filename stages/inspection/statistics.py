"""Numbers of a converted dataset, for report and card.

They come from passes over the shards; only a few small columns stay in memory (about 40 bytes a
row, so 120 MB for 3 million rows, and 64 MB of angles). Percentiles are those of the values;
histograms are for drawing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import ERROR_COLUMNS, REGION_COLUMNS, RESULT_COLUMNS
from pipeline.dataset import Dataset
from pipeline.readers.base import SEQUENCE
from skel_fit.anatomy import POSE_NAMES
from skel_fit.joint_limits import LimitsName, limits

GROUP_COLUMNS = ("segment", "pose_source", "split")
"""Original columns that the page breaks the errors down by, where a dataset has them."""
MAX_GROUPS = 40
_ANGLE_BINS, _ANGLE_RANGE = 144, np.pi
_SHARES = (0.01, 0.5, 0.99)
_HELD_BYTES = 1 << 26


@dataclass(frozen=True)
class ErrorStatistics:
    """`vertex_error_mean` of some rows, metres; None without fitted rows."""

    name: str
    rows: int
    fitted: int
    limited: int
    mean: float | None
    median: float | None
    p95: float | None
    p99: float | None
    maximum: float | None


@dataclass(frozen=True)
class AngleStatistics:
    """One joint angle over all fitted rows; degrees."""

    name: str
    limit_low: float
    limit_high: float
    hits: int
    hit_share: float
    p01: float
    median: float
    p99: float
    deviation: float


@dataclass(frozen=True)
class Columns:
    """What the pass over the shards keeps. Arrays are (rows,) unless said otherwise.

    Attributes:
        error: `vertex_error_mean`, metres, NaN for rejected rows.
        peak: `vertex_error_max`, metres.
        unlimited: `vertex_error_unlimited`, metres, NaN where limits cost little.
        regions: region name -> mean distance, metres.
        status, pair: numbers into `status_names` and `pair_names` ("smpl -> skel" genders).
        groups: column name -> (numbers, names).
        sequence: number of the row's sequence: its `sequence`, else the folder of its picture.
        iterations: solver iterations.
        limit_hits: (46,) rows on a limit.
        angles: (46, bins) counts over -180 to 180 degrees.
        angle_sums: (2, 46) sums of cosine and sine.
        angle_quantiles: (46, 3) 1 %, median and 99 % of the values, degrees.
    """

    error: NDArray[np.float32]
    peak: NDArray[np.float32]
    unlimited: NDArray[np.float32]
    regions: Mapping[str, NDArray[np.float32]]
    status: NDArray[np.int32]
    status_names: Sequence[str]
    pair: NDArray[np.int32]
    pair_names: Sequence[str]
    groups: Mapping[str, tuple[NDArray[np.int32], Sequence[str]]]
    sequence: NDArray[np.int32]
    iterations: NDArray[np.int32]
    limit_hits: NDArray[np.int64]
    angles: NDArray[np.int64]
    angle_sums: NDArray[np.float64]
    angle_quantiles: NDArray[np.float64]

    @property
    def fitted(self) -> NDArray[np.bool_]:
        return np.isfinite(self.error)


def collect(dataset: Dataset) -> Columns:
    """One pass over the shards."""
    kept = [*ERROR_COLUMNS, "vertex_error_unlimited", "iterations"]
    names = [*kept, "status", "smpl_gender", "skel_gender", "active_limits", "skel_poses"]
    grouped = [name for name in GROUP_COLUMNS if name in dataset and _is_label(dataset, name)]
    held: dict[str, NDArray] = {
        name: np.empty(len(dataset), RESULT_COLUMNS[name].dtype) for name in kept
    }
    done = 0
    coders = {name: Coder() for name in ("status", "pair", "sequence", *grouped)}
    named = next((name for name in (SEQUENCE, "imgname") if _is_text(dataset, name)), None)
    hits = np.zeros(len(POSE_NAMES), np.int64)
    angles = np.zeros((len(POSE_NAMES), _ANGLE_BINS), np.int64)
    sums = np.zeros((2, len(POSE_NAMES)))
    for chunk in dataset.chunks([*names, *grouped, *([named] if named else [])]):
        here = slice(done, done + len(chunk["status"]))
        done = here.stop
        for name in kept:
            held[name][here] = chunk[name]
        coders["status"].add(chunk["status"])
        pair = np.char.add(np.char.add(chunk["smpl_gender"], " → "), chunk["skel_gender"])
        coders["pair"].add(pair)
        for name in grouped:
            coders[name].add(_as_text(chunk[name]))
        whose = np.zeros(len(chunk["status"]), np.str_)
        if named is not None:
            whose = _as_text(chunk[named]) if named == SEQUENCE else folders(chunk[named])
        coders["sequence"].add(whose)
        fitted = np.isfinite(chunk["vertex_error_mean"])
        hits += chunk["active_limits"][fitted].sum(axis=0)
        poses = chunk["skel_poses"][fitted].astype(np.float64)
        sums += np.stack([np.cos(poses).sum(axis=0), np.sin(poses).sum(axis=0)])
        angles += _count_angles(poses)
    statuses, pairs = coders["status"], coders["pair"]
    return Columns(
        error=held["vertex_error_mean"],
        peak=held["vertex_error_max"],
        unlimited=held["vertex_error_unlimited"],
        regions={region: held[name] for region, name in REGION_COLUMNS.items()},
        status=statuses.codes,
        status_names=statuses.names,
        pair=pairs.codes,
        pair_names=pairs.names,
        groups={name: (coders[name].codes, coders[name].names) for name in grouped},
        sequence=coders["sequence"].codes,
        iterations=held["iterations"],
        limit_hits=hits,
        angles=angles,
        angle_sums=sums,
        angle_quantiles=_angle_quantiles(
            dataset,
            np.arctan2(sums[1], sums[0]),
            int(np.isfinite(held["vertex_error_mean"]).sum()),
        ),
    )


def spread_worst(
    errors: NDArray[np.floating], group: NDArray[np.int32], count: int
) -> NDArray[np.int64]:
    """Positions of `count` of the worst rows, worst first: the worst of each group before second
    ones of any. The frames of one bad moment would all look the same.

    errors: (n,), NaN left out. group: (n,) the sequence of each row.
    """
    order = np.argsort(-errors, kind="stable")
    order = order[np.isfinite(errors[order])]
    _, heads = np.unique(group[order], return_index=True)
    is_head = np.zeros(len(order), bool)
    is_head[heads] = True
    chosen = np.concatenate([order[is_head], order[~is_head]])[:count]
    return chosen[np.argsort(-errors[chosen], kind="stable")]


def folders(names: NDArray) -> NDArray[np.str_]:
    """(n,) the folder of each picture: what is in one is usually one sequence."""
    return np.array([text.rpartition("/")[0] for text in _as_text(names).tolist()], np.str_)


def error_statistics(name: str, columns: Columns, chosen: NDArray[np.bool_]) -> ErrorStatistics:
    """Percentiles of `vertex_error_mean` over the fitted rows among `chosen`."""
    errors = columns.error[chosen & columns.fitted].astype(np.float64)
    names = list(columns.status_names)
    limited = columns.status == names.index("limited") if "limited" in names else chosen & False
    values: list[float | None] = [None] * 5
    if errors.size:
        values = [float(errors.mean()), *(float(v) for v in np.quantile(errors, (0.5, 0.95, 0.99)))]
        values.append(float(errors.max()))
    return ErrorStatistics(
        name, int(chosen.sum()), int(errors.size), int((chosen & limited).sum()), *values
    )


def genders(columns: Columns) -> list[ErrorStatistics]:
    """All rows, rows whose two models have the same gender, then each other pair by itself."""
    pairs = [name.split(" → ") for name in columns.pair_names]
    same = np.array([smpl == skel for smpl, skel in pairs], bool)
    every = np.ones(len(columns.error), bool)
    found = [error_statistics("all rows", columns, every)]
    if same.any():
        found.append(error_statistics("same gender", columns, same[columns.pair]))
    found += [
        error_statistics(name, columns, columns.pair == code)
        for code, name in sorted(enumerate(columns.pair_names), key=lambda item: item[1])
        if not same[code]
    ]
    return found


def angle_statistics(columns: Columns, limits_name: str) -> list[AngleStatistics]:
    """Limit hits and spread of each of the 46 angles."""
    known: tuple[LimitsName, ...] = get_args(LimitsName)
    table = limits(next((name for name in known if name == limits_name), "none"))
    total = max(int(columns.fitted.sum()), 1)
    found = []
    for index, name in enumerate(POSE_NAMES):
        cosine, sine = columns.angle_sums[:, index] / total
        # On the circle: the pelvis turns all the way round.
        length = min(max(float(np.hypot(cosine, sine)), 1e-12), 1.0)
        low, high = (float(np.degrees(value)) for value in table[index])
        p01, median, p99 = columns.angle_quantiles[index].tolist()
        found.append(
            AngleStatistics(
                name=name,
                limit_low=low,
                limit_high=high,
                hits=int(columns.limit_hits[index]),
                hit_share=float(columns.limit_hits[index] / total),
                p01=p01,
                median=median,
                p99=p99,
                deviation=float(np.degrees(np.sqrt(-2.0 * np.log(length)))),
            )
        )
    return found


def group_statistics(name: str, columns: Columns) -> dict[str, Any]:
    """Errors of one breakdown: all rows, and same-gender rows, of each value."""
    codes, names = columns.groups[name]
    pairs = [pair.split(" → ") for pair in columns.pair_names]
    same = np.array([smpl == skel for smpl, skel in pairs], bool)[columns.pair]
    order = sorted(range(len(names)), key=lambda code: _natural(names[code]))
    if len(order) > MAX_GROUPS:  # the worst ones
        sums = np.bincount(codes[columns.fitted], columns.error[columns.fitted], len(names))
        sizes = np.bincount(codes[columns.fitted], minlength=len(names))
        order = np.argsort(-sums / np.maximum(sizes, 1), kind="stable")[:MAX_GROUPS].tolist()
    every = [error_statistics(names[code], columns, codes == code) for code in order]
    matched = [error_statistics(names[code], columns, (codes == code) & same) for code in order]
    return {
        "name": name,
        "total": len(names),
        "rows": list(zip(every, matched, strict=True)),
        "has_same": bool(same.any()),
    }


class Coder:
    """Texts to numbers, over all chunks."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, texts: NDArray[np.str_]) -> None:
        unique, inverse = np.unique(texts, return_inverse=True)
        known = [self._numbers.setdefault(str(text), len(self._numbers)) for text in unique]
        self._parts.append(np.array(known, np.int32)[inverse])

    @property
    def names(self) -> list[str]:
        return list(self._numbers)

    @property
    def codes(self) -> NDArray[np.int32]:
        return np.concatenate([np.zeros(0, np.int32), *self._parts])


def _is_label(dataset: Dataset, name: str) -> bool:
    """Whether an original column holds one text or whole number a row."""
    for item in dataset.plan.fields:
        if item.stored == name:
            return item.shape == () and np.dtype(item.dtype).kind in "SUiu"
    return False


def _is_text(dataset: Dataset, name: str) -> bool:
    return any(
        item.stored == name and item.shape == () and np.dtype(item.dtype).kind in "SU"
        for item in dataset.plan.fields
    )


def _as_text(values: NDArray) -> NDArray[np.str_]:
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    return values.astype(np.str_)


def _count_angles(poses: NDArray[np.float64]) -> NDArray[np.int64]:
    """(46, bins) counts of angles (n, 46) over one turn; angles beyond a half turn are wrapped."""
    wrapped = (poses + _ANGLE_RANGE) % (2 * _ANGLE_RANGE)
    bins = np.minimum((wrapped / (2 * _ANGLE_RANGE) * _ANGLE_BINS).astype(int), _ANGLE_BINS - 1)
    offsets = np.arange(poses.shape[1]) * _ANGLE_BINS
    flat = np.bincount((bins + offsets).ravel(), minlength=poses.shape[1] * _ANGLE_BINS)
    return flat.reshape(poses.shape[1], _ANGLE_BINS)


def _angle_quantiles(
    dataset: Dataset, middles: NDArray[np.float64], rows: int
) -> NDArray[np.float64]:
    """(46, 3) quantiles `_SHARES` of each angle, degrees: of the values, from half a turn before
    its mean on.

    middles: (46,) circular means, radians. rows: fitted ones. Passes over as many angles as memory
    holds at once: one pass for 360,000 rows.
    """
    found = np.full((len(middles), len(_SHARES)), np.nan)
    step = max(1, _HELD_BYTES // max(4 * rows, 1))
    for first in range(0, len(middles) if rows else 0, step):
        some = slice(first, first + step)
        held = np.empty((len(middles[some]), rows), np.float32)
        done = 0
        for chunk in dataset.chunks(["skel_poses", "vertex_error_mean"]):
            fitted = np.isfinite(chunk["vertex_error_mean"])
            part = chunk["skel_poses"][fitted, some].T
            held[:, done : done + part.shape[1]] = part
            done += part.shape[1]
        for offset, angles in enumerate(held):
            begin = middles[first + offset] - np.pi
            unrolled = begin + (angles.astype(np.float64) - begin) % (2 * np.pi)
            found[first + offset] = np.degrees(np.quantile(unrolled, _SHARES))
    return (found + 180.0) % 360.0 - 180.0


def _natural(text: str) -> tuple[int, str]:
    """Order numbers by value, other texts after them."""
    return (int(text), "") if text.isdecimal() else (sys.maxsize, text)
