"""Labels of a converted dataset refined by keypoints of their pictures, as columns beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.appended import Append, AppendedColumn, check_name
from pipeline.appending import append_columns
from pipeline.columns import SKEL_COLUMNS, Meaning, result_columns
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import InputError
from pipeline.task import conversion_models
from skel_fit.body_points import BodyPoints, label_points
from skel_fit.keypoint_fit import Cameras, Start
from skel_fit.models import BodyModels
from skel_fit.pose_prior import PosePrior, PriorName, pose_prior
from skel_fit.refinement import OUTCOMES, RefineConfig, Refinement, refine_labels

KEYPOINTS = ("gtkps", "keypoints_2d")
_NAN = "NaN in rejected rows"
_OWN = (
    AppendedColumn(
        "outcome", "U", (), Meaning(f"{', '.join(OUTCOMES)}; rejected: no label to refine")
    ),
    AppendedColumn(
        "stored_error",
        "<f4",
        (),
        Meaning("held-out keypoint error of the stored label", "sd^2", "", "0 and more", _NAN),
    ),
    AppendedColumn(
        "refined_error",
        "<f4",
        (),
        Meaning("of fits that have not seen these keypoints", "sd^2", "", "0 and more", _NAN),
    ),
)
REJECTED = "rejected"


@dataclass(frozen=True)
class Refined:
    """What was added, and how many labels became what."""

    append: Append
    outcomes: Counter[str]


def refine_dataset(
    directory: Path,
    name: str,
    config: RefineConfig,
    prior: PriorName = "wide",
    models: Path | None = None,
    done: Callable[[int, int], None] = lambda rows, all_rows: None,
) -> Refined:
    """Append refined labels to a complete dataset: `NAME.skel_poses` and so on, the stored value
    where a label was not refined; the shards stay as they are.

    done: called with the rows of every shard that is done, and all.

    Raises:
        InputError: no keypoints or cameras in it, or no dataset.
        Incomplete: it is not complete.
        UsageError: the name cannot be used.
    """
    dataset = open_dataset(directory)
    check_name(dataset.directory, name)
    keypoints = _column(dataset, KEYPOINTS, (44, 3))
    _column(dataset, ("cam_int",), (3, 3))
    held = BodyModels(conversion_models(dataset.plan, dataset.attrs["models_directory"], models))
    points, chosen = label_points(held.keypoint_matrix()), pose_prior(prior)
    told = result_columns(dataset.plan.schema_version)
    columns = (
        *(AppendedColumn(n, told[n].dtype, told[n].shape, told[n].meaning) for n in SKEL_COLUMNS),
        *_OWN,
    )
    outcomes: Counter[str] = Counter()

    def values() -> Iterator[dict[str, np.ndarray]]:
        start = 0
        for rows in dataset.shard_rows:
            part = dataset.take(
                (*SKEL_COLUMNS, keypoints, "cam_int", "skel_gender", "status"),
                range(start, start + rows),
            )
            found = _refined(part, part[keypoints], points, held, config, chosen)
            outcomes.update(found["outcome"].tolist())
            start += rows
            done(rows, len(dataset))
            yield found

    provenance = {
        "made_by": "hmr-skel refine",
        "options": asdict(config),
        "prior": chosen.name,
        "keypoints": keypoints,
    }
    made = append_columns(dataset, name, columns, values(), provenance)
    return Refined(made, outcomes)


def _column(dataset: Dataset, names: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """The first of the columns that is there. Raises InputError."""
    for name in names:
        if name in dataset:
            found = dataset.take((name,), range(0))[name].shape[1:]
            if found != shape:
                raise InputError(
                    f"{dataset.directory}: column '{name}' is {found} a row, expected {shape}; "
                    "refine needs the 44 keypoints x, y, confidence and a camera matrix"
                )
            return name
    raise InputError(
        f"{dataset.directory}: column '{names[0]}' is missing; labels are refined by the keypoints "
        "and cameras of a label file that has them"
    )


def _refined(
    part: dict[str, np.ndarray],
    keypoints: np.ndarray,
    points: BodyPoints,
    held: BodyModels,
    config: RefineConfig,
    prior: PosePrior,
) -> dict[str, np.ndarray]:
    """The columns of one shard."""
    rows = len(keypoints)
    out: dict[str, np.ndarray] = {name: part[name].copy() for name in SKEL_COLUMNS}
    out["outcome"] = np.full(rows, REJECTED, "U16")
    out["stored_error"] = np.full(rows, np.nan, np.float32)
    out["refined_error"] = np.full(rows, np.nan, np.float32)
    fitted = np.isfinite(part["skel_poses"]).all(1)
    for gender in np.unique(part["skel_gender"][fitted]).tolist():
        index = np.flatnonzero(fitted & (part["skel_gender"] == gender))
        found = _of_gender(
            part, keypoints, index, points, held.model("skel", gender), config, prior
        )
        out["outcome"][index] = found.outcome
        out["stored_error"][index] = found.stored_error
        out["refined_error"][index] = found.refined_error
        taken = index[found.accepted]
        for name, values in zip(SKEL_COLUMNS, (found.poses, found.betas, found.trans), strict=True):
            out[name][taken] = values[found.accepted]
    return out


def _of_gender(
    part: dict[str, np.ndarray],
    keypoints: np.ndarray,
    index: np.ndarray,
    points: BodyPoints,
    skel: Any,
    config: RefineConfig,
    prior: PosePrior,
) -> Refinement:
    stored = Start(*(part[name][index].astype(np.float64) for name in SKEL_COLUMNS))
    seen = keypoints[index].astype(np.float64)
    confidence = np.nan_to_num(seen[..., 2], nan=0.0).clip(0.0, 1.0)
    cameras = Cameras(part["cam_int"][index].astype(np.float64)[:, None])
    return refine_labels(skel, points, stored, seen[..., :2], confidence, cameras, config, prior)
