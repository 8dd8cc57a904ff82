"""This machine: in the driver's own process, or in spawned worker processes.

`multiprocessing.Pool` waits for ever for a worker that was killed, so the pool here watches pipes
and process handles itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline.errors import PipelineError
from pipeline.executors.base import Died, Finished, Outcome, Raised, raised
from pipeline.task import Job, ShardWorker

_MAX_FAILED_STARTS = 3
_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


class InProcess:
    """Runs one shard at a time here: no start-up cost, no further process."""

    isolated = False

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: ShardWorker | None = None
        self._submitted: tuple[int, int] | None = None

    def free(self) -> int:
        return 0 if self._submitted else 1

    def submit(self, shard: int, attempt: int) -> None:
        self._submitted = (shard, attempt)

    def wait(self, timeout: float) -> list[Outcome]:
        if self._submitted is None:
            return []
        if self._worker is None:
            self._worker = ShardWorker(self._job)
        (shard, attempt), self._submitted = self._submitted, None
        try:
            return [Finished(self._worker.run(shard, attempt))]
        except Exception as error:
            return [raised(shard, error)]

    def close(self) -> None:
        self._worker = None


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    shard: int | None = None


class SpawnPool:
    """`workers` spawned processes; one that dies is replaced, its shard is reported as died."""

    isolated = True

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._context = multiprocessing.get_context("spawn")
        self._size = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._refill()

    def free(self) -> int:
        return sum(worker.ready and worker.shard is None for worker in self._workers)

    def submit(self, shard: int, attempt: int) -> None:
        worker = next(w for w in self._workers if w.ready and w.shard is None)
        worker.shard = shard
        # A worker that died just now is noticed by wait().
        with contextlib.suppress(OSError):
            worker.pipe.send((shard, attempt))

    def wait(self, timeout: float) -> list[Outcome]:
        # Only the pipe is watched: it reports the answer first and the end of the process after.
        ready = wait([worker.pipe for worker in self._workers], timeout)
        outcomes: list[Outcome] = []
        for worker in [w for w in self._workers if w.pipe in ready]:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                outcomes += self._bury(worker)
            else:
                outcomes += self._answered(worker, message)
        self._refill()
        return outcomes

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    def _answered(self, worker: _Worker, message: object) -> list[Outcome]:
        if message == "ready":
            worker.ready = True
            self._failed_starts = 0
            return []
        if isinstance(message, Raised) and not worker.ready:
            raise message.fatal or PipelineError(
                f"a worker cannot start: {message.kind}: {message.message}"
            )
        worker.shard = None
        assert isinstance(message, Finished | Raised)
        return [message]

    def _bury(self, worker: _Worker) -> list[Outcome]:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        reason = _describe_exit(worker.process.exitcode)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise PipelineError(f"workers die while starting: {reason}")
        return [] if worker.shard is None else [Died(worker.shard, reason)]

    def _refill(self) -> None:
        while len(self._workers) < self._size:
            here, there = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(self._job, there, os.getpid()), daemon=True
            )
            with _threads(self._job.threads):
                process.start()
            there.close()
            self._workers.append(_Worker(process, here))


def _serve(job: Job, pipe: Connection, driver: int) -> None:
    """Body of a worker process."""
    _die_with(driver)
    # Ctrl-C reaches the whole group; the driver decides what happens to the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker = ShardWorker(job)
    except Exception as error:
        pipe.send(raised(-1, error))
        return
    pipe.send("ready")
    while True:
        try:
            shard, attempt = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(Finished(worker.run(shard, attempt)))
        except Exception as error:
            pipe.send(raised(shard, error))


def _die_with(driver: int) -> None:
    """Ask Linux to kill this process when the driver dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # it died before the call
        os._exit(1)


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"
    return f"the worker process ended with code {code}"


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Thread limits in the environment of a child: libraries read them when they are imported."""
    if not count:
        yield
        return
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
