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
from pipeline.dataset_rows import DEFAULT_RATE, chosen_rows, recorded_ground, recorded_rate
from pipeline.errors import InputError, UsageError
from pipeline.readers.base import SEQUENCE
from pipeline.readers.labels import genders as named_genders
from pipeline.readers.npz import NpzFile
from skel_fit.anatomy import POSE_NAMES
from skel_fit.joint_limits import LimitsName, limits
from stages.drawing.pictures import Person, Poser
from stages.drawing.viewer.bodies import Parameters, skel_surfaces, smpl_surface
from stages.drawing.viewer.page import Curves, Scene
from stages.inspection.people import targets

MOST_FRAMES = 4000
FIRST_ROWS = 24
"""Rows of a dataset of unrelated people that are shown unless others are asked for."""
_FILE_KEYS = {
    "poses": ("skel_poses", "poses"),
    "betas": ("skel_betas", "betas"),
    "transl": ("skel_trans", "trans", "transl"),
}
_CURVES = 4
ON_LIMIT = 1e-6
"""Radians within which an angle of a file counts as on its limit."""
UPS = {"camera": (0.0, -1.0, 0.0), "y-up": (0.0, 1.0, 0.0), "z-up": (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class Choice:
    """Positions of rows (increasing); name: of their sequence, None: they are unrelated people."""

    rows: NDArray[np.int64]
    name: str | None


def shown_rows(dataset: Dataset, rows: str | None, sequence: str | None) -> Choice:
    """What `--rows` and `--sequence` mean; without them the first sequence, or the first rows
    where there is none of several frames.

    Raises:
        UsageError: nonsense, or more rows than a page holds.
    """
    everything = np.ones(len(dataset), bool)
    if not everything.size:
        raise InputError(f"{dataset.directory}: no rows to show")
    names: NDArray | None = None
    if SEQUENCE in dataset:
        names = dataset[SEQUENCE]
    if rows is None and sequence is None:
        if names is None or (names == names[0]).sum() == 1:  # a file a person: no motion
            rows = f"0:{min(FIRST_ROWS, len(dataset))}"
        else:
            sequence = str(names[0])
    chosen = chosen_rows(dataset, everything, rows, sequence)
    if len(chosen) > MOST_FRAMES:
        first = int(chosen[0])
        raise UsageError(
            f"{len(chosen)} frames are more than the {MOST_FRAMES} that one page holds; choose "
            f"with --rows, e.g. {first}:{first + MOST_FRAMES}"
        )
    together = names is not None and (names[chosen] == names[chosen[0]]).all()
    return Choice(chosen, str(names[chosen[0]]) if names is not None and together else None)


def dataset_scene(
    dataset: Dataset, poser: Poser, choice: Choice, rate: float | None, up: str
) -> Scene:
    """The chosen rows; rejected ones are left out.

    up: `auto` (as the data set records it), `camera` (y is down), `y-up` or `z-up`.
    """
    start, stop = int(choice.rows[0]), int(choice.rows[-1]) + 1

    def read(name: str) -> NDArray:
        return dataset.read(name, start, stop)[choice.rows - start]

    fitted = np.isfinite(read("skel_poses")).all(axis=1)
    if not fitted.any():
        raise InputError(f"{dataset.directory}: rows {start}:{stop} are all {read('status')[0]}")
    kept = choice.rows[fitted] - start
    poses, betas, transl = (dataset.read(name, start, stop)[kept] for name in SKEL_COLUMNS)
    skel = Parameters(
        poses, betas, transl, tuple(dataset.read("skel_gender", start, stop)[kept].tolist())
    )
    target, found = None, targets(dataset, start, stop, poser)
    if found is not None:
        poses, betas, transl = (values[kept] for values in found)
        genders = tuple(dataset.read("smpl_gender", start, stop)[kept].tolist())
        target = Parameters(poses, betas, transl, genders)
    moving = choice.name is not None
    return _scene(
        skel,
        target,
        poser,
        title=f"{dataset.plan.name}: {choice.name}" if moving else dataset.plan.name,
        numbers=dataset.read("source_row", start, stop)[kept],
        moving=moving,
        rate=rate or (recorded_rate(dataset, choice.rows) if moving else None) or DEFAULT_RATE,
        up=np.array(UPS[recorded_ground(dataset.plan) if up == "auto" else up]),
        limits_name=dataset.plan.request.limits,
        active=dataset.read("active_limits", start, stop)[kept],
        sd=_deviations(dataset, start, stop, kept),
        left_out=int((~fitted).sum()),
    )


def file_scene(path: Path, poser: Poser, gender: str | None, rate: float | None, up: str) -> Scene:
    """A file with poses (F, 46), betas (F or 1, 10) and translations (F, 3) of one moving person.

    Rows of several shapes or genders are unrelated people, unless a rate says that they are frames.
    gender: of the SKEL model; None: the file's member `skel_gender` or `gender`, else male.

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
    genders = (gender,) * frames if gender else _file_genders(file, frames)
    one = not np.ptp(found["betas"], axis=0).any() and len(set(genders)) == 1
    skel = Parameters(found["poses"], found["betas"], found["transl"], genders)
    return _scene(
        skel,
        None,
        poser,
        title=path.stem,
        numbers=np.arange(frames),
        moving=one or rate is not None,
        rate=rate or DEFAULT_RATE,
        up=np.array(UPS["camera" if up == "auto" else up]),
        limits_name="default",
        active=_on_limits(skel.poses, "default"),
        sd=None,
        left_out=0,
    )


def _file_genders(file: NpzFile, frames: int) -> tuple[str, ...]:
    """male or female of each row, as the file says; male where it does not."""
    for key in ("skel_gender", "gender"):
        if key in file.members and file.members[key].dtype.kind in "SU":
            said = named_genders(np.atleast_1d(file.whole(key)))
            if len(said) not in (1, frames):
                raise InputError(f"{file.path}: {key}: expected one word, or one for each row")
            found = np.where(said == "female", "female", "male")
            return tuple(np.broadcast_to(found, frames).tolist())
    return ("male",) * frames


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
        up=np.array(UPS["y-up" if people[0].y_up else "camera"]),
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
