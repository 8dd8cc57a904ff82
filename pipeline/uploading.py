"""Uploads beside a conversion: watched, tried again, and given up without holding it up.

One upload at a time, in a thread. A thread that hangs in a store's client cannot be stopped; it is
left behind, and the upload is tried again over a new connection.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.errors import OutputError
from pipeline.plan import Plan
from pipeline.rundir import RunDirectory
from pipeline.upload import Mirror

TRIES = 3
_LOOK = 0.05

Work = Callable[[Mirror], object]
Report = Callable[[str, dict[str, Any]], None]


class _Try:
    """One attempt at one upload. `last`: when it last got on."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.done = threading.Event()
        self.mirror: Mirror | None = None
        self.error: Exception | None = None

    def beat(self) -> None:
        self.last = time.monotonic()

    def run(self, connect: Callable[[], Mirror], work: Work) -> None:
        try:
            self.mirror = replace(connect(), beat=self.beat)
            work(self.mirror)
        except Exception as error:
            self.error = error
        finally:
            self.done.set()


class Uploads:
    """The uploads of one run, in order. `limit`: seconds without a byte after which one hangs."""

    def __init__(
        self, url: str, run: RunDirectory, plan: Plan, limit: float, report: Report
    ) -> None:
        """Connect, and claim the remote folder for this plan.

        Raises:
            PipelineError: as `Mirror.open`; OutputError also when it hangs.
        """
        self._open = lambda: Mirror.open(url, run, plan)
        self._url, self._limit, self._report = url, limit, report
        self._mirror: Mirror | None = None
        self._waiting: deque[tuple[str, Work]] = deque()
        self._try: _Try | None = None
        self._tries = 0
        self._given_up: OutputError | None = None
        self.put("the claim", lambda mirror: None)
        self.finish()

    def put(self, name: str, work: Work) -> None:
        """Queue an upload."""
        self._waiting.append((name, work))

    def following(self, report: Report) -> Report:
        """`report`, which also uploads each shard as soon as it is done."""

        def inner(event: str, data: dict[str, Any]) -> None:
            if event == "shard_done":
                shard = data["shard"]
                self.put(f"shard {shard}", lambda mirror: mirror.shard(shard))
            report(event, data)
            self.look()

        return inner

    def look(self) -> None:
        """See what became of the upload under way, and start the next."""
        if self._try is None:
            self._next()
        elif self._try.done.is_set():
            self._settle(self._try)
        elif time.monotonic() - self._try.last > self._limit:
            self._mirror = self._try = None  # left behind, with its connection
            self._failed(f"it hung: no sign of life within {self._limit:.4g} s")

    def finish(self) -> None:
        """Wait for what is queued.

        Raises:
            OutputError: an upload was given up; a rerun uploads what is missing.
        """
        while self._waiting and self._given_up is None:
            self.look()
            time.sleep(_LOOK)
        if self._given_up is not None:
            raise self._given_up

    def _next(self) -> None:
        if not self._waiting or self._given_up is not None:
            return
        self._try = _Try()
        known = self._mirror
        connect = self._open if known is None else lambda: known
        _, work = self._waiting[0]
        threading.Thread(target=self._try.run, args=(connect, work), daemon=True).start()

    def _settle(self, done: _Try) -> None:
        self._try = None
        if done.error is None:
            self._mirror, self._tries = done.mirror, 0
            self._waiting.popleft()
            self._next()
        elif isinstance(done.error, OutputError):
            self._mirror = None
            self._failed(str(done.error))
        else:
            raise done.error

    def _failed(self, reason: str) -> None:
        """Count an attempt; after the last one nothing more is uploaded in this run."""
        name, _ = self._waiting[0]
        self._tries += 1
        self._report("upload_failed", {"name": name, "attempt": self._tries, "reason": reason})
        if self._tries >= TRIES:
            self._given_up = OutputError(
                f"{self._url}: upload of {name} was given up after {TRIES} attempts: {reason}; "
                "what was converted is kept, rerun to upload what is missing"
            )
