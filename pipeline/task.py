"""The one shard task, the same for every executor: read, fit, build, publish, leave a receipt.

It says what it is doing and how far it is, at every step, so that a driver can tell slow from hung.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from pipeline.attempts import Portion
from pipeline.columns import FIT_COLUMNS, RESULT_COLUMNS
from pipeline.concessions import NOTHING, Concessions, read_concessions
from pipeline.errors import InputError, UsageError
from pipeline.fitters import Fitter, FitterFactory
from pipeline.given_labels import NOT_FITTED
from pipeline.identity_shapes import identified
from pipeline.manifest import Limits, models_directory
from pipeline.output_files import sealed_json, write_bytes
from pipeline.plan import Plan
from pipeline.provenance import OneCode, file_record, machine, sha256_bytes, software
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.receipts import Receipt, receipt_path, shard_path
from pipeline.row_checks import CRASHED
from pipeline.sequences import runs, whole_sequences
from pipeline.shards import build_shard, root_attributes
from pipeline.up_axis import turned
from skel_fit.signs import signs_of_life
from skel_fit.status import Status

if TYPE_CHECKING:
    from pipeline.bodies import BodyFitter
    from pipeline.readers.labels import LabelSource
    from skel_fit.model_files import Kind


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
    modules: tuple[str, ...]
    """What the code digest of the plan covers."""
    device: str = "cpu"
    limits: Limits = field(default_factory=Limits)
    threads: int = 0
    """Threads of a worker process, set in its environment; 0 leaves the libraries' choice."""

    def open(self, say: Say) -> TaskWorker:
        """What does the job's orders, in the process where it is called."""
        return ShardWorker(self, say)


class TaskWorker(Protocol):
    """What a worker process holds between orders."""

    def run(self, order: Order) -> Receipt | None:
        """Do it; a receipt where a shard was published."""


@dataclass(frozen=True)
class Order:
    """What a worker is told to do.

    attempt: number of this start, from 1. portion: how much to compute at a time.
    part: source rows (first, stop) to fit for a trial, without publishing anything.
    """

    shard: int
    attempt: int
    portion: Portion
    concessions: Concessions = NOTHING
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Beat:
    """A sign of life. shard: -1 while the worker starts; rows: of the shard, done so far.

    step: rows that are being computed now, before the next sign; 0: something else is done.
    sign: number of the sign within a call of the fitter; two beats that are equal are one.
    within: only says how far the step is that was announced before; whoever waits for its end
    waits on, and learns nothing from when this came.
    """

    shard: int
    doing: str
    rows: int = 0
    step: int = 0
    sign: int = 0
    within: bool = False


Say = Callable[[Beat], None]
Fitting = Callable[[int, int, int], None]
"""Told how many rows of the shard are done, how many a call of the fitter has, and the number of
this sign within the call, 0 before it, `WITHIN` where only the rows are news."""
WITHIN = -1


class OpenedPlan:
    """What every worker of a job begins with: its device, software, code and models are those of
    the plan, and the source is open."""

    def __init__(self, job: Job, say: Say) -> None:
        say(Beat(-1, "checking code, source and models"))
        _check_device(job.device)
        _check_software(job.plan)
        self._job = job
        self._code = OneCode("shard", job.plan.code, job.modules)
        self.source = open_plan_source(
            job.plan, job.source.path, job.source.data_root, job.directory
        )
        check_models(job.plan, job.models)

    def check_code(self) -> None:
        """Raises PlanMismatch where the code changed since."""
        self._code.check()

    def check_unchanged(self) -> None:
        """Raises InputError where the source changed since it was hashed."""
        check_unchanged(self._job.source)


class ShardWorker:
    """A process's open source and loaded models; runs any shard of its job."""

    def __init__(self, job: Job, say: Say) -> None:
        self._opened = OpenedPlan(job, say)
        self.job = job
        self._say = say
        self._fitters: dict[int | None, Fitter] = {}
        pair = _first_pair(job.plan)
        if pair is not None and job.plan.fitter != NOT_FITTED:
            say(Beat(-1, "loading kernels (compiled once per installation, about a minute)"))
            _warm_up(self._fitter(None), pair)
        self._opened.check_code()

    def run(self, order: Order) -> Receipt | None:
        """Convert one shard and publish file, then receipt; None: a trial, nothing was published.

        Raises:
            InputError: the source changed since it was hashed.
            PlanMismatch: this process runs other code than the plan's.
            OutputError: the file could not be written.
        """
        started, clock = time.time(), time.perf_counter()
        plan, shard = self.job.plan, order.shard
        self._say(Beat(shard, "reading"))
        self._opened.check_unchanged()
        start, stop = plan.rows_of(shard)
        block = order.portion.block_size or plan.request.rows_of_block(self.job.device)

        def fitting(done: int, count: int, sign: int) -> None:
            if sign == WITHIN:
                self._say(Beat(shard, "fitting", done, count, within=True))
                return
            reached = done + min(sign * block, count)
            step = min(block, count) if sign else count
            self._say(Beat(shard, "fitting", reached, step, sign))

        columns = shard_columns(
            plan,
            self._opened.source,
            shard,
            self._fitter(order.portion.block_size),
            step=order.portion.step,
            concessions=order.concessions,
            part=order.part,
            say=fitting,
        )
        self._opened.check_code()
        if order.part is not None:
            return None
        self._say(Beat(shard, "writing", stop - start))
        attributes = root_attributes(plan, shard, order.concessions)
        data = build_shard(columns, attributes, plan.compression)
        # A worker that was given up as hung may come this far after all.
        if read_concessions(self.job.directory, plan.plan_id, shard) != order.concessions:
            raise RuntimeError("another attempt at this shard has taken over")
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
            attempts=order.attempt,
            started=round(started, 3),
            seconds=round(time.perf_counter() - clock, 3),
            machine=machine(self.job.device),
            software=software(),
            concessions=order.concessions.digest,
        )
        write_bytes(receipt_path(self.job.directory, shard), sealed_json(receipt.to_json()))
        return receipt

    def _fitter(self, block_size: int | None) -> Fitter:
        """The fitter of the plan, with blocks of another size where that was conceded."""
        if block_size not in self._fitters:
            request = self.job.plan.request
            if block_size is not None:
                request = request.model_copy(update={"block_size": block_size})
            opened = self.job.fitter.open(
                self.job.models, self.job.device, request, self.job.plan.calibration
            )
            self._fitters[block_size] = opened
        return self._fitters[block_size]


def _first_pair(plan: Plan) -> tuple[str, str] | None:
    """A (smpl, skel) pair of genders that rows of this plan have; None: no models are needed."""
    genders = {kind: [m.gender for m in plan.models if m.kind == kind] for kind in ("smpl", "skel")}
    if not (genders["smpl"] and genders["skel"]):
        return None
    both = [gender for gender in genders["smpl"] if gender in genders["skel"]]
    return (both[0], both[0]) if both else (genders["smpl"][0], genders["skel"][0])


def _warm_up(fitter: Fitter, pair: tuple[str, str]) -> None:
    """Load and compile what the first fit would, so that every later step takes its usual time."""
    fitter.fit(pair, np.zeros((2, 72)), np.zeros((2, 10)), np.zeros((2, 3)))


def rows_to_fit(plan: Plan, source: AnnotationSource, shard: int) -> tuple[int, int]:
    """Source rows that a shard's fit looks at: its own, and the rest of sequences that it cuts."""
    start, stop = plan.rows_of(shard)
    if plan.request.sequence is None:
        return start, stop
    return whole_sequences(source, start, stop)


def _left_out(rows: AnnotationRows, chosen: np.ndarray) -> AnnotationRows:
    """Rows (n,) bool that are not fitted, unless they were rejected already."""
    reasons = np.where(chosen & (rows.reasons == ""), CRASHED, rows.reasons)
    return replace(rows, reasons=reasons)


def open_plan_source(
    plan: Plan, path: Path, data_root: Path, directory: Path | None = None
) -> AnnotationSource:
    """Open the label file of a plan at its place on this machine.

    directory: of the run, with the shapes of people where the plan has such.
    """
    from pipeline.readers import open_source
    from pipeline.readers.sequences import options_of_plan

    source = open_source(
        path,
        format=plan.source_format,
        data_root=data_root,
        smpl_gender=plan.smpl_gender,
        skel_gender=plan.skel_gender,
        image_root=plan.image_root,
        **options_of_plan(plan.source_format, plan.source_options),
    )
    opened = as_fitted(source, plan.fitter)
    return opened if directory is None else identified(opened, plan, directory)


def as_fitted(source: LabelSource, fitter: str) -> AnnotationSource:
    """The source as a fitter needs it: where nothing is fitted, with its own SKEL bodies."""
    from pipeline.readers.given_skel import GivenSkelSource

    return GivenSkelSource(source) if fitter == NOT_FITTED else source


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


def shard_columns(
    plan: Plan,
    source: AnnotationSource,
    shard: int,
    fitter: Fitter,
    *,
    step: int,
    concessions: Concessions = NOTHING,
    part: tuple[int, int] | None = None,
    say: Fitting = lambda done, count, sign: None,
) -> dict[str, np.ndarray]:
    """All columns of a shard's rows, from label file and models: what its file holds.

    step: rows a call of the fitter; sequences are fitted whole. part: source rows (first, stop);
    the others are left out.
    """
    start, stop = plan.rows_of(shard)
    first, last = rows_to_fit(plan, source, shard)
    rows = source.read(first, last)
    _check_rows(rows, first, last)
    rows = _left_out(rows, np.isin(rows.source_row, concessions.rows))
    if part is not None:
        inside = (rows.source_row >= part[0]) & (rows.source_row < part[1])
        rows = _left_out(rows, ~inside)

    def scaled(done: int, count: int, sign: int) -> None:
        say(done * (stop - start) // (last - first), count, sign)

    columns = _fitted_columns(plan, rows, fitter, step=step, say=scaled)
    return _part(columns, slice(start - first, stop - first))


def _fitted_columns(
    plan: Plan,
    rows: AnnotationRows,
    fitter: Fitter,
    *,
    step: int,
    say: Fitting,
) -> dict[str, np.ndarray]:
    """All columns of `rows`: originals bit for bit, results, NaN results for rejected rows."""
    columns = _rejected_columns(rows)
    done = int((rows.reasons != "").sum())
    pairs = np.char.add(np.char.add(rows.smpl_gender, ":"), rows.skel_gender)
    accepted = rows.reasons == ""
    for pair in np.unique(pairs[accepted]):
        chosen = np.flatnonzero(accepted & (pairs == pair))
        smpl_gender, skel_gender = str(pair).split(":")
        sequence = plan.request.sequence
        steps = np.split(chosen, range(step, len(chosen), step))
        together = steps if sequence is None else runs(plan.name, rows, chosen)
        for some in together:
            genders, axes = (smpl_gender, skel_gender), turned(plan, rows, some)
            with _said(say, done, len(some), signs=sequence is None):
                given: dict[str, Any] = {**axes}
                if sequence is not None:
                    given["progress"] = _how_far(say, done, len(some))
                if rows.other is not None:
                    body = cast("BodyFitter", fitter)
                    result = body.fit(genders, rows.other.take(some), **given)
                else:
                    labels = rows.poses[some], rows.betas[some], rows.transl[some]
                    if rows.skel is not None:
                        given["given"] = rows.skel.take(some)
                    result = fitter.fit(genders, *labels, **given)
            done += len(some)
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


def _how_far(say: Fitting, done: int, count: int) -> Callable[[float], None]:
    """Says which share of a call of so many rows is done, as rows."""
    return lambda share: say(done + int(share * count), count, WITHIN)


@contextmanager
def _said(say: Fitting, done: int, count: int, signs: bool) -> Iterator[None]:
    """A call of the fitter is announced; signs: and heard while it works, block by block.

    The passes over a sequence differ too much for the time of one to say how long others take.
    """
    say(done, count, 0)
    if not signs:
        yield
        return
    numbers = itertools.count(1)
    with signs_of_life(lambda: say(done, count, next(numbers))):
        yield


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
    if directory is None or not plan.models:
        return
    from skel_fit.errors import ModelFileError
    from skel_fit.model_files import model_file

    for model in plan.models:
        try:  # the very file that a fit would load, and no other of that name
            found = model_file(directory, cast("Kind", model.kind), model.gender)
            same = file_record(found).sha256 == model.sha256
        except ModelFileError:
            same = False
        if not same:
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
