"""Ray actors: one shard a call, at most one call in flight each, receipts only.

Ray's own retries are off, because they hide how often a shard killed its process; we count. Facts
behind every choice: docs/reference/pipeline.md#ray. `ray` is imported by this module only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.errors import UsageError
from pipeline.executors.base import Body, Finished, Raised, Survived
from pipeline.executors.pool import Answer, Lost, Pool, Worker
from pipeline.manifest import Resources
from pipeline.task import Beat, Job, Order

_OBJECT_STORE_BYTES = 128 << 20


_BEAT_EVERY = 0.5
"""Seconds between two questions to an actor how far it is."""


class _Speaker:
    """What an actor is: a worker that another of its threads can be asked about."""

    def __init__(self, job: Job) -> None:
        self._beat: Beat | None = None
        self._body = Body(job, self._note)

    def _note(self, beat: Beat) -> None:
        self._beat = beat

    def prepare(self) -> Raised | None:
        return self._body.prepare()

    def run(self, order: Order) -> Finished | Survived | Raised:
        return self._body.run(order)

    def beat(self) -> tuple[Beat | None, int]:
        """What is being done, and by which process."""
        return self._beat, os.getpid()


@dataclass
class _Actor:
    handle: Any
    call: Any
    question: Any = None
    asked: float = 0.0
    pid: int = 0
    node: str = ""


class RayActors(Pool[_Actor]):
    """Actors, each with `resources`.

    Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
        UsageError: no node can ever hold one actor.

    as_room_allows: at most `workers`, but no more than the nodes have room for.
    """

    where = "Ray workers"
    advice = "see `ray status` for what the cluster lacks; rerun to resume"
    starts_at_once = False

    def __init__(
        self, job: Job, workers: int, resources: Resources, as_room_allows: bool = False
    ) -> None:
        super().__init__(workers, job.limits)
        self._job = job
        self._resources = resources
        self._started_ray = False
        self._connect()
        try:
            room = self._room()
            if as_room_allows:
                self._size = min(workers, room)
            self._class: Any = ray.remote(
                max_restarts=0,
                max_task_retries=0,
                num_cpus=resources.num_cpus,
                num_gpus=resources.num_gpus or 0,
            )(_Speaker)
            self.fill()
        except BaseException:
            self.close()
            raise

    def start(self) -> _Actor:
        # Two threads: the work, and the question how far it is.
        handle = self._class.options(max_concurrency=2).remote(self._job)
        # An actor without room stays pending for ever: its answer says that it has some.
        return _Actor(handle, handle.prepare.remote())

    def send(self, handle: _Actor, order: Order) -> None:
        handle.call = handle.handle.run.remote(order)

    def answers(
        self, workers: Sequence[Worker[_Actor]], timeout: float
    ) -> Iterator[tuple[Worker[_Actor], Answer]]:
        calls = {w.handle.call: w for w in workers if w.handle.call is not None}
        yield from self._beats(workers)
        if not calls:
            time.sleep(timeout)
            return
        try:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        except SystemError as error:  # how what a signal handler raises leaves Ray's C code
            raise error.__cause__ or error from None
        for call in done:
            calls[call].handle.call = None
            yield calls[call], _answer(call)

    def _beats(self, workers: Sequence[Worker[_Actor]]) -> Iterator[tuple[Worker[_Actor], Answer]]:
        """Ask busy actors how far they are; whoever does not answer stays where it was."""
        for worker in workers:
            actor = worker.handle
            if actor.question is not None and ray.wait([actor.question], timeout=0)[0]:
                with contextlib.suppress(RayError):  # dead: its call says so
                    beat, actor.pid = ray.get(actor.question)
                    if beat is not None:
                        yield worker, beat
                actor.question = None
            busy = actor.call is not None and time.monotonic() - actor.asked > _BEAT_EVERY
            if busy and actor.question is None:
                actor.question, actor.asked = actor.handle.beat.remote(), time.monotonic()

    def stop(self, handles: Sequence[_Actor]) -> None:
        for actor in handles:
            with contextlib.suppress(Exception):  # dead, or its node is: both are what we want
                ray.kill(actor.handle, no_restart=True)

    def close(self) -> None:
        super().close()
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
                logging_level=logging.ERROR,
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

    def _room(self) -> int:
        """How many actors the cluster holds, if nothing else runs there; at least one, or an error.

        Raises:
            UsageError: no node can ever hold one.
        """
        cpus, gpus = self._resources.num_cpus, self._resources.num_gpus or 0
        if gpus > 1 and gpus != int(gpus):
            raise UsageError(f"ray.num_gpus is {gpus}: above 1 Ray takes whole GPUs only")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = 0
        for node in nodes:
            by_gpu = int(node.get("GPU", 0) / gpus) if gpus else None
            by_cpu = int(node.get("CPU", 0) / cpus)
            room += by_cpu if by_gpu is None else min(by_cpu, by_gpu)
        if room == 0:
            have = "; ".join(
                f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
            )
            raise UsageError(
                f"no Ray node can hold one worker of {cpus:g} CPUs and {gpus:g} GPUs; the nodes "
                f"have {have or 'nothing'}; change `ray:` in the manifest"
            )
        return room


def _answer(call: Any) -> Answer:
    try:
        return ray.get(call)
    except OutOfMemoryError:  # not a RayActorError
        return Lost("killed by Ray's memory monitor (out of memory)", memory=True)
    except RayActorError as error:
        return Lost(f"the actor or its node is gone ({_last_line(error)})")
    except RayTaskError as error:
        return Lost(f"Ray could not run the task: {error.cause}")
    except RayError as error:
        return Lost(f"Ray: {type(error).__name__}")


def _last_line(error: Exception) -> str:
    """The line that says why: Ray puts tracebacks and colours before it."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else type(error).__name__
