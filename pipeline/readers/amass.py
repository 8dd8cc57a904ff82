"""AMASS: motions of SMPL-H (156 pose values) and SMPL-X (165), one npz each.

Source: docs/reference/label-formats.md#amass. The body model of the label is evaluated: its betas
mean another shape space than SMPL's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.bodies import BodyLayout, BodySource
from pipeline.readers.family import WIDTHS, FamilyColumns
from pipeline.readers.formats import PATTERN, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import NO_ROWS, checked_rates
from pipeline.readers.npz import NpzFile
from pipeline.readers.pickles import load_object_member
from pipeline.readers.reloaded import as_array, read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import Track, member, tracks_table

FORMAT = "amass"
AS_SMPL = "smpl"
RATES = ("mocap_framerate", "mocap_frame_rate")
_READ = ("poses", "betas", "trans", "gender", *RATES)
DESCRIBED = Format(
    name=FORMAT,
    title="AMASS, SMPL-H and SMPL-X",
    files="`.npz` of any name, or a folder of them",
    body="SMPL-H or SMPL-X, by the width of `poses`",
    members=(
        Member("poses", "(F, 156) or (F, 165)", "axis-angle, radians, the root first"),
        Member("betas", "(10 or more)", "of SMPL-H or SMPL-X; all are used"),
        Member("trans", "(F, 3)", "metres; absent: zeros", needed=False),
        Member("gender", "text", "`male`, `female`, `neutral`", needed=False),
        Member("mocap_framerate | mocap_frame_rate", "0-d", "frames a second", needed=False),
    ),
    gives="One row a frame: these members, `sequence`, `track`, `frame`. A file is one person",
    options=(
        ("body", "`smpl`: take the first 10 betas and 21 joints for SMPL's, without SMPL-H or -X"),
        PATTERN,
        UP,
    ),
    traps=(
        "z is up where the frame rate of the motion capture is stated.",
        "The model file must be of the version that the labels were made with: 16 betas of AMASS "
        "belong to the locked-head models.",
        "Betas of SMPL-H and SMPL-X are not SMPL's: `--option body=smpl` is a choice, and is said.",
        "In a folder, `*shape.npz` and `*stagei.npz` are passed over. Markers are left out.",
    ),
    example="walk_stageii.npz",
)


def width_of(shape: tuple[int, ...]) -> bool:
    """Whether a member `poses` of this shape is SMPL-H's or SMPL-X's."""
    return len(shape) >= 2 and int(np.prod(shape[1:])) in WIDTHS


def open_amass(
    path: Path, options: LabelOptions, *, body: str = "", pattern: str = "**/*", up: str = ""
) -> LabelSource:
    """A motion of AMASS, or a folder of motions of one body."""
    if body not in ("", AS_SMPL):
        raise InputError(f"{path}: option body {body!r}, expected {AS_SMPL} or nothing")
    table = folder_table(path, pattern, partial(_load))
    source: LabelSource
    if body == AS_SMPL:
        source = LabelSource(FORMAT, table, Layout(("poses",), "betas", "trans"), options)
    else:
        name = WIDTHS[table.specs["poses"].shape[0]]
        columns = FamilyColumns(name, "betas", "trans", full="poses")
        layout = BodyLayout(name, columns.sizes, columns, identity="sequence")
        source = BodySource(FORMAT, table, layout, options)
    timed = any(rate in table.specs for rate in RATES)
    source.up = stated_up(path, up, in_camera=False) or ("z" if timed else None)
    return source


def _load(path: Path, *, root: Path) -> MemoryTable:
    content = _content(path)
    poses = as_array(f"{path}", "poses", content.get("poses"))
    if not width_of(poses.shape):
        raise InputError(
            f"{path}: member 'poses': shape {poses.shape}, expected (frames, 156) of SMPL-H or "
            "(frames, 165) of SMPL-X"
        )
    frames = len(poses)
    if not frames:
        raise InputError(f"{path}: member 'poses': {NO_ROWS}")
    poses = member(path, content, "poses", poses.shape[1:], frames=frames)
    betas = member(path, content, "betas", (None,))
    if len(betas) < 10:
        raise InputError(f"{path}: member 'betas': {len(betas)} numbers, expected 10 or more")
    columns = {"poses": poses.reshape(frames, -1), "trans": np.zeros((frames, 3))}
    if "trans" in content:
        columns["trans"] = member(path, content, "trans", (3,), frames=frames)
    constants = {"betas": betas}
    if "gender" in content:
        gender = content["gender"]
        gender = gender.item() if isinstance(gender, np.ndarray) and gender.ndim == 0 else gender
        if not isinstance(gender, str | bytes):
            raise InputError(f"{path}: member 'gender': expected male, female or neutral")
        constants["gender"] = np.array(gender)
    for rate in RATES:
        if rate in content:
            constants[rate] = checked_rates(path, rate, member(path, content, rate, ()))
    return tracks_table(path, root, [Track("0", columns, constants)])


def _content(path: Path) -> dict[str, Any]:
    """The members that are read, nothing else of the file."""
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            return read_content(path)
    file = NpzFile(path)
    return {
        name: load_object_member(file, name)
        if file.members[name].dtype.hasobject
        else file.whole(name)
        for name in _READ
        if name in file.members
    }
