"""CameraHMR training labels, `*-release.npz`.

Source: reference/datasets.md section 1. Keys: imgname, center, scale (box side / 200, rank 1 or
2), pose_cam (camera frame), shape, trans_cam (zeros when absent), cam_int, gtkps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.npz import NpzFile, NpzTable
from pipeline.readers.pickles import object_column

FORMAT = "camerahmr"
_REQUIRED = ("imgname", "center", "scale", "shape", "cam_int", "gtkps")


def open_camerahmr(
    file: NpzFile, options: LabelOptions, *, pose_key: str = "", skip: str = ""
) -> LabelSource:
    """A CameraHMR label file.

    pose_key: name of the pose member when it is not `pose_cam`. A bare `pose` says nothing about
    its frame, so it has to be named here. skip: members to leave out, separated by commas.
    """
    pose = pose_key or "pose_cam"
    if pose not in file.members:
        hint = ""
        if not pose_key and "pose" in file.members:
            hint = (
                "; it has 'pose': if its first 3 values are the orientation in the camera frame, "
                "say so with the option pose_key: pose"
            )
        raise missing(file, pose, hint)
    for name in _REQUIRED:
        if name not in file.members:
            raise missing(file, name)
    table = rows_first(file, pose, skip)
    layout = Layout(
        poses=(pose,),
        betas="shape",
        transl="trans_cam" if "trans_cam" in table.specs else None,
        names="imgname",
        center="center",
        scale="scale",
        cam_int="cam_int",
        keypoints="gtkps",
    )
    return LabelSource(FORMAT, table, layout, options)


def rows_first(file: NpzFile, key: str, skip: str = "") -> NpzTable:
    """All members as columns with the rows of `key`; a 0-d member holds for every row.

    Raises InputError: no rows, a member of another length, Python objects that are not plain text
    or numbers.
    """
    skipped = skipped_members(file, skip)
    if not file.members[key].shape:
        raise file.error(key, "a single value, expected one row a person")
    rows = file.members[key].shape[0]
    if rows == 0:
        raise file.error(key, "0 rows; nothing to convert")
    extra: dict[str, np.ndarray] = {}
    constants: list[str] = []
    names = [name for name in file.members if name not in skipped]
    for name in names:
        member = file.members[name]
        if member.shape and member.shape[0] != rows:
            raise file.error(name, f"{member.shape[0]} rows, '{key}' has {rows}")
        if member.dtype.hasobject:
            extra[name] = object_column(file, name)
        elif not member.shape:
            constants.append(name)
    return NpzTable(file, rows, names, constants, extra)


def skipped_members(file: NpzFile, skip: str) -> set[str]:
    """The members that the option `skip` names."""
    skipped = {name.strip() for name in skip.split(",") if name.strip()}
    unknown = sorted(skipped - file.members.keys())
    if unknown:
        raise missing(file, unknown[0], "; the option skip names it")
    return skipped


def missing(file: NpzFile, name: str, hint: str = "") -> InputError:
    """One line: which member, what there is instead."""
    return file.error(name, f"missing; the file has {listed(file.members)}{hint}")


def listed(names: Collection[str] | Iterable[str]) -> str:
    """Names for a message, at most 12."""
    names = sorted(names)
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no member"
