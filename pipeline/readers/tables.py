"""Columns of a label file with access by row range, whatever they are stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.base import FieldSpec


class Table(ABC):
    """Named columns of equal length. `specs` keeps file order."""

    path: Path
    files: tuple[Path, ...]
    rows: int
    specs: dict[str, FieldSpec]

    @abstractmethod
    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        """name -> (stop - start, ...) array of the columns (default: all), own memory."""

    @abstractmethod
    def check(self) -> None:
        """Read everything once; InputError naming the damaged member."""


class MemoryTable(Table):
    """Small columns held in memory. `constants` have one value that holds for every row."""

    def __init__(
        self,
        path: Path,
        rows: int,
        columns: Mapping[str, np.ndarray],
        constants: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.path, self.files, self.rows = path, (path,), rows
        self._columns = dict(columns)
        self._constants = dict(constants or {})
        self.specs = {name: FieldSpec(a.dtype, a.shape[1:]) for name, a in self._columns.items()}
        self.specs |= {name: FieldSpec(a.dtype, a.shape) for name, a in self._constants.items()}

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        return {name: self._one(name, start, stop) for name in names or self.specs}

    def check(self) -> None:
        """Nothing: the file was read whole when it was opened."""

    def _one(self, name: str, start: int, stop: int) -> np.ndarray:
        if name in self._columns:
            return self._columns[name][start:stop].copy()
        value = self._constants[name]
        return np.broadcast_to(value, (stop - start, *value.shape)).copy()


class JoinedTable(Table):
    """Files of one kind, one after the other. Each must have the same columns.

    Text columns take the longest width of all files; numbers must agree in dtype and shape.
    """

    def __init__(self, path: Path, parts: Sequence[Table]) -> None:
        self.path, self._parts = path, tuple(parts)
        self.files = tuple(file for part in parts for file in part.files)
        self._starts = np.cumsum([0] + [part.rows for part in parts])
        self.rows = int(self._starts[-1])
        self.specs = _common_specs(parts)

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        names = tuple(names or self.specs)
        pieces: list[dict] = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        first = min(max(first, 0), len(self._parts) - 1)
        for part, offset in zip(self._parts[first:], self._starts[first:-1], strict=True):
            if offset >= stop and pieces:
                break
            low, high = max(start - offset, 0), min(stop - offset, part.rows)
            pieces.append(part.read(int(low), int(max(low, high)), names))
        return {
            name: np.concatenate([piece[name] for piece in pieces]).astype(
                self.specs[name].dtype, copy=False
            )
            for name in names
        }

    def check(self) -> None:
        for part in self._parts:
            part.check()


def _common_specs(parts: Sequence[Table]) -> dict[str, FieldSpec]:
    first = parts[0]
    specs = dict(first.specs)
    for part in parts[1:]:
        if part.specs.keys() != specs.keys():
            odd = sorted(part.specs.keys() ^ specs.keys())
            raise InputError(
                f"{part.path}: columns differ from those of {first.path.name} ({', '.join(odd)}); "
                "convert files of different content apart"
            )
        for name, spec in part.specs.items():
            specs[name] = _common_spec(part, name, spec, specs[name])
    return specs


def _common_spec(part: Table, name: str, spec: FieldSpec, known: FieldSpec) -> FieldSpec:
    if spec == known:
        return known
    text = spec.dtype.kind == known.dtype.kind and spec.dtype.kind in "US"
    if text and spec.shape == known.shape:
        return FieldSpec(np.promote_types(spec.dtype, known.dtype), known.shape)
    raise InputError(
        f"{part.path}: member '{name}': {spec.dtype} of shape {spec.shape} a row, the files before "
        f"it have {known.dtype} of {known.shape}; convert files of different content apart"
    )
