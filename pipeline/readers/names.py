"""Spellings of published label file names (docs/reference/label-formats.md#names)."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import InputError

_SUBSETS = {
    "insta-1": "insta1", "insta-2": "insta2", "human36m": "h36m", "h3.6m": "h36m",
    "mpi-inf-3dhp": "mpi-inf", "mpiinf": "mpi-inf", "3dhp": "mpi-inf", "mpii-train": "mpii",
    "coco-train": "coco",
}  # fmt: skip
_NAME = re.compile(r"(?P<subset>.+)-release(?P<skel>-skel(-(no-trans|fit|joints))?)?")


def canonical_name(name: str) -> str:
    """One name for all spellings of a published label file; other names come back lower-cased.

    `coco-release_skel.npz`, `coco-release-skel-no-trans.npz`, `coco_release_skel_fit.npz` ->
    `coco-release-skel.npz`.
    """
    stem, dot, suffix = name.lower().rpartition(".")
    plain = re.sub("[-_]+", "-", stem if dot else suffix)
    found = _NAME.fullmatch(plain)
    if found:
        subset = _SUBSETS.get(found["subset"], found["subset"])
        plain = f"{subset}-release" + ("-skel" if found["skel"] else "")
    return f"{plain}.{suffix}" if dot else plain


def find_label_file(path: Path) -> Path:
    """`path` if it exists, else the one file beside it (or in the converter's folder of the same
    stem, label-formats.md#names) whose name is another spelling.

    Raises InputError: none, or several, which are listed.
    """
    if path.exists():
        return path
    wanted = canonical_name(path.name)
    folders = [path.parent]
    if path.parent.is_dir():
        folders += [
            folder
            for folder in sorted(path.parent.iterdir())
            if folder.is_dir() and wanted.startswith(canonical_name(folder.name))
        ]
    found = [
        file
        for folder in folders
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.is_file() and canonical_name(file.name) == wanted
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(file.relative_to(path.parent)) for file in found)
        raise InputError(f"{path}: not found, but several spellings of it ({names}); name one")
    raise InputError(f"{path}: no such file; put the label file there")
