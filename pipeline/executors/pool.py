"""Workers in processes of their own, here or on a cluster: who is ready, busy, dead, replaced."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.errors import PipelineError
from pipeline.executors.base import Died, Finished, Outcome, Raised

MAX_FAILED_STARTS = 3
START_TIMEOUT = 120.0
"""Seconds without any ready worker after which a run gives up."""

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class Lost:
    """A worker is gone without an answer."""

    reason: str


Answer = Finished | Raised | Lost | None
"""What a worker says: None when it is ready to work, then one answer a shard."""


@dataclass(eq=False)
class Worker(Generic[Handle]):
    """One worker as the driver sees it. `shard`: what it works on."""

    handle: Handle
    ready: bool = False
    shard: int | None = None


class Pool(ABC, Generic[Handle]):
    """`size` workers; one that dies is replaced and its shard reported as died.

    Work goes only to workers that said they are ready. Subclasses know how to start, ask and stop
    one; the first workers start with `fill`.
    """

    isolated = True
    where = "workers"
    advice = "rerun to resume"

    def __init__(self, size: int, start_timeout: float = START_TIMEOUT) -> None:
        self._size = size
        self._start_timeout = start_timeout
        self._workers: list[Worker[Handle]] = []
        self._failed_starts = 0
        self._last_alive = time.monotonic()

    @abstractmethod
    def start(self) -> Handle:
        """Start a worker; it answers None or `Raised` when it is prepared."""

    @abstractmethod
    def send(self, handle: Handle, shard: int, attempt: int) -> None:
        """Hand a shard to a ready worker; one that died just now is noticed by `answers`."""

    @abstractmethod
    def answers(
        self, workers: Sequence[Worker[Handle]], timeout: float
    ) -> Iterator[tuple[Worker[Handle], Answer]]:
        """What workers said since the last call."""

    @abstractmethod
    def stop(self, handles: Sequence[Handle]) -> None:
        """End workers now, dead ones included, and free what they hold."""

    def fill(self) -> None:
        """Start workers until there are `size`."""
        while len(self._workers) < self._size:
            self._workers.append(Worker(self.start()))

    def free(self) -> int:
        return sum(worker.ready and worker.shard is None for worker in self._workers)

    def submit(self, shard: int, attempt: int) -> None:
        worker = next(w for w in self._workers if w.ready and w.shard is None)
        worker.shard = shard
        self.send(worker.handle, shard, attempt)

    def wait(self, timeout: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for worker, answer in self.answers(tuple(self._workers), timeout):
            outcomes += self._heard(worker, answer)
        self.fill()
        self._check_alive()
        return outcomes

    def close(self) -> None:
        workers, self._workers = self._workers, []
        self.stop([worker.handle for worker in workers])

    def _heard(self, worker: Worker[Handle], answer: Answer) -> list[Outcome]:
        if isinstance(answer, Lost):
            return self._bury(worker, answer.reason)
        self._last_alive = time.monotonic()
        if answer is None:
            worker.ready = True
            self._failed_starts = 0
            return []
        if not worker.ready:
            assert isinstance(answer, Raised)
            raise answer.fatal or PipelineError(
                f"a worker cannot start: {answer.kind}: {answer.message}"
            )
        worker.shard = None
        return [answer]

    def _bury(self, worker: Worker[Handle], reason: str) -> list[Outcome]:
        self._workers.remove(worker)
        self.stop([worker.handle])
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise PipelineError(f"{self.where} die while starting: {reason}")
        return [] if worker.shard is None else [Died(worker.shard, reason)]

    def _check_alive(self) -> None:
        if any(worker.ready for worker in self._workers):
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > self._start_timeout:
            raise PipelineError(
                f"none of the {self.where} became ready within {self._start_timeout:.0f} s; "
                f"{self.advice}"
            )
