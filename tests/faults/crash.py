"""Dying at a chosen system call, in a forked child: cheap enough to try every one of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = ("open", "write", "fsync", "close")
PATH_STEPS = ("replace", "unlink", "mkdir")


def run_in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked child; its exit code (0 fine, 70 an exception), or -signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(70)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def dying_at(step: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """`work`, but SIGKILL arrives just before its `step`-th open, write, fsync, rename, ...

    Call it in a child only: it patches `os`.
    """

    def patched() -> Any:
        count = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        for name in PATH_STEPS:
            setattr(Path, name, counted(getattr(Path, name)))
        return work()

    return patched


def record_steps(work: Callable[[], Any]) -> list[tuple[str, str]]:
    """(step, path) of every file operation of `work`, in this process, in order."""
    steps: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    saved = {name: getattr(os, name) for name in STEPS}
    saved_replace = Path.replace

    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = saved["open"](path, *arguments, **options)
        names[descriptor] = os.fspath(path)
        steps.append(("open", names[descriptor]))
        return descriptor

    def on_descriptor(name: str) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            if descriptor in names:
                steps.append((name, names[descriptor]))
            return saved[name](descriptor, *arguments)

        return call

    def replaced(self: Path, target: Any) -> Path:
        steps.append(("replace", os.fspath(target)))
        return saved_replace(self, target)

    os.open = opened  # type: ignore[assignment]
    for name in ("write", "fsync"):
        setattr(os, name, on_descriptor(name))
    Path.replace = replaced  # type: ignore[method-assign]
    try:
        work()
    finally:
        for name, original in saved.items():
            setattr(os, name, original)
        Path.replace = saved_replace  # type: ignore[method-assign]
    return steps
