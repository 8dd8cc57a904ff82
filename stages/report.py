"""`hmr-skel report`: a self-contained page about a converted dataset.

The numbers come from one pass over the shards; only a few small columns stay in memory (about
40 bytes a row, so 120 MB for 3 million rows). Angles are counted into histograms on the way.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.atomic import write_bytes
from pipeline.columns import ERROR_COLUMNS, REGION_COLUMNS, SKEL_COLUMNS
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import InputError, UsageError
from pipeline.rundir import RunDirectory
from pipeline.task import conversion_models, open_plan_source
from skel_fit.anatomy import POSE_NAMES
from skel_fit.errors import ModelFileError
from skel_fit.joint_limits import LimitsName, limits
from skel_fit.status import Status
from stages.drawing import charts, pages, pictures
from stages.drawing.pictures import Person, Poser
from stages.drawing.render import png_bytes

PICTURE_SIZE = 300
WORST_ROWS = 3
GROUP_COLUMNS = ("segment", "pose_source", "split")
"""Original columns that the page breaks the errors down by, where a dataset has them."""
MAX_GROUPS = 40
_ANGLE_BINS, _ANGLE_RANGE = 144, np.pi
_HISTOGRAM_BINS = 60


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
    strip: Markup


@dataclass(frozen=True)
class Columns:
    """What the pass over the shards keeps. Arrays are (rows,) unless said otherwise.

    Attributes:
        error: `vertex_error_mean`, metres, NaN for rejected rows.
        peak: `vertex_error_max`, metres.
        unlimited: `vertex_error_unlimited`, metres, NaN where no limit matters.
        regions: region name -> mean distance, metres.
        status, pair: numbers into `status_names` and `pair_names` ("smpl -> skel" genders).
        groups: column name -> (numbers, names).
        iterations: solver iterations.
        limit_hits: (46,) rows on a limit.
        angles: (46, bins) counts over -180 to 180 degrees.
        angle_sums: (2, 46) sums of cosine and sine.
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
    iterations: NDArray[np.int32]
    limit_hits: NDArray[np.int64]
    angles: NDArray[np.int64]
    angle_sums: NDArray[np.float64]

    @property
    def fitted(self) -> NDArray[np.bool_]:
        return np.isfinite(self.error)


def report(directory: Path, *, models: Path | None = None, picture: Path | None = None) -> None:
    """Write DIR/report.html.

    Args:
        directory: output of `hmr-skel convert`; an incomplete one gets a page that says so.
        models: folder with the body models; by default where the conversion had them.
        picture: also write a PNG with a few people: target, SKEL skin, skeleton.

    Raises:
        InputError: not a converted dataset, or models that are not those of the conversion.
        OutputError: the page cannot be written.
    """
    dataset = open_dataset(directory, allow_incomplete=True)
    columns = collect(dataset)
    poser, missing = _poser(dataset, models)
    shown = _portraits(dataset, columns, poser) if poser else []
    target = Path(directory) / "report.html"
    html = pages.page("report.html.j2", _context(dataset, columns, shown, missing))
    write_bytes(target, html.encode("utf-8"))
    print(target)
    if missing:
        print(f"no pictures: {missing}", file=sys.stderr)
    if picture is not None:
        if poser is None:
            raise InputError(f"{directory}: no picture without body models: {missing}")
        write_bytes(picture, png_bytes(people(dataset, columns, poser)))
        print(picture)


def collect(dataset: Dataset) -> Columns:
    """One pass over the shards."""
    kept = [*ERROR_COLUMNS, "vertex_error_unlimited", "iterations"]
    names = [
        *kept, "status", "smpl_gender", "skel_gender", "active_limits", "skel_poses"
    ]  # fmt: skip
    grouped = [name for name in GROUP_COLUMNS if name in dataset and _is_label(dataset, name)]
    parts: dict[str, list[NDArray]] = {name: [] for name in kept}
    coders = {name: _Coder() for name in ("status", "pair", *grouped)}
    hits = np.zeros(len(POSE_NAMES), np.int64)
    angles = np.zeros((len(POSE_NAMES), _ANGLE_BINS), np.int64)
    sums = np.zeros((2, len(POSE_NAMES)))
    for chunk in dataset.chunks([*names, *grouped]):
        for name in kept:
            parts[name].append(chunk[name])
        coders["status"].add(chunk["status"])
        pair = np.char.add(np.char.add(chunk["smpl_gender"], " → "), chunk["skel_gender"])
        coders["pair"].add(pair)
        for name in grouped:
            coders[name].add(_as_text(chunk[name]))
        fitted = np.isfinite(chunk["vertex_error_mean"])
        hits += chunk["active_limits"][fitted].sum(axis=0)
        poses = chunk["skel_poses"][fitted].astype(np.float64)
        sums += np.stack([np.cos(poses).sum(axis=0), np.sin(poses).sum(axis=0)])
        angles += _count_angles(poses)
    joined = {
        name: np.concatenate(found) if found else np.zeros(0, np.float32)
        for name, found in parts.items()
    }
    status, pair = coders["status"], coders["pair"]
    return Columns(
        error=joined["vertex_error_mean"],
        peak=joined["vertex_error_max"],
        unlimited=joined["vertex_error_unlimited"],
        regions={region: joined[name] for region, name in REGION_COLUMNS.items()},
        status=status.codes,
        status_names=status.names,
        pair=pair.codes,
        pair_names=pair.names,
        groups={name: (coders[name].codes, coders[name].names) for name in grouped},
        iterations=joined["iterations"],
        limit_hits=hits,
        angles=angles,
        angle_sums=sums,
    )


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
    known = limits_name if limits_name in get_args(LimitsName) else "none"
    table = limits(known)  # type: ignore[arg-type]
    total = max(int(columns.fitted.sum()), 1)
    found = []
    for index, name in enumerate(POSE_NAMES):
        cosine, sine = columns.angle_sums[:, index] / total
        # On the circle: the pelvis turns all the way round.
        length = min(max(float(np.hypot(cosine, sine)), 1e-12), 1.0)
        mean = float(np.degrees(np.arctan2(sine, cosine)))
        low, high = (float(np.degrees(value)) for value in table[index])
        p01, median, p99 = _angle_quantiles(columns.angles[index], mean, (0.01, 0.5, 0.99))
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
                strip=charts.strip(columns.angles[index], -180.0, 180.0, (low, high)),
            )
        )
    return found


def typical_and_worst(columns: Columns) -> list[tuple[str, int]]:
    """(why, position) of the rows to show: the median of each gender group, then the worst."""
    chosen: list[tuple[str, int]] = []
    for code, name in sorted(enumerate(columns.pair_names), key=lambda item: item[1]):
        rows = np.flatnonzero((columns.pair == code) & columns.fitted)
        if rows.size:
            order = rows[np.argsort(columns.error[rows], kind="stable")]
            chosen.append((f"median of {name}", int(order[(len(order) - 1) // 2])))
    fitted = np.flatnonzero(columns.fitted)
    worst = fitted[np.argsort(-columns.error[fitted], kind="stable")][:WORST_ROWS]
    chosen += [(_ordinal(place), int(row)) for place, row in enumerate(worst)]
    return chosen


def person(dataset: Dataset, position: int) -> Person:
    """One row of a dataset as bodies to draw.

    The SMPL target comes from the original columns where they are CameraHMR's, else from the
    label file if it is still where it was converted.
    """
    row = {
        name: dataset.read(name, position, position + 1)[0]
        for name in (*SKEL_COLUMNS, "smpl_gender", "skel_gender", "source_row")
    }
    number = int(row["source_row"])
    return Person(
        row=number,
        skel=(row["skel_poses"], row["skel_betas"], row["skel_trans"]),
        skel_gender=str(row["skel_gender"]),
        smpl=_stored_target(dataset, position) or _source_target(dataset, number),
        smpl_gender=str(row["smpl_gender"]),
        cam_int=_optional(dataset, "cam_int", position),
    )


def people(dataset: Dataset, columns: Columns, poser: Poser, size: int = 340) -> NDArray[np.uint8]:
    """Four people in a row of three pictures each: SMPL target, SKEL skin, skeleton.

    One from each quarter of the dataset: a row with about the median error (typical, not chosen
    for its fit) that turns three quarters to the camera, women and men in turn.
    """
    fitted = np.flatnonzero(columns.fitted)
    if len(fitted) < 4:
        raise UsageError("a picture of people needs at least four fitted rows")
    middle = float(np.median(columns.error[fitted]))
    chosen = []
    for place, part in enumerate(np.array_split(fitted, 4)):
        gender = ("female", "male")[place % 2]
        wanted = [code for code, name in enumerate(columns.pair_names) if name.endswith(gender)]
        own = part[np.isin(columns.pair[part], wanted)]
        near = own if own.size else part
        near = near[np.argsort(np.abs(columns.error[near] - middle), kind="stable")]
        chosen.append(_best_turned(dataset, near[: len(near) // 8 + 1], poser))
    groups = []
    for position in chosen:
        bodies = poser.bodies(person(dataset, position))
        drawn = [pictures.skin_picture(bodies, size), pictures.skeleton_picture(bodies, size)]
        if bodies.target is not None:
            drawn.insert(0, pictures.target_picture(bodies, size))
        groups.append(pictures.side_by_side(pictures.trimmed(drawn), gap=2))
    return pictures.side_by_side(groups, gap=14)


def _best_turned(dataset: Dataset, positions: NDArray[np.int64], poser: Poser) -> int:
    """The row whose pelvis looks three quarters towards the camera, not from very near."""
    import torch

    from skel_fit.root import root_rotation

    scores = []
    for position in positions.tolist():
        shown = person(dataset, position)
        skel = poser.model("skel", shown.skel_gender)
        turn = root_rotation(skel, torch.as_tensor(shown.skel[0][None, :3]))[0].numpy()
        # Column 2 is the way the body looks; z = -1 is straight at the camera.
        scores.append(abs(turn[2, 2] + 0.85) + (float(shown.skel[2][2]) < 3.0))
    return int(positions[int(np.argmin(scores))])


class _Coder:
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
    counts: NDArray[np.int64], middle: float, shares: Sequence[float]
) -> list[float]:
    """Quantiles in degrees to half a bin (1.25 degrees), from half a turn before `middle` on."""
    if not counts.any():
        return [float("nan")] * len(shares)
    width = 360.0 / len(counts)
    first = int(np.floor(middle / width))  # the bin of `middle - 180`
    total = np.cumsum(np.roll(counts, -first))
    places = np.searchsorted(total, np.array(shares) * total[-1]) + first
    return [float((place + 0.5) * width % 360.0 - 180.0) for place in places]


def _poser(dataset: Dataset, given: Path | None) -> tuple[Poser | None, str]:
    """Something to pose rows with, or why not. Never other models than those of the conversion."""
    plan = dataset.plan
    if not plan.models:
        return None, f"fitter '{plan.fitter}' uses no body models"
    try:
        directory = conversion_models(plan, dataset.attrs["models_directory"], given)
    except (InputError, ModelFileError) as error:
        if given is not None:
            raise
        return None, str(error)
    return Poser(directory), ""


def _portraits(dataset: Dataset, columns: Columns, poser: Poser) -> list[dict[str, Any]]:
    """Pictures and numbers of the median and the worst rows."""
    found = []
    for why, position in typical_and_worst(columns):
        shown = person(dataset, position)
        bodies = poser.bodies(shown)
        drawn = []
        if bodies.target is not None:
            drawn.append(("SMPL target", pictures.target_picture(bodies, PICTURE_SIZE)))
        drawn.append(("SKEL skin", pictures.skin_picture(bodies, PICTURE_SIZE)))
        if bodies.target is not None:
            drawn.append(("distance", pictures.distance_picture(bodies, PICTURE_SIZE)))
        drawn.append(("skeleton", pictures.skeleton_picture(bodies, PICTURE_SIZE)))
        side = bodies.turned(90.0)
        drawn.append(("from the side", pictures.skeleton_picture(side, PICTURE_SIZE)))
        active = dataset.read("active_limits", position, position + 1)[0]
        found.append(
            {
                "why": why,
                "row": shown.row,
                "pair": f"{shown.smpl_gender} → {shown.skel_gender}",
                "status": columns.status_names[columns.status[position]],
                "iterations": int(columns.iterations[position]),
                "error": float(columns.error[position]),
                "peak": float(columns.peak[position]),
                "unlimited": float(columns.unlimited[position]),
                "regions": [(r, float(v[position])) for r, v in columns.regions.items()],
                "limits": [POSE_NAMES[i] for i in np.flatnonzero(active)],
                "labels": [
                    (name, str(names[codes[position]]))
                    for name, (codes, names) in columns.groups.items()
                ],
                "name": _image_name(dataset, position),
                "pictures": [(caption, pages.data_uri(image)) for caption, image in drawn],
            }
        )
    return found


def _context(
    dataset: Dataset, columns: Columns, shown: list[dict[str, Any]], missing: str
) -> dict[str, Any]:
    plan, summary = dataset.plan, dataset.attrs["summary"]
    rows = len(columns.error)
    counts = np.bincount(columns.status, minlength=len(columns.status_names))
    statuses = sorted(
        ((name, int(counts[code])) for code, name in enumerate(columns.status_names)),
        key=lambda item: (Status(item[0]).is_rejected, -item[1], item[0]),
    )
    angles = angle_statistics(columns, str(plan.fit.get("limits", "none")))
    return {
        "subset": plan.name,
        "standin": dataset.attrs["standin"],
        "complete": dataset.attrs["complete"],
        "missing_shards": plan.shards - len(dataset.shard_rows),
        "planned": plan.rows,
        "rows": rows,
        "fitted": int(columns.fitted.sum()),
        "digest": dataset.attrs["digest"],
        "bytes": summary["bytes"],
        "plan": plan,
        "statuses": [(name, number, number / max(rows, 1)) for name, number in statuses],
        "genders": genders(columns),
        "groups": [_group(name, columns) for name in columns.groups],
        "regions": [_region(region, columns) for region in REGION_COLUMNS],
        "unlimited": _unlimited(columns),
        "histogram": _error_histogram(columns),
        "percentiles": _percentiles(columns),
        "iterations": _iterations(columns),
        "angles": angles,
        "hit_angles": sum(angle.hits > 0 for angle in angles),
        "shown": shown,
        "no_pictures": missing,
        "legend": [
            (f"rgb({', '.join(str(round(255 * c)) for c in color)})", stop * 1000)
            for stop, color in pictures.ERROR_COLORS
        ],
    }


def _group(name: str, columns: Columns) -> dict[str, Any]:
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


def _region(region: str, columns: Columns) -> dict[str, Any]:
    errors = columns.regions[region]
    errors = errors[np.isfinite(errors)].astype(np.float64)
    if not errors.size:
        return {"name": region.replace("_", " "), "values": [None] * 4}
    quantiles = [float(v) for v in np.quantile(errors, (0.5, 0.95))]
    values = [float(errors.mean()), *quantiles, float(errors.max())]
    return {"name": region.replace("_", " "), "values": values}


def _unlimited(columns: Columns) -> dict[str, Any] | None:
    """Rows that joint limits hold back: their error with and without limits."""
    chosen = np.isfinite(columns.unlimited)
    if not chosen.any():
        return None
    return {
        "rows": int(chosen.sum()),
        "limited": float(columns.error[chosen].mean(dtype=np.float64)),
        "free": float(columns.unlimited[chosen].mean(dtype=np.float64)),
    }


def _error_histogram(columns: Columns) -> Markup | None:
    errors = columns.error[columns.fitted].astype(np.float64) * 1000
    if not errors.size:
        return None
    # The axis ends beyond the 99.9th percentile; the last bar holds all that is above.
    top = max(float(np.quantile(errors, 0.999)) * 1.05, 1e-3)
    edges = np.linspace(0.0, top, _HISTOGRAM_BINS + 1)
    counts, _ = np.histogram(np.minimum(errors, top), bins=edges)
    marks = {"median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95))}
    label = "mean distance between SMPL target and SKEL skin, mm"
    return charts.histogram(counts, edges, marks, label)


def _percentiles(columns: Columns) -> list[tuple[str, float, float]]:
    fitted = columns.fitted
    if not fitted.any():
        return []
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
    means, peaks = (
        np.quantile(values[fitted].astype(np.float64), shares)
        for values in (columns.error, columns.peak)
    )
    names = [f"{share * 100:g} %" for share in shares[:-1]] + ["maximum"]
    return [
        (name, float(mean), float(peak))
        for name, mean, peak in zip(names, means, peaks, strict=True)
    ]


def _iterations(columns: Columns) -> dict[str, float] | None:
    if not columns.fitted.any():
        return None
    found = columns.iterations[columns.fitted]
    return {"median": float(np.median(found)), "maximum": int(found.max())}


def _stored_target(dataset: Dataset, position: int) -> tuple[NDArray, NDArray, NDArray] | None:
    """SMPL parameters from CameraHMR columns in the shards (datasets.md section 1.2)."""
    if dataset.plan.source_format != "camerahmr":
        return None
    poses = _optional(
        dataset, str(dataset.plan.source_options.get("pose_key", "pose_cam")), position
    )
    betas = _optional(dataset, "shape", position)
    if poses is None or betas is None or poses.size != 72:
        return None
    transl = _optional(dataset, "trans_cam", position)
    return (
        poses.reshape(72).astype(np.float64),
        betas.reshape(-1)[:10].astype(np.float64),
        np.zeros(3) if transl is None else transl.astype(np.float64),
    )


def _source_target(dataset: Dataset, row: int) -> tuple[NDArray, NDArray, NDArray] | None:
    places = RunDirectory(dataset.directory).places()
    path = places.get("source")
    if not path or not Path(path).exists():
        return None
    source = open_plan_source(dataset.plan, Path(path), Path(places.get("data_root") or "."))
    rows = source.read(row, row + 1)
    return rows.poses[0], rows.betas[0], rows.transl[0]


def _optional(dataset: Dataset, source_name: str, position: int) -> NDArray | None:
    """One row of an original column by its name in the label file."""
    for item in dataset.plan.fields:
        if item.source == source_name:
            return np.asarray(dataset.read(item.stored, position, position + 1)[0])
    return None


def _image_name(dataset: Dataset, position: int) -> str:
    name = _optional(dataset, "imgname", position)
    if name is None:
        return ""
    value = name.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _ordinal(place: int) -> str:
    return "worst" if place == 0 else f"{('second', 'third')[place - 1]} worst"


def _natural(text: str) -> tuple[int, str]:
    """Order numbers by value, other texts after them."""
    return (int(text), "") if text.isdecimal() else (sys.maxsize, text)
