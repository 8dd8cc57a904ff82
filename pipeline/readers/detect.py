"""Which format a label file is in, told from its content."""

from __future__ import annotations

import tarfile
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import InputError
from pipeline.paths import check_regular
from pipeline.readers import camerahmr, hmr_skel, sequences, single_image, vertices, webdataset
from pipeline.readers.members import listed
from pipeline.readers.npz import NpzFile

FORMATS = (
    camerahmr.FORMAT,
    hmr_skel.FORMAT,
    webdataset.FORMAT,
    sequences.FORMAT,
    single_image.FORMAT,
    vertices.FORMAT,
)


def detect_format(path: Path) -> str:
    """One of FORMATS. Raises InputError when nothing fits."""
    if path.is_dir():
        return _of_folder(path)
    check_regular(path)
    with path.open("rb") as stream:
        start = stream.read(512)
    if not start:
        raise InputError(f"{path}: the file is empty; download or copy it again")
    if start.startswith(b"PK") or path.suffix == ".npz":
        return _of_npz(NpzFile(path))
    if path.suffix == ".tar" or tarfile.is_tarfile(path):
        return webdataset.FORMAT
    if path.suffix in sequences.SUFFIXES:
        return sequences.FORMAT
    raise InputError(
        f"{path}: not a label file; expected .npz, .tar (4D-Humans, HSMR), .pkl or a folder"
    )


def _of_folder(path: Path) -> str:
    if any(path.glob("*.tar")):
        return webdataset.FORMAT
    for file in sequences.label_files(path):
        return detect_format(file)
    raise InputError(f"{path}: no label file (.tar, .npz, .pkl) in this folder")


def _of_npz(file: NpzFile) -> str:
    names = file.members.keys()
    if names == single_image.MEMBERS:
        return single_image.FORMAT
    if names >= vertices.REQUIRED:
        return vertices.FORMAT
    if any(name in names for name in hmr_skel.POSES) and "imgname" in names:
        return hmr_skel.FORMAT
    # Sequences have no picture; labels of pictures have at least one of these.
    if names & {"imgname", "center", "scale", "cam_int", "gtkps"}:
        return camerahmr.FORMAT
    if any(all(name in names for name in pose) for pose in sequences.POSES):
        return sequences.FORMAT
    raise InputError(
        f"{file.path}: members {listed(names)} are of no known format; {_nearest(names)}"
    )


def _nearest(names: Collection[str]) -> str:
    """Which member is missing to the format that has most of its members here."""
    wanted = {
        camerahmr.FORMAT: (*camerahmr.REQUIRED, "pose_cam"),
        hmr_skel.FORMAT: ("imgname", "center", "scale", "skel_poses", "skel_betas"),
        **{f"{sequences.FORMAT} ({' + '.join(p)})": (*p, "betas") for p in sequences.POSES},
        single_image.FORMAT: tuple(single_image.MEMBERS),
        vertices.FORMAT: tuple(vertices.REQUIRED),
    }
    missing = {name: [one for one in all if one not in names] for name, all in wanted.items()}
    share = {name: len(missing[name]) / len(wanted[name]) for name in wanted}
    best = min(share, key=lambda name: share[name])
    if share[best] == 1.0:
        return f"known: {', '.join(FORMATS)} (docs/interop.md)"
    return f"for format {best} it lacks {', '.join(sorted(missing[best]))} (docs/interop.md)"
