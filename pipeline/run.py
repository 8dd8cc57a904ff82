"""Convert a subset: plan, lock, run what is pending, reconcile. Any rerun continues.

Source: docs/reference/pipeline.md#resume.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import make_directory, remove
from pipeline.attempts import Failure
from pipeline.errors import UsageError
from pipeline.executors import Died, Executor, Finished, Outcome, Raised
from pipeline.executors.local import InProcess, SpawnPool
from pipeline.fitters import DEFAULT_FITTER, registered_fitter
from pipeline.manifest import Manifest, Resources
from pipeline.plan import Plan, check_same_plan
from pipeline.planning import Planned, planned
from pipeline.receipts import ShardState, receipt_path
from pipeline.rundir import Ledger, RunDirectory
from pipeline.summary import Summary, summarise
from pipeline.task import Job

if TYPE_CHECKING:
    from pipeline.upload import Mirror

Report = Callable[[str, dict[str, Any]], None]
"""Called with an event name and its data; `tick` comes at least twice a second."""

_TICK = 0.5
_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Request:
    """What `hmr-skel convert` was asked for. `limit` counts rows, rounded up to whole shards."""

    manifest: Manifest
    directory: Path
    data_root: Path
    models: Path | None = None
    device: str = "cpu"
    executor: str = "local"
    workers: int = 1
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
    """What a run did. `ok`: every shard that was asked for is done."""

    summary: Summary
    ok: bool
    converted: int
    rows_converted: int
    skipped: int
    seconds: float
    standin: bool


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
        found = stack.enter_context(_planned(request))
        if run.plan_path.exists():
            check_same_plan(run.plan(), found.plan, run.path)
        wanted = _wanted(found.plan, request)
        if not locked:
            make_directory(run.path)
            stack.enter_context(run.lock(without=request.no_lock))
        if run.plan_path.exists():
            check_same_plan(run.plan(), found.plan, run.path)
        else:
            run.write_plan(found.plan)
        run.prepare()
        run.write_places(found.source.path, found.source.data_root, found.models)
        mirror = _mirror(request.upload, run, found.plan)
        before = _take_stock(run, found.plan, wanted, request.retry_failed, report)
        if mirror:
            mirror.catch_up(before)
            report = _uploading(mirror, report)
        try:
            done_now, rows_now = _work(run, found, request, before, wanted, report)
        finally:
            run.sweep()
        states = run.inspect_all(found.plan, results=True)
        summary = summarise(found.plan, states)
        run.write_summary(summary)
        if mirror:
            mirror.summary()
        done = {state.shard for state in states if state.state == "done"}
        return Result(
            summary=summary,
            ok=wanted <= done,
            converted=done_now,
            rows_converted=rows_now,
            skipped=sum(state.state == "done" for state in before),
            seconds=time.perf_counter() - clock,
            standin=any(model.standin for model in found.plan.models),
        )


def preview(request: Request) -> Preview:
    """What `convert` would do now. Writes nothing."""
    run = RunDirectory(request.directory)
    run.check_usable()
    with _planned(request, dry_run=True) as found:
        if run.plan_path.exists():
            check_same_plan(run.plan(), found.plan, run.path)
        states = run.inspect_all(found.plan)
        wanted = _wanted(found.plan, request)
    failed = [s.shard for s in states if s.state == "failed" and not request.retry_failed]
    done = [s.shard for s in states if s.state == "done"]
    return Preview(
        plan=found.plan,
        done=tuple(done),
        todo=tuple(sorted(wanted - set(done) - set(failed))),
        failed=tuple(failed),
        damaged=tuple(s for s in states if s.state == "damaged"),
    )


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


def _mirror(url: str | None, run: RunDirectory, plan: Plan) -> Mirror | None:
    if url is None:
        return None
    from pipeline.upload import Mirror

    return Mirror.open(url, run, plan)


def _uploading(mirror: Mirror, report: Report) -> Report:
    """Copy each shard as soon as it is done."""

    def inner(event: str, data: dict[str, Any]) -> None:
        if event == "shard_done":
            mirror.shard(data["shard"])
        report(event, data)

    return inner


def _planned(request: Request, dry_run: bool = False) -> Any:
    return planned(
        request.manifest,
        request.data_root,
        request.models,
        fitter=request.fitter,
        dry_run=dry_run,
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
    job = Job(
        plan=found.plan,
        directory=run.path.absolute(),
        source=found.source,
        models=found.models,
        fitter=registered_fitter(found.plan.fitter),
        device=request.device,
        threads=_threads(request),
    )
    driver = _Driver(ledger, found.plan, report)
    if request.executor == "local" and request.workers == 1:
        if fresh:
            suspects += driver.run(InProcess(job), fresh)
        if suspects:
            driver.run(SpawnPool(job, 1), suspects)
    elif pending:
        driver.run(_executor(job, request, len(pending)), fresh + suspects)
    return driver.shards, driver.rows


def _executor(job: Job, request: Request, pending: int) -> Executor:
    workers = min(request.workers, pending)
    if request.executor == "ray":
        from pipeline.executors.ray import RayActors

        return RayActors(job, workers, _resources(request))
    return SpawnPool(job, workers)


def _resources(request: Request) -> Resources:
    resources = request.manifest.ray
    if resources.num_gpus is not None:
        return resources
    return resources.model_copy(
        update={"num_gpus": 1.0 if request.device.startswith("cuda") else 0.0}
    )


def _threads(request: Request) -> int:
    """Torch threads a worker: the library's choice alone, an equal share of the cores together."""
    if request.workers == 1 or request.executor == "ray":
        return 0
    return max(1, (os.cpu_count() or 1) // request.workers)


class _Driver:
    """Feeds an executor and keeps the ledger."""

    def __init__(self, ledger: Ledger, plan: Plan, report: Report) -> None:
        self._ledger = ledger
        self._plan = plan
        self._report = report
        self._queue: deque[int] = deque()
        self._busy: set[int] = set()
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
            while self._queue or self._busy:
                while self._queue and executor.free():
                    self._submit(executor, self._queue.popleft())
                for outcome in executor.wait(_TICK):
                    self._handle(outcome)
                self._report("tick", {"running": len(self._busy)})
        finally:
            # Reached with busy shards only when the run is stopped: no fault of theirs.
            executor.close()
            for shard in sorted(self._busy):
                self._ledger.forget(shard)
            self._busy.clear()
        return self._later

    def _submit(self, executor: Executor, shard: int) -> None:
        self._busy.add(shard)
        attempt = self._ledger.start(shard, isolated=executor.isolated)
        executor.submit(shard, attempt)
        self._report("shard_started", {"shard": shard, "attempt": attempt})

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
            case Raised(fatal=fatal) if fatal is not None:
                raise fatal
            case Raised(shard, kind, message, trace):
                self._failed(shard, Failure(kind, message, trace))
            case Died(shard, reason):
                self._failed(shard, Failure("process died", reason))

    def _failed(self, shard: int, failure: Failure) -> None:
        self._busy.discard(shard)
        attempts = self._ledger.fail(shard, failure)
        start, stop = self._plan.rows_of(shard)
        self._report(
            "shard_quarantined" if attempts.quarantined else "shard_failed",
            {
                "shard": shard,
                "attempt": len(attempts.failures),
                "rows": [start, stop],
                "reason": f"{failure.kind}: {failure.message}",
            },
        )
        if attempts.quarantined:
            return
        if self._isolated:
            self._queue.append(shard)
        else:
            self._later.append(shard)


def _rows(plan: Plan, shard: int) -> int:
    start, stop = plan.rows_of(shard)
    return stop - start
