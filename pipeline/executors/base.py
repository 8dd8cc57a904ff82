"""What the driver loop needs from an executor."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.task import Receipt


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


def raised(shard: int, error: BaseException) -> Raised:
    """Describe an exception of a task so that it can cross a process boundary."""
    return Raised(
        shard=shard,
        kind=type(error).__name__,
        message=" ".join(str(error).split()) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        fatal=error.with_traceback(None) if isinstance(error, PipelineError) else None,
    )
