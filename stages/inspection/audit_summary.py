"""Numbers and findings of an audit, and its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skel_fit.anatomy import POSE_NAMES
from stages.drawing import charts, pages, pictures
from stages.drawing.pictures import Person
from stages.drawing.viewer.page import scene_page
from stages.inspection.audit import Audit
from stages.inspection.motion import people_scene
from stages.inspection.repeats import later_copies
from stages.inspection.statistics import spread_worst
from stages.wording import share

WITHIN_MM = (5, 10, 15, 20, 30, 50, 100)
FIRST_BATCH = 30_000
"""Rows that the published converter fits with the schedule it was meant to have
(docs/reference/label-formats.md#hmr-skel-faults).
"""
WORST_ROWS = 5
PICTURE_SIZE = 480


def summarise(found: Audit) -> dict[str, Any]:
    """What `hmr-skel audit --json` prints."""
    source, judged, tally = found.source, found.judgement, found.tally
    rows = len(judged.row)
    worst = spread_worst(judged.residual, tally.sequences.codes, WORST_ROWS)
    summary: dict[str, Any] = {
        "file": str(source.path),
        "format": source.format,
        "rows": source.rows,
        "judged": rows,
        "rejected": dict(sorted(tally.rejected.items())),
        "standin": found.poser.standin,
        "root_error_deg": _spread(judged.root_error),
        "translation_error_mm": _spread(judged.translation_error * 1000),
        "residual_mm": _spread(judged.residual * 1000),
        "residual_max_mm": _spread(judged.residual_max * 1000),
        "residual_centred_mm": _spread(judged.residual_centred * 1000),
        "within_mm": {
            str(mm): float((judged.residual * 1000 <= mm).mean()) if rows else None
            for mm in WITHIN_MM
        },
        "limits": found.limits,
        "limit_violations": {
            "rows": int((judged.violations > 0).sum()),
            "angles": {
                name: {"rows": int(n), "furthest_deg": float(np.degrees(tally.furthest[i]))}
                for i, (name, n) in enumerate(zip(POSE_NAMES, tally.violations, strict=True))
                if n
            },
        },
        "repeated_labels": len(_repeated(tally.labels)),
        "repeated_fits": len(_repeated(tally.fits)),
        "same_betas": tally.same_betas,
        "zero_trans": tally.zero_trans,
        "worst_rows": [
            {"row": int(judged.row[i]), "residual_mm": float(judged.residual[i] * 1000)}
            for i in worst
        ],
    }
    later = judged.row >= FIRST_BATCH
    if later.any() and not later.all():
        summary["first_batch_residual_mm"] = _spread(judged.residual[~later] * 1000)
        summary["later_residual_mm"] = _spread(judged.residual[later] * 1000)
    return summary


def _spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    median, p95, p99 = (float(v) for v in np.quantile(values, (0.5, 0.95, 0.99)))
    return {
        "mean": float(values.mean()),
        "median": median,
        "p95": p95,
        "p99": p99,
        "max": float(values.max()),
    }


def _repeated(parts: list[NDArray[np.uint64]]) -> NDArray[np.int64]:
    every = np.concatenate([np.zeros(0, np.uint64), *parts])
    return later_copies(every, np.arange(len(every)))


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What a user of the labels should know, in sentences; empty when nothing stands out."""
    found = []
    rows = summary["judged"]
    if not rows:
        return ["No row has both a valid SMPL and a valid SKEL label."]
    rejected = sum(summary["rejected"].values())
    if rejected:
        found.append(f"{rejected:,} of {summary['rows']:,} rows cannot be judged.")
    root = summary["root_error_deg"]
    if root["p95"] > 1.0:
        found.append(
            f"The pelvis is turned away from the SMPL one by more than {root['p95']:.1f} degrees "
            "in 5 % of the rows; the closed form has no error."
        )
    moved = summary["translation_error_mm"]
    if moved is None:
        found.append("No translation is stored; residuals use the closed form.")
    elif summary["zero_trans"] > rows // 2:
        found.append(f"skel_trans is zero in {summary['zero_trans']:,} rows.")
    elif moved["p95"] > 10.0:
        found.append(f"Translations differ by more than {moved['p95']:.0f} mm in 5 % of the rows.")
    far = 1.0 - summary["within_mm"]["50"]
    if far > 0:
        found.append(
            f"{share(far)} of the rows are more than 50 mm off their SMPL mesh on average: "
            "failed fits are in the file."
        )
    outside = summary["limit_violations"]["rows"]
    if outside:
        found.append(f"{outside:,} rows leave the joint limits ({summary['limits']}).")
    if summary["repeated_labels"]:
        found.append(f"{summary['repeated_labels']:,} rows repeat an earlier label.")
    if summary["repeated_fits"] > summary["repeated_labels"]:
        found.append(
            f"{summary['repeated_fits']:,} rows have exactly the SKEL pose of another row."
        )
    if "later_residual_mm" in summary:
        first, later = (
            summary[k]["median"] for k in ("first_batch_residual_mm", "later_residual_mm")
        )
        if later > 1.2 * first:
            found.append(
                f"Rows from {FIRST_BATCH:,} on are worse (median {later:.1f} mm) than those before "
                f"({first:.1f} mm): the converter's schedule slips after its first batch."
            )
    return found


def audit_page(
    found: Audit, summary: Mapping[str, Any], bodies_page: str
) -> tuple[str, str | None]:
    """The page, and the one that plays the rows of its pictures (None without any).

    bodies_page: the name that the second will have beside the first.
    """
    judged = found.judgement
    people = [_person(found, item["row"]) for item in summary["worst_rows"][:3]]
    bodies = None
    if people:
        name = Path(str(summary["file"])).name
        bodies = scene_page(people_scene(people, found.poser, name, found.limits)).html
    html = pages.page(
        "audit.html.j2",
        {
            "summary": summary,
            "findings": findings(summary),
            "histograms": [
                charts.distribution(values, label, axis=0.995)
                for values, label in (
                    (judged.residual * 1000, "mean vertex distance, mm"),
                    (judged.root_error, "root error, degrees"),
                    (judged.translation_error * 1000, "translation error, mm"),
                )
                if (values >= 0.05).any()  # else nothing that the axis could show
            ],
            "measures": [
                ("root error, °", summary["root_error_deg"]),
                ("translation error, mm", summary["translation_error_mm"]),
                ("mean vertex distance, mm", summary["residual_mm"]),
                ("the same, centred, mm", summary["residual_centred_mm"]),
                ("worst vertex, mm", summary["residual_max_mm"]),
            ],
            "angles": sorted(
                summary["limit_violations"]["angles"].items(), key=lambda item: -item[1]["rows"]
            ),
            "shown": [_portrait(found, person) for person in people],
            "legend": pictures.legend(),
            "bodies_page": bodies_page if bodies else "",
        },
    )
    return html, bodies


def _person(found: Audit, row: int) -> Person:
    source, layout = found.source, found.source.layout
    read = source.read(row, row + 1)
    assert layout.skel_poses is not None
    assert layout.skel_betas is not None
    betas = read.fields[layout.skel_betas].reshape(1, -1)[0, :10]
    stored = read.fields[layout.skel_trans][0] if layout.skel_trans else read.transl[0]
    return Person(
        row=row,
        skel=(read.fields[layout.skel_poses][0], betas, stored),
        skel_gender=str(read.skel_gender[0]),
        smpl=(read.poses[0], read.betas[0], read.transl[0]),
        smpl_gender=str(read.smpl_gender[0]),
        cam_int=read.fields[layout.cam_int][0] if layout.cam_int else None,
    )


def _portrait(found: Audit, person: Person) -> dict[str, Any]:
    bodies = found.poser.bodies(person)
    index = int(np.flatnonzero(found.judgement.row == person.row)[0])
    drawn = pictures.views(bodies, PICTURE_SIZE, target="SMPL label", skin="SKEL label")
    return {
        "row": person.row,
        "residual": float(found.judgement.residual[index]),
        "peak": float(found.judgement.residual_max[index]),
        "root": float(found.judgement.root_error[index]),
        "pictures": pages.data_uris(drawn),
    }
