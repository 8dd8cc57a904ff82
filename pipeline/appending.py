"""Another conversion of the same labels as columns of a dataset: a refit beside the first fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.appended import Append, AppendedColumn, check_name, write_append
from pipeline.columns import result_columns
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import InputError, UsageError
from pipeline.plan import Plan, differences
from pipeline.rundir import RunDirectory

_OF_THE_ROW = ("source_row", "smpl_gender")


def append_columns(
    dataset: Dataset,
    name: str,
    columns: tuple[AppendedColumn, ...],
    values: Iterator[dict[str, np.ndarray]],
    provenance: dict[str, Any],
) -> Append:
    """Write an append of a complete dataset under its lock; `values` shard by shard.

    Raises:
        UsageError: the name cannot be used.
        Locked: a run is converting into the directory.
        OutputError: cannot be written.
    """
    run = RunDirectory(dataset.directory)
    with run.lock():
        states = [state for state in run.inspect_all(dataset.plan) if state.state == "done"]
        return write_append(run.path, dataset.plan, states, name, columns, values, provenance)


def append_conversion(directory: Path, other: Path, name: str) -> Append:
    """Add the results of another conversion of the same label file, row by row.

    Raises:
        InputError: it is of other labels, or no dataset.
        Incomplete: one of the two is not complete.
        UsageError: it is the same conversion, or the name cannot be used.
    """
    dataset, refit = open_dataset(directory), open_dataset(other)
    check_name(dataset.directory, name)
    _check_same_labels(dataset, refit)
    columns = tuple(
        AppendedColumn(title, column.dtype, column.shape, column.meaning)
        for title, column in result_columns(refit.plan.schema_version).items()
        if title not in _OF_THE_ROW
    )
    names = [column.name for column in columns]

    def values() -> Iterator[dict[str, np.ndarray]]:
        start = 0
        for rows in dataset.shard_rows:
            yield refit.take(names, range(start, start + rows))
            start += rows

    return append_columns(dataset, name, columns, values(), _provenance(dataset.plan, refit))


def _check_same_labels(dataset: Dataset, refit: Dataset) -> None:
    ours, theirs = dataset.plan, refit.plan
    if ours.plan_id == theirs.plan_id:
        raise UsageError(f"{refit.directory}: is the same conversion as {dataset.directory}")
    if (ours.rows, ours.source_files) != (theirs.rows, theirs.source_files):
        raise InputError(
            f"{refit.directory}: converts other labels ({theirs.source_files[0].name}, "
            f"{theirs.rows} rows) than {dataset.directory} ({ours.source_files[0].name}, "
            f"{ours.rows} rows); append a conversion of the same file"
        )


def _provenance(plan: Plan, refit: Dataset) -> dict[str, Any]:
    """Of which conversion the columns are, and what it does otherwise."""
    told = refit.plan.to_json()
    kept = ("fitter", "fit", "models", "code", "software", "smpl_gender", "skel_gender")
    changed = differences(plan.to_json(), told)
    return {
        "made_by": "hmr-skel append",
        "plan_id": refit.plan.plan_id,
        "digest": refit.attrs["digest"],
        "differs_in": [place for place in changed if not place.startswith("fields")],
        **{name: told[name] for name in kept},
    }
