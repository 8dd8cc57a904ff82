"""MOYO's own `*_stageii.pkl`: SMPL-X with a template of the person.

Source: docs/reference/label-formats.md#amass.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.bodies import BodyLayout, BodySource
from pipeline.readers.family import SMPLX, FamilyColumns
from pipeline.readers.formats import PATTERN, UP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource
from pipeline.readers.reloaded import read_content
from pipeline.readers.sequences import folder_table, stated_up
from pipeline.readers.tables import MemoryTable
from pipeline.readers.tracks import Track, frame_count, member, tracks_table

FORMAT = "moyo"
_TEMPLATE = "v_template_fname"
DESCRIBED = Format(
    name=FORMAT,
    title="MOYO",
    files="`*_stageii.pkl`, where it holds plain arrays, or a folder of them",
    body="SMPL-X, female, with a template of the person",
    members=(
        Member("fullpose", "(F, 165)", "axis-angle, radians, the root first; z up"),
        Member("trans", "(F, 3)", "metres"),
        Member("betas", "(300)", "the first 16 count"),
        Member("v_template_fname", "text", "the person's own template", needed=False),
    ),
    gives="One row a frame: `poses`, `trans`, `betas`, `gender`, `sequence`, `track`, `frame`",
    options=(
        ("template", "`model`: pose the model's template, though it is not the person's"),
        PATTERN,
        UP,
    ),
    traps=(
        "The person's own `v_template` takes the place of the model's, so betas alone do not give "
        "the person: refused unless `--option template=model` says that this is meant. Prefer "
        "MOYO's files in AMASS's format.",
        "Files of MoSh that hold objects of its own cannot be read as data: save `fullpose`, "
        "`trans` and `betas` with `numpy.savez` under the names `poses`, `trans`, `betas`.",
    ),
    example="yoga_stageii.pkl",
    asks=" --option template=model",
)
_BETAS = 16


def fits(content: Mapping[str, Any]) -> bool:
    """Whether a pickled dictionary is of this format."""
    return {"fullpose", "trans", "betas"} <= content.keys()


def open_moyo(
    path: Path, options: LabelOptions, *, template: str = "", pattern: str = "**/*", up: str = ""
) -> LabelSource:
    """A motion of MOYO, or a folder of them."""
    if template not in ("", "model"):
        raise InputError(f"{path}: option template {template!r}, expected model or nothing")
    table = folder_table(path, pattern, partial(_load, own=template == ""))
    columns = FamilyColumns(SMPLX, "betas", "trans", full="poses", betas_used=_BETAS)
    layout = BodyLayout(SMPLX, columns.sizes, columns, identity="sequence")
    source = BodySource(FORMAT, table, layout, options)
    source.up = stated_up(path, up, in_camera=False) or "z"
    return source


def _load(path: Path, *, root: Path, own: bool) -> MemoryTable:
    content = read_content(path)
    if own and np.asarray(content.get(_TEMPLATE, "")).any():
        raise InputError(
            f"{path}: member '{_TEMPLATE}': the person's own template, so betas do not give the "
            "person; take MOYO's files in AMASS's format, or accept the model's template with "
            "--option template=model"
        )
    frames = frame_count(path, content, "fullpose")
    columns = {
        "poses": member(path, content, "fullpose", (165,), frames=frames),
        "trans": member(path, content, "trans", (3,), frames=frames),
    }
    betas = member(path, content, "betas", (None,))
    if len(betas) < _BETAS:
        raise InputError(f"{path}: member 'betas': {len(betas)} numbers, expected {_BETAS} or more")
    constants = {"betas": betas, "gender": np.array("female")}
    return tracks_table(path, root, [Track("0", columns, constants)])
