"""Break one protection at a time and see which test notices: `make mutants`.

    python -m tests.faults.mutants [--jobs 2] [--only NAME ...] [--timeout 100]

Each mutation of `mutations.py` is applied to a copy of the repository, where only the tests that it
names run; it is killed when one fails or hangs. First all of these tests run on the untouched copy,
where they must pass: a test that always fails kills nothing. Exit 1: a mutation survived.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.mutations import MUTATIONS, Mutation

REPOSITORY = Path(__file__).resolve().parents[2]
_MARK = "HMR_SKEL_MUTANT_OF"
"""In the environment of everything that a mutant starts: its copy of the repository."""
_SKIP = (".git", ".venv", "outputs", "build", "shared", "*.egg-info", ".mypy_cache", ".ruff_cache")
_BASELINE_SECONDS = 900.0


@dataclass(frozen=True)
class Verdict:
    """killed: the tests that failed, or that they hung; empty: it survived."""

    mutation: Mutation
    killed: str
    seconds: float


def copy_of_repository(place: Path) -> Path:
    """With its compiled kernels, which are valid for the copy as well."""
    return shutil.copytree(REPOSITORY, place, ignore=shutil.ignore_patterns(*_SKIP), symlinks=True)


def run_tests(copy: Path, tests: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Exit code of pytest (None: it hung and was ended) and what it said."""
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # of a mutant, which another of the same second would get
        "OMP_NUM_THREADS": "1",
        _MARK: str(copy),
    }
    temporary = copy.parent / f"{copy.name}-tmp"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider",
               "-o", "addopts=", f"--basetemp={temporary}", *tests]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=timeout)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # fixtures unmount and stop what they started
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
        return None, "hung"
    finally:
        _end_descendants(copy)
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _end_descendants(copy: Path) -> None:
    """Kill whatever the tests in this copy started and left, in whatever process group."""
    mark = f"{_MARK}={copy}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:  # gone, or another user's
            continue


def judge(copy: Path, mutation: Mutation, timeout: float) -> Verdict:
    """Apply, run, put back."""
    started = time.monotonic()
    saved = {edit.file: (copy / edit.file).read_bytes() for edit in mutation.edits}
    try:
        for edit in mutation.edits:
            path = copy / edit.file
            text = path.read_text()
            if text.count(edit.old) != 1:
                raise SystemExit(f"{mutation.name}: its text is not once in {edit.file}")
            path.write_text(text.replace(edit.old, edit.new))
        code, said = run_tests(copy, mutation.tests, timeout)
    finally:
        for file, content in saved.items():
            (copy / file).write_bytes(content)
            shutil.copystat(REPOSITORY / file, copy / file)  # its bytecode and kernels are valid
    return Verdict(mutation, _killer(code, said), time.monotonic() - started)


def _killer(code: int | None, said: str) -> str:
    if code is None:
        return "hang"
    if code == 0:
        return ""
    failed = [line.partition(" ")[2].partition(" - ")[0] for line in said.splitlines()
              if line.startswith(("FAILED ", "ERROR "))]  # fmt: skip
    return failed[0].removeprefix("tests/") if failed else f"pytest ended with {code}"


def check_untouched(copy: Path, mutations: Sequence[Mutation]) -> None:
    """All named tests pass where nothing is broken.

    Raises SystemExit with what they said.
    """
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    code, said = run_tests(copy, tests, _BASELINE_SECONDS)
    if code != 0:
        raise SystemExit(f"the tests do not pass on untouched code:\n{said[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="break one protection at a time")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="names of mutations, or parts")
    parser.add_argument("--timeout", type=float, default=100.0, help="seconds a mutation")
    parser.add_argument("--no-baseline", action="store_true")
    given = parser.parse_args()
    chosen = [m for m in MUTATIONS if not given.only or any(part in m.name for part in given.only)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [copy_of_repository(Path(folder) / f"copy{n}") for n in range(given.jobs)]
        if not given.no_baseline:
            check_untouched(copies[0], chosen)
            print(f"{len(chosen)} mutations; without any, all of their tests pass "
                  f"({time.monotonic() - started:.0f} s)", flush=True)  # fmt: skip
        verdicts = judge_all(copies, chosen, given.timeout)
    survivors = [verdict.mutation.name for verdict in verdicts if not verdict.killed]
    print(
        f"{len(verdicts)} mutations, {len(verdicts) - len(survivors)} killed, "
        f"{time.monotonic() - started:.0f} s; survived: {', '.join(survivors) or 'none'}"
    )
    return int(bool(survivors))


def judge_all(copies: Sequence[Path], chosen: Sequence[Mutation], timeout: float) -> list[Verdict]:
    """One mutation a copy at a time; the table grows as they end."""
    waiting: queue.SimpleQueue[Mutation] = queue.SimpleQueue()
    for mutation in chosen:
        waiting.put(mutation)
    verdicts: list[Verdict] = []
    failures: list[BaseException] = []

    def work(copy: Path) -> None:
        try:
            while not failures:
                verdict = judge(copy, waiting.get_nowait(), timeout)
                verdicts.append(verdict)
                mutation = verdict.mutation
                print(f"{mutation.name:<44} {mutation.promise:<4} {verdict.seconds:5.0f} s  "
                      f"{verdict.killed or 'SURVIVED'}", flush=True)  # fmt: skip
        except queue.Empty:
            return
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
