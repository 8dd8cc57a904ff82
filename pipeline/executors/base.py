"""What the driver loop needs from an executor, and what a worker does wherever it runs."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.receipts import Receipt
from pipeline.task import Beat, Job, Order, Say, TaskWorker


@dataclass(frozen=True)
class Finished:
    """The shard is published."""

    receipt: Receipt


@dataclass(frozen=True)
class Survived:
    """Done, and there is no receipt: a part of a shard that was only tried, shapes of people."""

    shard: int


@dataclass(frozen=True)
class Raised:
    """The task raised. `fatal` is set when the reason lies outside the shard (disk full, ...)."""

    shard: int
    kind: str
    message: str
    traceback: str
    fatal: PipelineError | None = None
    memory: bool = False


@dataclass(frozen=True)
class Died:
    """The process that ran the shard is gone without an answer, or was ended because it hung."""

    shard: int
    reason: str
    memory: bool = False


Outcome = Finished | Survived | Raised | Died


class Executor(Protocol):
    """Runs at most one shard a worker; the driver keeps the queue."""

    isolated: bool
    """Whether a shard that kills its process leaves the driver alive."""

    @property
    def usable(self) -> bool:
        """False: it will never take a shard again."""

    def free(self) -> int:
        """How many shards may be submitted now: workers that are ready and idle."""

    def submit(self, order: Order) -> None:
        """Hand a shard to an idle worker."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call; returns after `timeout` seconds at the latest.

        Raises:
            PipelineError: no worker can start, for a reason that a retry does not mend.
        """

    def beats(self) -> list[Beat]:
        """What each worker said last."""

    def close(self) -> None:
        """Stop all workers now; unfinished shards are abandoned. Safe to call twice."""


class Body:
    """A worker wherever it runs: exceptions become values, so a lost answer is a lost process."""

    def __init__(self, job: Job, say: Say) -> None:
        self._job = job
        self._say = say
        self._worker: TaskWorker | None = None

    def prepare(self) -> Raised | None:
        """Open source and models; None: ready."""
        try:
            self._worker = self._job.open(self._say)
        except Exception as error:
            return _raised(-1, error)
        return None

    def run(self, order: Order) -> Finished | Survived | Raised:
        """Convert a shard, or try a part of it; after `prepare`."""
        assert self._worker is not None
        try:
            receipt = self._worker.run(order)
        except Exception as error:
            return _raised(order.shard, error)
        return Survived(order.shard) if receipt is None else Finished(receipt)


def _raised(shard: int, error: Exception) -> Raised:
    """Describe an exception of a task so that it can cross a process boundary."""
    return Raised(
        shard=shard,
        kind=type(error).__name__,
        message=" ".join(str(error).split()) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        fatal=error.with_traceback(None) if isinstance(error, PipelineError) else None,
        memory=_is_memory(error),
    )


def _is_memory(error: Exception) -> bool:
    """torch's errors are RuntimeErrors: of a class of its own on a GPU, with a text on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
