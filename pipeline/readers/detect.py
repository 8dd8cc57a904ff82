"""Which format a label file is in, told from its content; what a near miss lacks."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.paths import check_regular
from pipeline.readers import (
    amass,
    bedlam,
    camerahmr,
    emdb,
    gvhmr,
    hmr_skel,
    moyo,
    prompthmr,
    sam3d,
    sam3d_labels,
    sequences,
    single_image,
    smpl_file,
    threedpw,
    vertices,
    webdataset,
    wham,
)
from pipeline.readers.formats import Format
from pipeline.readers.members import listed
from pipeline.readers.npz import NpzFile
from pipeline.readers.reloaded import read_content
from pipeline.readers.torch_files import is_torch_file

DESCRIBED: tuple[Format, ...] = (
    camerahmr.DESCRIBED,
    hmr_skel.DESCRIBED,
    webdataset.DESCRIBED,
    sequences.DESCRIBED,
    single_image.DESCRIBED,
    threedpw.DESCRIBED,
    emdb.DESCRIBED,
    wham.DESCRIBED,
    amass.DESCRIBED,
    moyo.DESCRIBED,
    bedlam.DESCRIBED,
    gvhmr.DESCRIBED,
    prompthmr.DESCRIBED,
    smpl_file.DESCRIBED,
    sam3d.DESCRIBED,
    sam3d_labels.DESCRIBED,
    vertices.DESCRIBED,
)
"""Every format, in the order of docs/inputs.md."""
FORMATS = tuple(format.name for format in DESCRIBED)
_PICKLED: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    (threedpw.FORMAT, threedpw.fits),
    (emdb.FORMAT, emdb.fits),
    (prompthmr.FORMAT, prompthmr.fits),
    (gvhmr.FORMAT, gvhmr.fits),
    (moyo.FORMAT, moyo.fits),
    (wham.FORMAT, wham.fits),
)
_SOMA = {"poses", "joint_names", "identity_coeffs"}
_OF_PICTURES = {"imgname", "center", "scale", "cam_int", "gtkps"}
"""Sequences have no picture; labels of pictures have at least one of these."""


def detect_format(path: Path) -> str:
    """One of FORMATS. Raises InputError when nothing fits."""
    if path.is_dir():
        return _of_folder(path)
    check_regular(path)
    with path.open("rb") as stream:
        start = stream.read(512)
    if not start:
        raise InputError(f"{path}: the file is empty; download or copy it again")
    if start.startswith(b"PK") and is_torch_file(path):
        return _of_pickle(path)
    if start.startswith(b"PK") or path.suffix == ".npz":
        return _of_npz(NpzFile(path))
    if path.suffix == ".tar" or tarfile.is_tarfile(path):
        return webdataset.FORMAT
    if path.suffix in sequences.SUFFIXES:
        return _of_pickle(path)
    if start.startswith(b"PAR1"):
        return sam3d_labels.FORMAT
    raise InputError(
        f"{path}: not a label file; expected .npz, .smpl, .pkl, .pt, .parquet, .tar (4D-Humans, "
        "HSMR) or a folder of them (docs/inputs.md)"
    )


def _of_folder(path: Path) -> str:
    if any(path.glob("*.tar")):
        return webdataset.FORMAT
    if any(path.glob("**/*.parquet")):
        return sam3d_labels.FORMAT
    for file in sequences.label_files(path):
        return detect_format(file)
    raise InputError(f"{path}: no label file (.tar, .npz, .smpl, .pkl, .parquet) in this folder")


def _of_pickle(path: Path) -> str:
    content = read_content(path)
    for format, fits in _PICKLED:
        if fits(content):
            return format
    if _is_sequence(content):
        wide = amass.width_of(np.shape(content.get("poses", ())))
        return amass.FORMAT if wide else sequences.FORMAT
    raise _unknown(path, content)


def _of_npz(file: NpzFile) -> str:
    names = file.members.keys()
    if names == single_image.MEMBERS:
        return single_image.FORMAT
    if names >= sam3d.REQUIRED:
        return sam3d.FORMAT
    if names >= vertices.REQUIRED:
        return vertices.FORMAT
    if "smplVersion" in names:
        return smpl_file.FORMAT
    if any(name in names for name in hmr_skel.POSES) and "imgname" in names:
        return hmr_skel.FORMAT
    if bedlam.fits(file):
        return bedlam.FORMAT
    if names & _OF_PICTURES:
        return camerahmr.FORMAT
    if names >= _SOMA:
        raise InputError(
            f"{file.path}: parameters of SOMA, which need its own layer; evaluate them there and "
            "save an npz of vertices, body='soma', identity (docs/inputs.md#vertices)"
        )
    if _is_sequence(names):
        wide = "poses" in names and amass.width_of(file.members["poses"].shape)
        return amass.FORMAT if wide else sequences.FORMAT
    raise _unknown(file.path, names)


def _is_sequence(names: Collection[str]) -> bool:
    return any(all(name in names for name in pose) for pose in sequences.POSES)


def _unknown(path: Path, names: Collection[str]) -> InputError:
    return InputError(f"{path}: members {listed(names)} are of no known format; {_nearest(names)}")


def _nearest(names: Collection[str]) -> str:
    """Which member is missing to the format that has most of its members here."""
    best, lacking, share = None, [], 1.0
    for format in DESCRIBED:
        missing = format.missing(names)
        needed = len(format.missing(()))
        if needed and len(missing) / needed < share:
            best, lacking, share = format, missing, len(missing) / needed
    if best is None:
        return f"known: {', '.join(FORMATS)} (docs/inputs.md)"
    return f"for format {best.name} it lacks {', '.join(lacking)} (docs/inputs.md)"
