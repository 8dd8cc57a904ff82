"""`hmr-skel export`: a converted dataset as a label file for other people's training code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import UsageError
from pipeline.fitters import models_directory
from pipeline.interop import Exported, describe, export_hmr_skel
from pipeline.task import check_models
from stages.convert import aligned

FORMATS = ("hmr-skel-npz",)


def export(
    directory: Path,
    out: Path,
    *,
    format: str = "hmr-skel-npz",
    models: Path | None = None,
    keypoints3d: str = "add",
    rejected: str = "drop",
    max_error: float | None = None,
    as_json: bool = False,
) -> Exported:
    """Write the label file and print what is in it.

    Args:
        directory: output of a complete conversion.
        out: the file to write.
        format: `hmr-skel-npz`.
        models: folder with body models, for the keypoints; by default where the conversion had
            them.
        keypoints3d: `add` makes them where the labels have none, `replace` always, `none` never.
        rejected: `drop` or `keep` rows that could not be fitted.
        max_error: millimetres; leave out rows with a larger mean vertex error.
        as_json: print one JSON object.

    Raises:
        Incomplete: the conversion is not complete.
        InputError: no dataset, or models missing.
        OutputError: the file cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: expected {', '.join(FORMATS)}")
    for name, value, choices in (
        ("--keypoints3d", keypoints3d, ("add", "replace", "none")),
        ("--rejected", rejected, ("drop", "keep")),
    ):
        if value not in choices:
            raise UsageError(f"{name} {value}: expected {', '.join(choices)}")
    if max_error is not None and not max_error > 0:
        raise UsageError(f"--max-error {max_error}: expected millimetres above 0")
    dataset = open_dataset(directory)
    wanted = keypoints3d != "none"
    exported = export_hmr_skel(
        dataset,
        out,
        keypoints=_SkelKeypoints(dataset, models) if wanted else None,
        existing_keypoints="replace" if keypoints3d == "replace" else "keep",
        rejected="keep" if rejected == "keep" else "drop",
        max_error=None if max_error is None else max_error / 1000,
    )
    print(json.dumps(describe(exported), sort_keys=True) if as_json else _table(exported))
    return exported


class _SkelKeypoints:
    """The 44 keypoints of the fitted SKEL mesh, by the recipe that our regressor is trained with.

    With them a network that predicts the pose exactly has zero keypoint error (datasets.md 2.4).
    """

    def __init__(self, dataset: Dataset, models: Path | None) -> None:
        noted = dataset.attrs["models_directory"]
        if models is None and noted and Path(noted).is_dir():
            models = Path(noted)
        self._models = models_directory(dataset.plan.models_kind, models)
        check_models(dataset.plan, self._models)
        self._bodies: dict[str, Any] = {}

    def __call__(self, poses: NDArray, betas: NDArray, genders: NDArray) -> NDArray:
        import torch

        points = np.empty((len(poses), 44, 3))
        tensors = [torch.as_tensor(np.asarray(v, np.float64)) for v in (poses, betas)]
        with torch.no_grad():
            # Every row through every body: the size of a call stays the same for any mixture.
            for gender in np.unique(genders):
                found = self._body(str(gender))(*tensors).keypoints.numpy()
                points[genders == gender] = found[genders == gender]
        return points

    def _body(self, gender: str) -> Any:
        import torch

        from skel_fit.model_files import load_skel
        from stages.regressor.network.joints import KeypointBody, keypoint_matrix

        if gender not in self._bodies:
            skel = load_skel(self._models, gender, dtype=torch.float64)
            self._bodies[gender] = KeypointBody(skel, keypoint_matrix(self._models))
        return self._bodies[gender]


def _table(exported: Exported) -> str:
    left = ", ".join(f"{reason} {n:,}" for reason, n in exported.left_out.items()) or "none"
    lines = [
        ("file", str(exported.path)),
        ("rows", f"{exported.rows:,}"),
        ("left out", left),
        ("columns", ", ".join(exported.columns)),
    ]
    if exported.missing:
        lines.append(("attention", f"SKEL-CF's training needs {', '.join(exported.missing)} too"))
    return aligned(lines)
