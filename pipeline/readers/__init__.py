"""Annotation files of every supported format behind one function, `open_source`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.paths import check_inside
from pipeline.readers.amass import open_amass
from pipeline.readers.base import SMPL, AnnotationRows, AnnotationSource, FieldSpec
from pipeline.readers.bedlam import open_bedlam
from pipeline.readers.bodies import NEAREST
from pipeline.readers.camerahmr import open_camerahmr
from pipeline.readers.detect import DESCRIBED, FORMATS, detect_format
from pipeline.readers.emdb import open_emdb
from pipeline.readers.gvhmr import open_gvhmr
from pipeline.readers.hmr_skel import open_hmr_skel
from pipeline.readers.labels import LabelOptions, LabelSource
from pipeline.readers.moyo import open_moyo
from pipeline.readers.names import find_label_file
from pipeline.readers.npz import NpzFile
from pipeline.readers.prompthmr import open_prompthmr
from pipeline.readers.sam3d import open_sam3d
from pipeline.readers.sam3d_labels import open_sam3d_labels
from pipeline.readers.sequences import open_sequences
from pipeline.readers.single_image import open_single_images
from pipeline.readers.smpl_file import open_smpl_file
from pipeline.readers.threedpw import open_threedpw
from pipeline.readers.vertices import open_vertices
from pipeline.readers.webdataset import open_webdataset
from pipeline.readers.wham import open_wham
from skel_fit.rejections import MAX_BETA

__all__ = [
    "FORMATS",
    "AnnotationRows",
    "AnnotationSource",
    "FieldSpec",
    "LabelSource",
    "open_source",
]

_OPTIONS = {format.name: format.option_names for format in DESCRIBED}
_SMPL_GENDERS = ("neutral", "male", "female", "column")
_SKEL_GENDERS = ("male", "female", "column", NEAREST)


def open_source(
    path: str | Path,
    *,
    format: str | None = None,
    data_root: str | Path | None = None,
    smpl_gender: str = "neutral",
    skel_gender: str = "male",
    image_root: str = "",
    max_beta: float = MAX_BETA,
    **options: Any,
) -> LabelSource:
    """Open a label file (or a folder of them). Reads headers only; rows come with `read`.

    path: the file; another known spelling of its name in the same folder is taken when it is
        absent (`names.py`).
    format: one of FORMATS; None: told from the content.
    data_root: no file of the source may lead out of it. image_root: folder below data_root that
        image names start at, for the check of symbolic links.
    smpl_gender: body model of the labels, or `column` to take it from the member `gender`.
    skel_gender: body model wanted, or `column` to take it from `skel_gender`, else `gender`;
        `nearest` for other bodies than SMPL (`bodies.NEAREST`).
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
    if format is not None:
        _check_choice(path, "format", format, FORMATS)
    source = _open(path, format or detect_format(path), labels, options)
    if skel_gender == NEAREST and source.body == SMPL:
        raise InputError(f"{path}: skel_gender {NEAREST} is for other bodies than SMPL")
    if root is not None:
        for file in source.files:
            check_inside(file, root)
    return source


def _open(path: Path, format: str, labels: LabelOptions, options: dict[str, Any]) -> LabelSource:
    openers: dict[str, Callable[..., LabelSource]] = {
        "camerahmr": lambda **o: open_camerahmr(NpzFile(path), labels, **o),
        "hmr-skel": lambda **o: open_hmr_skel(NpzFile(path), labels, **o),
        "webdataset": lambda **o: open_webdataset(path, labels, **o),
        "sequence": lambda **o: open_sequences(path, labels, **o),
        "single-image": lambda **o: open_single_images(path, labels, **o),
        "3dpw": lambda **o: open_threedpw(path, labels, **o),
        "emdb": lambda **o: open_emdb(path, labels, **o),
        "wham": lambda **o: open_wham(path, labels, **o),
        "amass": lambda **o: open_amass(path, labels, **o),
        "moyo": lambda **o: open_moyo(path, labels, **o),
        "bedlam": lambda **o: open_bedlam(NpzFile(path), labels, **o),
        "gvhmr": lambda **o: open_gvhmr(path, labels, **o),
        "prompthmr": lambda **o: open_prompthmr(path, labels, **o),
        "sam-3d-body": lambda **o: open_sam3d(path, labels, **o),
        "sam-3d-body-labels": lambda **o: open_sam3d_labels(path, labels, **o),
        "vertices": lambda **o: open_vertices(NpzFile(path), labels, **o),
        "smpl-file": lambda **o: open_smpl_file(path, labels, **o),
    }
    known = _OPTIONS[format]
    for name, value in options.items():
        if name not in known or not isinstance(value, str):
            raise InputError(
                f"{path}: option {name!r} of the {format} reader; it knows "
                f"{', '.join(known) or 'none'}, each a text"
            )
    return openers[format](**options)


def _check_choice(path: Path, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{path}: {name} {value!r}, expected {', '.join(choices)}")
