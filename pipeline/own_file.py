"""A label file that has no manifest: what it is, and the manifest that converts it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.configuration import SUFFIXES, validated
from pipeline.errors import InputError, UsageError
from pipeline.manifest import (
    MANIFESTS,
    MODELS_VARIABLE,
    STAND_IN,
    Manifest,
    data_root,
    is_stand_in,
    load_manifest,
)
from pipeline.paths import check_inside
from pipeline.readers.base import FRAME_RATES, SEQUENCE, SMPL
from pipeline.readers.bodies import NEAREST
from pipeline.row_checks import check_some_accepted

if TYPE_CHECKING:
    from pipeline.readers.labels import LabelSource

_STEP = 4096
_MESHES = 8
"""Meshes that are read at a time: they are large, or have to be posed first."""
_GENDERED = {"male", "female"}
_OF_FILES = ("up", "smpl_gender", "skel_gender", "option")
_UP_WORDS = {"z": "z is up", "y": "y is up", "y-down": "in the camera's axes, y down"}
_NOT_STANDIN = ("smplh", "smplx")
_SHARD_BYTES = 1 << 29
"""Of the meshes of a shard, a third of what `run` expects a worker to need."""
_GIANT = 30.0
"""Metres that no person's box measures at its distance; a person's is 0.5 to 5."""
_WIDE = {
    66: "21 joints, as SMPL-X has them too",
    156: "SMPL+H: fingers left out",
    165: "SMPL-X: face and fingers left out",
}
_PICTURES = {
    "video": (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"),
    "photo": (".jpg", ".jpeg", ".png", ".webp", ".bmp"),
}
"""Files without labels -> the command that finds the people in them."""


@dataclass(frozen=True)
class OwnFile:
    """A label file and how it is converted.

    manifest: paths relative to data_root. described: one line that says what it was taken for.
    """

    manifest: Manifest
    data_root: Path
    described: str


def is_label_file(word: str) -> bool:
    """Whether a word of the command line means a file or folder of labels. The name of a manifest
    stays one where a folder has the same name."""
    if word.endswith(SUFFIXES) or word in MANIFESTS.files():
        return False
    return Path(word).exists()


def own_file(
    path: Path,
    *,
    models: str,
    root: Path | None = None,
    options: dict[str, str] | None = None,
    smpl_gender: str | None = None,
    skel_gender: str | None = None,
) -> OwnFile:
    """Look at a label file, or a folder of them, and write its manifest. Reads rows until one is
    good, and the column `gender` where there is one.

    Args:
        models: `licensed` or `default-body`: labels do not say whose bodies they are.
        root: folder that the manifest's paths start at; None: the file's own.
        options: of the reader.
        smpl_gender, skel_gender: None: from the column `gender`, else neutral and male.

    Raises:
        InputError: no format fits, or no row can be fitted; one line that says what is wrong.
    """
    from pipeline.readers import open_source

    path = path.absolute()
    root = (root or path.parent).absolute()
    if not path.is_relative_to(root):
        raise UsageError(f"{path}: not below the data root {root}; give another --data-root")
    check_inside(path, root)
    given: dict[str, Any] = dict(options or {})
    source = open_source(path, data_root=root, **given)
    genders = _genders(source, smpl_gender, skel_gender)
    source = open_source(
        path,
        data_root=root,
        smpl_gender=genders["smpl"],
        skel_gender=genders["skel"],
        **given,
    )
    _check_a_row(source)
    _check_distance(source)
    _check_models(source, models)
    timed = SEQUENCE in source.fields and not source.fields.keys().isdisjoint(FRAME_RATES)
    # a camera moves by itself
    motion = timed and source.layout.cam_ext is None
    if source.up is not None:
        given["up"] = source.up
    content: dict[str, Any] = {
        "name": _name(path),
        "source": {
            "path": path.relative_to(root).as_posix(),
            "format": source.format,
            "options": given,
        },
        "genders": genders,
        "models": models,
    }
    if motion:
        content["fit"] = {"sequence": {}}
    if source.vertices is not None:
        usual = Manifest.model_fields["shard_rows"].default
        content["shard_rows"] = min(usual, _rows_in_memory(source.vertices))
    manifest = validated(Manifest, content, path)
    return OwnFile(manifest, root, _described(source, manifest))


def manifest_yaml(found: OwnFile) -> str:
    """The manifest as the text of a YAML file, with what is not the default."""
    import yaml

    content = found.manifest.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"# {found.described}\n# Paths start at the data root: --data-root.\n{text}"


def _rows_in_memory(vertices: int) -> int:
    """Rows of a shard of meshes, a power of two: a worker holds them whole, twice in float64."""
    return 1 << ((_SHARD_BYTES // (2 * 24 * vertices)) | 1).bit_length() - 1


def _name(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name if path.is_dir() else path.stem)
    return name.strip("-._") or "labels"


def _genders(source: LabelSource, smpl: str | None, skel: str | None) -> dict[str, str]:
    """The genders of the manifest: as asked, else from the labels where they have a column."""
    found = _counted(source)
    if smpl is None:
        smpl = "column" if found else "neutral"
    if skel is None and source.body != SMPL:
        skel = NEAREST
    if skel is None and "skel_gender" in source.fields:
        skel = "column"
    if skel is None:
        skel = "column" if found and set(found) <= _GENDERED else "male"
    return {"smpl": smpl, "skel": skel}


def _counted(source: LabelSource) -> Counter[str]:
    """How often each gender stands in the column `gender`; empty: there is none."""
    from pipeline.readers.labels import genders

    counted: Counter[str] = Counter()
    if "gender" not in source.fields or source.fields["gender"].dtype.kind not in "SU":
        return counted
    for start in range(0, source.rows, _STEP):
        stop = min(start + _STEP, source.rows)
        counted.update(genders(source.column("gender", start, stop)).tolist())
    return counted


def _check_a_row(source: LabelSource) -> None:
    """Raises InputError where no row can be fitted: then the file is not what it seems."""
    rejected: Counter[str] = Counter()
    step = _STEP if source.vertices is None else _MESHES
    for start in range(0, source.rows, step):
        reasons = source.read(start, min(start + step, source.rows)).reasons
        if (reasons == "").any():
            return
        rejected.update(reasons.tolist())
    try:
        check_some_accepted(source.rows, rejected)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None


def _check_distance(source: LabelSource) -> None:
    """Raises InputError where bodies would be giants in their boxes: then translations are in
    another unit. A body's box, at its distance, is about as large as a body."""
    from pipeline.readers.labels import as_float64, box_sides

    layout, stop = source.layout, min(source.rows, _STEP)
    if not (layout.scale and layout.cam_int) or layout.cam_ext or source.vertices is not None:
        return
    rows = source.read(0, stop)
    transl = rows.transl if rows.other is None else rows.other.parameters.get("transl")
    good = rows.reasons == ""
    if transl is None or not good.any():
        return
    focal = as_float64(rows.fields[layout.cam_int])[good, 0, 0]
    size = float(np.median(box_sides(rows.fields[layout.scale])[good] * transl[good, 2] / focal))
    if size > _GIANT:
        raise InputError(
            f"{source.path}: bodies would be {size:.0f} m large in their boxes: the translations "
            "look like centimetres or millimetres, expected metres"
        )


def _check_models(source: LabelSource, models: str) -> None:
    """Raises InputError where the stand-in is asked for and has no model of the labels' body."""
    if models != STAND_IN or source.body not in _NOT_STANDIN or source.vertices is not None:
        return
    instead = (
        ", or --option body=smpl to take its body and first 10 betas for SMPL's"
        if source.format == "amass"
        else ""
    )
    raise InputError(
        f"{source.path}: labels of {source.body}, and the stand-in has no model of {source.body}; "
        f"give --models DIR with its file{instead} (docs/inputs.md#{source.format})"
    )


def _described(source: LabelSource, manifest: Manifest) -> str:
    """What the file was taken for, in one line."""
    bodies = "stand-in bodies" if manifest.models == STAND_IN else "licensed bodies"
    parts = [
        f"{source.path.name}: taken for format '{source.format}'",
        f"{source.rows} rows in {len(source.files)} file{'s' * (len(source.files) > 1)}",
        f"{_labels(source, manifest.genders.smpl)} to SKEL {_word(manifest.genders.skel)}",
        bodies,
        "rows on their own" if manifest.fit.sequence is None else "frames of a motion",
        *([_UP_WORDS[source.up]] if source.up else []),
        *_as_men(source, manifest),
        *_liberties(source),
    ]
    return ", ".join(parts)


def _as_men(source: LabelSource, manifest: Manifest) -> Iterator[str]:
    """Which rows get the male SKEL although they are of women: there is no neutral SKEL, so one
    neutral row makes the choice for all unless a column `skel_gender` makes it for each."""
    if manifest.genders.smpl != "column" or manifest.genders.skel != "male":
        return
    if women := _counted(source)["female"]:
        yield f"{women} female rows too (a column skel_gender says male or female for each row)"


def _liberties(source: LabelSource) -> Iterator[str]:
    """What is not as in SMPL and was made to fit: the shapes of other bodies mean something else
    (docs/reference/label-formats.md#sequences)."""
    from pipeline.readers.labels import NUM_BETAS

    if source.body != SMPL:
        return
    betas = source.fields[source.layout.betas].shape[-1] if source.layout.betas else NUM_BETAS
    if betas > NUM_BETAS:
        yield f"the first {NUM_BETAS} of {betas} betas taken for SMPL's"
    width = sum(int(np.prod(source.fields[name].shape)) for name in source.layout.poses)
    if width in _WIDE:
        yield f"the body taken for SMPL's ({_WIDE[width]})"


def _labels(source: LabelSource, gender: str) -> str:
    """The labels' body in words."""
    if source.body == SMPL:
        return f"SMPL {_word(gender)}"
    people = len(np.unique(source.identities()))
    many = f"{people} people" if people != 1 else "1 person"
    meshes = "parameters" if source.vertices is None else f"meshes of {source.vertices} vertices"
    of = f" {_word(gender)}" if source.vertices is None else ""
    return f"{source.body}{of} ({meshes}, {many})"


def _word(gender: str) -> str:
    if gender == NEAREST:
        return "as the label, else whichever is nearer"
    return "as in column gender" if gender == "column" else gender


@dataclass(frozen=True)
class Asked:
    """What a command line says of a subset or of a label file, and where it is.

    word: name or path of a manifest, or a label file. models: folder, or the name `default-body`.
    up, smpl_gender, skel_gender, option: of a label file only, a manifest has its own. option:
    `NAME=VALUE`, of its reader.
    """

    word: str
    data_root: Path | None = None
    models: Path | None = None
    up: str | None = None
    smpl_gender: str | None = None
    skel_gender: str | None = None
    option: tuple[str, ...] | None = None

    @property
    def standin(self) -> bool:
        """Whether `models` is the name of the stand-in pair, not a folder."""
        return is_stand_in(self.models)

    def found(self, say: Callable[[str], None]) -> tuple[Manifest, Path, Path | None]:
        """The manifest, the data root and the models folder (None: the usual places).

        say: told what a label file was taken for. Raises UsageError: labels that nobody said whose
        bodies they are of; pictures; options of a label file beside a manifest.
        """
        folder = None if self.standin else self.models
        if is_label_file(self.word):
            found = self.own_file()
            say(found.described)
            return found.manifest, found.data_root, folder
        if given := [name for name in _OF_FILES if getattr(self, name) is not None]:
            raise UsageError(
                f"--{given[0].replace('_', '-')} belongs to a label file; '{self.word}' is a "
                "manifest, which says it itself"
            )
        manifest = load_manifest(self.word)
        if self.standin:
            manifest = manifest.model_copy(update={"models": STAND_IN})
        return manifest, data_root(self.data_root), folder

    def own_file(self) -> OwnFile:
        """The label file with its manifest."""
        path = Path(self.word)
        for command, suffixes in _PICTURES.items():
            if path.is_file() and path.suffix.lower() in suffixes:
                raise UsageError(
                    f"{path}: a {command}, which has no labels to convert; find the people in it "
                    f"with: hmr-skel {command} {path}"
                )
        if self.models is None and not os.environ.get(MODELS_VARIABLE):
            raise UsageError(
                f"{path}: labels do not say whose bodies they are; choose: --models DIR (your "
                f"licensed SMPL and SKEL files) or --models {STAND_IN} (the licence-free stand-in: "
                "right for labels of it, only a trial for real ones)"
            )
        return own_file(
            path,
            models=STAND_IN if self.standin else "licensed",
            root=self.data_root,
            options=self._options(),
            smpl_gender=self.smpl_gender,
            skel_gender=self.skel_gender,
        )

    def _options(self) -> dict[str, str]:
        """Options of the reader, as `--option` and `--up` give them."""
        given: dict[str, str] = {}
        for text in self.option or ():
            name, equals, value = text.partition("=")
            if not name or not equals:
                raise UsageError(f"--option {text}: expected NAME=VALUE, e.g. frame=world")
            given[name] = value
        return given if self.up is None else {**given, "up": self.up}
