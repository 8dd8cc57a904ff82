"""What a protocol needs on this machine: labels, pictures, body models, a focal length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, UsageError
from pipeline.manifest import models_directory
from stages.regressor.data.images import ImageSource, open_images
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_readers import read_shards
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.predictors import CheckpointPredictor, FocalRule, MeanPose
from stages.regressor.evaluation.protocols import EvaluationProtocol
from stages.regressor.evaluation.query import Predictor
from stages.regressor.evaluation.scoring import predicted_genders

FOCAL_WORDS = ("auto", "protocol", "labels", "predicted", "patch", "diagonal")


def find_labels(
    protocol: EvaluationProtocol, *, shards: Path | None, labels: Path | None, root: Path
) -> Path:
    """The protocol's label file or shard directory: the given one, else below the data root.

    Raises:
        UsageError: shards are needed and not given; InputError: the file is not there.
    """
    if protocol.source.format == "shards":
        if shards is None:
            raise UsageError(
                f"protocol {protocol.name} evaluates a converted dataset: give it with --shards"
            )
        return shards
    if labels is not None:
        return labels
    for name in protocol.source.files:
        if (root / name).is_file():
            return root / name
    raise InputError(
        f"{root / protocol.source.files[0]}: no label file for protocol {protocol.name}; expected "
        f"{' or '.join(protocol.source.files)} below {root}, or give it with --labels"
    )


def find_models(given: Path | None, rows: EvalRows, predictors: Sequence[Predictor]) -> Path:
    """--models, else the folder that made the shards, else the stand-in pair where shards or
    checkpoint were made with it, else HMR_SKEL_MODELS, else ./models.
    """
    if given is None:
        if rows.models is not None and rows.models.is_dir():
            return rows.models
        if rows.standin or any(getattr(p, "standin", False) for p in predictors):
            return models_directory("default-body", None)
    return models_directory("licensed", given)


def check_bodies(
    protocol: EvaluationProtocol, bodies: EvaluationBodies, rows: EvalRows,
    predictors: Sequence[Predictor], path: Path,
) -> None:  # fmt: skip
    """Refuse shards or a checkpoint of the stand-in on licensed bodies, and the reverse."""
    made = [
        (f"the checkpoint {predictor.path} was trained on", predictor.standin)
        for predictor in predictors
        if isinstance(predictor, CheckpointPredictor)
    ]
    if rows.standin is not None:
        made.insert(0, (f"the shards {path} were converted with", rows.standin))
    if not made:
        return
    # Loaded by the first prediction in any case.
    first = predicted_genders(predictors[0], protocol, rows.take(np.arange(min(len(rows), 1))))
    here = bool(bodies.model(predictors[0].body, str(first[0])).standin)
    kind = {True: "the stand-in body", False: "licensed body models"}
    for what, standin in made:
        if standin != here:
            raise InputError(
                f"{bodies.directory}: holds {kind[here]}, but {what} {kind[standin]}; its numbers "
                "would mean other bodies; give the matching --models"
            )


def open_pictures(rows: EvalRows, needed: bool, protocol: EvaluationProtocol) -> ImageSource | None:
    """The images; without need for them (baselines) missing ones only cost the page's pictures."""
    if rows.images is None:
        if needed:
            raise InputError(
                f"protocol {protocol.name}: no folder of images is known; give it with --images"
            )
        return None
    if not needed and not rows.images.exists():
        return None
    return open_images(rows.images)


def focal_rule(
    protocol: EvaluationProtocol, focal: str, has_fov: bool, rows: EvalRows
) -> FocalRule:
    """What --focal means here: `labels`, `predicted`, `patch`, `diagonal`, pixels; `protocol`: that
    of the published runs; `auto`: predicted with --fov-checkpoint, else of the labels, and for
    label files without intrinsics the picture's diagonal, as `hmr-skel predict` does.

    Raises:
        UsageError: not one of these, or predicted without weights.
    """
    given = protocol.focal if focal == "protocol" else focal
    if given == "auto":
        if has_fov:
            return "predicted"
        known = np.isfinite(rows.cam_int[rows.reason == ""]).all((1, 2))
        return "labels" if known.any() else "diagonal"
    if given == "predicted" and not has_fov:
        raise UsageError(
            f"--focal {focal}: protocol {protocol.name}: a predicted focal length needs "
            "--fov-checkpoint; or choose labels, diagonal, patch or a number of pixels"
        )
    match given:
        case "labels" | "predicted" | "patch" | "diagonal":
            return given
        case _:
            return pixels(given)


def pixels(given: str) -> float:
    """A focal length as a number of pixels, or UsageError."""
    try:
        pixels = float(given)
    except ValueError:
        pixels = math.nan
    if not (math.isfinite(pixels) and pixels > 0):
        raise UsageError(
            f"--focal {given}: expected auto, protocol, labels, predicted, patch, diagonal or a "
            "positive number of pixels"
        )
    return pixels


def mean_pose(protocol: EvaluationProtocol, rows: EvalRows, path: Path) -> MeanPose:
    """Of the training split where the data has one, else the published one."""
    if protocol.source.format == "shards" and protocol.source.split is not None:
        train = read_shards(path, split="train", scale_unit=protocol.source.scale_unit)
        return MeanPose.of_labels(train, "training split")
    return MeanPose.published()
