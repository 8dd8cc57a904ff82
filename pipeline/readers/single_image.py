"""Single-image fits: npz files of exactly pred_smpl_parms, verts and pred_cam_t.

Source: docs/reference/label-formats.md#single-image. `pred_smpl_parms` is a pickled dict of torch
tensors (or numpy arrays), read without running anything. Its entries become columns under their own
names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.formats import PATTERN, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import listed
from pipeline.readers.reloaded import as_array, read_content
from pipeline.readers.sequences import EDITION, NOW, edition_of, folder_table, with_place
from pipeline.readers.tables import MemoryTable

FORMAT = "single-image"
MEMBERS = frozenset(("pred_smpl_parms", "verts", "pred_cam_t"))
DESCRIBED = Format(
    name=FORMAT,
    title="Single-image fits",
    files="`.npz` of exactly these members, or a folder of them",
    body="SMPL",
    members=(
        Member("pred_smpl_parms", "0-d dictionary", "`global_orient`, `body_pose`, `betas`"),
        Member("verts", "(6890, 3)", "metres"),
        Member("pred_cam_t", "(3)", "metres, in the camera"),
    ),
    gives="One row a file: entries of the dictionary, `verts`, `pred_cam_t`, `sequence`, `frame`",
    options=(PATTERN, EDITION),
    traps=("Axis-angle entries are taken where they exist, else the matrices.",),
    example="person_0.npz",
)
_POSES = (("global_orient_axis_angle", "body_pose_axis_angle"), ("global_orient", "body_pose"))


def open_single_images(
    path: Path, options: LabelOptions, *, pattern: str = "**/*", edition: str = NOW
) -> LabelSource:
    """A single-image fit, or all in a folder: one row a file. pattern: which files of a folder;
    edition: `sequences.EDITIONS`.

    Columns: the entries of pred_smpl_parms, verts (6890, 3) and pred_cam_t (3,), the translation.
    """
    table = folder_table(path, pattern, _load, edition_of(path, edition))
    poses = next(names for names in _POSES if all(name in table.specs for name in names))
    layout = Layout(poses=poses, betas="betas", transl="pred_cam_t")
    source = LabelSource(FORMAT, table, layout, options)
    source.recorded = {EDITION[0]: edition}
    return source


def _load(path: Path, *, root: Path) -> MemoryTable:
    content = read_content(path)
    if content.keys() != MEMBERS:
        raise InputError(
            f"{path}: expected exactly the members {', '.join(sorted(MEMBERS))}, the file has "
            f"{listed(content)}"
        )
    parms = content["pred_smpl_parms"]
    if not isinstance(parms, dict):
        raise InputError(f"{path}: member 'pred_smpl_parms': expected a dictionary")
    if not any(all(name in parms for name in names) for names in _POSES) or "betas" not in parms:
        raise InputError(
            f"{path}: member 'pred_smpl_parms': expected global_orient, body_pose and betas, it "
            f"has {listed(map(str, parms))}"
        )
    columns: dict[str, np.ndarray] = {}
    for name, value in parms.items():
        array = as_array(f"{path}", f"pred_smpl_parms.{name}", value)
        if array.ndim == 0 or array.shape[0] != 1:
            raise InputError(
                f"{path}: member 'pred_smpl_parms.{name}': shape {array.shape}, expected one person"
            )
        columns[str(name)] = array
    for name in ("verts", "pred_cam_t"):
        columns[name] = as_array(f"{path}", name, content[name])[None]
    return with_place(path, root, 1, columns, {})
