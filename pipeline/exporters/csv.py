"""CSV: one line a row, named angles in degrees (`pipeline.flat_table`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.exporters.base import Exported, ExportOptions, Selection
from pipeline.flat_table import FlatTable
from pipeline.output_files import published

_ROWS = 4096


class CsvOptions(ExportOptions):
    """extra: further columns of the dataset, one value a row each, separated by commas."""

    extra: str | None = None


@dataclass(frozen=True)
class Csv:
    """The format `csv`. UTF-8, a comma between, a dot in numbers; empty where there is no number.

    Numbers are as short as they can be and still be the same float32.
    """

    name: ClassVar[str] = "csv"
    options: ClassVar[type[ExportOptions]] = CsvOptions

    def write(
        self, dataset: Dataset, path: Path, options: CsvOptions, models: Path | None
    ) -> Exported:
        del models
        selection = Selection.of(dataset, options)
        extra = [name.strip() for name in options.extra.split(",")] if options.extra else []
        try:
            table = FlatTable.of(dataset, extra)
        except (KeyError, ValueError) as error:
            raise UsageError(f"--extra {options.extra}: {error.args[0]}") from None
        with published(path) as stream:
            stream.write(_lines([table.names]))
            for batch in selection.view.batches(_ROWS, table.needed):
                cells = [_cells(column) for column in table.lines(batch).values()]
                stream.write(_lines(zip(*cells, strict=True)))
        return Exported(path, selection.rows, selection.left_out, table.names)


def _cells(column: np.ndarray) -> list[str]:
    texts = column.astype(np.str_).tolist()
    if column.dtype.kind == "f":
        return ["" if text == "nan" else text for text in texts]
    return texts


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
