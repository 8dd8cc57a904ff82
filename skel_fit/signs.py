"""Signs of life: a long call shows whoever waits for it that it gets on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SAY: ContextVar[Callable[[], None] | None] = ContextVar("_SAY", default=None)


@contextmanager
def signs_of_life(say: Callable[[], None]) -> Iterator[None]:
    """Inside, `say` is called by this thread with every block of rows that is done. What it raises
    ends the call."""
    token = _SAY.set(say)
    try:
        yield
    finally:
        _SAY.reset(token)


def alive() -> None:
    """A sign of life, where somebody listens."""
    say = _SAY.get()
    if say is not None:
        say()
