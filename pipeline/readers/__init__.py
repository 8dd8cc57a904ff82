"""Annotation files of every supported format behind one function, `open_source`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import row_checks
from pipeline.errors import InputError
from pipeline.readers.base import AnnotationRows, AnnotationSource, FieldSpec
from pipeline.readers.camerahmr import open_camerahmr
from pipeline.readers.labels import LabelOptions, LabelSource
from pipeline.readers.names import find_label_file
from pipeline.readers.npz import NpzFile

__all__ = [
    "FORMATS",
    "AnnotationRows",
    "AnnotationSource",
    "FieldSpec",
    "LabelSource",
    "open_source",
]

FORMATS = ("camerahmr",)
"""Names that `format` accepts."""

_SMPL_GENDERS = ("neutral", "male", "female", "column")
_SKEL_GENDERS = ("male", "female", "column")


def open_source(
    path: str | Path,
    *,
    format: str | None = None,
    data_root: str | Path | None = None,
    smpl_gender: str = "neutral",
    skel_gender: str = "male",
    image_root: str = "",
    max_beta: float = row_checks.MAX_BETA,
    **options: Any,
) -> LabelSource:
    """Open a label file (or a folder of them). Reads headers only; rows come with `read`.

    path: the file; another known spelling of its name in the same folder is taken when it is
        absent (docs/formats.md).
    format: one of FORMATS; None: told from the content.
    data_root: no file of the source may lead out of it. image_root: folder below data_root that
        image names start at, for the check of symbolic links.
    smpl_gender: body model of the labels, or `column` to take it from the member `gender`.
    skel_gender: body model wanted, or `column` to take it from `skel_gender`, else `gender`.
    max_beta: larger |beta| rejects the row. options: those of the format's reader.

    Raises InputError: one line with file and member.
    """
    path = find_label_file(Path(path))
    _check_choice(path, "smpl_gender", smpl_gender, _SMPL_GENDERS)
    _check_choice(path, "skel_gender", skel_gender, _SKEL_GENDERS)
    if not max_beta > 0:
        raise InputError(f"{path}: max_beta {max_beta}, expected a number above 0")
    root = Path(data_root) if data_root is not None else None
    labels = LabelOptions(
        smpl_gender, skel_gender, root / image_root if root is not None else None, float(max_beta)
    )
    source = _open(path, format, labels, options)
    if root is not None:
        _check_inside(source, root)
    return source


def _open(
    path: Path, format: str | None, labels: LabelOptions, options: dict[str, Any]
) -> LabelSource:
    try:
        return open_camerahmr(NpzFile(path), labels, **options)
    except TypeError as error:
        raise _bad_option(path, format, error, options) from error


def _bad_option(
    path: Path, format: str | None, error: TypeError, options: dict[str, Any]
) -> Exception:
    if options and "unexpected keyword" in str(error):
        return InputError(f"{path}: {format} reader: {str(error).split('()')[-1].strip()}")
    return error


def _check_choice(path: Path, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{path}: {name} {value!r}, expected {', '.join(choices)}")


def _check_inside(source: LabelSource, root: Path) -> None:
    for file in source.files:
        if not file.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"{file}: leads out of the data root {root}; copy the file there or give another "
                "--data-root"
            )
