"""Ray actors: one shard a call, at most one call in flight each, receipts only.

Ray's own retries are off, because they hide how often a shard killed its process; we count. Facts
behind every choice: docs/reference/pipeline.md#ray. `ray` is imported by this module only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.errors import PipelineError, UsageError
from pipeline.executors.base import Died, Finished, Outcome, Raised, raised
from pipeline.manifest import Resources
from pipeline.task import Job, ShardWorker

_OBJECT_STORE_BYTES = 128 << 20
_MAX_FAILED_STARTS = 3
START_TIMEOUT = 120.0
"""Seconds without any ready actor after which a run gives up."""


class _ShardActor:
    """Body of an actor. Exceptions travel as values: a Ray error then means a lost process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: ShardWorker | None = None

    def prepare(self) -> Raised | None:
        try:
            self._worker = ShardWorker(self._job)
        except Exception as error:
            return raised(-1, error)
        return None

    def run(self, shard: int, attempt: int) -> Finished | Raised:
        assert self._worker is not None
        try:
            return Finished(self._worker.run(shard, attempt))
        except Exception as error:
            return raised(shard, error)


@dataclass(eq=False)
class _Actor:
    handle: Any
    call: Any
    ready: bool = False
    shard: int | None = None


@dataclass
class RayActors:
    """An executor of `workers` actors, each with `resources`.

    Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
        UsageError: no node can ever hold one actor.
    """

    job: Job
    workers: int
    resources: Resources
    isolated: bool = True
    start_timeout: float = START_TIMEOUT
    _actors: list[_Actor] = field(default_factory=list)
    _failed_starts: int = 0
    _started_ray: bool = False
    _last_alive: float = 0.0

    def __post_init__(self) -> None:
        self._connect()
        try:
            self._check_fits()
            self._class = ray.remote(
                max_restarts=0,
                max_task_retries=0,
                num_cpus=self.resources.num_cpus,
                num_gpus=self.resources.num_gpus or 0,
            )(_ShardActor)
            self._last_alive = time.monotonic()
            self._refill()
        except BaseException:
            self.close()
            raise

    def free(self) -> int:
        return sum(actor.ready and actor.shard is None for actor in self._actors)

    def submit(self, shard: int, attempt: int) -> None:
        actor = next(a for a in self._actors if a.ready and a.shard is None)
        actor.shard = shard
        actor.call = actor.handle.run.remote(shard, attempt)

    def wait(self, timeout: float) -> list[Outcome]:
        calls = {actor.call: actor for actor in self._actors if actor.call is not None}
        if calls:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        else:
            time.sleep(timeout)
            done = []
        outcomes: list[Outcome] = []
        for call in done:
            outcomes += self._collect(calls[call])
        self._refill()
        self._check_alive()
        return outcomes

    def close(self) -> None:
        for actor in self._actors:
            _kill(actor)
        self._actors = []
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        handler = signal.getsignal(signal.SIGTERM)
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                **({} if address else local),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"Ray at {address or 'this machine'}: {reason}") from error
        self._started_ray = True
        # Ray installs its own handler, which would end the driver with another exit code.
        if handler is not None:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, handler)

    def _check_fits(self) -> None:
        gpus = self.resources.num_gpus or 0
        if gpus > 1 and gpus != int(gpus):
            raise UsageError(f"ray.num_gpus is {gpus}: above 1 Ray takes whole GPUs only")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(
            node.get("CPU", 0) >= self.resources.num_cpus and node.get("GPU", 0) >= gpus
            for node in nodes
        ):
            have = "; ".join(
                f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
            )
            raise UsageError(
                f"no Ray node can hold one worker of {self.resources.num_cpus:g} CPUs and "
                f"{gpus:g} GPUs; the nodes have {have or 'nothing'}; change `ray:` in the manifest"
            )

    def _collect(self, actor: _Actor) -> list[Outcome]:
        call, actor.call = actor.call, None
        try:
            answer = ray.get(call)
        except OutOfMemoryError:  # not a RayActorError
            return self._bury(actor, "killed by Ray's memory monitor (out of memory)")
        except RayActorError as error:
            return self._bury(actor, f"the actor or its node is gone ({_last_line(error)})")
        except RayTaskError as error:
            return self._bury(actor, f"Ray could not run the task: {error.cause}")
        except RayError as error:
            return self._bury(actor, f"Ray: {type(error).__name__}")
        self._last_alive = time.monotonic()
        if actor.ready:
            actor.shard = None
            return [answer]
        if answer is not None:
            raise answer.fatal or PipelineError(
                f"a worker cannot start: {answer.kind}: {answer.message}"
            )
        actor.ready = True
        self._failed_starts = 0
        return []

    def _bury(self, actor: _Actor, reason: str) -> list[Outcome]:
        _kill(actor)
        self._actors.remove(actor)
        if not actor.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise PipelineError(f"Ray workers die while starting: {reason}")
        return [] if actor.shard is None else [Died(actor.shard, reason)]

    def _refill(self) -> None:
        while len(self._actors) < self.workers:
            handle = self._class.remote(self.job)
            # Work goes only to actors that answered: one without room stays pending for ever.
            self._actors.append(_Actor(handle, handle.prepare.remote()))

    def _check_alive(self) -> None:
        if any(actor.ready for actor in self._actors):
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > self.start_timeout:
            raise PipelineError(
                f"no Ray worker became ready within {self.start_timeout:.0f} s; "
                "see `ray status` for what the cluster lacks; rerun to resume"
            )


def _last_line(error: Exception) -> str:
    """The line that says why: Ray puts tracebacks and colours before it."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else type(error).__name__


def _kill(actor: _Actor) -> None:
    with contextlib.suppress(Exception):  # dead, or its node is: both are what we want
        ray.kill(actor.handle, no_restart=True)
