"""The shard file: one HDF5 dataset a column, rows first, built in memory, same content same bytes.

Layout: docs/format.md; reasons: docs/reference/pipeline.md#crash, #checksums, #compression.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.columns import RESULT_COLUMNS, result_columns
from pipeline.concessions import Concessions
from pipeline.errors import InputError
from pipeline.plan import CARRIED_KINDS, Plan, StoredField
from pipeline.provenance import sha256_json
from pipeline.seal import check_seal, with_seal

CHUNK_ROWS = 256
_TEXT, _BYTES = "text", "bytes"
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def stored_fields(fields: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> list[StoredField]:
    """Names for the original columns: a name of ours becomes `source_<name>`, `/` becomes `%2F`.

    Args:
        fields: source name -> (dtype, shape of one row), as the reader gives them.

    Raises:
        InputError: a column whose dtype HDF5 files of ours cannot hold.
    """
    taken = set(RESULT_COLUMNS)
    result = []
    for name in sorted(fields):
        dtype, shape = fields[name]
        if dtype.kind not in CARRIED_KINDS or dtype.itemsize > 1 << 20 or "\0" in name:
            raise InputError(f"column '{name}': dtype {dtype} cannot be carried into shards")
        stored = name.replace("/", "%2F")  # a slash would make an HDF5 group
        while stored in taken or stored in ("", ".", ".."):
            stored = f"source_{stored}"
        taken.add(stored)
        result.append(StoredField(stored, name, dtype.str, tuple(shape)))
    return result


def root_attributes(
    plan: Plan, shard: int, concessions: Concessions | None = None
) -> dict[str, Any]:
    """What identifies a shard. No time and no host: the same content gives the same bytes."""
    start, stop = plan.rows_of(shard)
    conceded = concessions.identity if concessions else {}
    return ({"concessions": json.dumps(conceded, sort_keys=True)} if conceded else {}) | {
        "code_version": json.dumps(plan.code, sort_keys=True),
        "fit_config_sha256": sha256_json(plan.fit),
        "models": json.dumps(plan.to_json()["models"], sort_keys=True),
        "plan_id": plan.plan_id,
        "row_start": start,
        "row_stop": stop,
        "schema_version": plan.schema_version,
        "shard": shard,
        "source": json.dumps(plan.to_json()["source_files"], sort_keys=True),
        "subset": plan.name,
    }


def build_shard(
    columns: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compression: str
) -> bytes:
    """The bytes of a shard file, seal and all.

    Args:
        columns: stored name -> (rows, ...) array; text (`U`) becomes fixed-width UTF-8.
        attributes: root attributes.
        compression: `gzip` (shuffle + gzip 4) or `none`; fletcher32 either way.

    A full disk makes HDF5 crash at exit (pipeline.md#disk-full), so the file lives in memory and
    is written by us.
    """
    with h5py.File(
        "shard", "w", driver="core", backing_store=False, libver=("earliest", "v110")
    ) as file:
        for name in sorted(attributes):
            file.attrs[name] = attributes[name]
        for name in sorted(columns):
            _write_column(file, name, columns[name], compression)
        return with_seal(file)


def read_columns(
    path: Path,
    names: Iterable[str],
    rows: slice = slice(None),
    expect: tuple[str, int] | None = None,
    *,
    sealed: bool = True,
) -> dict[str, np.ndarray]:
    """Columns of one shard, text decoded, original dtypes restored. Every byte read is checked.

    Args:
        path: the shard file.
        names: stored column names.
        rows: rows within the shard.
        expect: (plan id, shard number) that the file must carry.
        sealed: as `open_shard`.

    Raises:
        InputError: not this shard, a column is missing, or a checksum fails.
    """
    with open_shard(path, expect, sealed=sealed) as file:
        return {name: read_column(file, name, rows) for name in names}


@contextmanager
def open_shard(
    path: Path, expect: tuple[str, int] | None = None, *, sealed: bool = True
) -> Iterator[h5py.File]:
    """An open shard; every HDF5 error inside the context becomes an `InputError` naming it.

    sealed: the seal is compared first. Only shards of schema version 1 have none; who opens one
    compares its SHA-256 with the receipt.
    """
    if sealed:
        check_seal(path)
    with shard_errors(path), h5py.File(path, "r") as file:
        _check_links(path, file)
        if expect is not None and (file.attrs["plan_id"], file.attrs["shard"]) != expect:
            raise InputError(f"{path}: holds another shard; run hmr-skel verify")
        yield file


@contextmanager
def shard_errors(path: Path) -> Iterator[None]:
    """What HDF5 and h5py raise inside becomes an `InputError` naming the shard."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]} is missing") from None
    except (OSError, RuntimeError, UnicodeError) as error:  # what HDF5 and h5py make of damage
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not a shard ({reason})") from None


def column_of(file: h5py.File, name: str) -> h5py.Dataset:
    """A column of an open shard.

    Raises:
        KeyError: no such column.
        InputError: its values are not in this file, chunk by chunk with a checksum, or are no plain
            numbers and texts.
    """
    if name not in file:
        raise KeyError(f"column '{name}'")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{file.filename}: '{name}' is not a column")
    kind = _refused(dataset)
    if kind:
        raise InputError(f"{file.filename}: column '{name}' {kind}; not a shard of hmr-skel")
    return dataset


def read_column(file: h5py.File, name: str, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Rows of one column from an open shard; `rows` is a slice or sorted unique indices."""
    dataset = column_of(file, name)
    stored = dataset[rows]
    dtype = np.dtype(dataset.attrs["source_dtype"])
    if dataset.attrs["kind"] == _TEXT:
        return np.char.decode(stored, "utf-8", "surrogatepass").astype(dtype)
    return stored.astype(dtype, copy=False)


def _check_links(path: Path, file: h5py.File) -> None:
    """Columns are in this file: no soft and no external link, whoever made them."""
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{path}: '{name}' is a link to elsewhere; not a shard of hmr-skel")


def _refused(dataset: h5py.Dataset) -> str:
    """Why a column is none of ours; empty when it is."""
    if dataset.is_virtual:
        return "is a view of other files"
    if dataset.external:
        return "keeps its values in another file"
    if dataset.dtype.kind not in CARRIED_KINDS or dataset.id.get_type().committed():
        return f"holds {dataset.dtype}, neither numbers nor texts"
    if dataset.size and not (dataset.chunks and dataset.fletcher32):
        return "has no checksums"
    filters = dataset.id.get_create_plist()
    found = {filters.get_filter(index)[0] for index in range(filters.get_nfilters())}
    if not found <= _FILTERS:
        return "needs a filter that is not HDF5's own"
    return ""


def read_attributes(path: Path) -> dict[str, Any]:
    """Root attributes of a shard as plain Python values."""
    with open_shard(path) as file:
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in file.attrs.items()
        }


def empty_columns(plan: Plan) -> dict[str, np.ndarray]:
    """Every column of a plan with zero rows: what an empty source converts to."""
    return {
        name: column.empty(0) for name, column in result_columns(plan.schema_version).items()
    } | {item.stored: np.zeros((0, *item.shape), np.dtype(item.dtype)) for item in plan.fields}


def _write_column(file: h5py.File, name: str, values: np.ndarray, compression: str) -> None:
    source_dtype = values.dtype
    if source_dtype.kind == "U":
        values = np.char.encode(values, "utf-8", "surrogatepass")
    if values.dtype.kind == "S" and values.dtype.itemsize == 0:
        values = values.astype("S1")  # HDF5 has no strings of width 0
    options: dict[str, Any] = {}
    if values.size:
        options = {"chunks": (min(CHUNK_ROWS, len(values)), *values.shape[1:]), "fletcher32": True}
        if compression == "gzip":
            options |= {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    dataset = file.create_dataset(name, data=np.ascontiguousarray(values), **options)
    for key, value in column_attributes(name, source_dtype).items():
        dataset.attrs[key] = value


def column_attributes(name: str, dtype: np.dtype) -> dict[str, str]:
    """What stands beside a column of this dtype in memory."""
    found = {
        "kind": {"U": _TEXT, "S": _BYTES}.get(dtype.kind, "numeric"),
        "source_dtype": dtype.str,
    }
    if name in RESULT_COLUMNS:
        found["description"] = RESULT_COLUMNS[name].meaning.content
    return found
