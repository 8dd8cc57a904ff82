"""Rows of a converted dataset as Python sees sequences: by index, slice, mask, row, batch, table.

dataset["skel_poses"]              a column
dataset[3], dataset[-1]            a row: column -> value
dataset[10:20], dataset[dataset.fitted], dataset[[5, 3]]    a view: the same again, lazily
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.positions import Positions, chosen, positions_of
from skel_fit.status import rejected_rows

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.torch_rows import TorchRows

_STEP = 256
"""Rows that an iteration reads at a time: those of a chunk."""


class Rows(ABC):
    """Rows of a dataset in some order. What is read is read when it is asked for."""

    @property
    @abstractmethod
    def fields(self) -> tuple[str, ...]:
        """Names of all columns."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, names: Sequence[str], positions: Positions) -> dict[str, np.ndarray]:
        """Some rows of some columns: (len(positions), ...) each, in the order of `positions`.

        Raises:
            KeyError: no such column.
            InputError: a shard is damaged.
        """

    @abstractmethod
    def _view(self, positions: Positions) -> View: ...

    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Sequence[bool] | NDArray[Any]) -> View: ...
    def __getitem__(
        self, key: str | int | slice | Sequence[int] | Sequence[bool] | NDArray[Any]
    ) -> Any:
        """A column by its name, a row by its number, a view by a slice, indices or a mask.

        Raises:
            KeyError: no such column.
            IndexError: no such row, or a mask of another length.
            TypeError: neither.
        """
        if isinstance(key, str):
            return self._column(key)
        if isinstance(key, slice):
            return self._view(range(len(self))[key])
        if not isinstance(key, bool | np.bool_):
            try:
                number = operator.index(key)  # type: ignore[arg-type]  # what is no index raises
            except TypeError:
                pass
            else:
                return self._row(number)
        return self._view(positions_of(key, len(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Row by row: column -> value, as `self[k]`."""
        for batch in self.batches(_STEP):
            for k in range(len(batch["status"])):
                yield {name: _value(values[k]) for name, values in batch.items()}

    def batches(
        self, size: int, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The rows in order, `size` at a time (the last batch has the rest): column -> array.

        columns: their names; all by default. Memory does not grow with the number of rows.

        Raises:
            ValueError: size below 1.
            KeyError: no such column.
        """
        if size < 1:
            raise ValueError(f"batches of {size} rows; expected 1 or more")
        names = self._names(columns)
        return (
            self.take(names, range(start, min(start + size, len(self))))
            for start in range(0, len(self), size)
        )

    @property
    def fitted(self) -> NDArray[np.bool_]:
        """(rows,) which rows have a SKEL body: all that were not rejected."""
        return ~rejected_rows(self["status"])

    def to_pandas(self, extra: Sequence[str] = ()) -> pd.DataFrame:
        """A table for people, one line a row: row of the label file, picture, status, errors in
        millimetres, angles in degrees by name, shape and translation (docs/format.md).

        extra: further columns, one value a row each.

        Raises:
            UsageError: pandas is not installed.
            KeyError, ValueError: no such column; a column of arrays.
        """
        from pipeline.extras import require
        from pipeline.flat_table import FlatTable

        pandas = require("pandas", "parquet")
        table = FlatTable.of(self, extra)
        parts = [table.lines(batch) for batch in self.batches(_STEP * 16, table.needed)]
        if not parts:
            parts = [table.lines(self.take(table.needed, range(0)))]
        return pandas.DataFrame(
            {name: np.concatenate([part[name] for part in parts]) for name in table.names}
        )

    def torch(self, columns: Sequence[str] | None = None) -> TorchRows:
        """A map-style `torch.utils.data.Dataset` of the rows: row number -> {column: tensor}.

        columns: their names; the SKEL body (`skel_poses`, `skel_betas`, `skel_trans`) by default.
        Texts stay texts. Picklable; workers of a DataLoader, forked or spawned, open their own
        files.

        Raises:
            KeyError: no such column.
            InputError: a column of a type that torch does not have.
        """
        from pipeline.columns import SKEL_COLUMNS
        from pipeline.torch_rows import TorchRows

        return TorchRows(self, self._names(SKEL_COLUMNS if columns is None else columns))

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `KeyError` for a column that is not there."""
        for name in names:
            if name not in self.fields:
                raise KeyError(f"no column '{name}'; there are {', '.join(self.fields)}")

    def _names(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        names = self.fields if columns is None else tuple(columns)
        if isinstance(columns, str):
            raise TypeError(f"columns: expected several names, as in ({columns!r},)")
        self.check_names(names)
        return names

    def _row(self, number: int) -> dict[str, Any]:
        place = number + len(self) if number < 0 else number
        if not 0 <= place < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        found = self.take(self.fields, range(place, place + 1))
        return {name: _value(values[0]) for name, values in found.items()}

    def _column(self, name: str) -> np.ndarray:
        return self.take((name,), range(len(self)))[name]


class View(Rows):
    """Some rows of a dataset, in an order of their own. Holds their numbers, no values."""

    def __init__(self, rows: Rows, positions: Positions) -> None:
        self._rows = rows
        self._positions = positions

    @property
    def fields(self) -> tuple[str, ...]:
        return self._rows.fields

    def __len__(self) -> int:
        return len(self._positions)

    def take(self, names: Sequence[str], positions: Positions) -> dict[str, np.ndarray]:
        return self._rows.take(names, chosen(self._positions, positions))

    def _view(self, positions: Positions) -> View:
        return View(self._rows, chosen(self._positions, positions))

    def __repr__(self) -> str:
        return f"{len(self)} rows of {self._rows!r}"


def column_list(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    """Columns (name -> dtype, shape of a row) as text, for a `repr`."""
    return ", ".join(f"{name} {dtype}{list(shape) or ''}" for name, (dtype, shape) in specs.items())


def _value(value: Any) -> Any:
    """One value of a column as rows have it: text as str or bytes, numbers as numpy's."""
    return value.item() if isinstance(value, np.character) else value
