"""The report of a converted dataset: one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.columns import REGION_COLUMNS
from pipeline.dataset import Dataset
from pipeline.dataset_rows import DEFAULT_RATE, recorded_rate
from pipeline.readers.base import SEQUENCE
from skel_fit.anatomy import POSE_NAMES
from skel_fit.joint_limits import limits
from skel_fit.status import Status
from stages.drawing import charts, pages, pictures
from stages.drawing.pictures import Person, Poser
from stages.drawing.viewer.page import scene_page
from stages.inspection.motion import busiest, people_scene
from stages.inspection.people import image_name, person, typical_and_worst
from stages.inspection.shapes_of_people import people_table
from stages.inspection.statistics import (
    Columns,
    angle_statistics,
    genders,
    group_statistics,
)
from stages.inspection.sureness import sureness

PICTURE_SIZE = 480


SEQUENCES = 3
"""Sequences whose angles are drawn over time."""


@dataclass(frozen=True)
class Report:
    """html: the page; bodies: the page that plays the rows of its pictures, None without any."""

    html: str
    bodies: str | None


def report_page(
    dataset: Dataset,
    columns: Columns,
    poser: Poser | None,
    no_pictures: str,
    bodies_page: str = "bodies.html",
) -> Report:
    """The report. poser: None gives a page without pictures that says why (`no_pictures`).

    bodies_page: the name that the page of bodies will have beside the report.
    """
    chosen = typical_and_worst(columns) if poser else []
    people = [person(dataset, position, poser) for _, position in chosen if poser]
    bodies = None
    if poser and people:
        scene = people_scene(people, poser, dataset.plan.name, _limits_name(dataset))
        bodies = scene_page(scene).html
    shown = [
        _portrait(dataset, columns, poser, why, position, shown)
        for (why, position), shown in zip(chosen, people, strict=True)
        if poser
    ]
    context = _context(dataset, columns, shown, no_pictures)
    context |= {"bodies_page": bodies_page if bodies else "", "curves": _curves(dataset, columns)}
    return Report(pages.page("report.html.j2", context), bodies)


def _limits_name(dataset: Dataset) -> Any:
    return dataset.plan.fit.get("limits", "none")


def _curves(dataset: Dataset, columns: Columns) -> list[dict[str, Any]]:
    """Angles over time: the worst sequence by mean error, then others evenly down to the best."""
    if SEQUENCE not in dataset:
        return []
    names = dataset[SEQUENCE]
    unique, inverse = np.unique(names[columns.fitted], return_inverse=True)
    errors = columns.error[columns.fitted]
    totals = np.bincount(inverse, weights=errors) / np.bincount(inverse)
    order = np.argsort(-totals, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, SEQUENCES).astype(int))]
    low, high = np.degrees(limits(_limits_name(dataset))).T
    found = []
    for place, which in enumerate(picked):
        rows = np.flatnonzero(names == unique[which])
        angles = np.degrees(dataset.read("skel_poses", rows[0], rows[-1] + 1)[rows - rows[0]])
        rate = recorded_rate(dataset, rows) or DEFAULT_RATE
        fitted = np.isfinite(angles).all(axis=1)
        found.append(
            {
                "name": str(unique[which]),
                "why": "the worst sequence" if place == 0 else "for comparison",
                "error": float(totals[which]),
                "frames": len(rows),
                "charts": [
                    charts.curve(
                        np.arange(len(rows)) / rate, angles[:, index], float(low[index]),
                        float(high[index]), POSE_NAMES[index].replace("_", " "), "°",
                    )
                    for index in busiest(angles[fitted])
                ],
            }
        )  # fmt: skip
    return found


def _portrait(
    dataset: Dataset, columns: Columns, poser: Poser, why: str, position: int, shown: Person
) -> dict[str, Any]:
    """Pictures and numbers of one row."""
    bodies = poser.bodies(shown)
    drawn = pictures.views(bodies, PICTURE_SIZE)
    side = bodies.turned(90.0)
    drawn.append(("from the side", pictures.skeleton_picture(side, PICTURE_SIZE)))
    active = dataset.read("active_limits", position, position + 1)[0]
    return {
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
            (name, str(names[codes[position]])) for name, (codes, names) in columns.groups.items()
        ],
        "name": image_name(dataset, position),
        "pictures": pages.data_uris(drawn),
    }


def _context(
    dataset: Dataset, columns: Columns, shown: list[dict[str, Any]], missing: str
) -> dict[str, Any]:
    plan, summary = dataset.plan, dataset.summary()
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
        "bytes": summary.bytes,
        "plan": plan,
        "statuses": [(name, number, number / max(rows, 1)) for name, number in statuses],
        "genders": genders(columns),
        "people": people_table(dataset, columns),
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
        "sureness": sureness(dataset),
        "shown": shown,
        "appended": _appended(dataset),
        "no_pictures": missing,
        "legend": pictures.legend(),
    }


def _appended(dataset: Dataset) -> list[dict[str, Any]]:
    """Columns that were added afterwards, with the spread of those that are one number a row."""
    found = []
    for append in dataset.appended:
        lines = []
        for name, column in append.fields.items():
            spread: list[float] = []
            if column.shape == () and np.dtype(column.dtype).kind in "iuf":
                values = dataset.read(name, 0, len(dataset)).astype(np.float64)
                values = values[np.isfinite(values)]
                if values.size:
                    spread = [float(v) for v in np.quantile(values, (0.5, 0.95, 1.0))]
            lines.append((name, column.meaning, spread))
        found.append({"append": append, "columns": lines})
    return found


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
    limited = [number for number, name in enumerate(columns.status_names) if name == Status.LIMITED]
    chosen = np.isin(columns.status, limited)
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
