"""Columns of parquet files by row range, a row group at a time; needs pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.extras import require
from pipeline.paths import check_regular
from pipeline.readers.base import FieldSpec
from pipeline.readers.members import NO_ROWS, listed
from pipeline.readers.tables import Table

_MOST_BYTES = 1 << 30
"""Of a row group, which is in memory as a whole."""


class ParquetTable(Table):
    """Chosen columns of a file: numbers, text, lists and lists of lists of one length.

    needed, wanted: name in the file -> name here; without a wanted one the file is read all the
    same. Raises InputError: damaged, a column that is missing, empty places, rows of other lengths.
    """

    def __init__(self, path: Path, needed: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        check_regular(path)
        self.path, self.files = path, (path,)
        self._file: Any = None
        self._group: tuple[int, dict[str, np.ndarray]] = (-1, {})
        meta = self._guard(lambda: self._opened().metadata)
        there = self._guard(lambda: self._opened().schema_arrow.names)
        for name in needed:
            if name not in there:
                raise InputError(f"{path}: member '{name}': missing; the file has {listed(there)}")
        self.rows = meta.num_rows
        if not self.rows:
            raise InputError(f"{path}: {NO_ROWS}")
        sizes = [meta.row_group(k) for k in range(meta.num_row_groups)]
        if (largest := max(group.total_byte_size for group in sizes)) > _MOST_BYTES:
            raise InputError(
                f"{path}: a row group of {largest} bytes, at most {_MOST_BYTES} are read; write "
                "the file again with smaller row groups"
            )
        self._starts = np.cumsum([0, *(group.num_rows for group in sizes)])
        self._names = {k: name for k, name in {**needed, **wanted}.items() if k in there}
        self.specs = self._specs()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_group": (-1, {})}

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        names = tuple(names or self.specs)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces: list[dict[str, np.ndarray]] = []
        for group in range(min(max(first, 0), len(self._starts) - 2), len(self._starts) - 1):
            offset = int(self._starts[group])
            if offset >= stop and pieces:
                break
            low = max(start - offset, 0)
            columns = self._of_group(group)
            pieces.append({name: columns[name][low : max(stop - offset, low)] for name in names})
        return {
            name: np.concatenate([piece[name] for piece in pieces]).astype(
                self.specs[name].dtype, copy=True
            )
            for name in names
        }

    def check(self) -> None:
        for group in range(len(self._starts) - 1):
            self._of_group(group)

    def _opened(self) -> Any:
        if self._file is None:
            self._file = require("pyarrow.parquet", "parquet").ParquetFile(self.path)
        return self._file

    def _guard(self, action: Callable[[], Any]) -> Any:
        arrow = require("pyarrow", "parquet")
        try:
            return action()
        except (arrow.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
            what = " ".join(str(error).split())[:160]
            raise InputError(f"{self.path}: not a whole parquet file ({what})") from error

    def _specs(self) -> dict[str, FieldSpec]:
        """Row shapes; texts as wide as the longest of the file."""
        specs: dict[str, FieldSpec] = {}
        for group in range(len(self._starts) - 1):
            for name, values in self._of_group(group).items():
                spec = FieldSpec(values.dtype, values.shape[1:])
                known = specs.setdefault(name, spec)
                if known.shape != spec.shape or known.dtype.kind != spec.dtype.kind:
                    raise self._error(name, f"rows of {spec.shape} and of {known.shape}")
                if spec.dtype.itemsize > known.dtype.itemsize:
                    specs[name] = spec
        return specs

    def _of_group(self, group: int) -> dict[str, np.ndarray]:
        if self._group[0] != group:
            table = self._guard(lambda: self._opened().read_row_group(group, [*self._names]))
            columns = {own: self._array(k, table.column(k)) for k, own in self._names.items()}
            self._group = (group, columns)
        return self._group[1]

    def _array(self, name: str, column: Any) -> np.ndarray:
        """A column of Arrow as (rows, ...) numbers or text."""
        arrow = require("pyarrow", "parquet")
        values = self._guard(column.combine_chunks)
        shape = [len(values)]
        while arrow.types.is_list(values.type) or _is_fixed(arrow, values.type):
            if values.null_count:
                raise self._error(name, f"nothing in {values.null_count} places")
            inner = values.flatten()
            outer = len(values)
            size = len(inner) // outer if outer else 0
            lengths = values.value_lengths() if arrow.types.is_list(values.type) else None
            if lengths is not None and not (lengths.to_numpy() == size).all():
                raise self._error(name, "rows of different lengths")
            shape.append(size)
            values = inner
        if values.null_count:
            raise self._error(name, f"nothing in {values.null_count} places")
        if arrow.types.is_string(values.type) or arrow.types.is_large_string(values.type):
            found = np.array(self._guard(values.to_pylist), np.str_)
        else:
            found = self._guard(lambda: values.to_numpy(zero_copy_only=False))
        if found.dtype.kind not in "biufU":
            raise self._error(name, f"{values.type}, expected numbers or text")
        return found.reshape(shape)

    def _error(self, name: str, problem: str) -> InputError:
        return InputError(f"{self.path}: member '{name}': {problem}")


def _is_fixed(arrow: Any, kind: Any) -> bool:
    return arrow.types.is_fixed_size_list(kind)


class WithColumns(Table):
    """A table with further columns of numbers: `make(columns) -> further columns`.

    Pickled: `make` is a function of a module.
    """

    def __init__(
        self, table: Table, make: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    ) -> None:
        self.path, self.files, self.rows, self._table = table.path, table.files, table.rows, table
        self._make = make
        made = make(table.read(0, 1))
        self.specs = table.specs | {n: FieldSpec(v.dtype, v.shape[1:]) for n, v in made.items()}

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        own = self._table.read(start, stop)
        every = own | self._make(own)
        return {name: every[name] for name in names or self.specs}

    def check(self) -> None:
        self._table.check()
