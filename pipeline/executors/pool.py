"""Workers that are watched, here or on a cluster: who is ready, busy, dead, hung, replaced."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.errors import PipelineError
from pipeline.executors.base import Died, Finished, Outcome, Raised, Survived
from pipeline.manifest import Limits
from pipeline.task import Beat, Order

MAX_FAILED_STARTS = 3
START_TIMEOUT = 120.0
"""Seconds without any ready worker after which a run gives up."""
_UNMEASURED = 600.0
"""Seconds that a step may take before the rate of this run is known."""
_LEAST = 60.0
_TIMES_SLOWER = 50.0
"""A step counts as hung when it takes so many times what the measured rate says, and a minute."""
_ABSENCE = 5.0
"""Seconds without a look at the workers that are not held against them: the driver was away."""

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class Lost:
    """A worker is gone without an answer. `memory`: for want of it."""

    reason: str
    memory: bool = False


Answer = Finished | Survived | Raised | Lost | Beat | None
"""What a worker says: signs of life; None when it is ready to work, then one answer an order."""


@dataclass(eq=False)
class Worker(Generic[Handle]):
    """One worker as the driver sees it. `order`: what it works on."""

    handle: Handle
    ready: bool = False
    order: Order | None = None
    beat: Beat | None = None
    since: float = field(default_factory=time.monotonic)
    """When it last got on with its work."""


class Patience:
    """How long a step may take without a sign of life: given, or from the rate of this run."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slowest = 0.0  # seconds a row

    def learn(self, step: int, seconds: float) -> None:
        """A step of so many rows was done."""
        if step:
            self._slowest = max(self._slowest, seconds / step)

    def allowed(self, beat: Beat | None) -> float:
        """Seconds for what a worker is doing."""
        if beat is None or beat.shard < 0:
            return self._limits.start
        if self._limits.stall is not None:
            return self._limits.stall
        if not self._slowest:
            return _UNMEASURED
        return max(_LEAST, _TIMES_SLOWER * self._slowest * max(beat.step, 1))


class Pool(ABC, Generic[Handle]):
    """`size` workers; one that dies or hangs is replaced and its shard reported as died.

    Work goes only to workers that said they are ready. Subclasses know how to start, ask and stop
    one; the first workers start with `fill`.
    """

    isolated = True
    where = "workers"
    advice = "rerun to resume"
    starts_at_once = True
    """Whether a worker runs as soon as it was started, and does not wait for room."""

    def __init__(self, size: int, limits: Limits, start_timeout: float = START_TIMEOUT) -> None:
        self._size = size
        self._patience = Patience(limits)
        self._start_timeout = start_timeout
        self._workers: list[Worker[Handle]] = []
        self._failed_starts = 0
        self._last_alive = self._last_look = time.monotonic()

    @abstractmethod
    def start(self) -> Handle:
        """Start a worker; it answers None or `Raised` when it is prepared."""

    @abstractmethod
    def send(self, handle: Handle, order: Order) -> None:
        """Hand an order to a ready worker; one that died just now is noticed by `answers`."""

    @abstractmethod
    def answers(
        self, workers: Sequence[Worker[Handle]], timeout: float
    ) -> Iterator[tuple[Worker[Handle], Answer]]:
        """What workers said since the last call."""

    @abstractmethod
    def stop(self, handles: Sequence[Handle]) -> None:
        """End workers now, dead and hung ones included, and free what they hold."""

    @property
    def usable(self) -> bool:
        return True

    def fill(self) -> None:
        """Start workers until there are `size`."""
        while len(self._workers) < self._size:
            self._workers.append(Worker(self.start()))

    def free(self) -> int:
        return sum(worker.ready and worker.order is None for worker in self._workers)

    def submit(self, order: Order) -> None:
        worker = next(w for w in self._workers if w.ready and w.order is None)
        worker.order, worker.beat = order, Beat(order.shard, "sent")
        worker.since = time.monotonic()
        self.send(worker.handle, order)

    def wait(self, timeout: float) -> list[Outcome]:
        self._forgive_absence(timeout)
        outcomes: list[Outcome] = []
        for worker, answer in self.answers(tuple(self._workers), timeout):
            outcomes += self._heard(worker, answer)
        outcomes += self._hung()
        self.fill()
        self._check_alive()
        return outcomes

    def beats(self) -> list[Beat]:
        return [
            worker.beat or Beat(-1, "starting")
            for worker in self._workers
            if worker.order is not None or not worker.ready
        ]

    def close(self) -> None:
        workers, self._workers = self._workers, []
        self.stop([worker.handle for worker in workers])

    def _heard(self, worker: Worker[Handle], answer: Answer) -> list[Outcome]:
        if worker not in self._workers:  # buried while it spoke
            return []
        if isinstance(answer, Beat):
            if worker.order is None or answer.shard == worker.order.shard:
                self._got_on(worker, answer)  # else it speaks of what it did before
            return []
        if isinstance(answer, Lost):
            return self._bury(worker, answer)
        worker.since = self._last_alive = time.monotonic()
        if answer is None:
            worker.ready, worker.beat = True, None
            self._failed_starts = 0
            return []
        if not worker.ready:
            assert isinstance(answer, Raised)
            raise answer.fatal or PipelineError(
                f"a worker cannot start: {answer.kind}: {answer.message}"
            )
        worker.order = worker.beat = None
        return [answer]

    def _got_on(self, worker: Worker[Handle], beat: Beat) -> None:
        if beat == worker.beat:
            return
        if beat.within and worker.beat is not None:
            worker.beat = beat
            return
        now = time.monotonic()
        if worker.beat is not None:
            self._patience.learn(worker.beat.step, now - worker.since)
        worker.beat, worker.since = beat, now

    def _hung(self) -> list[Outcome]:
        """Ends workers that did not get on with their work for too long."""
        outcomes: list[Outcome] = []
        now = time.monotonic()
        for worker in tuple(self._workers):
            waiting = worker.beat is None and not self.starts_at_once
            if waiting or (worker.ready and worker.order is None):
                continue
            allowed = self._patience.allowed(worker.beat)
            if now - worker.since > allowed:
                doing = worker.beat.doing if worker.beat else "starting"
                reason = f"it hung: no sign of life within {allowed:.4g} s while {doing}"
                outcomes += self._bury(worker, Lost(reason))
        return outcomes

    def _forgive_absence(self, timeout: float) -> None:
        """A driver that was stopped (Ctrl-Z) cannot say that its workers did nothing."""
        now = time.monotonic()
        away = now - self._last_look - timeout
        if away > _ABSENCE:
            for worker in self._workers:
                worker.since += away
            self._last_alive += away
        self._last_look = now

    def _bury(self, worker: Worker[Handle], lost: Lost) -> list[Outcome]:
        self._workers.remove(worker)
        self.stop([worker.handle])
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise PipelineError(f"{self.where} die while starting: {lost.reason}")
        if worker.order is None:
            return []
        return [Died(worker.order.shard, lost.reason, lost.memory)]

    def _check_alive(self) -> None:
        if any(worker.ready for worker in self._workers):
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > self._start_timeout:
            raise PipelineError(
                f"none of the {self.where} became ready within {self._start_timeout:.0f} s; "
                f"{self.advice}"
            )
