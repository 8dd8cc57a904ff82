"""The page of `hmr-skel evaluate`: tables, worst cases with pictures, published numbers apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.errors import InputError
from stages.drawing.overlays import LABELLED, PREDICTED, draw_limbs
from stages.drawing.pages import data_uris, page
from stages.drawing.pictures import meshes_picture
from stages.drawing.render import SKIN_COLOR, TARGET_COLOR, Mesh
from stages.regressor.data.crops import Crop, apply
from stages.regressor.data.images import decode
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.metrics import root_points
from stages.regressor.evaluation.protocols import (
    EvaluationProtocol,
    load_protocol,
    protocol_files,
)
from stages.regressor.evaluation.query import Predictor
from stages.regressor.evaluation.results import (
    STANDIN_WARNING,
    ProtocolResult,
    columns_of,
    headline,
    metric_label,
    number,
)
from stages.regressor.evaluation.scoring import (
    compared_points,
    keypoints_of,
    predict,
    predicted_body,
    predicted_genders,
    projected,
    truth,
    truth_body,
)
from stages.wording import decimal

SIZE = 300
_PHOTO_MARGIN = 1.3


def evaluation_page(results: Sequence[ProtocolResult], *, worst: int) -> str:
    """The HTML text. worst: how many of the worst rows of each protocol are drawn."""
    standin = any(result.standin for result in results)
    return page(
        "evaluation.html.j2",
        {
            "standin": STANDIN_WARNING if standin else None,
            "protocols": [_protocol(result, worst) for result in results],
            "elsewhere": _elsewhere(results) if standin else [],
        },
    )


def _protocol(result: ProtocolResult, worst: int) -> dict[str, Any]:
    heading, lines = columns_of(result)
    scored = next(iter(result.summaries))
    protocol = result.protocol
    drawn = {estimate.drawn for estimate in result.summaries[scored].values()}
    return {
        "name": protocol.name,
        "dataset": protocol.dataset,
        "family": protocol.family,
        "about": protocol.about,
        "notes": protocol.notes,
        "headline": headline(result),
        "complete": result.complete,
        "heading": heading,
        "lines": lines,
        "drawn": "videos" if drawn == {"groups"} else "rows",
        "violations": [
            (metric_label(name), decimal(value))
            for name, value in (result.violations or {}).items()
        ],
        "violations_rule": protocol.truth.body,
        "skipped": result.skipped,
        "definition": _definition(protocol),
        "files": list(result.rows.files.items()),
        "models": list(result.bodies.digests().items()),
        "predictors": [
            (predictor.name, [(k, str(v)) for k, v in predictor.provenance().items()])
            for predictor in result.predictors
        ],
        "scored": scored,
        "cases": _cases(result, worst),
        "published": [] if result.standin else _published(protocol),
    }


def _definition(protocol: EvaluationProtocol) -> list[tuple[str, str]]:
    joints = protocol.joints
    pick = "all" if joints.pick is None else ", ".join(map(str, joints.pick))
    return [
        ("truth", f"{protocol.truth.body}, joints {joints.truth}"),
        ("prediction", f"SKEL, joints {joints.prediction}"),
        ("compared joints", pick),
        ("root", "; ".join(f"{root.key}: {root.about}" for root in protocol.roots) or "–"),
        ("alignment", ", ".join(protocol.alignment) or "–"),
        ("scale unit", protocol.source.scale_unit),
        ("crop of the published runs", ", ".join(
            f"{k} {v}" for k, v in protocol.crop.model_dump().items())),
        ("focal of the published runs", protocol.focal),
    ]  # fmt: skip


def _published(protocol: EvaluationProtocol) -> list[dict[str, Any]]:
    return [
        {
            "method": row.method,
            "source": row.source,
            "note": row.note,
            "values": [(metric_label(k), number(v, k)) for k, v in row.values.items()],
        }
        for row in protocol.published
    ]


def _elsewhere(results: Sequence[ProtocolResult]) -> list[dict[str, Any]]:
    """Published numbers of every protocol, for a part of the page away from the results."""
    names = {*protocol_files(), *(result.protocol.name for result in results)}
    known = {result.protocol.name: result.protocol for result in results}
    found = []
    for name in sorted(names):
        protocol = known.get(name) or load_protocol(name)
        if protocol.published:
            found.append({"name": name, "dataset": protocol.dataset, "rows": _published(protocol)})
    return found


# --- worst cases ---------------------------------------------------------------------------------


def ranking_metric(protocol: EvaluationProtocol) -> str:
    """What makes a row bad: its root-aligned error, else the aligned one, else 2D distance."""
    order = ("mpjpe", "pa_mpjpe", "keypoint_l2")
    found = next((name for name in order if name in protocol.metrics), None)
    return found or protocol.metrics[0]


def worst_rows(result: ProtocolResult, count: int) -> list[tuple[int, str]]:
    """(position, why) of the median row and the worst ones of the scored predictor."""
    outcome = next(iter(result.outcomes.values()))
    values = outcome.values[ranking_metric(result.protocol)]
    there = np.flatnonzero(np.isfinite(values))
    order = there[np.argsort(values[there], kind="stable")]
    if not len(order) or not count:
        return []
    picked = [(int(order[len(order) // 2]), "median row")]
    for place, row in enumerate(order[::-1][:count], start=1):
        picked.append((int(row), f"worst {place}"))
    return picked


def _cases(result: ProtocolResult, worst: int) -> list[dict[str, Any]]:
    picked = worst_rows(result, worst)
    outcome = next(iter(result.outcomes.values()))
    cases = []
    for position, why in picked:
        shots = _pictures(result, position)
        values = [
            (metric_label(name), number(float(outcome.values[name][position]), name))
            for name in (*result.protocol.point_metrics,
                         *(n for n in result.protocol.metrics if n.startswith("pck")))
            if name in outcome.values
        ]  # fmt: skip
        violated = [
            metric_label(name).removesuffix(", %")
            for name in result.protocol.metrics
            if ">" in name and outcome.values[name][position] > 0
        ]
        cases.append(
            {
                "row": int(result.rows.row[position]),
                "name": str(result.rows.name[position]),
                "why": why,
                "values": values,
                "violated": violated,
                "pictures": data_uris(shots),
            }
        )
    return cases


@torch.no_grad()
def _pictures(result: ProtocolResult, position: int) -> list[tuple[str, np.ndarray]]:
    """Photograph with keypoints, then truth and prediction from the front and the side."""
    protocol, bodies = result.protocol, result.bodies
    rows = result.rows.take(np.array([position]))
    predictor = result.predictors[0]
    predicted = predict(predictor, rows, protocol, bodies, result.images)
    skin, joints = predicted_body(predictor, predicted, protocol, rows, bodies)
    shots = []
    photo = _photograph(result, rows)
    has_camera = bool(torch.isfinite(predicted.cam_int).all())
    if photo is not None and has_camera:
        picture, crop = photo
        points = keypoints_of(predictor, skin, joints, bodies)
        pixels = projected(predicted, points)[0].cpu().numpy()
        shots.append(("picture", picture))
        marked = draw_limbs(picture, apply(crop.affine, pixels), PREDICTED, thickness=2)
        caption = "prediction (orange)"
        if rows.keypoints_2d is not None:
            known = rows.keypoints_2d[0].copy()
            known[:, :2] = apply(crop.affine, known[:, :2])
            marked = draw_limbs(marked, known, LABELLED, thickness=1)
            caption += ", label (green)"
        shots.append((caption, marked))
    meshes = [Mesh(skin[0].cpu().numpy(), _faces(bodies, predictor, protocol, rows), SKIN_COLOR)]
    caption = "prediction"
    if protocol.truth.body != "keypoints":
        target, _ = truth_body(protocol, rows, bodies)
        points = compared_points(protocol, predictor, skin, joints, bodies)
        centre = _root(protocol, skin, points)
        wanted = _root(protocol, target, truth(protocol, rows, bodies).points)
        moved = (target - wanted + centre)[0].cpu().numpy()
        meshes.append(Mesh(moved, meshes[0].faces, TARGET_COLOR))
        caption = "prediction (skin), truth (blue), roots together"
    for angle, view in ((0.0, "camera's side"), (90.0, "from the side")):
        shots.append((f"{caption}; {view}", meshes_picture(meshes, angle, SIZE)))
    return shots


def _root(
    protocol: EvaluationProtocol, vertices: torch.Tensor, points: torch.Tensor
) -> torch.Tensor:
    if protocol.roots:
        return root_points(points, protocol.roots[0].joints)
    return vertices.mean(1, keepdim=True)


def _faces(
    bodies: EvaluationBodies, predictor: Predictor, protocol: EvaluationProtocol, rows: EvalRows
) -> np.ndarray:
    gender = str(predicted_genders(predictor, protocol, rows)[0])
    faces = bodies.model(predictor.body, gender).faces
    return faces.cpu().numpy() if isinstance(faces, torch.Tensor) else np.asarray(faces, np.int64)


def _photograph(result: ProtocolResult, rows: EvalRows) -> tuple[np.ndarray, Crop] | None:
    """The square around the box, (SIZE, SIZE, 3), and its map; None without a readable picture."""
    name = str(rows.name[0])
    if result.images is None or not result.images.has([name])[0]:
        return None
    try:
        picture = decode(result.images.read(name), name)
    except InputError:
        return None  # a damaged picture that no predictor needed: the page goes without
    side = float(rows.box[0].max()) * _PHOTO_MARGIN
    crop = Crop(rows.center[0], side, rows.center[0], SIZE)
    import cv2

    matrix = crop.affine.copy()
    matrix[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5  # pixel corners -> OpenCV's pixel centres
    cut = cv2.warpAffine(np.ascontiguousarray(picture), matrix, (SIZE, SIZE))
    return cut, crop
