"""What an export format is, and the rows that an export takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.dataset import Dataset
from pipeline.dataset_view import View
from skel_fit.status import rejected_rows


class ExportOptions(BaseModel):
    """What every format knows; formats add their own.

    rejected: `drop` or `keep` rows that could not be fitted. max_error: millimetres; leave out rows
    with a larger mean vertex error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rejected: Literal["drop", "keep"] = "drop"
    max_error: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the file.
        rows: rows in it.
        left_out: reason -> rows that are not in it.
        columns: names, in file order.
        attention: what the reader of the file needs and does not get, in one line; else empty.
        missing: columns that this is about.
    """

    path: Path
    rows: int
    left_out: Mapping[str, int]
    columns: tuple[str, ...]
    missing: tuple[str, ...] = ()
    attention: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "path": str(self.path),
            "rows": self.rows,
            "left_out": dict(self.left_out),
            "columns": list(self.columns),
            "missing": list(self.missing),
        }


Options = TypeVar("Options", bound=ExportOptions, contravariant=True)


class Exporter(Protocol, Generic[Options]):
    """A format. `name` is what `--format` calls it, `options` validates what it can be told."""

    name: ClassVar[str]
    options: ClassVar[type[ExportOptions]]

    def write(
        self, dataset: Dataset, path: Path, options: Options, models: Path | None
    ) -> Exported:
        """Write a complete dataset to `path`, whole or not at all.

        Args:
            dataset: a complete conversion.
            path: the file (or folder); an older one is replaced.
            options: of the type that `self.options` names.
            models: folder with body models as the user gave it, see `conversion_models`.

        Raises:
            InputError: something of the dataset has no place in this format, or models missing.
            OutputError: cannot be written.
        """


@dataclass(frozen=True)
class Selection:
    """The rows of a dataset that an export takes.

    kept: (rows,) bool. left_out: reason -> rows that are not taken.
    """

    dataset: Dataset
    kept: NDArray[np.bool_]
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, dataset: Dataset, options: ExportOptions) -> Selection:
        """Choose by status and error; one pass over two columns."""
        limit = np.inf if options.max_error is None else options.max_error / 1000
        kept = np.ones(len(dataset), bool)
        left_out: Counter[str] = Counter()
        start = 0
        for chunk in dataset.chunks(["status", "vertex_error_mean"]):
            rows = slice(start, start + len(chunk["status"]))
            start = rows.stop
            bad = rejected_rows(chunk["status"])
            if options.rejected == "drop":
                kept[rows] &= ~bad
                left_out.update(chunk["status"][bad].tolist())
            far = ~bad & (chunk["vertex_error_mean"] > limit)
            kept[rows] &= ~far
            left_out.update({f"mean error above {options.max_error or 0:g} mm": int(far.sum())})
        return cls(dataset, kept, {reason: n for reason, n in sorted(left_out.items()) if n})

    @property
    def rows(self) -> int:
        return int(self.kept.sum())

    @property
    def view(self) -> View:
        """The kept rows."""
        return self.dataset[self.kept]

    def chunks(self, *names: str) -> Iterator[tuple[NDArray, ...]]:
        """The kept rows of some columns, shard by shard, in source order."""
        start = 0
        for chunk in self.dataset.chunks(names):
            stop = start + len(chunk[names[0]])
            yield tuple(chunk[name][self.kept[start:stop]] for name in names)
            start = stop


def readable(text: str | bytes) -> str:
    """A text of a label file as UTF-8 can hold it: what is none of it shows its code."""
    data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    return data.decode("utf-8", "backslashreplace")
