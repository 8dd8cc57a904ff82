"""Seeded fault injection on whole processes: `make chaos N=200`.

Each round starts a conversion in its own process group with a random number of workers, kills all
of it, the driver alone or one worker at a random moment, sometimes damages what is on disk, and
goes on until the conversion is done. A watcher reads every published shard every 20 ms.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.provenance import sha256_bytes
from tests.faults.harness import Bench, leftovers, make_bench, shard_digests, summary

ROWS, SHARD_ROWS = 128, 8
INTERVAL = 0.02


@dataclass
class Tally:
    """What a chaos run did. `mismatches` and `leftovers` must stay 0."""

    kills: int = 0
    damages: int = 0
    completions: int = 0
    mismatches: int = 0
    leftovers: int = 0
    partial_files: int = 0
    failed_runs: int = 0
    looks: int = 0

    @property
    def good(self) -> bool:
        return not (self.mismatches or self.leftovers or self.partial_files or self.failed_runs)


class Watcher:
    """Reads every final name over and over: whole, with the right content, or absent (P2)."""

    def __init__(self, directory: Path, expected: dict[str, str]) -> None:
        self._directory = directory / "shards"
        self._expected = expected
        self._damaged: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.partial: list[str] = []
        self.looks = 0

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def excuse(self, names: set[str]) -> None:
        """These were damaged on purpose and may look so until they are redone."""
        self._damaged |= names

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            for path in self._directory.glob("*.h5"):
                try:
                    found = sha256_bytes(path.read_bytes())
                except FileNotFoundError:
                    continue
                self.looks += 1
                if found == self._expected[path.name]:
                    self._damaged.discard(path.name)
                elif path.name not in self._damaged:
                    self.partial.append(path.name)


def chaos(root: Path, kills: int, seed: int) -> Tally:
    """Kill conversions `kills` times in all; returns what happened."""
    generator = random.Random(seed)
    bench = make_bench(root, ROWS, SHARD_ROWS)
    bench.order("slow-all", "0.04")
    assert bench.run(out=root / "reference").returncode == 0
    expected = shard_digests(root / "reference")
    digest = summary(root / "reference")["digest"]
    tally = Tally()
    while tally.kills < kills:
        with Watcher(bench.out, expected) as watcher:
            _until_done(bench, generator, tally, watcher, kills)
        tally.looks += watcher.looks
        tally.partial_files += len(watcher.partial)
        tally.completions += 1
        same = shard_digests(bench.out) == expected and summary(bench.out)["digest"] == digest
        tally.mismatches += not same
        tally.leftovers += len(leftovers(bench.out))
        shutil.rmtree(bench.out)
    return tally


def _until_done(
    bench: Bench, generator: random.Random, tally: Tally, watcher: Watcher, kills: int
) -> None:
    retry: tuple[str, ...] = ()
    while True:
        workers = generator.choice([1, 1, 2])
        driver = bench.start("--workers", str(workers), "--quiet", *retry)
        if tally.kills < kills:
            # Long enough to get past the start, short enough to hit the work.
            delay = generator.uniform(0.3, 2.2)
            try:
                driver.wait(delay)
            except Exception:  # still running: subprocess.TimeoutExpired
                _kill(driver.pid, generator)
                tally.kills += 1
        try:
            _, errors = driver.communicate(timeout=120)
        finally:
            _kill_group(driver.pid)
        if driver.returncode == 0:
            return
        if driver.returncode not in (-signal.SIGKILL, 3):
            tally.failed_runs += 1
            print(f"exit {driver.returncode}: {errors}", file=sys.stderr)
            return
        # A shard whose worker we killed three times is given up, rightly.
        retry = ("--retry-failed",) if driver.returncode == 3 else ()
        if generator.random() < 0.3:
            watcher.excuse(_damage(bench, generator))
            tally.damages += 1


def _kill(driver: int, generator: random.Random) -> None:
    """Kill the whole group, the driver alone, or one of its workers."""
    aim = generator.choice(["group", "group", "driver", "worker"])
    children = _children(driver)
    if aim == "worker" and children:
        _kill_one(generator.choice(children))
    elif aim == "driver":
        _kill_one(driver)
    else:
        _kill_group(driver)


def _damage(bench: Bench, generator: random.Random) -> set[str]:
    """Flip a bit, cut, empty or delete a random published file; names of damaged shards."""
    files = sorted([*bench.out.glob("shards/*.h5"), *bench.out.glob("receipts/*.json")])
    if not files:
        return set()
    path = generator.choice(files)
    data = bytearray(path.read_bytes())
    kind = generator.choice(["flip", "cut", "empty", "delete"])
    if kind == "delete":
        path.unlink()
    else:
        if kind == "flip" and data:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes({"flip": data, "cut": data[:-1], "empty": b""}[kind])
    return {path.name} if path.suffix == ".h5" else set()


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def _kill_one(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> int:
    parser = argparse.ArgumentParser(description="kill conversions at random and compare digests")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = chaos(Path(folder) / "bench", arguments.kills, arguments.seed)
    print(f"seed {arguments.seed}: {tally}, {time.monotonic() - started:.0f} s")
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
