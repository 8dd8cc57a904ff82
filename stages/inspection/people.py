"""Rows of a converted dataset as bodies to draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import SKEL_COLUMNS
from pipeline.dataset import Dataset
from pipeline.errors import InputError, UsageError
from pipeline.readers.base import SMPL, AnnotationRows
from pipeline.rundir import RunDirectory
from pipeline.task import conversion_models, open_plan_source
from pipeline.up_axis import turned, y_is_up
from skel_fit.errors import ModelFileError
from stages.drawing import pictures
from stages.drawing.pictures import Person, Poser
from stages.inspection.statistics import Columns, spread_worst

WORST_ROWS = 3


def poser_of(dataset: Dataset, given: Path | None) -> tuple[Poser | None, str]:
    """Something to pose rows with, or why not. Never other models than those of the conversion."""
    plan = dataset.plan
    if not plan.models:
        return None, f"fitter '{plan.fitter}' uses no body models"
    try:
        directory = conversion_models(plan, dataset.attrs["models_directory"], given)
    except (InputError, ModelFileError) as error:
        if given is not None:
            raise
        return None, str(error)
    return Poser(directory), ""


def typical_and_worst(columns: Columns) -> list[tuple[str, int]]:
    """(why, position) of the rows to show: the median of each gender group, then the worst
    of the sequences (`spread_worst`)."""
    chosen: list[tuple[str, int]] = []
    for code, name in sorted(enumerate(columns.pair_names), key=lambda item: item[1]):
        rows = np.flatnonzero((columns.pair == code) & columns.fitted)
        if rows.size:
            order = rows[np.argsort(columns.error[rows], kind="stable")]
            chosen.append((f"median of {name}", int(order[(len(order) - 1) // 2])))
    worst = spread_worst(columns.error, columns.sequence, WORST_ROWS)
    chosen += [(_ordinal(place), int(row)) for place, row in enumerate(worst)]
    return chosen


def person(dataset: Dataset, position: int, poser: Poser) -> Person:
    """One row of a dataset as bodies to draw.

    The SMPL target comes from the original columns where they are CameraHMR's, else from the
    label file if it is still where it was converted.
    """
    row = {
        name: dataset.read(name, position, position + 1)[0]
        for name in (*SKEL_COLUMNS, "smpl_gender", "skel_gender", "source_row")
    }
    target = targets(dataset, position, position + 1, poser)
    return Person(
        row=int(row["source_row"]),
        skel=(row["skel_poses"], row["skel_betas"], row["skel_trans"]),
        skel_gender=str(row["skel_gender"]),
        smpl=None if target is None else (target[0][0], target[1][0], target[2][0]),
        smpl_gender=str(row["smpl_gender"]),
        cam_int=_optional(dataset, "cam_int", position),
        y_up=y_is_up(dataset.plan),
    )


def people(dataset: Dataset, columns: Columns, poser: Poser, size: int = 340) -> NDArray[np.uint8]:
    """Four people in a row of three pictures each: SMPL target, SKEL skin, skeleton.

    One from each quarter of the dataset: a row with about the median error (typical, not chosen
    for its fit) that turns three quarters to the camera, women and men in turn.
    """
    fitted = np.flatnonzero(columns.fitted)
    if len(fitted) < 4:
        raise UsageError("a picture of people needs at least four fitted rows")
    middle = float(np.median(columns.error[fitted]))
    chosen = []
    for place, part in enumerate(np.array_split(fitted, 4)):
        gender = ("female", "male")[place % 2]
        wanted = [code for code, name in enumerate(columns.pair_names) if name.endswith(gender)]
        own = part[np.isin(columns.pair[part], wanted)]
        near = own if own.size else part
        near = near[np.argsort(np.abs(columns.error[near] - middle), kind="stable")]
        chosen.append(_best_turned(dataset, near[: len(near) // 8 + 1], poser))
    groups = []
    for position in chosen:
        bodies = poser.bodies(person(dataset, position, poser))
        drawn = [pictures.skin_picture(bodies, size), pictures.skeleton_picture(bodies, size)]
        if bodies.target is not None:
            drawn.insert(0, pictures.target_picture(bodies, size))
        groups.append(pictures.side_by_side(pictures.trimmed(drawn), gap=2))
    return pictures.side_by_side(groups, gap=14)


def _best_turned(dataset: Dataset, positions: NDArray[np.int64], poser: Poser) -> int:
    """The row whose pelvis looks three quarters towards the camera, not from very near."""
    import torch

    from skel_fit.root import root_rotation

    scores = []
    for position in positions.tolist():
        shown = person(dataset, position, poser)
        skel = poser.model("skel", shown.skel_gender)
        turn = root_rotation(skel, torch.as_tensor(shown.skel[0][None, :3]))[0].numpy()
        # Column 2 is the way the body looks; z = -1 is straight at the camera.
        scores.append(abs(turn[2, 2] + 0.85) + (float(shown.skel[2][2]) < 3.0))
    return int(positions[int(np.argmin(scores))])


def targets(
    dataset: Dataset, start: int, stop: int, poser: Poser
) -> tuple[NDArray, NDArray, NDArray] | None:
    """SMPL poses (n, 72), betas (n, 10) and translations (n, 3) of rows start to stop, in the axes
    of the SKEL columns, or None: labels of another body, or gone."""
    stored = _stored_targets(dataset, start, stop)
    if stored is not None:
        return stored
    source = _source_rows(dataset, start, stop)
    if source is None or source.body != SMPL:
        return None
    axes = turned(dataset.plan, source, slice(None))
    found = source.poses, source.betas, source.transl
    if not axes:
        return found
    turn = axes["turn"]
    import torch

    from skel_fit.root import turned_smpl

    poses, betas, transl = (values.copy() for values in found)
    genders = dataset.read("smpl_gender", start, stop)
    fitted = np.isfinite(dataset.read("skel_trans", start, stop)).all(axis=1)
    for gender in sorted(set(genders[fitted].tolist())):
        rows = np.flatnonzero(fitted & (genders == gender))
        smpl = poser.model("smpl", gender)
        orient, shape, place = (torch.as_tensor(v[rows]) for v in (poses[:, :3], betas, transl))
        own = torch.as_tensor(turn if turn.ndim == 2 else turn[rows])
        orient, moved = turned_smpl(smpl, orient, shape, place, own)
        poses[rows, :3], transl[rows] = orient.numpy(), moved.numpy()
    return poses, betas, transl


def _stored_targets(
    dataset: Dataset, start: int, stop: int
) -> tuple[NDArray, NDArray, NDArray] | None:
    """SMPL parameters from CameraHMR columns in the shards (label-formats.md#camerahmr)."""
    if dataset.plan.source_format != "camerahmr":
        return None
    key = str(dataset.plan.source_options.get("pose_key", "pose_cam"))
    poses = original(dataset, key, start, stop)
    betas = original(dataset, "shape", start, stop)
    if poses is None or betas is None or poses[0].size != 72:
        return None
    transl = original(dataset, "trans_cam", start, stop)
    rows = stop - start
    return (
        poses.reshape(rows, 72).astype(np.float64),
        betas.reshape(rows, -1)[:, :10].astype(np.float64),
        np.zeros((rows, 3)) if transl is None else transl.astype(np.float64),
    )


def _source_rows(dataset: Dataset, start: int, stop: int) -> AnnotationRows | None:
    """Rows of the label file, if it is still where it was converted."""
    places = RunDirectory(dataset.directory).places(dataset.plan)
    path = places.get("source")
    if not path or not Path(path).exists():
        return None
    numbers = dataset.read("source_row", start, stop)
    source = open_plan_source(dataset.plan, Path(path), Path(places.get("data_root") or "."))
    rows = source.read(int(numbers[0]), int(numbers[-1]) + 1)
    wanted = numbers - numbers[0]
    cameras = None if rows.cameras is None else rows.cameras[wanted]
    return replace(
        rows,
        poses=rows.poses[wanted],
        betas=rows.betas[wanted],
        transl=rows.transl[wanted],
        cameras=cameras,
    )


def original(dataset: Dataset, source_name: str, start: int, stop: int) -> NDArray | None:
    """Rows of an original column by its name in the label file."""
    for item in dataset.plan.fields:
        if item.source == source_name:
            return np.asarray(dataset.read(item.stored, start, stop))
    return None


def _optional(dataset: Dataset, source_name: str, position: int) -> NDArray | None:
    found = original(dataset, source_name, position, position + 1)
    return None if found is None else np.asarray(found[0])


def image_name(dataset: Dataset, position: int) -> str:
    name = _optional(dataset, "imgname", position)
    if name is None:
        return ""
    value = name.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _ordinal(place: int) -> str:
    return "worst" if place == 0 else f"{('second', 'third')[place - 1]} worst"
