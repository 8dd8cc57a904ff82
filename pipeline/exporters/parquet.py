"""Parquet: every column, arrays as fixed-size lists, the card beside and inside.

datasets.load_dataset("parquet", data_files="FOLDER/data/*.parquet")
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.exporters.base import Exported, ExportOptions, Selection, readable
from pipeline.exporters.folders import Card, Copy, chosen_columns, export_folder, meaning_of
from pipeline.extras import require

GROUP_ROWS = 4096
"""Rows of a row group: what is in memory at a time."""


class ParquetOptions(ExportOptions):
    """columns: names, separated by commas; all by default. per_file: rows of a file."""

    columns: str | None = None
    per_file: int = Field(100_000, ge=1)


@dataclass(frozen=True)
class Parquet:
    """The format `parquet`: a folder with `data/NAME-00000-of-00003.parquet` and so on.

    Numbers and texts keep their type, bytes are binary, (46,) is a list of 46, (44, 3) a list of 44
    lists of 3. NaN stays NaN.
    """

    card: Card
    name: ClassVar[str] = "parquet"
    options: ClassVar[type[ExportOptions]] = ParquetOptions

    def write(
        self, dataset: Dataset, path: Path, options: ParquetOptions, models: Path | None
    ) -> Exported:
        del models
        arrow, _ = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
        selection = Selection.of(dataset, options)
        columns = chosen_columns(dataset, options.columns)
        files = max(1, -(-selection.rows // options.per_file))
        card = self.card(dataset, _copy(selection, files))
        schema = _schema(arrow, dataset, columns, card)
        with export_folder(path, self.name, selection, columns, card) as folder:
            (folder / "data").mkdir()
            for k in range(files):
                target = folder / "data" / f"{dataset.plan.name}-{k:05d}-of-{files:05d}.parquet"
                first = k * options.per_file
                _write_file(arrow, target, selection, schema, first, first + options.per_file)
        return Exported(path, selection.rows, selection.left_out, columns)


def _copy(selection: Selection, files: int) -> Copy:
    text = (
        f"This copy holds {selection.rows} rows in {files} Parquet file{'s' if files > 1 else ''}; "
        "arrays are fixed-size lists, rows first. One line reads all: "
        '`datasets.load_dataset("parquet", data_files="data/*.parquet")`, or `pandas.read_parquet'
        '("data")`. Camera frame: x right, y down, z forward.'
    )
    return Copy(text, "data/*.parquet")


def _write_file(
    arrow: ModuleType, path: Path, selection: Selection, schema: Any, first: int, stop: int
) -> None:
    view = selection.view[first:stop]
    with arrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in view.batches(GROUP_ROWS, schema.names):
            arrays = [
                _array(arrow, batch[name], kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _schema(arrow: ModuleType, dataset: Dataset, columns: tuple[str, ...], card: str) -> Any:
    """The Arrow schema; what a column holds is in the metadata of its field."""
    empty = dataset.take(columns, range(0))
    fields = []
    for name in columns:
        told = {key: text for key, text in vars(meaning_of(dataset, name)).items() if text}
        kind = _kind(arrow, dataset, name, empty[name])
        fields.append(arrow.field(name, kind, nullable=False, metadata=told or None))
    facts = {
        name: dataset.attrs[name] for name in ("subset", "plan_id", "digest", "standin", "plan")
    }
    said = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return arrow.schema(fields, metadata={"hmr_skel": said, "card": card})


def _kind(arrow: ModuleType, dataset: Dataset, name: str, values: np.ndarray) -> Any:
    """The Arrow type of a column.

    Raises:
        InputError: Arrow has none.
    """
    try:
        if values.dtype.kind in "SU":
            kind = arrow.binary() if values.dtype.kind == "S" else arrow.string()
        else:
            kind = arrow.from_numpy_dtype(values.dtype.newbyteorder("="))
    except (TypeError, NotImplementedError):
        kind = None
    if kind is None or 0 in values.shape[1:]:
        raise InputError(
            f"{dataset.directory}: column '{name}' ({values.dtype}, {list(values.shape[1:])} a "
            "row) has no place in Parquet; choose others with --columns"
        )
    for size in reversed(values.shape[1:]):
        kind = arrow.list_(arrow.field("item", kind, nullable=False), size)
    return kind


def _array(arrow: ModuleType, values: np.ndarray, kind: Any) -> Any:
    """A column's rows as an Arrow array of its type."""
    flat = values.reshape(-1)
    if flat.dtype.kind == "U":
        found = arrow.array(map(readable, flat.tolist()), arrow.string())
    elif flat.dtype.kind == "S":
        found = arrow.array(flat.tolist(), arrow.binary())
    else:
        found = arrow.array(flat.astype(flat.dtype.newbyteorder("="), copy=False))
    kinds = [kind]
    while arrow.types.is_fixed_size_list(kinds[-1]):
        kinds.append(kinds[-1].value_type)
    for outer in reversed(kinds[:-1]):
        found = arrow.FixedSizeListArray.from_arrays(found, type=outer)
    return found
