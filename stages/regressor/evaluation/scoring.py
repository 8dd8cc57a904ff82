"""Running a protocol: posed truth against posed prediction, one number a row and metric.

Source: docs/reference/evaluation.md. Everything is float64 (#precision). Every row that the
protocol has is either evaluated or counted with a reason; none is dropped by a batch boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.regressor.data.images import ImageSource, picture_size
from stages.regressor.evaluation import metrics
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.outcome import Outcome, RowScores
from stages.regressor.evaluation.protocols import EvaluationProtocol, limit_name, pck_name
from stages.regressor.evaluation.query import Prediction, Predictor, Query
from stages.regressor.network.camera import project

PRECISION = "float64"
POSES = {"skel": 46, "smpl": 72}
"""Numbers of a pose of each body."""
NOTHING = RowScores({})


@dataclass(frozen=True)
class Compared:
    """A body as compared: vertices (B, 6890, 3) or None, points (B, K, 3), metres."""

    vertices: Tensor | None
    points: Tensor


def skip_reasons(rows: EvalRows, images: ImageSource | None) -> np.ndarray:
    """(N,) why rows cannot be evaluated: those of the reader, then missing images, then boxes that
    have nothing of their image in them.
    """
    reason = rows.reason.astype("<U40")
    if images is None:
        return reason
    open_rows = np.flatnonzero(reason == "")
    there = images.has(rows.name[open_rows].tolist())
    reason[open_rows[~there]] = "image_missing"
    sizes: dict[str, tuple[int, int]] = {}
    for row in open_rows[there].tolist():
        name = str(rows.name[row])
        if name not in sizes:
            sizes[name] = picture_size(images, name)
        low, high = (rows.center[row] + sign * rows.box[row] / 2 for sign in (-1, 1))
        if (high <= 0).any() or (low >= sizes[name]).any():
            reason[row] = "box_outside_image"
    return reason


def run_protocol(
    protocol: EvaluationProtocol,
    rows: EvalRows,
    predictor: Predictor,
    bodies: EvaluationBodies,
    *,
    images: ImageSource | None = None,
    reason: np.ndarray | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda rows: None,
) -> Outcome:
    """Evaluate a predictor.

    images: needed if the predictor uses them. reason: which rows to leave out (`skip_reasons` by
    default), so that several predictors can be held to the same rows. progress: called with the
    number of rows done.

    Raises:
        InputError: no row is left, or a prediction is not finite or of the wrong shape.
    """
    if reason is None:
        reason = skip_reasons(rows, images if predictor.uses_images else None)
    chosen = np.flatnonzero(reason == "")
    if not len(chosen):
        counts = ", ".join(f"{count} {name}" for name, count in reason_counts(reason).items())
        raise InputError(
            f"protocol {protocol.name}: no row can be evaluated ({counts or 'there are none'})"
        )
    parts = []
    for start in range(0, len(chosen), batch_size):
        part = rows.take(chosen[start : start + batch_size])
        with torch.no_grad():
            parts.append(_scores(protocol, part, predictor, bodies, images))
        progress(len(part))
    return Outcome.of(protocol, rows, reason, parts)


def reason_counts(reason: np.ndarray) -> dict[str, int]:
    """Reason -> number of rows."""
    names, counts = np.unique(reason[reason != ""], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _scores(
    protocol: EvaluationProtocol,
    rows: EvalRows,
    predictor: Predictor,
    bodies: EvaluationBodies,
    images: ImageSource | None,
) -> RowScores:
    predicted = predict(predictor, rows, protocol, bodies, images)
    vertices, joints = predicted_body(predictor, predicted, protocol, rows, bodies)
    values: dict[str, Tensor] = {}
    excess: dict[float, Tensor] = {}
    if protocol.alignment:
        target = truth(protocol, rows, bodies)
        points = compared_points(protocol, predictor, vertices, joints, bodies)
        values |= point_values(protocol, Compared(vertices, points), target)
    seen = NOTHING
    if protocol.pck is not None:
        points = keypoints_of(predictor, vertices, joints, bodies)
        seen = _keypoint_scores(protocol, rows, projected(predicted, points))
    if protocol.joint_limits:
        for tolerance in protocol.joint_limits.tolerances:
            if predictor.body == "smpl":
                found = metrics.smpl_limit_excess(predicted.poses[:, 3:], tolerance)
            else:
                found = metrics.skel_limit_excess(predicted.poses, tolerance)
            excess[tolerance] = found
            for part, column in zip(metrics.PART_NAMES, excess[tolerance].unbind(-1), strict=True):
                values[limit_name(part, tolerance)] = (column > 0).double() * metrics.PERCENT
    return replace(seen, values={**values, **seen.values}, excess=excess)


def point_values(
    protocol: EvaluationProtocol, predicted: Compared, target: Compared
) -> dict[str, Tensor]:
    """Metric -> (B,) millimetres, of compared points and, if the protocol asks, vertices."""
    pick = slice(None) if protocol.joints.pick is None else list(protocol.joints.pick)
    result = {}
    if "root" in protocol.alignment:
        for number, root in enumerate(protocol.roots):
            suffix = f"@{root.key}" if number else ""
            centre = metrics.root_points(predicted.points, root.joints)
            wanted = metrics.root_points(target.points, root.joints)
            result[f"mpjpe{suffix}"] = metrics.point_error(
                (predicted.points - centre)[:, pick], (target.points - wanted)[:, pick]
            )
            if protocol.vertices:
                assert predicted.vertices is not None and target.vertices is not None
                result[f"pve{suffix}"] = metrics.point_error(
                    predicted.vertices - centre, target.vertices - wanted
                )
    if "similarity" in protocol.alignment:
        result["pa_mpjpe"] = metrics.aligned_point_error(
            predicted.points[:, pick], target.points[:, pick]
        )
        if protocol.vertices:
            assert predicted.vertices is not None and target.vertices is not None
            result["pa_pve"] = metrics.aligned_point_error(predicted.vertices, target.vertices)
    return result


def _keypoint_scores(protocol: EvaluationProtocol, rows: EvalRows, pixels: Tensor) -> RowScores:
    """PCK and distance of 2D keypoints (B, 44, 2), pixels."""
    assert rows.keypoints_2d is not None and protocol.pck is not None
    keypoints = torch.as_tensor(rows.keypoints_2d, device=pixels.device)
    confidence = keypoints[..., 2]
    visible = confidence > protocol.pck.min_confidence
    side = torch.as_tensor(rows.box.max(1), device=pixels.device)
    distance = metrics.box_distance(pixels, keypoints[..., :2], side)
    hits = {limit: metrics.within(distance, visible, limit) for limit in protocol.pck.thresholds}
    # NaN for a row without visible points.
    shares = {pck_name(limit): metrics.PERCENT * hit.sum(1) / visible.sum(1).double()
              for limit, hit in hits.items()}  # fmt: skip
    distances = {"keypoint_l2": metrics.keypoint_l2(distance, confidence)}
    return RowScores({**distances, **shares}, hits=hits, visible=visible)


def keypoints_of(
    predictor: Predictor, vertices: Tensor, joints: Tensor, bodies: EvaluationBodies
) -> Tensor:
    """(B, 44, 3) keypoints of the predicted body."""
    if predictor.body == "smpl":
        return bodies.smpl_keypoints(vertices, joints)
    return bodies.points("keypoints_44", vertices, None)


def compared_points(
    protocol: EvaluationProtocol,
    predictor: Predictor,
    vertices: Tensor,
    joints: Tensor,
    bodies: EvaluationBodies,
) -> Tensor:
    """(B, K, 3) points of the predicted body: of an SMPL body those of the truth, where that is
    SMPL too, so that a perfect prediction is 0 mm off.

    Raises:
        InputError: the protocol compares SKEL's own joints, and the body is SMPL's.
    """
    chosen = protocol.joints.prediction
    if predictor.body == "smpl":
        if protocol.truth.body == "skel":
            raise InputError(
                f"{predictor.name}: protocol {protocol.name} compares with SKEL's own joints, SMPL "
                "has others; add --skel-fit, or take another protocol"
            )
        if protocol.truth.body == "smpl":
            chosen = protocol.joints.truth
        elif chosen == "keypoints_44":
            return bodies.smpl_keypoints(vertices, joints)
    return bodies.points(chosen, vertices, joints)


def projected(predicted: Prediction, points: Tensor) -> Tensor:
    """(B, K, 2) pixels of points of the predicted body (root near the origin), own camera."""
    return project(points + predicted.translation[:, None], predicted.cam_int)


def truth(protocol: EvaluationProtocol, rows: EvalRows, bodies: EvaluationBodies) -> Compared:
    """The body or keypoints that rows are compared with."""
    if protocol.truth.body == "keypoints":
        assert rows.keypoints_3d is not None
        return Compared(None, torch.as_tensor(rows.keypoints_3d, device=bodies.device))
    vertices, joints = truth_body(protocol, rows, bodies)
    return Compared(vertices, bodies.points(protocol.joints.truth, vertices, joints))


def truth_body(
    protocol: EvaluationProtocol, rows: EvalRows, bodies: EvaluationBodies
) -> tuple[Tensor, Tensor]:
    """Vertices and the model's own joints of labels with a body."""
    if protocol.truth.body == "skel":
        assert rows.skel_poses is not None and rows.skel_gender is not None
        assert rows.skel_betas is not None and rows.skel_trans is not None
        return bodies.skel(
            rows.skel_gender,
            *(torch.as_tensor(x) for x in (rows.skel_poses, rows.skel_betas, rows.skel_trans)),
        )
    assert rows.poses is not None and rows.betas is not None and rows.transl is not None
    return bodies.smpl(smpl_genders(protocol, rows), rows.poses, rows.betas, rows.transl)


def smpl_genders(protocol: EvaluationProtocol, rows: EvalRows) -> np.ndarray:
    """(B,) which SMPL body a row's label means."""
    if protocol.truth.gender != "column":
        return np.full(len(rows), protocol.truth.gender)
    return np.where(rows.gender == "", protocol.truth.unknown_gender, rows.gender)


def predicted_genders(
    predictor: Predictor, protocol: EvaluationProtocol, rows: EvalRows
) -> np.ndarray:
    """(B,) which body a prediction means. Raises InputError: that of labels that are not there."""
    if predictor.gender != "column":
        return np.full(len(rows), predictor.gender)
    if predictor.body == "smpl":
        return smpl_genders(protocol, rows)
    if rows.skel_gender is None:
        raise InputError(
            f"{predictor.name}: takes the gender of the SKEL label, but these rows have none"
        )
    return rows.skel_gender


def predicted_body(
    predictor: Predictor,
    predicted: Prediction,
    protocol: EvaluationProtocol,
    rows: EvalRows,
    bodies: EvaluationBodies,
) -> tuple[Tensor, Tensor]:
    """Skin and joints of the prediction, without its camera translation."""
    genders = predicted_genders(predictor, protocol, rows)
    zero = torch.zeros(len(rows), 3, dtype=torch.float64, device=bodies.device)
    if predictor.body == "smpl":
        values = (predicted.poses, predicted.betas, zero)
        return bodies.smpl(genders, *(value.cpu().numpy() for value in values))
    return bodies.skel(genders, predicted.poses, predicted.betas, zero)


def predict(
    predictor: Predictor,
    rows: EvalRows,
    protocol: EvaluationProtocol,
    bodies: EvaluationBodies,
    images: ImageSource | None,
) -> Prediction:
    """The prediction, checked, float64.

    Raises:
        InputError: of the wrong shape, or not finite; only the principal point may be unknown,
            where the protocol does not project.
    """
    query = Query(
        rows=rows.row,
        names=tuple(rows.name.tolist()),
        images=images if predictor.uses_images else None,
        center=rows.center,
        box=rows.box,
        cam_int=rows.cam_int,
        crop=protocol.crop,
    )
    answer = predictor(query)
    found = {}
    for name, shape in (
        ("poses", (POSES[predictor.body],)),
        ("betas", (10,)),
        ("translation", (3,)),
        ("cam_int", (3, 3)),
    ):
        value = getattr(answer, name)
        if value.shape != (len(rows), *shape):
            raise InputError(
                f"{predictor.name}: prediction '{name}': expected {(len(rows), *shape)}, "
                f"found {tuple(value.shape)}"
            )
        found[name] = value.detach().to(bodies.device, torch.float64)
        wanted = found[name][:, (0, 1), (0, 1)] if name == "cam_int" else found[name]
        broken = ~torch.isfinite(wanted).all(-1)
        if broken.any():
            first = int(broken.nonzero()[0])
            raise InputError(
                f"{predictor.name}: prediction '{name}' of row {rows.row[first]} "
                f"({rows.name[first]}) is not finite"
            )
    if protocol.pck and not torch.isfinite(found["cam_int"]).all():
        raise InputError(
            f"{predictor.name}: protocol {protocol.name} projects into the image, but the labels "
            "have no intrinsics; the predictor has to return cam_int instead of focal"
        )
    return Prediction(**found)


# --- what the protocol itself implies ------------------------------------------------------------


def floor_values(
    protocol: EvaluationProtocol, rows: EvalRows, bodies: EvaluationBodies, batch_size: int = 32
) -> dict[str, float] | None:
    """Errors in mm of the true mesh itself, where its joints are made differently on either side.

    None where both sides use the same definition, so that a perfect mesh scores 0.
    """
    joints = protocol.joints
    same = joints.truth == joints.prediction
    if protocol.truth.body == "keypoints" or same or joints.prediction == "posed_joints":
        return None
    usable = np.flatnonzero(rows.reason == "")
    totals: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(usable), batch_size):
        part = rows.take(usable[start : start + batch_size])
        with torch.no_grad():
            vertices, posed = truth_body(protocol, part, bodies)
            target = Compared(vertices, bodies.points(joints.truth, vertices, posed))
            perfect = Compared(vertices, bodies.points(joints.prediction, vertices, posed))
            for name, value in point_values(protocol, perfect, target).items():
                totals.setdefault(name, []).append(value.cpu().numpy())
    return {name: float(np.concatenate(parts).mean()) for name, parts in totals.items()}


def label_violations(protocol: EvaluationProtocol, rows: EvalRows) -> dict[str, float] | None:
    """Violation rates (%) of the labels themselves under the protocol's tolerances."""
    if protocol.joint_limits is None or protocol.truth.body == "keypoints":
        return None
    keep = rows.reason == ""
    result = {}
    for tolerance in protocol.joint_limits.tolerances:
        if protocol.truth.body == "skel":
            assert rows.skel_poses is not None
            excess = metrics.skel_limit_excess(torch.as_tensor(rows.skel_poses[keep]), tolerance)
        else:
            assert rows.poses is not None
            excess = metrics.smpl_limit_excess(torch.as_tensor(rows.poses[keep, 3:]), tolerance)
        for k, part in enumerate(metrics.PART_NAMES):
            rate = metrics.PERCENT * (excess[:, k] > 0).double().mean()
            result[limit_name(part, tolerance)] = float(rate)
    return result
