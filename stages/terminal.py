"""What every verb says: progress on stderr, tables on stdout.

Progress is a bar on a terminal; elsewhere a plain line at most every 30 seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from types import TracebackType
from typing import Any, TextIO

from stages.wording import duration, rate

_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (with what reverses a line), surrogates, unassigned."""
PLAIN_INTERVAL = 30.0
"""Seconds between progress lines where stderr is no terminal."""


class Progress:
    """How far a verb is, on stderr.

    Args:
        name: what is done, e.g. the subset.
        total: units of work in all; done: of them before this run, which rate and ETA leave out.
        unit: of work, plural.
        quiet: say nothing at all.
    """

    def __init__(
        self, name: str, total: int, unit: str, *, done: int = 0, quiet: bool = False
    ) -> None:
        self._name, self._unit, self._quiet = name, unit, quiet
        self.total = total
        self._first = self.done = done
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", unit_scale=True,
                             desc=name, smoothing=0, file=sys.stderr)  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def begin(self) -> None:
        """The work begins now: what came before counts for no rate, and the ETA settles sooner."""
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start_t = self._bar.last_print_t = time.time()

    def update(self, count: int = 1, note: str = "") -> None:
        """`count` units more are done (0: still at work; less: they have to be done again).

        note: what else to show.
        """
        self.done += count
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            if not count:
                self._bar.refresh()
        elif time.monotonic() - self._said >= PLAIN_INTERVAL:
            self._said = time.monotonic()
            self.say(self._line(note))

    @property
    def due(self) -> bool:
        """The next `update` would be seen: for notes that cost something to make."""
        late = time.monotonic() - self._said >= PLAIN_INTERVAL
        return not self._quiet and (self._bar is not None or late)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(printable(text), file=sys.stderr)
        else:
            say(text, file=sys.stderr)

    def close(self) -> None:
        """The work ended, well or not."""
        if self._bar is not None:
            self._bar.close()

    def summed_up(self) -> str:
        """What was done in all, and how fast."""
        seconds = time.monotonic() - self._began
        pace = (self.done - self._first) / max(seconds, 1e-9)
        done = f"{self.done} {self._unit} in {duration(seconds)}"
        return f"{self._name}: {done}, {rate(pace, self._unit)}"

    def _line(self, note: str) -> str:
        pace = (self.done - self._first) / max(self._said - self._began, 1e-9)
        left = (self.total - self.done) / pace if pace else None
        text = (
            f"{self._name}: {self.done} of {self.total} {self._unit}, "
            f"{rate(pace, self._unit)}, ETA {duration(left)}"
        )
        return f"{text}, {note}" if note else text


def printable(text: str) -> str:
    """Text as a terminal may show it: what would move the cursor, colour, name or turn the screen
    is spelled as an escape. Names in files are whatever their writers chose.
    """
    return "".join(
        char
        if char == "\n" or unicodedata.category(char) not in _UNPRINTABLE
        else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )


def say(text: object, file: TextIO | None = None) -> None:
    """Print a line, or lines, of any content."""
    print(printable(str(text)), file=file, flush=True)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Without what native code tells stderr meanwhile: remarks of libraries that are no news."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns of text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left, the others to the right; rows may differ in
    length.
    """
    columns = zip_longest(*rows, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on one line, keys in order."""
    print(json.dumps(values, sort_keys=True))
