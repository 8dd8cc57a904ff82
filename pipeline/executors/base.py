"""What the driver loop needs from an executor, and what a worker does wherever it runs."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.receipts import Receipt
from pipeline.task import Job, ShardWorker


@dataclass(frozen=True)
class Finished:
    """The shard is published."""

    receipt: Receipt


@dataclass(frozen=True)
class Raised:
    """The task raised. `fatal` is set when the reason lies outside the shard (disk full, ...)."""

    shard: int
    kind: str
    message: str
    traceback: str
    fatal: PipelineError | None = None


@dataclass(frozen=True)
class Died:
    """The process that ran the shard is gone without an answer."""

    shard: int
    reason: str


Outcome = Finished | Raised | Died


class Executor(Protocol):
    """Runs at most one shard a worker; the driver keeps the queue."""

    isolated: bool
    """Whether a shard that kills its process leaves the driver alive."""

    def free(self) -> int:
        """How many shards may be submitted now: workers that are ready and idle."""

    def submit(self, shard: int, attempt: int) -> None:
        """Hand a shard to an idle worker."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call; returns after `timeout` seconds at the latest.

        Raises:
            PipelineError: no worker can start, for a reason that a retry does not mend.
        """

    def close(self) -> None:
        """Stop all workers now; unfinished shards are abandoned. Safe to call twice."""


class Body:
    """A worker wherever it runs: exceptions become values, so a lost answer is a lost process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: ShardWorker | None = None

    def prepare(self) -> Raised | None:
        """Open source and models; None: ready."""
        try:
            self._worker = ShardWorker(self._job)
        except Exception as error:
            return _raised(-1, error)
        return None

    def run(self, shard: int, attempt: int) -> Finished | Raised:
        """Convert a shard; prepares itself first where nobody did."""
        try:
            if self._worker is None:
                self._worker = ShardWorker(self._job)
            return Finished(self._worker.run(shard, attempt))
        except Exception as error:
            return _raised(shard, error)


def _raised(shard: int, error: Exception) -> Raised:
    """Describe an exception of a task so that it can cross a process boundary."""
    return Raised(
        shard=shard,
        kind=type(error).__name__,
        message=" ".join(str(error).split()) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        fatal=error.with_traceback(None) if isinstance(error, PipelineError) else None,
    )
