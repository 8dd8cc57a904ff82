"""Columns added to a converted dataset afterwards, beside its shards; the originals never change.

    appended/NAME/append.json       what the columns are, who made them, which shards they belong to
    appended/NAME/shard-00000.h5    their values for the rows of that shard, sealed as shards are

An append belongs to the plan and to the very bytes of the shards that it was made for: beside any
others it is refused. The digest of the dataset does not know it; it has its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.columns import Meaning
from pipeline.errors import InputError, UsageError
from pipeline.output_files import (
    canonical_json,
    make_directory,
    read_sealed,
    sealed_json,
    whole_folder,
)
from pipeline.plan import CARRIED_KINDS, Plan
from pipeline.provenance import file_record, sha256_bytes
from pipeline.receipts import ShardState
from pipeline.shards import build_shard, column_of, open_shard

FOLDER, RECORD = "appended", "append.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VERSION = 1


@dataclass(frozen=True)
class AppendedColumn:
    """name: without that of the append. dtype: numpy's, `U` for text. shape: of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: Meaning

    def empty(self) -> np.ndarray:
        """(0, ...) of its type."""
        return np.zeros((0, *self.shape), "<U1" if self.dtype == "U" else self.dtype)


@dataclass(frozen=True)
class AppendedShard:
    """A file of an append. of: SHA-256 of the shard that it belongs to."""

    shard: int
    rows: int
    of: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Append:
    """Columns that were added under one name.

    provenance: how they were made, as JSON values. digest: of their values and of what they belong
    to. `fields` are their names in the dataset.
    """

    name: str
    plan_id: str
    columns: tuple[AppendedColumn, ...]
    provenance: Mapping[str, Any]
    shards: tuple[AppendedShard, ...]
    digest: str
    version: int = _VERSION

    @property
    def fields(self) -> dict[str, AppendedColumn]:
        return {f"{self.name}.{column.name}": column for column in self.columns}

    def path(self, directory: Path, shard: int) -> Path:
        return directory / FOLDER / self.name / f"shard-{shard:05d}.h5"


_APPEND = TypeAdapter(Append)


def read_appends(
    directory: Path, plan: Plan, states: Sequence[ShardState], *, checksums: bool = False
) -> tuple[Append, ...]:
    """The appends of a dataset by name, each checked to belong to these shards.

    states: the shards that are done. checksums: compare SHA-256 of every file; sizes otherwise.

    Raises:
        InputError: one is damaged, or belongs to others.
    """
    folder = directory / FOLDER
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple(
        _read(path, plan, states, checksums) for path in found if not path.name.startswith(".")
    )


def write_append(
    directory: Path,
    plan: Plan,
    states: Sequence[ShardState],
    name: str,
    columns: Sequence[AppendedColumn],
    values: Iterable[Mapping[str, np.ndarray]],
    provenance: Mapping[str, Any],
) -> Append:
    """Add columns to a complete dataset, whole or not at all. The caller holds its lock.

    values: for every shard in order, column name -> (rows, ...). provenance: JSON values; no time
    and no host, so that the same columns are the same bytes.

    Raises:
        UsageError: a bad name, or one that is taken.
        OutputError: cannot be written.
    """
    check_name(directory, name)
    target = directory / FOLDER / name
    make_directory(target.parent)
    shards = []
    with whole_folder(target, RECORD) as folder:
        for state, part in zip(states, values, strict=True):
            assert state.receipt is not None
            start, stop = plan.rows_of(state.shard)
            attributes = {"plan_id": plan.plan_id, "shard": state.shard, "append": name,
                          "row_start": start, "row_stop": stop}  # fmt: skip
            ordered = {c.name: _typed(c, part[c.name], stop - start) for c in columns}
            data = build_shard(ordered, attributes, plan.compression)
            (folder / f"shard-{state.shard:05d}.h5").write_bytes(data)
            shards.append(
                AppendedShard(
                    state.shard, stop - start, state.receipt.sha256, sha256_bytes(data), len(data)
                )
            )
        digest = _digest(name, plan.plan_id, shards)
        made = Append(name, plan.plan_id, tuple(columns), dict(provenance), tuple(shards), digest)
        (folder / RECORD).write_bytes(sealed_json(asdict(made)))
    return made


def check_name(directory: Path, name: str) -> None:
    """Raise `UsageError` for a name that an append cannot have, or that is taken."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:70]!r}: expected letters, digits, - and _, as in 'audit'")
    if (directory / FOLDER / name).exists():
        raise UsageError(
            f"{directory / FOLDER / name}: is there already; give another name, or remove it"
        )


def damages(directory: Path, plan: Plan, states: Sequence[ShardState]) -> Iterator[str]:
    """What is wrong with the appends of a dataset, every byte compared."""
    folder = directory / FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            append = _read(path, plan, states, True)
            for shard in append.shards:
                _check_columns(append, append.path(directory, shard.shard), shard, plan)
        except InputError as error:
            yield str(error)
            continue
        ours = {RECORD, *(append.path(directory, s.shard).name for s in append.shards)}
        for other in sorted(path.iterdir()):
            if other.name not in ours:
                yield f"{FOLDER}/{path.name}/{other.name}: belongs to no append; remove it"


def _read(path: Path, plan: Plan, states: Sequence[ShardState], checksums: bool) -> Append:
    record = path / RECORD
    try:
        append = _APPEND.validate_json(canonical_json(read_sealed(record)), strict=True)
        sound = append.version == _VERSION and _is_sound(append, path.name)
    except FileNotFoundError:
        raise InputError(f"{path}: no appended columns (no {RECORD}); remove it") from None
    except NotADirectoryError:
        raise InputError(f"{path}: no appended columns; remove it") from None
    except ValueError:
        sound = False
    if not sound:
        raise InputError(f"{record}: not a record of appended columns; remove {path}")
    entries = {shard.shard: shard for shard in append.shards}
    for state in states:
        assert state.receipt is not None
        entry = entries.get(state.shard)
        if (
            append.plan_id != plan.plan_id
            or entry is None
            or (entry.of, entry.rows) != (state.receipt.sha256, state.receipt.rows)
        ):
            raise InputError(
                f"{path}: these columns belong to other shards (shard {state.shard}); remove them, "
                "or bring back the shards that they were made for"
            )
        _check_file(path / f"shard-{state.shard:05d}.h5", entry, checksums)
    return append


def _is_sound(append: Append, folder: str) -> bool:
    names = [column.name for column in append.columns]
    texts = [column.dtype for column in append.columns]
    return (
        append.name == folder
        and _NAME.fullmatch(folder) is not None
        and len(set(names)) == len(names) > 0
        and all(name and "/" not in name and name not in (".", "..") for name in names)
        and all(_is_type(text) for text in texts)
        and all(size >= 0 for column in append.columns for size in column.shape)
        and append.digest == _digest(append.name, append.plan_id, append.shards)
    )


def _is_type(text: str) -> bool:
    try:
        return np.dtype(text).kind in CARRIED_KINDS
    except TypeError:
        return False


def _check_file(path: Path, entry: AppendedShard, checksums: bool) -> None:
    if not path.is_file() or path.stat().st_size != entry.bytes:
        raise InputError(f"{path}: missing or cut; remove {path.parent} and append again")
    if checksums and file_record(path).sha256 != entry.sha256:
        raise InputError(f"{path}: has another SHA-256 than its record; append again")


def _check_columns(append: Append, path: Path, entry: AppendedShard, plan: Plan) -> None:
    """Columns are those of the record, in type and shape."""
    with open_shard(path, (plan.plan_id, entry.shard)) as file:
        wrong = sorted(set(file) ^ {column.name for column in append.columns})
        for column in append.columns if not wrong else ():
            found = column_of(file, column.name)
            dtype = np.dtype(found.attrs["source_dtype"])
            kind = "U" if dtype.kind == "U" else dtype.str
            if found.shape != (entry.rows, *column.shape) or kind != column.dtype:
                wrong.append(column.name)
    if wrong:
        raise InputError(f"{path}: column '{wrong[0]}' is not what its record says; append again")


def _typed(column: AppendedColumn, values: np.ndarray, rows: int) -> np.ndarray:
    if column.dtype != "U":
        values = np.ascontiguousarray(values, column.dtype)
    if values.shape != (rows, *column.shape):
        raise ValueError(f"column {column.name}: {values.shape}, expected {(rows, *column.shape)}")
    return values


def _digest(name: str, plan_id: str, shards: Sequence[AppendedShard]) -> str:
    """SHA-256 over name, plan id and the pairs (shard, append) of SHA-256 in order, a line each."""
    lines = [name, plan_id, *(f"{shard.of} {shard.sha256}" for shard in shards)]
    return sha256_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
