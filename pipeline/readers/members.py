"""Members of an npz file as columns, and what to say when one is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.npz import NpzFile, NpzTable
from pipeline.readers.pickles import object_column

NO_ROWS = (
    "0 rows, expected one a person; there is nothing to convert: leave this file out, or write it "
    "again with its people"
)


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
        raise file.error(key, NO_ROWS)
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


def checked_rates(path: object, name: str, values: np.ndarray) -> np.ndarray:
    """Frames a second, as they are. Raises InputError: not numbers above zero."""
    if values.dtype.kind not in "fiu" or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(
            f"{path}: member '{name}': {values.reshape(-1)[0]!s:.40} frames a second, expected a "
            "number above zero; correct it, or leave it out: rows are then fitted on their own"
        )
    return values


def split_names(names: str) -> set[str]:
    """Names separated by commas, as options give them."""
    return {name.strip() for name in names.split(",") if name.strip()}


def skipped_members(file: NpzFile, skip: str) -> set[str]:
    """The members that the option `skip` names."""
    skipped = split_names(skip)
    if unknown := sorted(skipped - file.members.keys()):
        raise missing(file, unknown[0], "; the option skip names it")
    return skipped


def missing(file: NpzFile, name: str, hint: str = "") -> InputError:
    """One line: which member, what there is instead."""
    return file.error(name, f"missing; the file has {listed(file.members)}{hint}")


def listed(names: Collection[str] | Iterable[str]) -> str:
    """Names for a message, at most 12."""
    names = sorted(names)
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no member"


def missing_one(file: NpzFile, wanted: tuple[str, ...]) -> InputError:
    """None of several names for one thing is there."""
    return missing(file, wanted[0], f" and no {' or '.join(wanted[1:])}")


def first_of(names: Collection[str], wanted: tuple[str, ...]) -> str | None:
    """The first of `wanted` that is there."""
    return next((name for name in wanted if name in names), None)
