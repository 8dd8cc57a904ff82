"""OpenSim models and motions back to SKEL parameters: what `hmr-skel import-opensim` does.

Our own exports carry in their notes what their angles mean, and come back exactly. Any other model
is followed body by body, and the nearest SKEL angles are found; what does not fit is reported.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.exporters.opensim import read_mot, read_osim
from pipeline.output_files import write_bytes
from skel_fit.anatomy import POSE_NAMES
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles, osim_reader, osim_writer, tables, transfer
from skel_fit.opensim.subject import GROUNDS, subjects

#: Bodies of ours that no gait model tells apart from its torso; their joints stay at rest.
_STILL = ("scapula_r", "scapula_l")


@dataclass(frozen=True)
class Imported:
    """A motion as SKEL parameters.

    Attributes:
        poses: (n, 46) radians. betas: (10,). trans: (n, 3) metres. times: (n,) seconds.
        gender: of the SKEL model. ground: (3, 3) from the axes of `trans` to OpenSim's ground.
        residuals: SKEL body -> (n,) degrees that its relative rotation is off; 0 for own exports.
        defaults: coordinates of the model that the motion does not have: their default was taken.
        ignored: columns of the motion that are no coordinate of the model.
        unmapped: coordinates of the model that move no body of ours.
        at_rest: SKEL angles that nothing in the model tells.
        model_sha256: of the SKEL file that an own export was made with; else empty.
    """

    poses: NDArray[np.float64]
    betas: NDArray[np.float64]
    trans: NDArray[np.float64]
    times: NDArray[np.float64]
    gender: str
    ground: NDArray[np.float64]
    residuals: Mapping[str, NDArray[np.float64]]
    defaults: tuple[str, ...]
    ignored: tuple[str, ...]
    unmapped: tuple[str, ...]
    at_rest: tuple[str, ...]
    model_sha256: str

    def write(self, path: Path) -> None:
        """As an npz file, whole or not at all."""
        names = tuple(self.residuals)
        columns = [self.residuals[name] for name in names]
        stream = io.BytesIO()
        np.savez(
            stream,
            skel_poses=self.poses,
            betas=self.betas,
            trans=self.trans,
            times=self.times,
            gender=np.array(self.gender),
            ground=self.ground,
            pose_names=np.array(POSE_NAMES),
            residual_bodies=np.array(names, dtype=np.str_),
            residual_degrees=np.stack(columns, 1) if columns else np.zeros((len(self.poses), 0)),
            defaults=np.array(self.defaults, dtype=np.str_),
            ignored=np.array(self.ignored, dtype=np.str_),
            unmapped=np.array(self.unmapped, dtype=np.str_),
            at_rest=np.array(self.at_rest, dtype=np.str_),
            model_sha256=np.array(self.model_sha256),
        )
        write_bytes(path, stream.getvalue())


def import_opensim(
    model_path: Path,
    motion_path: Path,
    *,
    models: Callable[[], Path] | None = None,
    gender: str = "male",
    ground: str = "y-up",
    units: str = "file",
) -> Imported:
    """Read a model and a motion.

    Args:
        model_path: .osim. motion_path: .mot or .sto with its coordinates.
        models: says where the SKEL models are; asked only for models that are no export of ours.
        gender, ground: of the SKEL body that follows a foreign model, and the axes of its `trans`;
            own exports say theirs.
        units: of rotational columns: `file` (as the header says), `degrees` or `radians`.

    Raises:
        InputError: a file cannot be read, or nothing of the model maps onto a SKEL body.
        ModelFileError: the SKEL model cannot be read.
    """
    model, motion = read_osim(model_path), read_mot(motion_path)
    known = [k for k, name in enumerate(motion.columns) if name in model.coordinates]
    if not known:
        raise InputError(
            f"{motion_path}: none of its columns is a coordinate of {model_path}; it has "
            f"{', '.join(motion.columns[:4])} ..., the model "
            f"{', '.join(list(model.coordinates)[:4])} ..."
        )
    turns = [name in model.coordinates and model.is_rotational(name) for name in motion.columns]
    try:
        numbers = tables.radians(motion, turns, str(motion_path), units)
    except ValueError as error:
        raise InputError(str(error)) from None
    values = {motion.columns[k]: numbers[:, k] for k in known}
    dependent = {coupler.dependent for coupler in model.couplers}
    named: dict[str, Any] = {
        "times": motion.times,
        "defaults": tuple(c for c in model.coordinates if c not in values and c not in dependent),
        "ignored": tuple(c for c in motion.columns if c not in model.coordinates),
    }
    if model.notes is not None:
        return _own(model, values, len(numbers), model_path, named)
    return _foreign(model, values, len(numbers), models, gender, ground, model_path, named)


def _own(
    model: osim_reader.ForeignModel,
    values: Mapping[str, NDArray],
    count: int,
    path: Path,
    named: Mapping[str, Any],
) -> Imported:
    """An export of ours: the inverse of what was written."""
    notes = _checked_notes(model.notes or {}, path)
    full = model.completed(values, count)
    missing = [name for name in angles.COORDINATES if name not in full]
    if missing:
        raise InputError(f"{path}: an export of ours without coordinate {missing[0]!r}")
    table = np.stack([full[name] for name in angles.COORDINATES], 1)
    ground = np.array(notes["ground"], np.float64)
    root = angles.RootFrame(
        ground=ground,
        orientation=np.array(notes["pelvis_orientation"], np.float64),
        apose=np.array(notes["pelvis_apose"], np.float64),
        rest=np.array(notes["pelvis_rest"], np.float64),
    )
    poses, trans = angles.skel_parameters(table, root, notes["angles"])
    return Imported(
        poses=poses,
        betas=np.array(notes["betas"], np.float64),
        trans=trans,
        gender=notes["gender"],
        ground=ground,
        residuals={},
        unmapped=(),
        at_rest=(),
        model_sha256=str(notes.get("model_sha256", "")),
        **named,
    )


_NOTES = {
    "betas": (10,), "ground": (3, 3), "pelvis_orientation": (3, 3), "pelvis_apose": (3, 3),
    "pelvis_rest": (3,),
}  # fmt: skip


def _checked_notes(notes: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Notes of the right shapes and values; the file may have been edited."""
    version = notes.get("version")
    if version != osim_writer.NOTES_VERSION:
        raise InputError(
            f"{path}: notes of version {version!r}, expected {osim_writer.NOTES_VERSION}; "
            "export again"
        )
    if notes.get("angles") not in angles.ANGLES or notes.get("gender") not in ("male", "female"):
        raise InputError(f"{path}: the notes of our export (<credits>) lack angles or gender")
    for name, shape in _NOTES.items():
        try:
            value = np.array(notes.get(name), np.float64)
        except (TypeError, ValueError):
            value = np.array(np.nan)
        if value.shape != shape or not np.isfinite(value).all():
            raise InputError(
                f"{path}: the notes of our export (<credits>) are damaged at {name!r}: expected "
                f"numbers of shape {shape}"
            )
    return notes


def _foreign(
    model: osim_reader.ForeignModel,
    values: Mapping[str, NDArray],
    count: int,
    models: Callable[[], Path] | None,
    gender: str,
    ground_name: str,
    path: Path,
    named: Mapping[str, Any],
) -> Imported:
    """The nearest SKEL angles to the bodies of another model; average shape."""
    if models is None:
        raise InputError(f"{path}: is no export of ours, so a SKEL model is needed")
    ground = GROUNDS[ground_name]
    skel = load_skel(models(), gender, dtype=torch.float64)
    body = subjects(skel, torch.zeros(1, 10, dtype=torch.float64))[0]
    try:
        shared = osim_writer.template(skel)
    except ValueError as error:
        raise InputError(str(error)) from None
    text = osim_writer.osim_text("skel", body, shared, ground, "skel")
    own = osim_reader.read_model(text, "SKEL")
    wanted = transfer.named_for_skel(model.body_frames(values, count), body)
    try:
        carried = transfer.carry(wanted, own, still=_STILL)
    except ValueError:
        raise InputError(
            f"{path}: none of its bodies maps onto one of ours; they are "
            f"{', '.join(model.bodies[:6])} ..."
        ) from None
    poses = np.stack([carried.values[name] for name in POSE_NAMES], 1)
    position = np.stack([carried.values[name] for name in angles.TRANSLATIONS], 1)
    return Imported(
        poses=poses,
        betas=np.zeros(10),
        trans=body.root(ground).trans(position),
        gender=gender,
        ground=ground,
        residuals=carried.residuals,
        unmapped=_moving_nothing(model, wanted),
        at_rest=carried.held,
        model_sha256="",
        **named,
    )


def _moving_nothing(model: osim_reader.ForeignModel, mapped: Mapping[str, Any]) -> tuple[str, ...]:
    """Coordinates of joints from which no body with a counterpart hangs."""
    names = {*mapped, transfer.TORSO} if transfer.THORAX in mapped else set(mapped)
    useful: set[str] = set()
    for joint in reversed(model.joints):
        if joint.child in names or joint.child in useful:
            useful |= {joint.child, joint.parent}
    return tuple(
        c.name for joint in model.joints if joint.child not in useful for c in joint.coordinates
    )
