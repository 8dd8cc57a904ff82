"""The report of a converted dataset: one self-contained page."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.columns import REGION_COLUMNS
from pipeline.dataset import Dataset
from skel_fit.anatomy import POSE_NAMES
from skel_fit.status import Status
from stages.drawing import charts, pages, pictures
from stages.drawing.pictures import Poser
from stages.inspection.people import image_name, person, typical_and_worst
from stages.inspection.statistics import (
    Columns,
    angle_statistics,
    genders,
    group_statistics,
)

PICTURE_SIZE = 300


def report_page(dataset: Dataset, columns: Columns, poser: Poser | None, no_pictures: str) -> str:
    """The HTML text. poser: None gives a page without pictures that says why (`no_pictures`)."""
    shown = _portraits(dataset, columns, poser) if poser else []
    return pages.page("report.html.j2", _context(dataset, columns, shown, no_pictures))


def _portraits(dataset: Dataset, columns: Columns, poser: Poser) -> list[dict[str, Any]]:
    """Pictures and numbers of the median and the worst rows."""
    found = []
    for why, position in typical_and_worst(columns):
        shown = person(dataset, position)
        bodies = poser.bodies(shown)
        drawn = pictures.views(bodies, PICTURE_SIZE)
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
                "name": image_name(dataset, position),
                "pictures": pages.data_uris(drawn),
            }
        )
    return found


def _context(
    dataset: Dataset, columns: Columns, shown: list[dict[str, Any]], missing: str
) -> dict[str, Any]:
    plan, summary = dataset.plan, dataset.attrs["summary"]
    rows = len(columns.error)
    sizes = np.bincount(columns.status, minlength=len(columns.status_names))
    statuses = sorted(
        ((name, int(sizes[code])) for code, name in enumerate(columns.status_names)),
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
        "groups": [group_statistics(name, columns) for name in columns.groups],
        "regions": [_region(region, columns) for region in REGION_COLUMNS],
        "unlimited": _unlimited(columns),
        "histogram": charts.distribution(
            columns.error[columns.fitted].astype(np.float64) * 1000,
            "mean distance between SMPL target and SKEL skin, mm",
            axis=0.999,
        ),
        "percentiles": _percentiles(columns),
        "iterations": _iterations(columns),
        "angles": [
            (angle, charts.strip(counts, -180.0, 180.0, (angle.limit_low, angle.limit_high)))
            for angle, counts in zip(angles, columns.angles, strict=True)
        ],
        "hit_angles": sum(angle.hits > 0 for angle in angles),
        "shown": shown,
        "no_pictures": missing,
        "legend": [
            (f"rgb({', '.join(str(round(255 * c)) for c in color)})", stop * 1000)
            for stop, color in pictures.ERROR_COLORS
        ],
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
