"""How often a shard is tried: what happened so far, what is tried next, when it is given up.

A shard that ends badly three times is searched by halves for the rows at fault; they are left out.
One that needs too much memory is tried with fewer rows at a time first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

MAX_FAILURES = 3
MAX_LOST = 10
"""Starts in a separate process whose driver died too. Usually somebody stopped the run, so they
count apart from failures; a shard that takes the whole machine down is still given up one day."""
MAX_CRASHED = 8
"""Rows of a shard that may be left out. More than that, and the rows are not what is wrong."""
ROW_TRIES = 2
"""How often a row alone must end badly, after every part of the shard around it did."""


@dataclass(frozen=True)
class Failure:
    """One attempt that ended badly. `memory`: for want of it."""

    kind: str
    message: str
    traceback: str = ""
    memory: bool = False


@dataclass(frozen=True)
class Attempts:
    """What happened to an unfinished shard so far. Written before the work starts."""

    shard: int
    failures: tuple[Failure, ...] = ()
    lost: int = 0
    running: str | None = None
    """`here`: in the driver's process; `apart`: in a process of its own; None: not started."""
    searched: bool = False
    """Whether the rows at fault were looked for, and failures before that are spent."""

    @property
    def memory_failures(self) -> int:
        return sum(failure.memory for failure in self.failures)

    @property
    def exhausted(self) -> bool:
        """No further attempt at the whole shard."""
        ordinary = len(self.failures) - self.memory_failures
        return ordinary >= MAX_FAILURES or self.memory_failures >= len(LADDER)

    @property
    def needs_search(self) -> bool:
        return self.exhausted and not self.searched and self.lost < MAX_LOST

    @property
    def quarantined(self) -> bool:
        return (self.exhausted and self.searched) or self.lost >= MAX_LOST

    @property
    def suspect(self) -> bool:
        """Ended badly before: run it last and in a process of its own."""
        return bool(self.failures or self.lost or self.searched)

    def settled(self) -> Attempts:
        """Account for a start that nobody reported about: the process of that run is dead."""
        if self.running == "here":
            died = Failure("process died", "the process that converted this shard died with it")
            return replace(self, failures=(*self.failures, died), running=None)
        if self.running == "apart":
            return replace(self, lost=self.lost + 1, running=None)
        return self


@dataclass(frozen=True)
class Portion:
    """How much of a shard is computed at a time. `step`: rows a call of the fitter.

    block_size: rows a block, where it differs from the plan's: that is a concession. Steps of whole
    blocks change no byte, because a row's result depends on the size of its block alone.
    """

    step: int
    block_size: int | None = None


LADDER = (64.0, 8.0, 1.0, 1 / 4, 1 / 16)
"""Steps in blocks, one for each attempt that ran out of memory. Below one block, blocks shrink.

The first is long because every call ends with blocks of few rows, those that start again."""


def portion(width: int, memory_failures: int) -> Portion:
    """What to try after so many failures for want of memory; width: rows of the plan's blocks."""
    share = LADDER[min(memory_failures, len(LADDER) - 1)]
    rows = max(1, int(width * share))
    return Portion(rows, rows if rows < width else None)


@dataclass
class Search:
    """Finds the rows of a shard that end badly, by halves, each part tried in a worker.

    The whole is not tried: it was.

    Both halves may be at fault; neither: the failure was no row's, or needed many together.
    """

    first: int
    stop: int
    found: dict[int, str] = field(default_factory=dict)
    """Row -> what happened to its process."""

    def __post_init__(self) -> None:
        self._parts = _halves(self.first, self.stop)
        self._tries = 0

    @property
    def part(self) -> tuple[int, int] | None:
        """Source rows to try now; None: the search is over."""
        return None if self.hopeless or not self._parts else self._parts[-1]

    @property
    def hopeless(self) -> bool:
        return len(self.found) > MAX_CRASHED

    def survived(self) -> None:
        self._tries = 0
        self._parts.pop()

    def ended_badly(self, reason: str) -> None:
        first, stop = self._parts[-1]
        self._tries += 1
        if stop - first == 1 and self._tries < ROW_TRIES:
            return
        self._tries = 0
        self._parts.pop()
        if stop - first == 1:
            self.found[first] = reason
            return
        self._parts += _halves(first, stop)


def _halves(first: int, stop: int) -> list[tuple[int, int]]:
    """The second, then the first, so that a stack gives the first; a row alone is its own half."""
    middle = (first + stop) // 2
    return [part for part in ((middle, stop), (first, middle)) if part[0] < part[1]]
