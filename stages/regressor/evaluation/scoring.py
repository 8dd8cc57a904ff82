"""Running a protocol: posed truth against posed prediction, one number a row and metric.

Source: docs/reference/evaluation.md. Everything is float64 (#precision). Every row that the
protocol has is either evaluated or counted with a reason; none is dropped by a batch boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from skel_fit.keypoints import EXTRA_FILES, MIX_FILES, find_regressor, keypoint_matrix
from skel_fit.model_files import load_joint_regressor, load_skel, load_smpl
from stages.regressor.data.images import ImageSource, picture_size
from stages.regressor.evaluation import metrics
from stages.regressor.evaluation.eval_readers import EvalRows
from stages.regressor.evaluation.metrics import Estimate
from stages.regressor.evaluation.protocols import (
    Batch,
    EvaluationProtocol,
    Predictor,
    limit_name,
    pck_name,
)
from stages.regressor.network.camera import project

PRECISION = "float64"
_FILES = {
    "h36m_17": ("J_regressor_h36m.npy",),
    "smpl_male_24": ("J_regressor_SMPL_MALE.pkl",),
    "skel_mix_24": MIX_FILES,
}


class Bodies:
    """Body models and joint regressors of a folder, loaded when first used, float64.

    Raises ModelFileError or InputError for a missing or broken file.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.device = torch.device(device)
        self._models: dict[tuple[str, str], Any] = {}
        self._matrices: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}

    def model(self, kind: str, gender: str) -> Any:
        """A `smpl` or `skel` model."""
        if (kind, gender) not in self._models:
            load = load_skel if kind == "skel" else load_smpl
            model = load(self.folder, gender, dtype=torch.float64).to(self.device)
            self._models[kind, gender] = model
            self._files[model.path.name] = model.path
        return self._models[kind, gender]

    def matrix(self, name: str) -> Tensor:
        """A point set (see `protocols.POINT_SETS`) as weights of the skin, (K, 6890)."""
        if name not in self._matrices:
            self._matrices[name] = self._load(name).to(self.device)
        return self._matrices[name]

    def _load(self, name: str) -> Tensor:
        if name == "smpl_neutral_24":
            return self.model("smpl", "neutral").J_regressor
        if name == "keypoints_44":
            for names in (MIX_FILES, EXTRA_FILES):
                self._remember(find_regressor(self.folder, names))
            return torch.as_tensor(keypoint_matrix(self.folder))
        path = find_regressor(self.folder, _FILES[name])
        self._remember(path)
        return torch.as_tensor(load_joint_regressor(path, int(name.rpartition("_")[2])))

    def _remember(self, path: Path) -> None:
        self._files[path.name] = path

    def points(self, name: str, vertices: Tensor, posed_joints: Tensor | None) -> Tensor:
        """(B, K, 3) points of a set, from vertices (B, 6890, 3) or the model's own joints."""
        if name == "posed_joints":
            assert posed_joints is not None
            return posed_joints
        weights = self.matrix(name)
        # Matrix by matrix: folding the batch into one product would tie rows together.
        return torch.bmm(weights.expand(len(vertices), *weights.shape), vertices)

    @property
    def standin(self) -> bool:
        """Any loaded model is the licence-free stand-in."""
        return any(model.standin for model in self._models.values())

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that was used."""
        result = {}
        for name, path in sorted(self._files.items()):
            with path.open("rb") as stream:
                result[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return result

    def smpl(
        self, genders: np.ndarray, poses: np.ndarray, betas: np.ndarray, transl: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Vertices (B, 6890, 3) and posed joints (B, 24, 3) of SMPL rows of mixed genders."""

        def pose(gender: str, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
            turns, shape, shift = (self._tensor(x[chosen]) for x in (poses, betas, transl))
            posed = self.model("smpl", gender)(
                betas=shape, global_orient=turns[:, :3], body_pose=turns[:, 3:], transl=shift
            )
            return posed.vertices, posed.joints[:, :24]

        return self._by_gender(genders, pose)

    def skel(
        self, genders: np.ndarray, poses: Tensor, betas: Tensor, transl: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Skin (B, 6890, 3) and joints (B, 24, 3) of SKEL rows of mixed genders."""

        def pose(gender: str, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
            rows = torch.as_tensor(chosen, device=self.device)
            values = (x.to(self.device, torch.float64)[rows] for x in (poses, betas, transl))
            posed = self.model("skel", gender)(*values)
            return posed.skin_vertices, posed.joints

        return self._by_gender(genders, pose)

    def _by_gender(
        self, genders: np.ndarray, pose: Callable[[str, np.ndarray], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        vertices = torch.empty(len(genders), 6890, 3, dtype=torch.float64, device=self.device)
        joints = torch.empty(len(genders), 24, 3, dtype=torch.float64, device=self.device)
        for gender in sorted(set(genders.tolist())):
            chosen = np.flatnonzero(genders == gender)
            rows = torch.as_tensor(chosen, device=self.device)
            vertices[rows], joints[rows] = pose(gender, chosen)
        return vertices, joints

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=self.device)


@dataclass(frozen=True)
class Posed:
    """A body as compared: vertices (B, 6890, 3) or None, points (B, K, 3), metres."""

    vertices: Tensor | None
    points: Tensor


@dataclass
class Outcome:
    """One predictor under one protocol.

    row: (N,) rows; reason: (N,) '' if evaluated; values: metric -> (N,) mm, or 0/100 for the
    violation of a limit, or % of the row's own points for PCK; NaN where not evaluated. excess:
    tolerance -> (N, 4) radians. hits: threshold -> (N, 44) bool, visible: (N, 44) bool.
    """

    protocol: EvaluationProtocol
    row: np.ndarray
    sequence: np.ndarray
    reason: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    excess: dict[float, np.ndarray] = field(default_factory=dict)
    hits: dict[float, np.ndarray] = field(default_factory=dict)
    visible: np.ndarray | None = None

    @property
    def evaluated(self) -> np.ndarray:
        """(N,) bool."""
        return self.reason == ""

    def summary(self) -> dict[str, Estimate]:
        """Metric -> mean with interval; sequences are drawn, not frames."""
        keep = self.evaluated
        groups = self.sequence[keep]
        result = {}
        for name in self.protocol.metrics:
            threshold = next((t for t in self.hits if name == pck_name(t)), None)
            if threshold is None:
                values = self.values[name][keep]
                counted = np.isfinite(values)
                result[name] = metrics.estimate(values, counted, groups)
                continue
            assert self.visible is not None
            share = metrics.estimate(self.hits[threshold][keep], self.visible[keep], groups)
            result[name] = Estimate(
                *(metrics.PERCENT * x for x in (share.value, share.low, share.high)),
                share.rows, share.drawn,
            )  # fmt: skip
        return result

    def limit_statistics(self) -> dict[str, dict[str, float]]:
        """`part>tolerance` -> mean, median and maximum of the excess, radians."""
        result = {}
        for tolerance, excess in self.excess.items():
            kept = excess[self.evaluated]
            for k, part in enumerate(metrics.PART_NAMES):
                column = kept[:, k] if len(kept) else np.array([np.nan])
                result[limit_name(part, tolerance)] = {
                    "mean": float(column.mean()),
                    "median": float(np.median(column)),
                    "maximum": float(column.max()),
                }
        return result


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
    bodies: Bodies,
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
    outcome = Outcome(protocol, rows.row, rows.sequence, reason)
    chosen = np.flatnonzero(outcome.evaluated)
    if not len(chosen):
        counts = ", ".join(f"{count} {name}" for name, count in reason_counts(reason).items())
        raise InputError(
            f"protocol {protocol.name}: no row can be evaluated ({counts or 'there are none'})"
        )
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        with torch.no_grad():
            _evaluate(outcome, rows.take(part), part, predictor, bodies, images)
        progress(len(part))
    return outcome


def reason_counts(reason: np.ndarray) -> dict[str, int]:
    """Reason -> number of rows."""
    names, counts = np.unique(reason[reason != ""], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _evaluate(
    outcome: Outcome,
    rows: EvalRows,
    place: np.ndarray,
    predictor: Predictor,
    bodies: Bodies,
    images: ImageSource | None,
) -> None:
    protocol = outcome.protocol
    predicted = predict(predictor, rows, protocol, bodies, images)
    vertices, joints = predicted_body(predictor, predicted, rows, bodies)
    values: dict[str, Tensor] = {}
    if protocol.alignment:
        target = truth(protocol, rows, bodies)
        points = bodies.points(protocol.joints.prediction, vertices, joints)
        values |= point_values(protocol, Posed(vertices, points), target)
    if protocol.pck:
        values |= _keypoint_values(outcome, rows, place, predicted, vertices, bodies)
    if protocol.joint_limits:
        for tolerance in protocol.joint_limits.tolerances:
            excess = metrics.skel_limit_excess(predicted["poses"], tolerance)
            _store(outcome.excess, tolerance, outcome.row, place, excess)
            for k, part in enumerate(metrics.PART_NAMES):
                violated = (excess[:, k] > 0).double() * metrics.PERCENT
                values[limit_name(part, tolerance)] = violated
    for name, column in values.items():
        _store(outcome.values, name, outcome.row, place, column)


def _store(into: dict, key: Any, like: np.ndarray, place: np.ndarray, values: Tensor) -> None:
    array = values.cpu().numpy()
    if key not in into:
        empty = False if array.dtype == bool else np.nan
        into[key] = np.full((len(like), *array.shape[1:]), empty, array.dtype)
    into[key][place] = array


def point_values(
    protocol: EvaluationProtocol, predicted: Posed, target: Posed
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


def _keypoint_values(
    outcome: Outcome,
    rows: EvalRows,
    place: np.ndarray,
    predicted: Mapping[str, Tensor],
    vertices: Tensor,
    bodies: Bodies,
) -> dict[str, Tensor]:
    protocol = outcome.protocol
    assert protocol.pck is not None and rows.keypoints_2d is not None
    keypoints = torch.as_tensor(rows.keypoints_2d, device=vertices.device)
    confidence = keypoints[..., 2]
    visible = confidence > protocol.pck.min_confidence
    side = torch.as_tensor(rows.box.max(1), device=vertices.device)
    pixels = projected_keypoints(predicted, vertices, bodies)
    distance = metrics.box_distance(pixels, keypoints[..., :2], side)
    visible_rows = {"visible": outcome.visible} if outcome.visible is not None else {}
    _store(visible_rows, "visible", outcome.row, place, visible)
    outcome.visible = visible_rows["visible"]
    seen = visible.sum(1).double()
    result = {"keypoint_l2": metrics.keypoint_l2(distance, confidence)}
    for threshold in protocol.pck.thresholds:
        hits = metrics.within(distance, visible, threshold)
        _store(outcome.hits, threshold, outcome.row, place, hits)
        share = metrics.PERCENT * hits.sum(1) / seen
        result[pck_name(threshold)] = share  # NaN for a row without visible points
    return result


def projected_keypoints(
    predicted: Mapping[str, Tensor], vertices: Tensor, bodies: Bodies
) -> Tensor:
    """(B, 44, 2) pixels of the predicted body (root near the origin) under its own camera."""
    points = bodies.points("keypoints_44", vertices, None)
    return project(points + predicted["cam_t"][:, None], predicted["cam_int"])


def truth(protocol: EvaluationProtocol, rows: EvalRows, bodies: Bodies) -> Posed:
    """The body or keypoints that rows are compared with."""
    if protocol.truth.body == "keypoints":
        assert rows.keypoints_3d is not None
        return Posed(None, torch.as_tensor(rows.keypoints_3d, device=bodies.device))
    vertices, joints = truth_body(protocol, rows, bodies)
    return Posed(vertices, bodies.points(protocol.joints.truth, vertices, joints))


def truth_body(
    protocol: EvaluationProtocol, rows: EvalRows, bodies: Bodies
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


def predicted_body(
    predictor: Predictor, predicted: Mapping[str, Tensor], rows: EvalRows, bodies: Bodies
) -> tuple[Tensor, Tensor]:
    """Skin and joints of the prediction, without its camera translation."""
    genders = np.full(len(rows), predictor.skel_gender)
    if predictor.skel_gender == "column":
        if rows.skel_gender is None:
            raise InputError(
                f"{predictor.name}: takes the gender of the SKEL label, but these rows have none"
            )
        genders = rows.skel_gender
    zero = torch.zeros(len(rows), 3, dtype=torch.float64, device=bodies.device)
    return bodies.skel(genders, predicted["poses"], predicted["betas"], zero)


def predict(
    predictor: Predictor,
    rows: EvalRows,
    protocol: EvaluationProtocol,
    bodies: Bodies,
    images: ImageSource | None,
) -> dict[str, Tensor]:
    """Checked predictions, float64: poses (B, 46), betas (B, 10), cam_t (B, 3), cam_int (B, 3, 3).

    cam_int is NaN where the predictor gives only a focal length and the labels no principal point.
    """
    batch = Batch(
        rows=rows.row,
        names=tuple(rows.name.tolist()),
        images=images if predictor.uses_images else None,
        center=rows.center,
        box=rows.box,
        cam_int=rows.cam_int,
        crop=protocol.crop,
    )
    given = dict(predictor(batch))
    expected = {"poses": (46,), "betas": (10,), "cam_t": (3,)}
    expected |= {"cam_int": (3, 3)} if "cam_int" in given else {"focal": ()}
    result: dict[str, Tensor] = {}
    for name, shape in expected.items():
        value = given.get(name)
        if value is None or tuple(value.shape) != (len(rows), *shape):
            found = "nothing" if value is None else tuple(value.shape)
            raise InputError(
                f"{predictor.name}: prediction '{name}': expected {(len(rows), *shape)}, "
                f"found {found}"
            )
        value = value.detach().to(bodies.device, torch.float64)
        broken = ~torch.isfinite(value.reshape(len(rows), -1)).all(1)
        if broken.any():
            first = int(broken.nonzero()[0])
            raise InputError(
                f"{predictor.name}: prediction '{name}' of row {rows.row[first]} "
                f"({rows.name[first]}) is not finite"
            )
        result[name] = value
    if "cam_int" not in result:
        cam_int = torch.as_tensor(rows.cam_int, device=bodies.device).clone()
        focal = result.pop("focal")
        cam_int[:, 0, 0] = cam_int[:, 1, 1] = focal
        if protocol.pck and torch.isnan(cam_int).any():
            raise InputError(
                f"{predictor.name}: protocol {protocol.name} projects into the image, but the "
                "labels have no intrinsics; the predictor has to return cam_int instead of focal"
            )
        result["cam_int"] = cam_int
    return result


# --- what the protocol itself implies ------------------------------------------------------------


def floor_values(
    protocol: EvaluationProtocol, rows: EvalRows, bodies: Bodies, batch_size: int = 32
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
            target = Posed(vertices, bodies.points(joints.truth, vertices, posed))
            perfect = Posed(vertices, bodies.points(joints.prediction, vertices, posed))
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
