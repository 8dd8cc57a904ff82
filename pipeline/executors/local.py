"""Executors on this machine: in this process, or in spawned worker processes.

`multiprocessing.Pool` waits for ever for a worker that was killed, so pipes and
process handles are watched here.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline.executors.base import Body, Outcome
from pipeline.executors.pool import Answer, Lost, Pool, Worker
from pipeline.task import Job

_PR_SET_PDEATHSIG = 1
# Body models may come over a slow network; a worker that dies meanwhile is noticed at once.
_START_TIMEOUT = 900.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


class InProcess:
    """Runs one shard at a time here: no start-up cost, no further process."""

    isolated = False

    def __init__(self, job: Job) -> None:
        self._body = Body(job)
        self._submitted: tuple[int, int] | None = None

    def free(self) -> int:
        return 0 if self._submitted else 1

    def submit(self, shard: int, attempt: int) -> None:
        self._submitted = (shard, attempt)

    def wait(self, timeout: float) -> list[Outcome]:
        if self._submitted is None:
            return []
        (shard, attempt), self._submitted = self._submitted, None
        return [self._body.run(shard, attempt)]

    def close(self) -> None:
        self._submitted = None


@dataclass(frozen=True)
class _Process:
    process: BaseProcess
    pipe: Connection


class SpawnPool(Pool[_Process]):
    """Spawned processes of this machine."""

    def __init__(self, job: Job, workers: int) -> None:
        super().__init__(workers, start_timeout=_START_TIMEOUT)
        self._job = job
        self._context = multiprocessing.get_context("spawn")
        self.fill()

    def start(self) -> _Process:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(self._job, there, os.getpid()), daemon=True
        )
        with _threads(self._job.threads):
            process.start()
        there.close()
        return _Process(process, here)

    def send(self, handle: _Process, shard: int, attempt: int) -> None:
        with contextlib.suppress(OSError):
            handle.pipe.send((shard, attempt))

    def answers(
        self, workers: Sequence[Worker[_Process]], timeout: float
    ) -> Iterator[tuple[Worker[_Process], Answer]]:
        # Only the pipe is watched: it reports the answer first and the end of the process after.
        ready = wait([worker.handle.pipe for worker in workers], timeout)
        for worker in workers:
            if worker.handle.pipe in ready:
                try:
                    yield worker, worker.handle.pipe.recv()
                except (EOFError, OSError):
                    worker.handle.process.join()
                    yield worker, Lost(_describe_exit(worker.handle.process.exitcode))

    def stop(self, handles: Sequence[_Process]) -> None:
        for handle in handles:
            handle.process.kill()
        for handle in handles:
            handle.process.join()
            handle.pipe.close()


def _serve(job: Job, pipe: Connection, driver: int) -> None:
    """What a worker process does."""
    _die_with(driver)
    # Ctrl-C reaches the whole group; the driver decides what happens to the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    body = Body(job)
    failed = body.prepare()
    pipe.send(failed)
    while failed is None:
        try:
            shard, attempt = pipe.recv()
        except EOFError:
            return
        pipe.send(body.run(shard, attempt))


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
