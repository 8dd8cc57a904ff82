"""Ends a process in which Python itself stands still: native code that hangs and keeps the lock.

No thread of such a process can notice. So a small child waits for signs of life from a thread that
does nothing else; where they stay away for too long it kills its parent, whose start is on record
as an attempt: the next run tries that shard in a process of its own. Imports nothing of ours, since
the child runs this very file.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_TICK = 0.25
_ABSENCE = 5.0
"""Seconds for which nobody was looking that are not held against the parent."""


class Watchdog:
    """Watches this process until `close`."""

    def __init__(self) -> None:
        self._allowed = math.inf
        self._ended = threading.Event()
        self._writing = threading.Lock()
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._child.stdin is not None
        self._descriptor = self._child.stdin.fileno()
        os.set_blocking(self._descriptor, False)
        threading.Thread(target=self._live, daemon=True).start()

    def expect(self, allowed: float) -> None:
        """From now on so many seconds without a sign of life are too many."""
        self._allowed = allowed
        self._tell()

    def close(self) -> None:
        """Stop watching. Safe to call twice."""
        with self._writing:  # else a late sign could land in the next file of that number
            if self._ended.is_set():
                return
            self._ended.set()
        self._child.kill()
        with contextlib.suppress(OSError):
            self._child.communicate()

    def _live(self) -> None:
        while not self._ended.wait(_TICK):
            self._tell()

    def _tell(self) -> None:
        with self._writing, contextlib.suppress(OSError):  # it was stopped for long, or killed
            if not self._ended.is_set():
                os.write(self._descriptor, f"{self._allowed}\n".encode())


def watch(parent: int, stream: int) -> None:
    """What the child does; ends with the parent, whose end of the stream closes."""
    allowed, last = math.inf, time.monotonic()
    looked = last
    while True:
        ready, _, _ = select.select([stream], [], [], _TICK)
        now = time.monotonic()
        if ready:
            said = os.read(stream, 1 << 16)
            if not said:
                return
            allowed, last = float(said.split()[-1]), now
        if now - looked > _TICK + _ABSENCE or _is_stopped(parent):
            last = now
        looked = now
        if now - last > allowed:
            text = (
                f"hmr-skel: native code kept Python from doing anything for {allowed:.4g} s; the "
                "process was ended, the same command resumes and tries the shard in a process of "
                "its own\n"
            )
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, text.encode())
            os.kill(parent, signal.SIGKILL)
            return


def _is_stopped(process: int) -> bool:
    """By Ctrl-Z or a debugger; on systems without /proc nobody knows."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent sees to it
    watch(int(sys.argv[1]), 0)
