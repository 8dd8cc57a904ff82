"""Executors on this machine: in a thread of this process, or in spawned worker processes.

`multiprocessing.Pool` waits for ever for a worker that was killed, so pipes and
process handles are watched here.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.children import die_with
from pipeline.executors.base import Body, Outcome
from pipeline.executors.pool import Answer, Lost, Pool, Worker
from pipeline.executors.watchdog import Watchdog
from pipeline.task import Beat, Job, Order

THREAD_NAME = "hmr-skel shard"
_GRACE = 5.0
"""Seconds that a thread gets to notice that the run was stopped."""
_LOOK = 0.1
_MEMORY_KILLS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))
_THREAD_VARIABLES = ("OMP_NUM_THREADS",)


class _Ended(BaseException):
    """Raised inside a thread that the driver no longer waits for."""


@dataclass
class _Thread:
    thread: threading.Thread
    orders: queue.SimpleQueue[Order]
    said: queue.SimpleQueue[Answer]
    ended: threading.Event


class InProcess(Pool[_Thread]):
    """One shard at a time in this process: no start-up cost, no further process.

    In a thread, so that a hung row cannot hang the driver. A thread cannot be killed: once one
    hung, this executor takes no more shards. Where a row hangs all of Python, a watchdog ends it.
    """

    isolated = False

    def __init__(self, job: Job) -> None:
        super().__init__(1, job.limits, start_timeout=job.limits.start)
        self._job = job
        self._hung_once = False
        self._watchdog = Watchdog()
        self.fill()

    def close(self) -> None:
        self._watchdog.close()
        super().close()

    @property
    def usable(self) -> bool:
        return not self._hung_once

    def start(self) -> _Thread:
        orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        said: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        ended = threading.Event()
        thread = threading.Thread(
            target=_work_here,
            args=(self._job, orders, said, ended, self._expect),
            name=THREAD_NAME,
            daemon=True,
        )
        thread.start()
        return _Thread(thread, orders, said, ended)

    def fill(self) -> None:
        if self.usable:
            super().fill()

    def _expect(self, beat: Beat | None) -> None:
        """Called by the thread itself: a moment later the driver may not get to say it."""
        self._watchdog.expect(math.inf if beat is None else self._patience.allowed(beat))

    def send(self, handle: _Thread, order: Order) -> None:
        handle.orders.put(order)

    def answers(
        self, workers: Sequence[Worker[_Thread]], timeout: float
    ) -> Iterator[tuple[Worker[_Thread], Answer]]:
        for worker in workers:
            with contextlib.suppress(queue.Empty):
                yield worker, worker.handle.said.get(timeout=timeout)
                while True:
                    yield worker, worker.handle.said.get_nowait()

    def stop(self, handles: Sequence[_Thread]) -> None:
        for handle in handles:
            handle.ended.set()
            if not self._hung_once:
                handle.thread.join(_GRACE)

    def _bury(self, worker: Worker[_Thread], lost: Lost) -> list[Outcome]:
        self._hung_once = True  # a thread that is alive cannot be lost otherwise
        return super()._bury(worker, lost)


def _work_here(
    job: Job,
    orders: queue.SimpleQueue[Order],
    said: queue.SimpleQueue[Answer],
    ended: threading.Event,
    expect: Callable[[Beat | None], None],
) -> None:
    """What the thread does. expect: told what is done next; None: nothing."""

    def say(beat: Beat) -> None:
        if ended.is_set():
            raise _Ended
        expect(beat)
        said.put(beat)

    body = Body(job, say)
    with contextlib.suppress(_Ended):
        failed = body.prepare()
        expect(None)
        said.put(failed)
        while failed is None and not ended.is_set():
            try:
                order = orders.get(timeout=_LOOK)
            except queue.Empty:
                continue
            answer = body.run(order)
            expect(None)
            said.put(answer)


def threads_left() -> bool:
    """Whether a hung shard still has a thread in this process, which then cannot end tidily."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


@dataclass(frozen=True)
class _Process:
    process: BaseProcess
    pipe: Connection
    memory_kills: int
    """How often this machine had killed for want of memory when the process began."""


class SpawnPool(Pool[_Process]):
    """Spawned processes of this machine."""

    def __init__(self, job: Job, workers: int) -> None:
        # Body models may come over a slow network; a worker that dies meanwhile is noticed at once.
        super().__init__(workers, job.limits, start_timeout=job.limits.start)
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
        return _Process(process, here, memory_kills())

    def send(self, handle: _Process, order: Order) -> None:
        with contextlib.suppress(OSError):
            handle.pipe.send(order)

    def answers(
        self, workers: Sequence[Worker[_Process]], timeout: float
    ) -> Iterator[tuple[Worker[_Process], Answer]]:
        # Only the pipe is watched: it reports the answer first and the end of the process after.
        ready = wait([worker.handle.pipe for worker in workers], timeout)
        for worker in workers:
            if worker.handle.pipe in ready:
                yield from ((worker, answer) for answer in _said(worker.handle))

    def stop(self, handles: Sequence[_Process]) -> None:
        for handle in handles:
            handle.process.kill()
        for handle in handles:
            handle.process.join()
            handle.pipe.close()


def _said(handle: _Process) -> Iterator[Answer]:
    """All that a process said since it was last listened to."""
    try:
        while handle.pipe.poll():
            yield handle.pipe.recv()
    except (EOFError, OSError):
        handle.process.join()
        code = handle.process.exitcode
        memory = code == -signal.SIGKILL and memory_kills() > handle.memory_kills
        yield Lost(_describe_exit(code, memory), memory)


def memory_kills() -> int:
    """How often the kernel killed a process for want of memory, here or in this container."""
    count = 0
    for path in _MEMORY_KILLS:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                count += int(value) if name == "oom_kill" else 0
    return count


def _serve(job: Job, pipe: Connection, driver: int) -> None:
    """What a worker process does."""
    die_with(driver)
    body = Body(job, pipe.send)
    failed = body.prepare()
    pipe.send(failed)
    while failed is None:
        try:
            order = pipe.recv()
        except EOFError:
            return
        pipe.send(body.run(order))


def _describe_exit(code: int | None, memory: bool) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (the machine ran out of memory)" if memory else ""
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
