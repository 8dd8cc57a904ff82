"""Predictions of other programs: files of SKEL or SMPL bodies, and SMPL bodies carried over to SKEL
by a fit, which is the two-stage baseline (docs/reference/evaluation.md#two-stage).

Names of members are those that public programs write; files are read as data.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from pipeline.errors import InputError, UsageError
from pipeline.provenance import file_record
from pipeline.readers.labels import genders, smpl_poses
from pipeline.readers.members import first_of, listed
from pipeline.readers.reloaded import as_array, read_content
from pipeline.readers.sequences import POSES as SEQUENCE_POSES
from pipeline.row_checks import Verdicts
from skel_fit.fit import FitResult, fit_skel
from skel_fit.recipe import FitConfig
from skel_fit.status import rejection_reasons
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.protocols import EvaluationProtocol
from stages.regressor.evaluation.query import Body, Gender, Prediction, Query
from stages.regressor.evaluation.scoring import predict, predicted_genders

_NESTED = ("pred_smpl_params", "pred_smpl_parms", "smpl_params", "smpl")
"""Dictionaries that hold the parameters in files of some programs."""
_ROWS = ("row", "rows", "index")
_SKEL_POSES = ("skel_poses", "poses")
_SMPL_POSES = (*SEQUENCE_POSES, ("thetas",), ("theta",), ("pred_pose",), ("pred_rotmat",))
_BETAS = (
    "betas", "shape", "smpl_betas", "smpl_shape", "pred_betas", "pred_shape", "skel_betas", "beta",
)  # fmt: skip
_TRANSLATIONS = (
    "cam_t", "pred_cam_t", "pred_cam_t_full", "trans_cam", "transl", "trans", "smpl_trans",
    "pred_trans", "skel_trans",
)  # fmt: skip
_CAMERAS = ("cam_int", "K", "intrinsics")
_FOCALS = ("focal", "focal_length", "scaled_focal_length", "pred_focal_length")
_GENDERS = ("skel_gender", "smpl_gender", "gender")
_WIDTH = {"skel": 46, "smpl": 72}
_DEFAULT: dict[Body, Gender] = {"skel": "male", "smpl": "neutral"}


@dataclass(frozen=True)
class Stored:
    """Parameters by row. cam_int (M, 3, 3), or focal (M,) about the labels' principal point, or
    neither: the labels' camera."""

    row: np.ndarray
    poses: np.ndarray
    betas: np.ndarray
    translation: np.ndarray
    cam_int: np.ndarray | None
    focal: np.ndarray | None = None

    @cached_property
    def _place(self) -> dict[int, int]:
        return {row: k for k, row in enumerate(self.row.tolist())}

    def answer(self, query: Query, where: str) -> Prediction:
        """The stored values of the rows asked for; InputError for one that is not there."""
        missing = [row for row in query.rows.tolist() if row not in self._place]
        if missing:
            raise InputError(f"{where}: no prediction for row {missing[0]}")
        chosen = np.array([self._place[row] for row in query.rows.tolist()])
        cam_int = query.cam_int.copy()
        if self.focal is not None:
            cam_int[:, 0, 0] = cam_int[:, 1, 1] = self.focal[chosen]
        elif self.cam_int is not None:
            cam_int = self.cam_int[chosen]
        values = (self.poses[chosen], self.betas[chosen], self.translation[chosen], cam_int)
        poses, betas, translation, camera = map(torch.as_tensor, values)
        return Prediction(poses, betas, translation, camera)


class StoredPredictions:
    """Predictions from a file, of any program, one protocol each; M bodies.

    Members: poses of SKEL, `poses` (M, 46) radians, or of SMPL under one of the usual names:
    axis-angle (M, 72), (M, 24, 3) or matrices (M, 24, 3, 3), in one or as `global_orient` and
    `body_pose`; `betas` (M, 10); `cam_t` (M, 3) metres, which SMPL needs only where 2D points are
    scored (`projects`); optional `cam_int` (M, 3, 3) or `focal` (M,) pixels, else the labels'
    camera; optional `gender`, one text (else male for SKEL, neutral for SMPL). `row` (M,): rows of
    the label file; without it there is one body for each of `rows`, in order.

    Raises InputError: broken file, missing member, a row twice, or a row that is asked for and not
    there.
    """

    uses_images = False

    def __init__(self, path: Path, rows: EvalRows | None = None, *, projects: bool = False) -> None:
        self._path = path
        content = read_content(path)
        for name in _NESTED:
            if isinstance(content.get(name), dict):
                content |= {str(key): value for key, value in content[name].items()}
        self._content = content
        self.body: Body
        self.body, poses = self._poses()
        count = len(poses)
        betas = self._numbers(self._named(_BETAS, "betas"), (count, 10))
        place = first_of(content, _TRANSLATIONS)
        if place is None and (projects or self.body == "skel"):
            raise self._wrong("cam_t", "is missing; 2D points are projected with it")
        translation = self._numbers(place, (count, 3)) if place else np.zeros((count, 3))
        camera, focal = first_of(content, _CAMERAS), first_of(content, _FOCALS)
        self._stored = Stored(
            self._rows(count, rows), poses, betas, translation,
            self._numbers(camera, (count, 3, 3)) if camera else None,
            self._focal(focal, count) if focal and not camera else None,
        )  # fmt: skip
        self.gender: Gender = self._gender()
        self.name = path.stem

    def provenance(self) -> Mapping[str, Any]:
        record = file_record(self._path)
        return {
            "kind": "stored", "body": self.body, "gender": self.gender, "file": str(self._path),
            "sha256": record.sha256,
        }  # fmt: skip

    def __call__(self, query: Query) -> Prediction:
        return self._stored.answer(query, str(self._path))

    def _wrong(self, name: str, problem: str) -> InputError:
        return InputError(f"{self._path}: member '{name}': {problem}")

    def _named(self, wanted: Sequence[str], what: str) -> str:
        name = first_of(self._content, tuple(wanted))
        if name is None:
            raise self._wrong(
                what, f"is missing; predictions need it; the file has {listed(self._content)}"
            )
        return name

    def _array(self, name: str) -> np.ndarray:
        return as_array(str(self._path), name, self._content[name])

    def _numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """float64 of this shape; axes of length 1 may be missing or more."""
        value = self._array(name)
        if value.dtype.kind in "iuf" and value.ndim and value.size and len(value) == shape[0]:
            lean = tuple(n for n in value.shape[1:] if n != 1)
            if lean == tuple(n for n in shape[1:] if n != 1):
                value = value.reshape(shape)
        if value.dtype.kind not in "iuf" or value.shape != shape:
            raise self._wrong(
                name, f"expected numbers of shape {shape}, found {value.dtype} of {value.shape}"
            )
        return value.astype(np.float64)

    def _poses(self) -> tuple[Body, np.ndarray]:
        """Which body, and its poses (M, 46) or (M, 72)."""
        for name in _SKEL_POSES:
            if name in self._content and self._array(name).shape[1:] == (_WIDTH["skel"],):
                return "skel", self._numbers(name, self._array(name).shape)
        names = next(
            (names for names in _SMPL_POSES if all(name in self._content for name in names)), None
        )
        if names is None:
            self._named((), "poses")
            raise AssertionError
        parts = [self._array(name) for name in names]
        widths = [_axis_angles(part) for part in parts]
        together = len({part.shape[:1] for part in parts}) == 1
        if not together or None in widths or sum(w or 0 for w in widths) != _WIDTH["smpl"]:
            found = " and ".join(f"{part.dtype} of {part.shape}" for part in parts)
            raise self._wrong(
                " + ".join(names), "expected numbers of shape (M, 46) of SKEL, or SMPL's 24 "
                f"joints, (M, 72), (M, 24, 3) or (M, 24, 3, 3); found {found}"
            )  # fmt: skip
        verdicts = Verdicts.empty(len(parts[0]))
        poses = smpl_poses(parts, verdicts)
        broken = np.flatnonzero(verdicts.reasons == "pose_not_rotation")
        if len(broken):
            raise self._wrong(" + ".join(names), f"a matrix of entry {broken[0]} is no rotation")
        return "smpl", poses

    def _rows(self, count: int, rows: EvalRows | None) -> np.ndarray:
        name = first_of(self._content, _ROWS)
        if name is None:
            if rows is None or len(rows) != count:
                there = "" if rows is None else f", and the protocol has {len(rows)} rows"
                raise self._wrong(
                    "row", f"is missing{there}; without it there is a body for each of them"
                )
            self._check_names(rows)
            return rows.row
        row = self._numbers(name, (count,))
        if not np.isfinite(row).all() or (row != np.round(row)).any():
            raise self._wrong(name, "expected whole numbers")
        if len(np.unique(row)) != count:
            raise self._wrong(name, "a row is there twice")
        return row.astype(np.int64)

    def _check_names(self, rows: EvalRows) -> None:
        """Bodies that say their picture stand in the order of the labels."""
        if "imgname" not in self._content:
            return
        names = self._array("imgname")
        texts = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x)
                 for x in names.reshape(-1).tolist()]  # fmt: skip
        for k, (found, wanted) in enumerate(zip(texts, rows.name.tolist(), strict=False)):
            if Path(found).name != Path(wanted).name:
                raise self._wrong(
                    "imgname", f"entry {k} is of {found}, row {rows.row[k]} of the labels of "
                    f"{wanted}; give `row`, the rows of the label file"
                )  # fmt: skip

    def _focal(self, name: str, count: int) -> np.ndarray:
        value = self._array(name)
        if value.size == 1 and value.dtype.kind in "iuf":
            return np.full(count, float(value.reshape(-1)[0]))
        if value.shape == (count, 2):  # of x and y; one camera has one
            value = value.mean(1)
        if value.dtype.kind not in "iuf" or value.size != count:
            raise self._wrong(
                name, f"expected numbers of shape {(count,)}, found {value.dtype} of {value.shape}"
            )
        return value.reshape(count).astype(np.float64)

    def _gender(self) -> Gender:
        name = first_of(self._content, _GENDERS)
        if name is None:
            return _DEFAULT[self.body]
        value = self._array(name)
        texts = set(value.reshape(-1).tolist()) if value.dtype.kind in "SU" else {str(value)}
        found = {str(g) or str(t) for t, g in ((t, genders(np.array([t]))[0]) for t in texts)}
        known = [g for g in get_args(Gender) if self.body == "smpl" or g != "neutral"]
        if len(found) != 1 or not found <= set(known):
            raise self._wrong(
                name, f"expected one of {', '.join(known)}, found {', '.join(sorted(found)[:3])}"
            )
        return next(gender for gender in known if gender in found)


def _axis_angles(part: np.ndarray) -> int | None:
    """Numbers of a row of rotations as axis-angle; None: not numbers of rows."""
    if part.dtype.kind not in "iuf" or part.ndim < 2 or not part.size:
        return None
    size = part[0].size
    return size // 3 if part.shape[-2:] == (3, 3) and part.ndim > 2 else size


class FittedPredictions:
    """SMPL predictions carried over to SKEL by `fit_skel`, row by row: the two-stage baseline.

    SKEL has no neutral body: neutral predictions, and those of the labels' genders, are fitted with
    the male one, as in the published comparisons.

    rows: of the protocol; those without a reason yet are fitted. reason: (N,) of `rows` afterwards,
    with those whose SMPL parameters no body can be fitted to.
    """

    uses_images = False
    body: Body = "skel"

    def __init__(
        self, source: StoredPredictions, protocol: EvaluationProtocol, rows: EvalRows,
        bodies: EvaluationBodies,
    ) -> None:  # fmt: skip
        if source.body != "smpl":
            raise UsageError(f"{source.name}: these are SKEL bodies; --skel-fit is for SMPL ones")
        self.name = f"{source.name} + SKEL fit"
        self.gender: Gender = source.gender if source.gender in ("male", "female") else "male"
        self._source, self._config = source, FitConfig()
        place = np.flatnonzero(rows.reason == "")
        part = rows.take(place)
        smpl = predict(source, part, protocol, bodies, None)
        found = self._fitted(smpl, predicted_genders(source, protocol, part), bodies)
        refused = rejection_reasons(np.array(found.status))
        self.reason = rows.reason.astype("<U40")
        self.reason[place] = np.where(refused != "", np.char.add("fit: ", refused), "")
        self._error = 1000 * float(np.nanmean(found.vertex_error_mean))
        values = (found.poses, found.betas, found.trans, smpl.cam_int.cpu())
        self._stored = Stored(part.row, *map(np.asarray, values))

    def _fitted(self, smpl: Prediction, genders: np.ndarray, bodies: EvaluationBodies) -> FitResult:
        dtype = self._config.dtype
        skel = bodies.model("skel", str(self.gender), dtype)
        order, parts = [], []
        for gender in sorted(set(genders.tolist())):
            order.append(np.flatnonzero(genders == gender))
            rows = torch.as_tensor(order[-1], device=smpl.poses.device)
            model = bodies.model("smpl", gender, dtype)
            given = (smpl.poses[rows], smpl.betas[rows], smpl.translation[rows])
            parts.append(fit_skel(skel, model, *given, config=self._config))
        back = torch.as_tensor(np.argsort(np.concatenate(order)))
        return FitResult.joined(parts).take(back.to(parts[0].poses.device)).numpy()

    def provenance(self) -> Mapping[str, Any]:
        return {
            "kind": "skel-fit",
            "gender": self.gender,
            "of": dict(self._source.provenance()),
            "fit": self._config.model_dump(mode="json"),
            "fit_vertex_error_mean_mm": self._error,
        }

    def __call__(self, query: Query) -> Prediction:
        return self._stored.answer(query, self.name)

    def file(self) -> bytes:
        """The fitted bodies as a file that `StoredPredictions` reads."""
        kept, good = self._stored, np.isfinite(self._stored.poses).all(1)
        assert kept.cam_int is not None
        content = io.BytesIO()
        np.savez(
            content, row=kept.row[good], poses=kept.poses[good], betas=kept.betas[good],
            cam_t=kept.translation[good], cam_int=kept.cam_int[good], gender=np.array(self.gender),
        )  # fmt: skip
        return content.getvalue()
