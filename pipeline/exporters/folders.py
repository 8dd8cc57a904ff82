"""What exports that are folders share: their record, and the card beside the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.columns import RESULT_COLUMNS, Meaning
from pipeline.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.exporters.base import Selection
from pipeline.output_files import sealed_json, whole_folder
from pipeline.provenance import file_record

RECORD = "export.json"
"""Which export a folder is: of which dataset, which rows, files with SHA-256. No time, no host."""
CARD = "README.md"


@dataclass(frozen=True)
class Copy:
    """What a card says of an export. text: a sentence about it. data_files: its files as a pattern
    below the folder, for `datasets.load_dataset`."""

    text: str
    data_files: str


Card = Callable[[Dataset, Copy], str]
"""Makes the text of a card, the same for the same data."""


@contextmanager
def export_folder(
    path: Path, format: str, selection: Selection, columns: tuple[str, ...], card: str
) -> Iterator[Path]:
    """A folder that gets its name when it is complete, with card and record.

    An older export of that name is replaced; anything else is left alone.

    Raises:
        OutputError: see `whole_folder`.
    """
    dataset = selection.dataset
    with whole_folder(path, RECORD) as folder:
        yield folder
        (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
        files = sorted(found for found in folder.rglob("*") if found.is_file())
        record = {
            "format": format,
            "dataset": dataset.plan.name,
            "plan_id": dataset.plan.plan_id,
            "digest": dataset.attrs["digest"],
            "appended": {append.name: append.digest for append in dataset.appended},
            "standin": dataset.attrs["standin"],
            "rows": selection.rows,
            "left_out": dict(selection.left_out),
            "columns": list(columns),
            "files": [
                file_record(found).to_json() | {"name": found.relative_to(folder).as_posix()}
                for found in files
            ],
        }
        (folder / RECORD).write_bytes(sealed_json(record))


def chosen_columns(dataset: Dataset, wanted: str | None) -> tuple[str, ...]:
    """The columns of `--columns A,B`; all of them for None.

    Raises:
        UsageError: no such column.
    """
    if wanted is None:
        return dataset.fields
    names = tuple(dict.fromkeys(name.strip() for name in wanted.split(",")))
    for name in names:
        if name not in dataset:
            raise UsageError(f"--columns {name}: there are {', '.join(dataset.fields)}")
    return names


def meaning_of(dataset: Dataset, name: str) -> Meaning:
    """What a column of a dataset holds, as far as we know."""
    for append in dataset.appended:
        if name in append.fields:
            return append.fields[name].meaning
    return RESULT_COLUMNS[name].meaning if name in RESULT_COLUMNS else Meaning("")
