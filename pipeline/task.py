"""The one shard task, the same for every executor: read, fit, build, publish, leave a receipt."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.atomic import sealed_json, write_bytes
from pipeline.columns import FIT_COLUMNS, RESULT_COLUMNS
from pipeline.errors import InputError, UsageError
from pipeline.fitters import Fitter, FitterFactory
from pipeline.manifest import models_directory
from pipeline.plan import Plan
from pipeline.provenance import OneCode, file_record, machine, sha256_bytes, software
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.receipts import Receipt, receipt_path, shard_path
from pipeline.sequences import runs, whole_sequences
from pipeline.shards import build_shard, root_attributes
from skel_fit.status import Status


@dataclass(frozen=True)
class SourceLocation:
    """Where this machine finds the label file, and what the driver saw when it hashed it."""

    path: Path
    data_root: Path
    stats: tuple[tuple[str, int, int], ...]
    """(path, size, mtime in ns) of every file of the source."""


@dataclass(frozen=True)
class Job:
    """What all shard tasks of one run share. Small and picklable: rows are never sent."""

    plan: Plan
    directory: Path
    source: SourceLocation
    models: Path | None
    fitter: FitterFactory
    """Of the name in the plan. Sent along, so that workers look up no name."""
    device: str = "cpu"
    threads: int = 0
    """Threads of a worker process, set in its environment; 0 leaves the libraries' choice."""


class ShardWorker:
    """A process's open source and loaded models; runs any shard of its job."""

    def __init__(self, job: Job) -> None:
        _check_device(job.device)
        self.job = job
        _check_software(job.plan)
        self._code = OneCode("shard", job.plan.code)
        self._source = open_plan_source(job.plan, job.source.path, job.source.data_root)
        check_models(job.plan, job.models)
        self._fitter = job.fitter.open(job.models, job.device, job.plan.request)

    def run(self, shard: int, attempt: int) -> Receipt:
        """Convert one shard and publish file, then receipt.

        Raises:
            InputError: the source changed since it was hashed.
            PlanMismatch: this process runs other code than the plan's.
            OutputError: the file could not be written.
        """
        started, clock = time.time(), time.perf_counter()
        plan = self.job.plan
        check_unchanged(self.job.source)
        start, stop = plan.rows_of(shard)
        first, last = start, stop
        if plan.request.sequence is not None:  # fit whole sequences, keep the shard's own rows
            first, last = whole_sequences(self._source, start, stop)
        rows = self._source.read(first, last)
        _check_rows(rows, first, last)
        columns = shard_columns(plan, rows, self._fitter)
        columns = _part(columns, slice(start - first, stop - first))
        self._code.check()
        data = build_shard(columns, root_attributes(plan, shard), plan.compression)
        write_bytes(shard_path(self.job.directory, shard), data)
        receipt = Receipt(
            plan_id=plan.plan_id,
            shard=shard,
            row_start=start,
            row_stop=stop,
            rows=stop - start,
            status=dict(sorted(Counter(columns["status"].tolist()).items())),
            bytes=len(data),
            sha256=sha256_bytes(data),
            attempts=attempt,
            started=round(started, 3),
            seconds=round(time.perf_counter() - clock, 3),
            machine=machine(self.job.device),
            software=software(),
        )
        write_bytes(receipt_path(self.job.directory, shard), sealed_json(receipt.to_json()))
        return receipt


def open_plan_source(plan: Plan, path: Path, data_root: Path) -> AnnotationSource:
    """Open the label file of a plan at its place on this machine."""
    from pipeline.readers import open_source

    return open_source(
        path,
        format=plan.source_format,
        data_root=data_root,
        smpl_gender=plan.smpl_gender,
        skel_gender=plan.skel_gender,
        image_root=plan.image_root,
        **plan.source_options,
    )


def locate(source: AnnotationSource, data_root: Path) -> SourceLocation:
    """The location of an open source with the stamps that reveal a later change."""
    return SourceLocation(
        path=Path(source.path),
        data_root=data_root,
        stats=tuple(_stat(Path(path)) for path in source.files),
    )


def check_unchanged(source: SourceLocation) -> None:
    """Raise `InputError` when a source file is not the one that was hashed."""
    for seen in source.stats:
        if _stat(Path(seen[0])) != seen:
            raise InputError(
                f"{seen[0]}: changed while it was being converted; restore it and rerun, "
                "finished shards are kept"
            )


def shard_columns(plan: Plan, rows: AnnotationRows, fitter: Fitter) -> dict[str, np.ndarray]:
    """All columns of a shard: originals bit for bit, results, NaN results for rejected rows."""
    columns = _rejected_columns(rows)
    pairs = np.char.add(np.char.add(rows.smpl_gender, ":"), rows.skel_gender)
    accepted = rows.reasons == ""
    for pair in np.unique(pairs[accepted]):
        chosen = np.flatnonzero(accepted & (pairs == pair))
        smpl_gender, skel_gender = str(pair).split(":")
        sequence = plan.request.sequence
        together = [chosen] if sequence is None else runs(plan.name, rows, chosen)
        for some in together:
            result = fitter.fit(
                (smpl_gender, skel_gender), rows.poses[some], rows.betas[some], rows.transl[some]
            )
            for name in FIT_COLUMNS:
                columns[name][some] = result[name]
    for item in plan.fields:
        values = rows.fields[item.source]
        if values.dtype.str != item.dtype or values.shape != (len(accepted), *item.shape):
            raise InputError(
                f"column '{item.source}': {values.dtype.str} {values.shape[1:]}, "
                f"the plan says {item.dtype} {item.shape}"
            )
        columns[item.stored] = values
    return columns


def _part(columns: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    """Some rows of the columns."""
    some = {name: values[part] for name, values in columns.items()}
    some["status"] = some["status"].astype(np.str_)  # from object: width of the longest
    return some


def _rejected_columns(rows: AnnotationRows) -> dict[str, np.ndarray]:
    """The columns of a shard before anything is fitted."""
    columns = {
        name: column.empty(len(rows.source_row))
        for name, column in RESULT_COLUMNS.items()
        if column.rejected is not None
    }
    columns["source_row"] = rows.source_row.astype("<i8")
    columns["smpl_gender"] = rows.smpl_gender.astype(np.str_)
    columns["skel_gender"] = rows.skel_gender.astype(np.str_)
    texts = [Status.rejected(reason) if reason else "" for reason in rows.reasons.tolist()]
    columns["status"] = np.array(texts, dtype=object)
    return columns


def _check_rows(rows: AnnotationRows, start: int, stop: int) -> None:
    if not np.array_equal(rows.source_row, np.arange(start, stop)):
        raise RuntimeError(f"the reader did not return rows {start} to {stop} in order")


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device '{device}' cannot be used on {machine('cpu')['host']}: {reason}"
        ) from error


def _check_software(plan: Plan) -> None:
    here = software()
    other = [
        f"{name} {here[name]} instead of {version}"
        for name, version in plan.software.items()
        if here.get(name) != version
    ]
    if other:
        raise InputError(
            f"this worker ({machine('cpu')['host']}) has {', '.join(other)}; "
            "install the same versions on every node"
        )


def check_models(plan: Plan, directory: Path | None) -> None:
    """The models folder of this machine must hold the very files of the plan.

    Raises:
        InputError: a file is absent or another one.
    """
    if directory is None:
        return
    for model in plan.models:
        found = [path for path in directory.rglob(model.name) if path.is_file()]
        if not any(file_record(path).sha256 == model.sha256 for path in found):
            raise InputError(
                f"{directory}: {model.name} is absent or not the file of the plan "
                f"(SHA-256 {model.sha256[:12]}...); give --models DIR with that file, "
                "on a cluster on every node"
            )


def conversion_models(plan: Plan, noted: str | None, given: Path | None) -> Path:
    """Folder with the models of a plan: `given`, else where the conversion had them, else default.

    Raises:
        InputError: absent, or not the files of the plan.
    """
    if given is None and noted and Path(noted).is_dir():
        given = Path(noted)
    directory = models_directory(plan.models_kind, given)
    check_models(plan, directory)
    return directory


def _stat(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return str(path), found.st_size, found.st_mtime_ns
