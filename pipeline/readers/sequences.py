"""Pose sequences: AMASS npz, plain npz or pickled dictionaries of poses, betas and translations
under any of the usual names; one file or a folder of them.

Source: docs/reference/label-formats.md#sequences. Added columns: `sequence` (name of the file
without suffix, below the folder) and `frame`. Fields that a file has once (gender, betas of
shape (16,), frame rate) are repeated in every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.paths import stays_inside
from pipeline.readers.formats import PATTERN, SKIP, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import NO_ROWS, first_of, listed, split_names
from pipeline.readers.reloaded import ReloadedTable, as_array, read_content, rows_and_constants
from pipeline.readers.tables import JoinedTable, MemoryTable, Table
from pipeline.up_axis import UPS

FORMAT = "sequence"
POSES = (
    ("poses",),
    ("global_orient_axis_angle", "body_pose_axis_angle"),
    ("pose_cam",),
    ("global_orient", "body_pose"),
    ("root_orient", "pose_body"),
    ("root_orient", "body_pose"),
    ("root_pose", "body_pose"),
    ("poses_root", "poses_body"),
    ("smpl_poses",),
    ("smpl_pose",),
    ("full_pose",),
    ("fullpose",),
    ("pose",),
)
_AMASS_RATES = {"mocap_framerate", "mocap_frame_rate"}
_BETAS = ("betas", "shape", "beta", "smpl_betas", "smpl_shape", "shapes")
_FIRST_TRANSL = ("trans", "transl", "trans_cam")


@dataclass(frozen=True)
class Edition:
    """What the reader takes, as far as it changed between versions.

    transl: names of translations. suffixes: of label files in a folder. no_motion: how files end
    that are passed over there (AMASS).
    """

    transl: tuple[str, ...]
    suffixes: tuple[str, ...]
    no_motion: tuple[str, ...]


NOW = "2"
EDITIONS = {
    "1": Edition(_FIRST_TRANSL, (".npz", ".pkl", ".pickle"), ()),
    NOW: Edition(
        (*_FIRST_TRANSL, "translation", "smpl_trans", "root_trans"),
        (".npz", ".pkl", ".pickle", ".smpl", ".pt"),
        ("shape.npz", "stagei.npz"),
    ),
}
SUFFIXES = EDITIONS[NOW].suffixes
_EDITION = "edition"
EDITION = (
    _EDITION,
    "`1`: translations and files of a folder as before 2026-11-29; `2` (default) is recorded in "
    "plans, plans that say nothing mean `1`",
)
DESCRIBED = Format(
    name=FORMAT,
    title="AMASS (SMPL+H) and plain files of poses",
    files="`.npz` or pickled dictionary of any name, or a folder of them",
    body="SMPL; SMPL+H's body taken for SMPL's",
    members=(
        Member(
            " | ".join(" + ".join(names) for names in POSES),
            "(F, 72), (F, 24, 3), (F, 156) or matrices (F, 24, 3, 3)",
            "axis-angle, radians, the root first",
        ),
        Member(" | ".join(_BETAS), "(10 or more) or (F, 10 or more)", "the first 10 count"),
        Member(
            " | ".join(EDITIONS[NOW].transl), "(F, 3) or (3)", "metres; absent: zeros", needed=False
        ),
        Member("gender", "text, once or a frame", "`male`, `female`, `neutral`", needed=False),
        Member(
            "mocap_framerate | mocap_frame_rate | frame_rate | framerate | fps",
            "0-d",
            "frames a second; makes the rows a motion",
            needed=False,
        ),
    ),
    gives="One row a frame: every member, `sequence`, `frame`; what a file has once is repeated",
    options=(PATTERN, SKIP, UP, EDITION),
    traps=(
        "With `mocap_framerate` or `mocap_frame_rate` a file is AMASS's: z is up. Others do not "
        "say which way is up: say it with `--up`.",
        "156 values are SMPL+H: 66 of the body are taken, the fingers left out.",
        "Betas of SMPL+H and SMPL-X are not SMPL's: taking the first 10 is said when it is done.",
        "In a folder, `*shape.npz` and `*stagei.npz` of AMASS are passed over.",
    ),
    example="walk_poses.npz",
)


def open_sequences(
    path: Path,
    options: LabelOptions,
    *,
    pattern: str = "**/*",
    skip: str = "",
    up: str = "",
    edition: str = NOW,
) -> LabelSource:
    """A sequence file, or all in a folder.

    pattern: which files of a folder, e.g. `**/*_poses.npz` for AMASS. skip: members to leave out,
    separated by commas. up: which way is up, `z`, `y` or `y-down`; AMASS files (with a frame rate
    of the motion capture) are z unless it says otherwise. edition: one of EDITIONS.
    """
    known, taken = stated_up(path, up, in_camera=False), edition_of(path, edition)
    load = partial(_load, skip=skip, names=taken.transl)
    table = folder_table(path, pattern, load, taken)
    layout = Layout(
        poses=next(names for names in POSES if all(name in table.specs for name in names)),
        betas=first_of(table.specs, _BETAS),
        transl=first_of(table.specs, taken.transl),
    )
    source = LabelSource(FORMAT, table, layout, options)
    source.recorded = {_EDITION: edition}
    source.up = known or ("z" if _AMASS_RATES & table.specs.keys() else None)
    return source


def edition_of(path: Path, edition: str) -> Edition:
    """What an edition takes. Raises InputError: no such one."""
    if edition not in EDITIONS:
        raise InputError(f"{path}: option edition {edition!r}, expected {', '.join(EDITIONS)}")
    return EDITIONS[edition]


def options_of_plan(format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a plan as the version that made it meant them."""
    return {_EDITION: "1", **options} if format in (FORMAT, "single-image") else dict(options)


def stated_up(path: Path, up: str, *, in_camera: bool) -> str | None:
    """Which way is up, as the option says; None: not stated. Raises InputError: no such value, or
    bodies are in a camera, where y is down."""
    if up and up not in UPS:
        raise InputError(f"{path}: option up {up!r}, expected {', '.join(UPS)}")
    if in_camera and up not in ("", "y-down"):
        raise InputError(
            f"{path}: option up {up!r}, but bodies are wanted in the camera, where y is down; give "
            "the option frame: world too"
        )
    return "y-down" if in_camera else up or None


def folder_table(path: Path, pattern: str, load: Any, edition: Edition = EDITIONS[NOW]) -> Table:
    """The table of a file or of all label files in a folder, in the order of their names.

    load(path, root=...) -> MemoryTable.
    """
    if not path.is_dir():
        return ReloadedTable(path, partial(load, root=path.parent))
    files = label_files(path, pattern, edition)
    if not files:
        raise InputError(f"{path}: no {' or '.join(edition.suffixes)} file matches '{pattern}'")
    return JoinedTable(path, [ReloadedTable(file, partial(load, root=path)) for file in files])


def label_files(
    folder: Path, pattern: str = "**/*", edition: Edition = EDITIONS[NOW]
) -> list[Path]:
    """Files of a folder that may hold sequences, sorted by name."""
    if not stays_inside(pattern):
        raise InputError(f"{folder}: pattern '{pattern}' leads out of the folder")
    found = [
        file
        for file in folder.glob(pattern)
        if file.suffix in edition.suffixes
        and not file.name.endswith(edition.no_motion)
        and file.is_file()
    ]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def dropped(path: Path, content: dict[str, Any], skip: str) -> dict[str, Any]:
    """`content` without what the option skip names."""
    names = split_names(skip)
    if unknown := sorted(names - content.keys()):
        raise InputError(
            f"{path}: member '{unknown[0]}': missing, the option skip names it; the file has "
            f"{listed(content)}"
        )
    return {name: value for name, value in content.items() if name not in names}


def with_place(path: Path, root: Path, rows: int, columns: dict, constants: dict) -> MemoryTable:
    """The table with the columns `sequence` and `frame`, unless the file has its own."""
    place = path.relative_to(root).with_suffix("").as_posix()
    own = columns.keys() | constants.keys()
    if "sequence" not in own:
        constants["sequence"] = np.array(place)
    if "frame" not in own:
        columns["frame"] = np.arange(rows)
    return MemoryTable(path, rows, columns, constants)


def _load(path: Path, *, root: Path, skip: str, names: tuple[str, ...]) -> MemoryTable:
    content = dropped(path, read_content(path), skip)
    poses = next((names for names in POSES if all(name in content for name in names)), None)
    if poses is None:
        raise InputError(
            f"{path}: member 'poses': missing, and no global_orient with body_pose; the file has "
            f"{listed(content)}"
        )
    first = as_array(f"{path}", poses[0], content[poses[0]])
    if first.ndim == 1 and len(poses) == 1:
        raise InputError(
            f"{path}: member '{poses[0]}': shape {first.shape}, expected a row a frame, (frames, "
            "72); one pose is (1, 72)"
        )
    rows = first.shape[0] if first.ndim else 0
    if rows == 0:
        raise InputError(f"{path}: member '{poses[0]}': {NO_ROWS}")
    betas = first_of(content, _BETAS)
    if betas is None:
        raise InputError(f"{path}: member 'betas': missing; the file has {listed(content)}")
    # One shape for the whole sequence, also where its length happens to be the number of rows.
    once = tuple(
        name
        for name in (betas, first_of(content, names))
        if name and np.ndim(as_array(f"{path}", name, content[name])) == 1
    )
    columns, constants = rows_and_constants(path, content, rows, once)
    for name in poses:
        if name not in columns:
            raise InputError(f"{path}: member '{name}': expected {rows} rows as in '{poses[0]}'")
    return with_place(path, root, rows, columns, constants)
