"""Results of GVHMR: one person in a video, SMPL-X, in a file of torch.save.

Source: docs/reference/label-formats.md#gvhmr.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.readers.bodies import BodyLayout, BodySource
from pipeline.readers.family import SMPLX, FamilyColumns
from pipeline.readers.formats import FRAME, PATTERN, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.reloaded import read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import Track, check_frame, frame_count, member, tracks_table

FORMAT = "gvhmr"
_INCAM, _GLOBAL = "smpl_params_incam", "smpl_params_global"
DESCRIBED = Format(
    name=FORMAT,
    title="GVHMR",
    files="`hmr4d_results.pt`",
    body="SMPL-X v1.1, neutral, 10 betas",
    members=(
        Member("smpl_params_incam.global_orient", "(F, 3)", "axis-angle, radians, in the camera"),
        Member("smpl_params_incam.body_pose", "(F, 63)", "axis-angle, radians"),
        Member("smpl_params_incam.betas", "(F, 10)", "of SMPL-X"),
        Member("smpl_params_incam.transl", "(F, 3)", "metres, in the camera"),
        Member("smpl_params_global", "dictionary", "the same in a world with y up", needed=False),
        Member("K_fullimg", "(F, 3, 3)", "pixels", needed=False),
    ),
    gives=(
        "One row a frame: `global_orient`, `body_pose`, `betas`, `transl`, `cam_int`, `sequence`, "
        "`track`, `frame`"
    ),
    options=(FRAME, PATTERN, UP),
    traps=(
        "Hands are the mean hand of the model, not the flat one. `net_outputs` are left out.",
        "The file states no frame rate: rows on their own.",
    ),
    example="hmr4d_results.pt",
)


def fits(content: Mapping[str, Any]) -> bool:
    """Whether a dictionary is of this format."""
    return _INCAM in content or _GLOBAL in content


def open_gvhmr(
    path: Path, options: LabelOptions, *, frame: str = "camera", pattern: str = "**/*", up: str = ""
) -> LabelSource:
    """A result of GVHMR, or a folder of them."""
    check_frame(path, frame)
    in_camera = frame == "camera"
    table = folder_table(path, pattern, partial(_load, group=_INCAM if in_camera else _GLOBAL))
    parts = (("global_orient", "global_orient"), ("body_pose", "body_pose"))
    columns = FamilyColumns(SMPLX, "betas", "transl", parts=parts, flat_hands=False)
    cam_int = "cam_int" if "cam_int" in table.specs else None
    picture = Layout(poses=(), betas=None, cam_int=cam_int)
    layout = BodyLayout(SMPLX, columns.sizes, columns, identity="sequence", picture=picture)
    source = BodySource(FORMAT, table, layout, options)
    source.up = stated_up(path, up, in_camera=in_camera) or "y"
    return source


def _load(path: Path, *, root: Path, group: str) -> MemoryTable:
    content = read_content(path)
    frames = frame_count(path, content, f"{group}.body_pose")
    columns = {
        name: member(path, content, f"{group}.{name}", (width,), frames=frames)
        for name, width in (("global_orient", 3), ("body_pose", 63), ("betas", 10), ("transl", 3))
    }
    if "K_fullimg" in content:
        columns["cam_int"] = member(path, content, "K_fullimg", (3, 3), frames=frames)
    return tracks_table(path, root, [Track("0", columns)])
