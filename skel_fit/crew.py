"""Blocks of rows over threads: a block is worked on by one thread from its beginning to its end.

So nothing waits inside a row, a thread that another process slows down holds up nobody but the
block it has, and no sum is ever split by the number of threads: bits do not depend on it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock, Thread
from typing import TypeVar

import torch

from skel_fit.signs import alive

Item = TypeVar("Item")
Found = TypeVar("Found")

_AHEAD = 4
"""Blocks a thread that may be finished before the results in front of them are taken."""


_THREADS: ContextVar[int] = ContextVar("_THREADS", default=0)


@contextmanager
def rows_over_threads() -> Iterator[None]:
    """Inside, `each` uses as many threads as torch was set to, and every matrix product one.

    Matrix libraries split long sums by the number of threads, which moves last bits. The setting
    belongs to the thread that makes it, and comes back at the end. Threads that begin while another
    is inside start with one. Autocast, which workers would not see, is off.
    """
    if _THREADS.get():  # inside already
        yield
        return
    count = torch.get_num_threads()
    token = _THREADS.set(count)
    _INSIDE.enter(count)
    torch.set_num_threads(1)
    try:
        with _no_autocast():
            yield
    finally:
        torch.set_num_threads(count)
        _INSIDE.leave(count)
        _THREADS.reset(token)


class _Inside:
    """Who is inside, of all threads: torch keeps the last number set for threads that are made
    later, so whoever leaves last puts back what the first one found."""

    def __init__(self) -> None:
        self._lock, self._people, self._found = Lock(), 0, 1

    def enter(self, count: int) -> None:
        with self._lock:
            if not self._people:
                self._found = count
            self._people += 1

    def leave(self, count: int) -> None:
        """After this thread has set its own number `count` again."""
        with self._lock:
            if not self._people:  # entered before a fork
                return
            self._people -= 1
            if self._people or count == self._found:
                return
        other = Thread(target=torch.set_num_threads, args=(self._found,))
        other.start()  # in a thread of its own: this one keeps its number
        other.join()


_INSIDE = _Inside()


@contextmanager
def _no_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def each(
    work: Callable[[Item], Found], items: Sequence[Item], device: torch.device
) -> Iterator[Found]:
    """The work on every item, results in the order of the items.

    On a CPU and inside `rows_over_threads` the items are taken by several threads, the next one by
    whoever is free; else one after the other by the caller. The first exception ends it. The caller
    gives a sign of life (`alive`) at the start and with every result.
    """
    alive()
    for found in _each(work, items, device):
        alive()
        yield found


def _each(
    work: Callable[[Item], Found], items: Sequence[Item], device: torch.device
) -> Iterator[Found]:
    threads = min(_THREADS.get(), len(items)) if device.type == "cpu" else 1
    if threads <= 1:
        yield from map(work, items)
        return
    inference = torch.is_inference_mode_enabled()
    grad = torch.is_grad_enabled()

    def run(item: Item) -> Found:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return work(item)

    pool, pending, process = _pool(_THREADS.get()), deque[Future[Found]](), os.getpid()
    try:
        for item in items:
            pending.append(pool.submit(run, item))
            if len(pending) > _AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        if os.getpid() == process:  # a forked one has none of the threads to wait for
            for left in pending:
                left.cancel()
            wait(pending)


_POOLS: dict[int, ThreadPoolExecutor] = {}
_MAKING = Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for blocks from one call to the next: to start them takes a tenth of the
    time that 32 skins take."""
    with _MAKING:
        if threads not in _POOLS:
            _POOLS[threads] = ThreadPoolExecutor(threads, "rows", lambda: torch.set_num_threads(1))
        return _POOLS[threads]


def _forget_threads() -> None:
    """In a forked process: the threads stayed behind."""
    global _MAKING, _INSIDE
    _MAKING, _INSIDE = Lock(), _Inside()
    _POOLS.clear()


os.register_at_fork(after_in_child=_forget_threads)
