"""`.smpl` files (Meshcapade's codec): npz files of one person with members in camelCase.

Source: docs/reference/label-formats.md#smpl-file.
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
from pipeline.readers.members import checked_rates
from pipeline.readers.reloaded import read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import Track, frame_count, member, tracks_table

FORMAT = "smpl-file"
VERSIONS = ("SMPL", "SMPL-H", "SMPL-X", "SUPR", "SMPL++", "SKEL", "SMIL", "SMPL-XS")
"""What `smplVersion` counts."""
GENDERS = ("neutral", "male", "female")
"""What `gender` counts."""
_HANDS = (("leftHandPose", 15), ("rightHandPose", 15))
_BODIES = {
    0: ("SMPL", (("bodyPose", 24),)),
    1: ("SMPL-H", (("bodyPose", 22), *_HANDS)),
    2: ("SMPL-X", (("bodyPose", 22), ("headPose", 3), *_HANDS)),
}
"""smplVersion -> body, and the members of its pose with their joints, in order."""
_SKEL = 5
_MOST_FRAMES = 1_000_001
DESCRIBED = Format(
    name=FORMAT,
    title=".smpl",
    files="`.smpl`, one person, one pose or a motion",
    body="SMPL, SMPL-H or SMPL-X",
    members=(
        Member(
            "smplVersion", "0-d int", "0 SMPL, 1 SMPL-H, 2 SMPL-X; 5, SKEL, is what `export` writes"
        ),
        Member("gender", "0-d int", "0 neutral, 1 male, 2 female", needed=False),
        Member("shapeParameters", "(10 or more)", "betas; all of them zero where absent", False),
        Member(
            "bodyPose", "(F, 24, 3), or (F, 22, 3)", "radians, root first; absent: zeros", False
        ),
        Member("headPose", "(F, 3, 3)", "SMPL-X: jaw and eyes; absent: zeros", False),
        Member("leftHandPose", "(F, 15, 3)", "SMPL-H, SMPL-X; absent: zeros", False),
        Member("rightHandPose", "(F, 15, 3)", "SMPL-H, SMPL-X; absent: zeros", False),
        Member("bodyTranslation", "(F, 3)", "metres; absent: zeros", False),
        Member("frameCount", "0-d int", "absent: as many as the others have", needed=False),
        Member("frameRate", "0-d float", "frames a second", needed=False),
    ),
    gives=(
        "One row a frame: `poses`, `betas`, `trans`, `gender`, `fps`, `sequence`, `track`, `frame`"
    ),
    options=(PATTERN, UP),
    traps=(
        "The format does not say which way is up: say it with `--up`.",
        "A file with `vertexOffsets` has a shape that no betas give: refused; store its posed "
        "vertices instead.",
    ),
    example="walk.smpl",
)


def open_smpl_file(
    path: Path, options: LabelOptions, *, pattern: str = "**/*.smpl", up: str = ""
) -> LabelSource:
    """A `.smpl` file, or a folder of them."""
    table = folder_table(path, pattern, partial(_load))
    width = table.specs["poses"].shape[0]
    source: LabelSource
    if width == 72:
        source = LabelSource(FORMAT, table, Layout(("poses",), "betas", "trans"), options)
    else:
        columns = FamilyColumns(WIDTHS[width], "betas", "trans", full="poses")
        layout = BodyLayout(columns.body, columns.sizes, columns, identity="sequence")
        source = BodySource(FORMAT, table, layout, options)
    source.up = stated_up(path, up, in_camera=False)
    return source


def _load(path: Path, *, root: Path) -> MemoryTable:
    content = read_content(path)
    version = _count(path, content, "smplVersion", len(VERSIONS))
    if version == _SKEL:
        raise InputError(
            f"{path}: member 'smplVersion': 5, a SKEL body already: there is nothing to convert"
        )
    if version not in _BODIES:
        raise InputError(
            f"{path}: member 'smplVersion': {version} ({VERSIONS[version]}), expected 0 (SMPL), 1 "
            "(SMPL-H) or 2 (SMPL-X)"
        )
    frames = _frames(path, content)
    if np.any(content.get("vertexOffsets", 0)):
        raise InputError(
            f"{path}: member 'vertexOffsets': not zero, so betas do not give this shape; save the "
            "posed vertices as a vertices npz (docs/inputs.md)"
        )
    poses = [
        member(path, content, name, (joints, 3), frames=frames).reshape(frames, 3 * joints)
        if name in content
        else np.zeros((frames, 3 * joints))
        for name, joints in _BODIES[version][1]
    ]
    trans = np.zeros((frames, 3))
    if "bodyTranslation" in content:
        trans = member(path, content, "bodyTranslation", (3,), frames=frames)
    betas = np.zeros(10)
    if "shapeParameters" in content:
        betas = member(path, content, "shapeParameters", (None,))
        if len(betas) < 10:
            raise InputError(
                f"{path}: member 'shapeParameters': {len(betas)} numbers, expected 10 or more"
            )
    gender = _count(path, content, "gender", len(GENDERS)) if "gender" in content else 0
    constants = {"betas": betas, "gender": np.array(GENDERS[gender])}
    if "frameRate" in content:
        rate = member(path, content, "frameRate", ())
        constants["fps"] = checked_rates(path, "frameRate", rate)
    columns = {"poses": np.concatenate(poses, axis=1), "trans": trans}
    return tracks_table(path, root, [Track("0", columns, constants)])


def _frames(path: Path, content: dict[str, Any]) -> int:
    """How many frames there are; what is absent is zero in all of them."""
    if "frameCount" in content:
        return _count(path, content, "frameCount", _MOST_FRAMES)
    moving = next((name for name in ("bodyPose", "bodyTranslation") if name in content), None)
    return 1 if moving is None else frame_count(path, content, moving)


def _count(path: Path, content: dict[str, Any], name: str, below: int) -> int:
    value = member(path, content, name, ())
    if value.dtype.kind not in "iu" or not 0 <= value < below:
        raise InputError(f"{path}: member '{name}': {value}, expected 0 to {below - 1}")
    return int(value)
