"""Reading a converted dataset back: columns in source order, rows for training."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.appended import Append, read_appends
from pipeline.columns import result_columns
from pipeline.dataset_view import Rows, View, column_list
from pipeline.errors import Incomplete, InputError
from pipeline.plan import Plan
from pipeline.positions import Positions
from pipeline.receipts import ShardState, shard_path
from pipeline.rundir import RunDirectory
from pipeline.shard_files import ShardFile, ShardFiles, joined
from pipeline.shards import empty_columns, read_columns
from pipeline.summary import Summary, dataset_digest, summarise
from pipeline.up_axis import turn_of


def open_dataset(
    directory: str | Path, *, allow_incomplete: bool = False, checksums: bool = False
) -> Dataset:
    """Open the output of `hmr-skel convert`.

    Args:
        directory: the run directory, or as text the URL of an uploaded one: then a copy in the
            user's cache, fetched and checked on first use.
        allow_incomplete: accept missing shards; `source_row` then says which rows are there.
        checksums: compare every shard's SHA-256 with its receipt now (2 GB/s). Without it sizes
            are compared now, and whenever a shard is opened the seal of all bytes outside its
            chunks and the checksum of each chunk that is read. Data of schema version 1 have no
            seal: their SHA-256 is always compared now.

    Raises:
        InputError: not a converted dataset.
        Incomplete: shards are missing, failed or damaged.
    """
    if "://" in str(directory):
        from pipeline.upload import cached  # fsspec is slow to import

        directory = cached(str(directory))
    run = RunDirectory(Path(directory))
    plan = run.plan()
    states = run.inspect_all(plan, checksums=checksums)
    bad = [state for state in states if state.state != "done"]
    if bad and not allow_incomplete:
        first = bad[0]
        raise Incomplete(
            f"{directory}: {len(bad)} of {plan.shards} shards are not done "
            f"(shard {first.shard}: {first.reason or first.state}); "
            "rerun the conversion; in Python, allow_incomplete=True opens the rest"
        )
    done = [state for state in states if state.state == "done"]
    return Dataset(run, plan, done, read_appends(run.path, plan, done, checksums=checksums))


class Dataset(Rows):
    """A converted dataset in source order, loaded when asked for: columns, rows, views, tables.

    `dataset["skel_poses"]` is (rows, 46) float32 and so on, see docs/format.md; original columns
    have their source dtype. Picklable; files are opened in the process that reads.
    """

    def __init__(
        self,
        run: RunDirectory,
        plan: Plan,
        shards: Sequence[ShardState],
        appended: Sequence[Append] = (),
    ) -> None:
        self.directory = run.path
        self.plan = plan
        self.appended = tuple(appended)
        """Columns that were added afterwards: NAME.COLUMN among the fields."""
        self._shards = tuple(state.shard for state in shards)
        ranges = [plan.rows_of(shard) for shard in self._shards]
        self._starts = (0, *itertools.accumulate(stop - start for start, stop in ranges))
        self._columns: dict[str, np.ndarray] = {}
        self._files = ShardFiles()
        self._statuses: Counter[str] = Counter()
        for state in shards:
            self._statuses.update(state.receipt.status if state.receipt is not None else {})
        complete = len(shards) == plan.shards
        digests = [state.receipt.sha256 for state in shards if state.receipt is not None]
        places = run.places(plan)
        self.attrs: Mapping[str, Any] = MappingProxyType(
            {
                "subset": plan.name,
                "plan_id": plan.plan_id,
                "digest": dataset_digest(plan, digests) if complete else None,
                "complete": complete,
                "standin": any(model.standin for model in plan.models),
                "plan": plan.to_json(),
                "models_directory": places.get("models"),
                "data_root": places.get("data_root"),
            }
        )

    def summary(self) -> Summary:
        """Counts and errors of the shards that are there, read from them.

        Raises:
            InputError: a shard is damaged.
        """
        run = RunDirectory(self.directory)
        states = [
            run.inspect(self.plan, shard, checksums=False, results=True) for shard in self._shards
        ]
        for state in states:
            if state.state != "done":
                raise InputError(f"{self.directory}: shard {state.shard}: {state.reason}")
        return summarise(self.plan, states)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def to_source(self) -> np.ndarray:
        """Rotation (3, 3) of points posed from `skel_poses` and `skel_trans` back to the axes of
        the label file (a source with z up is turned before the fit). Rows that were moved into
        their cameras (3DPW, EMDB) have none in common: their column `cam_ext` is that."""
        turn = turn_of(self.plan)
        return np.eye(3) if turn is None else turn.T.copy()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all columns: results, then originals."""
        return (
            *result_columns(self.plan.schema_version),
            *(item.stored for item in self.plan.fields),
            *(name for append in self.appended for name in append.fields),
        )

    def __repr__(self) -> str:
        status = ", ".join(f"{name} {n}" for name, n in sorted(self._statuses.items()))
        results = {
            name: (column.dtype, column.shape)
            for name, column in result_columns(self.plan.schema_version).items()
        }
        originals = {item.stored: (item.dtype, item.shape) for item in self.plan.fields}
        bodies = (
            "stand-in bodies, not SMPL and SKEL" if self.attrs["standin"] else "licensed bodies"
        )
        if not self.plan.models:
            bodies = "no bodies"
        lines = (
            f"Dataset {self.plan.name!r} in {self.directory}: {len(self)} rows in "
            f"{len(self._shards)} of {self.plan.shards} shards, {bodies}",
            f"status: {status or '-'}",
            f"results: {column_list(results)}",
            f"originals: {column_list(originals)}",
            *(
                f"appended: {append.name} ({', '.join(c.name for c in append.columns)})"
                for append in self.appended
            ),
            f"digest: {self.attrs['digest'] or '- (not complete)'}",
        )
        return "\n  ".join(lines)

    def take(self, names: Sequence[str], positions: Positions) -> dict[str, np.ndarray]:
        self.check_names(names)
        if len(positions) == 0:
            none = self._nothing()
            return {name: none[name] for name in names}
        if isinstance(positions, range):
            if positions.step > 0:
                return self._take_sorted(names, np.asarray(positions, np.int64))
            turned = self._take_sorted(names, np.asarray(positions[::-1], np.int64))
            return {name: values[::-1] for name, values in turned.items()}
        rows, places = np.unique(positions, return_inverse=True)
        found = self._take_sorted(names, rows)
        if len(rows) == len(positions) and (places[1:] > places[:-1]).all():
            return found
        return {name: values[places] for name, values in found.items()}

    def _take_sorted(self, names: Sequence[str], rows: NDArray[np.int64]) -> dict[str, np.ndarray]:
        """Rows in ascending order, without repetitions; at least one."""
        bounds = np.searchsorted(rows, self._starts)
        parts = []
        for index, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            if first < last:
                inside = rows[first:last] - self._starts[index]
                parts.append(self._read_kept(index, names, inside))
        if len(parts) == 1:
            return parts[0]
        return {name: joined([part[name] for part in parts]) for name in names}

    def _read_kept(
        self, index: int, names: Sequence[str], rows: NDArray[np.int64]
    ) -> dict[str, np.ndarray]:
        """Some rows of a shard and of what is appended to it, from files that are kept open."""
        found: dict[str, np.ndarray] = {}
        for file, own in self._files_of(index, names):
            values = self._files.read(file, tuple(own.values()), rows)
            found |= {name: values[stored] for name, stored in own.items()}
        return {name: found[name] for name in names}

    def _files_of(
        self, index: int, names: Sequence[str]
    ) -> Iterator[tuple[ShardFile, dict[str, str]]]:
        """The files that hold columns of a shard: each with the name of a column -> that inside."""
        shard, plan_id = self._shards[index], self.plan.plan_id
        left = dict.fromkeys(names)
        for append in self.appended:
            own = {name: append.fields[name].name for name in names if name in append.fields}
            if own:
                yield ShardFile(append.path(self.directory, shard), plan_id, shard), own
            for name in own:
                del left[name]
        if left:
            path = shard_path(self.directory, shard)
            yield ShardFile(path, plan_id, shard, self.plan.sealed), {name: name for name in left}

    def _view(self, positions: Positions) -> View:
        return View(self, positions)

    def _nothing(self) -> dict[str, np.ndarray]:
        """Every column, with zero rows."""
        appended = (append.fields for append in self.appended)
        added = {name: column.empty() for fields in appended for name, column in fields.items()}
        return empty_columns(self.plan) | added

    def _column(self, name: str) -> np.ndarray:
        """A whole column; kept for the next time and therefore read-only."""
        if name not in self._columns:
            column = self.read(name, 0, len(self))
            column.flags.writeable = False
            self._columns[name] = column
        return self._columns[name]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of one column, without keeping them: for columns beyond memory."""
        self.check_names((name,))
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        parts = []
        for index, (first, last) in enumerate(itertools.pairwise(self._starts)):
            inside = slice(max(start - first, 0), min(stop, last) - first)
            if inside.start < inside.stop:
                parts.append(self.read_shard(index, (name,), inside)[name])
        return joined(parts) if parts else self._nothing()[name]

    def chunks(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The columns shard by shard, in source order."""
        self.check_names(names)
        for index in range(len(self._shards)):
            yield self.read_shard(index, names)

    def __getstate__(self) -> dict[str, Any]:
        # Loaded columns stay out of a pickle: each process reads what it needs.
        state = self.__dict__ | {"_columns": {}}
        return state | {"attrs": dict(self.attrs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.attrs = MappingProxyType(state["attrs"])

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Rows of each shard that is there, in order."""
        return tuple(last - first for first, last in itertools.pairwise(self._starts))

    def read_shard(
        self, index: int, names: Sequence[str], rows: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """Columns of the `index`-th shard that is there."""
        found: dict[str, np.ndarray] = {}
        for file, own in self._files_of(index, names):
            expect = (file.plan_id, file.shard)
            inside = tuple(own.values())
            values = read_columns(file.path, inside, rows, expect=expect, sealed=file.sealed)
            found |= {name: values[stored] for name, stored in own.items()}
        return {name: found[name] for name in names}
