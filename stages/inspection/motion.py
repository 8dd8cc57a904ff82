"""Rows of a converted dataset, or of a file of SKEL parameters, as a scene to play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import SKEL_COLUMNS
from pipeline.dataset import Dataset
from pipeline.errors import InputError, UsageError
from pipeline.readers.npz import NpzFile
from pipeline.sequences import COLUMN as SEQUENCE
from skel_fit.anatomy import POSE_NAMES
from skel_fit.joint_limits import LimitsName, limits
from stages.drawing.pictures import Person, Poser
from stages.drawing.viewer.bodies import Parameters, skel_surfaces, smpl_surface
from stages.drawing.viewer.page import Curves, Scene
from stages.inspection.people import original, targets

MOST_FRAMES = 4000
FIRST_ROWS = 24
"""Rows of a dataset of unrelated people that are shown unless others are asked for."""
DEFAULT_RATE = 30.0
_RATES = ("mocap_framerate", "mocap_frame_rate", "fps")
_FILE_KEYS = {
    "poses": ("skel_poses", "poses"),
    "betas": ("skel_betas", "betas"),
    "transl": ("skel_trans", "trans", "transl"),
}
_CURVES = 4
ON_LIMIT = 1e-6
"""Radians within which an angle of a file counts as on its limit."""
_UPS = {"y-down": (0.0, -1.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class Choice:
    """Rows start to stop of a dataset; name: of the sequence, None: rows are unrelated people."""

    start: int
    stop: int
    name: str | None


def chosen_rows(dataset: Dataset, rows: str | None, sequence: str | None) -> Choice:
    """What `--rows` and `--sequence` mean; without them the first sequence, or the first rows.

    Raises:
        UsageError: nonsense, or more rows than a page holds.
    """
    if rows is not None and sequence is not None:
        raise UsageError("--rows and --sequence: give one of them")
    names = original(dataset, SEQUENCE, 0, len(dataset))
    if not len(dataset):
        raise InputError(f"{dataset.directory}: no rows to show")
    if rows is not None:
        start, stop = _range(rows, len(dataset))
        name = None
        if names is not None and (names[start:stop] == names[start]).all():
            name = _text(names[start])
        choice = Choice(start, stop, name)
    elif names is not None:
        wanted = _text(names[0]) if sequence is None else sequence
        texts = np.array([_text(name) for name in names])
        found = np.flatnonzero(texts == wanted)
        if not found.size:
            known = ", ".join(sorted(set(texts.tolist()))[:5])
            raise UsageError(f"no sequence '{wanted}'; there are {known}, ...")
        choice = Choice(int(found[0]), int(found[-1]) + 1, wanted)
    elif sequence is not None:
        raise UsageError(f"{dataset.directory}: no sequences here; choose rows with --rows A:B")
    else:
        choice = Choice(0, min(FIRST_ROWS, len(dataset)), None)
    if choice.stop - choice.start > MOST_FRAMES:
        raise UsageError(
            f"{choice.stop - choice.start} frames are more than the {MOST_FRAMES} that one page "
            f"holds; choose with --rows, e.g. {choice.start}:{choice.start + MOST_FRAMES}"
        )
    return choice


def dataset_scene(
    dataset: Dataset, poser: Poser, choice: Choice, rate: float | None, up: str
) -> Scene:
    """The chosen rows; rejected ones are left out.

    up: `auto`, `y-down`, `y` or `z`; auto: z for sequences of the AMASS layout, else a camera's.
    """
    start, stop = choice.start, choice.stop
    status = dataset.read("status", start, stop)
    columns = {name: dataset.read(name, start, stop) for name in SKEL_COLUMNS}
    kept = np.flatnonzero(np.isfinite(columns["skel_poses"]).all(axis=1))
    if not kept.size:
        raise InputError(f"{dataset.directory}: rows {start}:{stop} are all {status[0]}")
    skel = Parameters(
        columns["skel_poses"][kept], columns["skel_betas"][kept], columns["skel_trans"][kept],
        tuple(dataset.read("skel_gender", start, stop)[kept].tolist()),
    )  # fmt: skip
    found = targets(dataset, start, stop)
    genders = dataset.read("smpl_gender", start, stop)[kept].tolist()
    target = None
    if found is not None:
        poses, betas, transl = (values[kept] for values in found)
        target = Parameters(poses, betas, transl, tuple(genders))
    rate = rate or stored_rate(dataset, start) or DEFAULT_RATE
    numbers = dataset.read("source_row", start, stop)[kept]
    if up == "auto":
        up = "z" if dataset.plan.source_format == "sequence" else "y-down"
    return _scene(
        skel,
        target,
        poser,
        title=dataset.plan.name if choice.name is None else f"{dataset.plan.name}: {choice.name}",
        numbers=numbers,
        moving=choice.name is not None,
        rate=rate,
        up=np.array(_UPS[up]),
        limits_name=str(dataset.plan.fit.get("limits", "none")),
        active=dataset.read("active_limits", start, stop)[kept],
        sd=_deviations(dataset, start, stop, kept),
        left_out=stop - start - kept.size,
    )


def file_scene(path: Path, poser: Poser, gender: str, rate: float | None, up: str) -> Scene:
    """A file with poses (F, 46), betas (F or 1, 10) and translations (F, 3) of one moving person.

    Raises:
        InputError: members missing, of the wrong shape, or not finite.
    """
    file = NpzFile(path)
    found: dict[str, NDArray] = {}
    for name, spellings in _FILE_KEYS.items():
        key = next((key for key in spellings if key in file.members), None)
        if key is None:
            raise InputError(f"{path}: no member {' or '.join(spellings)}")
        found[name] = np.asarray(file.whole(key))
    frames = len(found["poses"])
    found["betas"] = np.atleast_2d(found["betas"])
    if len(found["betas"]) == 1:
        found["betas"] = np.repeat(found["betas"], frames, axis=0)
    for name, width in {"poses": 46, "betas": 10, "transl": 3}.items():
        values = found[name]
        if values.shape != (frames, width) or values.dtype.kind != "f" or not frames:
            raise InputError(
                f"{path}: {name}: expected ({frames}, {width}) floats, found {values.shape} "
                f"{values.dtype}"
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(f"{path}: {name} of row {row} is not finite")
    if frames > MOST_FRAMES:
        raise UsageError(f"{path}: {frames} frames; one page holds {MOST_FRAMES}")
    skel = Parameters(found["poses"], found["betas"], found["transl"], (gender,) * frames)
    return _scene(
        skel,
        None,
        poser,
        title=path.stem,
        numbers=np.arange(frames),
        moving=True,
        rate=rate or DEFAULT_RATE,
        up=np.array(_UPS["y-down" if up == "auto" else up]),
        limits_name="default",
        active=_on_limits(skel.poses, "default"),
        sd=None,
        left_out=0,
    )


def people_scene(
    people: Sequence[Person], poser: Poser, title: str, limits_name: LimitsName
) -> Scene:
    """Unrelated rows, in the order given: what reports show in pictures, to be turned around.

    The target is left out unless every row has one.
    """
    skel = _parameters([person.skel for person in people], [p.skel_gender for p in people])
    known = [person.smpl for person in people if person.smpl is not None]
    target = None
    if len(known) == len(people):
        target = _parameters(known, [person.smpl_gender for person in people])
    return _scene(
        skel,
        target,
        poser,
        title=title,
        numbers=np.array([person.row for person in people]),
        moving=False,
        rate=DEFAULT_RATE,
        up=np.array(_UPS["y-down"]),
        limits_name=limits_name,
        active=_on_limits(skel.poses, limits_name),
        sd=None,
        left_out=0,
    )


def _parameters(
    values: Sequence[tuple[NDArray, NDArray, NDArray]], genders: Sequence[str]
) -> Parameters:
    poses, betas, transl = (
        np.stack(column).astype(np.float64) for column in zip(*values, strict=True)
    )
    return Parameters(poses, betas, transl, tuple(genders))


def _on_limits(poses: NDArray, limits_name: LimitsName) -> NDArray[np.bool_]:
    table = limits(limits_name)
    return (poses <= table[:, 0] + ON_LIMIT) | (poses >= table[:, 1] - ON_LIMIT)


def _scene(
    skel: Parameters,
    target: Parameters | None,
    poser: Poser,
    *,
    title: str,
    numbers: NDArray,
    moving: bool,
    rate: float,
    up: NDArray,
    limits_name: str,
    active: NDArray,
    sd: NDArray | None,
    left_out: int,
) -> Scene:
    models = {gender: poser.model("skel", gender) for gender in sorted(set(skel.genders))}
    try:
        surfaces = skel_surfaces(models, _near_origin(skel, skel, moving))
    except ValueError as error:
        raise InputError(f"{title}: {error} (choose with --rows)") from None
    if target is not None:
        bodies = {gender: poser.model("smpl", gender) for gender in sorted(set(target.genders))}
        surfaces.append(smpl_surface(bodies, _near_origin(target, skel, moving)))
    people = f"{len(skel)} {'frames' if moving else 'people'}"
    fitted = f", {left_out} rejected left out" if left_out else ""
    seconds = numbers.astype(np.float64) / rate - numbers[0] / rate
    return Scene(
        title=title,
        about=f"{people}{f' at {rate:g} a second' if moving else ''}{fitted}",
        labels=tuple([f"{t:.2f} s" for t in seconds] if moving else [f"row {n}" for n in numbers]),
        times=seconds if moving else numbers.astype(np.float64),
        unit="seconds" if moving else "rows",
        rate=rate if moving else 1.0,
        surfaces=tuple(surfaces),
        roots=_near_origin(skel, skel, moving).transl,
        up=up,
        front=_front(models[skel.genders[0]], skel.poses[0], up),
        curves=_curves(skel.poses, limits_name, active, sd),
        independent=not moving,
        standin=poser.standin,
    )


def _near_origin(given: Parameters, skel: Parameters, moving: bool) -> Parameters:
    """Unrelated people each at the origin; a moving person starting there."""
    offset = skel.transl[:1] if moving else skel.transl
    return replace(given, transl=given.transl - offset)


def _front(model: Any, poses: NDArray, up: NDArray) -> NDArray[np.float64]:
    """Where the person looks at first, level with the ground."""
    import torch

    from skel_fit.root import root_rotation

    root = torch.as_tensor(np.array(poses[None, :3]), dtype=model.template.dtype)
    looks = root_rotation(model, root)[0].numpy()[:, 2].astype(np.float64)
    level = looks - (looks @ up) * up
    length = float(np.linalg.norm(level))
    if length < 0.2:  # lying: any level direction
        level = np.cross(up, [1.0, 0.0, 0.0])
        length = float(np.linalg.norm(level))
    return level / length


def _curves(poses: NDArray, limits_name: str, active: NDArray, sd: NDArray | None) -> Curves:
    degrees = np.degrees(np.asarray(poses, dtype=np.float64))
    table = np.degrees(limits(limits_name))  # type: ignore[arg-type]  # a name from a checked plan
    busy = busiest(degrees)
    return Curves(
        names=tuple(POSE_NAMES),
        degrees=degrees,
        lower=table[:, 0],
        upper=table[:, 1],
        active=active,
        sd=None if sd is None else np.degrees(sd),
        opened=busy,
    )


def busiest(angles: NDArray, wanted: int = _CURVES) -> tuple[int, ...]:
    """The angles (F, 46) that vary most, without the root's, in their usual order."""
    order = np.argsort(-angles[:, 3:].std(axis=0), kind="stable")[:wanted] + 3
    return tuple(sorted(int(index) for index in order))


def _deviations(dataset: Dataset, start: int, stop: int, kept: NDArray) -> NDArray | None:
    """Standard deviations of the angles, radians, where the data set has them."""
    if "skel_poses_sd" not in dataset:
        return None
    found = dataset.read("skel_poses_sd", start, stop)[kept]
    return found if np.isfinite(found).any() else None


def stored_rate(dataset: Dataset, row: int) -> float | None:
    """Frames a second as the labels have them."""
    for name in _RATES:
        found = original(dataset, name, row, row + 1)
        if found is not None and found.size == 1 and float(found.reshape(-1)[0]) > 0:
            return float(found.reshape(-1)[0])
    return None


def _range(text: str, rows: int) -> tuple[int, int]:
    try:
        first, last = text.split(":")
        start, stop = int(first or 0), int(last or rows)
    except ValueError:
        raise UsageError(f"--rows {text}: expected A:B, e.g. 0:300") from None
    if not 0 <= start < stop <= rows:
        raise UsageError(f"--rows {text}: expected 0 <= A < B <= {rows}")
    return start, stop


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
