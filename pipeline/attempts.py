"""How often a shard is tried: what happened to it so far, and when it is given up."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_FAILURES = 3
MAX_LOST = 10
"""Starts in a separate process whose driver died too. Usually somebody stopped the run, so they
count apart from failures; a shard that takes the whole machine down is still given up one day."""


@dataclass(frozen=True)
class Failure:
    """One attempt that ended badly."""

    kind: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Attempts:
    """What happened to an unfinished shard so far. Written before the work starts."""

    shard: int
    failures: tuple[Failure, ...] = ()
    lost: int = 0
    running: str | None = None
    """`here`: in the driver's process; `apart`: in a process of its own; None: not started."""

    @property
    def quarantined(self) -> bool:
        return len(self.failures) >= MAX_FAILURES or self.lost >= MAX_LOST

    @property
    def suspect(self) -> bool:
        """Ended badly before: run it last and in a process of its own."""
        return bool(self.failures or self.lost)

    def settled(self) -> Attempts:
        """Account for a start that nobody reported about: the process of that run is dead."""
        if self.running == "here":
            died = Failure("process died", "the process that converted this shard died with it")
            return replace(self, failures=(*self.failures, died), running=None)
        if self.running == "apart":
            return replace(self, lost=self.lost + 1, running=None)
        return self
