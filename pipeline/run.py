"""Convert a subset: plan, lock, run what is pending, reconcile. Any rerun continues.

Source: docs/reference/pipeline.md#resume.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.attempts import MAX_CRASHED, Failure, Search, portion
from pipeline.bodies import factory_of
from pipeline.concessions import NOTHING, Concessions
from pipeline.errors import InputError, UsageError
from pipeline.executors import Died, Executor, Finished, Outcome, Raised, Survived
from pipeline.executors.local import InProcess, SpawnPool
from pipeline.fitters import DEFAULT_FITTER
from pipeline.identities import forget_parts, solve_identities, solved, unsolved
from pipeline.identity_tasks import ShapesJob, find_parts
from pipeline.manifest import Manifest, Resources
from pipeline.output_files import make_directory, remove
from pipeline.plan import Plan, check_same_plan
from pipeline.planning import Planned, planned
from pipeline.provenance import code_files
from pipeline.receipts import ShardState, receipt_path
from pipeline.rundir import Ledger, RunDirectory
from pipeline.summary import Summary, summarise
from pipeline.task import Job, Order, open_plan_source, rows_to_fit

if TYPE_CHECKING:
    from pipeline.uploading import Uploads

Report = Callable[[str, dict[str, Any]], None]
"""Called with an event name and its data; `tick` comes at least twice a second."""

_TICK = 0.5
_NUMBER = re.compile("[0-9]{1,9}")
_SMALL_ROWS = 4096
"""Below so many rows to do, further processes would take longer to start than they save."""
_SMALL_MESHES = 512
"""The same for the meshes that shapes of people are found from."""
_WORKER_BYTES = 3 << 29
"""Memory that each further worker should find free: 1.5 GB."""


@dataclass(frozen=True)
class Request:
    """What `hmr-skel convert` was asked for. `limit` counts rows, rounded up to whole shards."""

    manifest: Manifest
    directory: Path
    data_root: Path
    models: Path | None = None
    device: str = "cpu"
    executor: str = "local"
    workers: int | None = None
    """None: as many as this machine, or the cluster, has use for."""
    limit: int | None = None
    shards: tuple[range, ...] | None = None
    retry_failed: bool = False
    fitter: str = DEFAULT_FITTER
    """A registered name (`pipeline.fitters`)."""
    no_lock: bool = False
    """Take no lock of the directory, for file systems that have none."""
    upload: str | None = None
    """fsspec URL that finished shards are copied to."""


@dataclass(frozen=True)
class Preview:
    """What a run would do, from `--dry-run`."""

    plan: Plan
    done: tuple[int, ...]
    todo: tuple[int, ...]
    failed: tuple[int, ...]
    damaged: tuple[ShardState, ...]


@dataclass(frozen=True)
class Result:
    """What a run did.

    ok: every shard that was asked for is done. unsure: as in `planning.Planned`.
    """

    summary: Summary
    ok: bool
    converted: int
    rows_converted: int
    skipped: int
    seconds: float
    standin: bool
    unsure: Mapping[str, str]


def convert(request: Request, report: Report) -> Result:
    """Run a conversion to its end, or resume one.

    Raises:
        PipelineError: see `pipeline.errors`; finished shards are kept whatever happens.
    """
    clock = time.perf_counter()
    with ExitStack() as stack:
        run = RunDirectory(request.directory)
        locked = run.lock_path.exists()
        if locked:  # say so before the inputs are hashed
            stack.enter_context(run.lock(without=request.no_lock))
        run.check_usable()
        found = stack.enter_context(
            _planned(request, say=lambda text: report("note", {"text": text}))
        )
        if run.plan_path.exists():
            check_same_plan(*_comparable(run, found.plan), run.path)
        wanted = _wanted(found.plan, request)
        if not locked:
            make_directory(run.path)
            stack.enter_context(run.lock(without=request.no_lock))
        if run.plan_path.exists():
            check_same_plan(*_comparable(run, found.plan), run.path)
        found = _with_shapes(run, found, request, report)
        if run.plan_path.exists():
            check_same_plan(run.plan(), found.plan, run.path)
        run.write_plan(found.plan)
        forget_parts(run.path)
        run.prepare()
        run.write_places(found.source.path, found.source.data_root, found.models)
        uploads = _uploads(request, run, found.plan, report)
        before = _take_stock(run, found.plan, wanted, request.retry_failed, report)
        if uploads:
            uploads.put("what is missing", lambda mirror: mirror.catch_up(before))
            report = uploads.following(report)
        try:
            done_now, rows_now = _work(run, found, request, before, wanted, report)
        finally:
            run.sweep()
        states = run.inspect_all(found.plan, results=True)
        summary = summarise(found.plan, states)
        run.write_summary(summary)
        if uploads:
            uploads.put("summary.json", lambda mirror: mirror.summary())
            uploads.finish()
        done = {state.shard for state in states if state.state == "done"}
        return Result(
            summary=summary,
            ok=wanted <= done,
            converted=done_now,
            rows_converted=rows_now,
            skipped=sum(state.state == "done" for state in before),
            seconds=time.perf_counter() - clock,
            standin=any(model.standin for model in found.plan.models),
            unsure=found.unsure,
        )


def preview(request: Request, say: Callable[[str], None] = lambda text: None) -> Preview:
    """What `convert` would do now. Writes nothing. say: told what is about to take long."""
    run = RunDirectory(request.directory)
    run.check_usable()
    with _planned(request, dry_run=True, say=say) as found:
        plan = found.plan
        if run.plan_path.exists():
            check_same_plan(*_comparable(run, plan), run.path)
            plan = solved(run.plan(), plan, run.path)
        states = run.inspect_all(plan)
        wanted = _wanted(found.plan, request)
    failed = [s.shard for s in states if s.state == "failed" and not request.retry_failed]
    done = [s.shard for s in states if s.state == "done"]
    return Preview(
        plan=plan,
        done=tuple(done),
        todo=tuple(sorted(wanted - set(done) - set(failed))),
        failed=tuple(failed),
        damaged=tuple(s for s in states if s.state == "damaged"),
    )


def _comparable(run: RunDirectory, plan: Plan) -> tuple[Plan, Plan]:
    """The plan of the directory and a new one, both without the shapes of people."""
    return unsolved(run.plan()), unsolved(plan)


def _with_shapes(run: RunDirectory, found: Planned, request: Request, report: Report) -> Planned:
    """The plan with the shapes of its people: of an earlier run, or found now."""
    plan = found.plan
    if plan.body is None:
        return found
    if run.plan_path.exists():
        plan = solved(run.plan(), plan, run.path)
    if plan.identities is None:
        source = open_plan_source(plan, found.source.path, found.source.data_root)

        def find(
            parts: Sequence[tuple[int, range]], meshes: int, told: Callable[[int], None]
        ) -> None:
            workers = _workers_for(request, len(parts), meshes < _SMALL_MESHES)
            job = ShapesJob(**_shared(run, found, request, workers))
            find_parts(_executor(job, request, workers), parts, told)

        plan = solve_identities(plan, source, run.path, find, report)
    return replace(found, plan=plan)


def parse_shards(text: str) -> tuple[range, ...]:
    """`3,7-9` -> (range(3, 4), range(7, 10)).

    Raises:
        UsageError: anything else.
    """
    shards: list[range] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (_NUMBER.fullmatch(first) and (_NUMBER.fullmatch(last) or not dash)):
            raise UsageError(f"--shards {text[:40]}: expected numbers and ranges such as 3,7-9")
        if dash and int(last) < int(first):
            raise UsageError(f"--shards {text[:40]}: range {part.strip()} is backwards")
        shards.append(range(int(first), int(last or first) + 1))
    return tuple(shards)


def _uploads(request: Request, run: RunDirectory, plan: Plan, report: Report) -> Uploads | None:
    if request.upload is None:
        return None
    from pipeline.uploading import Uploads

    return Uploads(request.upload, run, plan, request.manifest.limits.upload, report)


def _planned(
    request: Request, dry_run: bool = False, say: Callable[[str], None] = lambda text: None
) -> AbstractContextManager[Planned]:
    return planned(
        request.manifest,
        request.data_root,
        request.models,
        fitter=request.fitter,
        dry_run=dry_run,
        say=say,
    )


def _wanted(plan: Plan, request: Request) -> set[int]:
    """Shards that the user asked for."""
    wanted = set(range(plan.shards))
    if request.limit is not None:
        wanted &= set(range(-(-request.limit // plan.shard_rows)))
    if request.shards is not None:
        for part in request.shards:
            if part.stop > plan.shards:
                raise UsageError(
                    f"--shards {part.stop - 1}: the plan has shards 0 to {plan.shards - 1}"
                )
        wanted &= {shard for part in request.shards for shard in part}
    return wanted


def _take_stock(
    run: RunDirectory, plan: Plan, wanted: Iterable[int], retry_failed: bool, report: Report
) -> list[ShardState]:
    """State of every shard; damaged ones lose their receipt, so they count as pending."""
    if retry_failed:
        for shard, attempts in run.unfinished().items():
            if attempts.settled().quarantined:
                run.clear_attempts(shard)
        for shard in run.conceded():
            run.concede(plan, shard, NOTHING)
    report("note", {"text": "comparing finished shards with their receipts"})
    states = run.inspect_all(plan)
    unfinished = run.unfinished()
    for state in states:
        if state.state == "damaged":
            remove(receipt_path(run.path, state.shard))
            report("damaged", {"shard": state.shard, "reason": state.reason})
        elif state.state == "done" and state.shard in unfinished:
            run.clear_attempts(state.shard)  # died between the receipt and the bookkeeping
    chosen = set(wanted)
    report(
        "start",
        {
            "plan_id": plan.plan_id,
            "subset": plan.name,
            "rows": sum(_rows(plan, shard) for shard in chosen),
            "rows_done": sum(
                _rows(plan, s.shard) for s in states if s.state == "done" and s.shard in chosen
            ),
            "shards": len(chosen),
            "shards_done": sum(s.state == "done" and s.shard in chosen for s in states),
            "shards_failed": sum(s.state == "failed" and s.shard in chosen for s in states),
        },
    )
    return states


def _work(
    run: RunDirectory,
    found: Planned,
    request: Request,
    before: list[ShardState],
    wanted: set[int],
    report: Report,
) -> tuple[int, int]:
    """Convert what is pending; returns (shards, rows) converted now."""
    ledger = Ledger(run, found.plan)
    pending = [
        state.shard
        for state in before
        if state.shard in wanted
        and state.state in ("pending", "damaged")
        and not ledger.attempts(state.shard).quarantined
    ]
    # What ended badly before comes last, where it cannot keep others from being done.
    fresh = [shard for shard in pending if not ledger.attempts(shard).suspect]
    suspects = [shard for shard in pending if ledger.attempts(shard).suspect]
    workers = _workers(request, found.plan, pending)
    job = Job(**_shared(run, found, request, workers))
    driver = _Driver(run, ledger, job, report)
    if request.executor == "local" and workers == 1:
        if fresh:
            suspects += driver.run(InProcess(job), fresh)
        if suspects:
            driver.run(SpawnPool(job, 1), suspects)
    elif pending:
        driver.run(_executor(job, request, workers, isolated=True), fresh + suspects)
    return driver.shards, driver.rows


def _shared(run: RunDirectory, found: Planned, request: Request, workers: int) -> dict[str, Any]:
    """The fields of a job."""
    return {
        "plan": found.plan,
        "directory": run.path.absolute(),
        "source": found.source,
        "models": found.models,
        "fitter": factory_of(found.plan, run.path),
        "modules": tuple(code_files("shard")),
        "device": request.device,
        "limits": request.manifest.limits,
        "threads": _threads(request, workers),
    }


def _executor(job: Job, request: Request, workers: int, isolated: bool = False) -> Executor:
    """isolated: not in this process, however few workers."""
    if request.executor == "ray":
        from pipeline.executors.ray import RayActors

        return RayActors(job, workers, _resources(request), as_room_allows=request.workers is None)
    if workers == 1 and not isolated:
        return InProcess(job)
    return SpawnPool(job, workers)


def _resources(request: Request) -> Resources:
    resources = request.manifest.ray
    if resources.num_gpus is not None:
        return resources
    return resources.model_copy(
        update={"num_gpus": 1.0 if request.device.startswith("cuda") else 0.0}
    )


def _workers(request: Request, plan: Plan, pending: list[int]) -> int:
    """How many workers the shards get."""
    small = sum(_rows(plan, shard) for shard in pending) < _SMALL_ROWS
    return _workers_for(request, len(pending), small)


def _workers_for(request: Request, tasks: int, small: bool) -> int:
    """How many workers: as asked for, or as many as the machine feeds; one a task at most.

    small: so little to do that further processes would take longer to start than they save."""
    if not tasks:
        return 1
    if request.workers is not None:
        return min(request.workers, tasks)
    if request.executor == "ray":
        return tasks  # the cluster says how many it has room for
    if small or request.device != "cpu":
        return 1
    memory = max(1, _memory_available() // _WORKER_BYTES)
    return min(_cores(), tasks, memory)


def _cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_available() -> int:
    """Bytes that new processes may take without swapping; without limit where unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def _threads(request: Request, workers: int) -> int:
    """Threads a worker: the library's choice alone, an equal share of the cores together."""
    if workers == 1 or request.executor == "ray":
        return 0
    return max(1, -(-_cores() // workers))


class _Driver:
    """Feeds an executor and keeps the ledger."""

    def __init__(self, run: RunDirectory, ledger: Ledger, job: Job, report: Report) -> None:
        self._run = run
        self._ledger = ledger
        self._job = job
        self._plan = job.plan
        self._report = report
        self._queue: deque[int] = deque()
        self._busy: set[int] = set()
        self._searches: dict[int, Search] = {}
        self._isolated = False
        self._later: list[int] = []
        self.shards = 0
        self.rows = 0

    def run(self, executor: Executor, shards: Iterable[int]) -> list[int]:
        """Run shards to their end; returns those to try again in a process of their own."""
        self._queue = deque(shards)
        self._later = []
        self._isolated = executor.isolated
        try:
            while self._busy or (self._queue and executor.usable):
                while self._queue and executor.free():
                    self._submit(executor, self._queue.popleft())
                for outcome in executor.wait(_TICK):
                    self._handle(outcome)
                self._tick(executor)
        finally:
            # Reached with busy shards only when the run is stopped: no fault of theirs.
            executor.close()
            for shard in sorted(self._busy):
                self._ledger.forget(shard)
            self._busy.clear()
        return [*self._queue, *self._later]

    def _tick(self, executor: Executor) -> None:
        beats = executor.beats()
        self._report(
            "tick",
            {
                "running": len(self._busy),
                "rows": sum(beat.rows for beat in beats if beat.shard not in self._searches),
                "doing": sorted({beat.doing for beat in beats}),
            },
        )

    def _submit(self, executor: Executor, shard: int) -> None:
        self._busy.add(shard)
        order = self._order(shard)
        self._ledger.start(shard, isolated=executor.isolated)
        executor.submit(order)
        if order.part is None:
            self._report("shard_started", {"shard": shard, "attempt": order.attempt})

    def _order(self, shard: int) -> Order:
        """What to try next with a shard; what that concedes is on record before it starts."""
        attempts = self._ledger.attempts(shard)
        given = self._concessions(shard)
        some = portion(self._block_rows(), attempts.memory_failures)
        if some.block_size is None and given.block_size is not None:
            some = replace(some, step=given.block_size, block_size=given.block_size)
        if attempts.needs_search and shard not in self._searches:
            # Rows that were found before stay left out.
            self._searches[shard] = Search(*self._rows_to_fit(shard))
        part = self._searches[shard].part if shard in self._searches else None
        if part is None:
            given = replace(given, block_size=some.block_size)
            self._run.concede(self._plan, shard, given)
        return Order(shard, len(attempts.failures) + 1, some, given, part)

    def _concessions(self, shard: int) -> Concessions:
        try:
            return self._run.concessions(self._plan, shard)
        except InputError:  # damaged: what was conceded is found again, at the price of the search
            return NOTHING

    def _rows_to_fit(self, shard: int) -> tuple[int, int]:
        source = open_plan_source(
            self._plan, self._job.source.path, self._job.source.data_root, self._job.directory
        )
        return rows_to_fit(self._plan, source, shard)

    def _block_rows(self) -> int:
        """Rows of a block where nothing else is said."""
        return self._plan.request.rows_of_block(self._job.device)

    def _handle(self, outcome: Outcome) -> None:
        match outcome:
            case Finished(receipt):
                self._busy.discard(receipt.shard)
                self._ledger.finish(receipt.shard)
                self.shards += 1
                self.rows += receipt.rows
                self._report(
                    "shard_done",
                    {
                        "shard": receipt.shard,
                        "rows": receipt.rows,
                        "seconds": receipt.seconds,
                        "rejected": receipt.rejected,
                        "bytes": receipt.bytes,
                    },
                )
            case Survived(shard):
                self._searches[shard].survived()
                self._search_on(shard)
            case Raised(fatal=fatal) if fatal is not None:
                raise fatal
            case Raised(shard, kind, message, trace, memory=memory):
                self._failed(shard, Failure(kind, message, trace, memory))
            case Died(shard, reason, memory):
                self._failed(shard, Failure("process died", reason, memory=memory))

    def _failed(self, shard: int, failure: Failure) -> None:
        if shard in self._searches:
            self._searches[shard].ended_badly(f"{failure.kind}: {failure.message}")
            self._search_on(shard)
            return
        self._busy.discard(shard)
        attempts = self._ledger.fail(shard, failure)
        self._tell("shard_quarantined" if attempts.quarantined else "shard_failed", shard, failure)
        if attempts.quarantined:
            return
        if attempts.needs_search:
            self._report("search", {"shard": shard, "rows": list(self._plan.rows_of(shard))})
        if self._isolated:
            self._queue.append(shard)
        else:
            self._later.append(shard)

    def _search_on(self, shard: int) -> None:
        """The next part of a search, or what it found."""
        self._busy.discard(shard)
        self._ledger.forget(shard)
        search = self._searches[shard]
        if search.part is not None:
            self._queue.appendleft(shard)  # one worker goes on with it, the others with the rest
            return
        del self._searches[shard]
        if search.hopeless:
            last = self._ledger.attempts(shard).failures[-1]
            also = f"{last.message}; so did more than {MAX_CRASHED} of its rows alone"
            self._ledger.searched(shard, search)
            self._tell("shard_quarantined", shard, replace(last, message=also))
            return
        known = dict(self._concessions(shard).crashed) | search.found
        if search.found:
            self._run.concede(self._plan, shard, Concessions(tuple(sorted(known.items()))))
        self._ledger.searched(shard, search)
        for row, reason in sorted(search.found.items()):
            self._report("row_crashed", {"shard": shard, "row": row, "reason": reason})
        self._queue.append(shard)

    def _tell(self, event: str, shard: int, failure: Failure) -> None:
        self._report(
            event,
            {
                "shard": shard,
                "attempt": len(self._ledger.attempts(shard).failures),
                "rows": list(self._plan.rows_of(shard)),
                "reason": f"{failure.kind}: {failure.message}",
            },
        )


def _rows(plan: Plan, shard: int) -> int:
    start, stop = plan.rows_of(shard)
    return stop - start
