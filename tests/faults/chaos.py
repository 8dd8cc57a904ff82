"""Seeded fault injection on whole processes: `make chaos N=200`.

Each round starts a conversion in its own process group with a random number of workers, kills all
of it, the driver alone or one worker at a random moment, sometimes damages what is on disk, and
goes on until the conversion is done. A watcher reads every published shard every 20 ms. One row is
poison, so that there are records of what was left out.

When a round is done every byte that does not tell of its history is compared with an undisturbed
run. Then everything that a run consists of is damaged in turn, every kind of file: shards
within and outside their chunks of data, receipts, concessions, plan, summary, places, and the label
file. Readers refuse or answer the same; the next run heals it to the same bytes, or refuses and
changes nothing where the plan or the label file is what was damaged, until that is put back.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError, PipelineError, PlanMismatch, UsageError
from pipeline.provenance import sha256_bytes
from pipeline.seal import sealed_extents
from pipeline.verify import verify
from tests.faults.fitters import FAULTS_VARIABLE, FAULTY
from tests.faults.flips import answer, counts, values
from tests.faults.harness import (
    DAMAGES,
    Bench,
    damage,
    damageable,
    leftovers,
    make_bench,
    outcome,
    shard_digests,
)

ROWS, SHARD_ROWS, POISON = 128, 8, 43
INTERVAL = 0.02


@dataclass
class Tally:
    """What a chaos run did. From `mismatches` on all must stay 0.

    damages: by what was damaged; refusals: of readers, the others gave the same answer.
    """

    kills: int = 0
    damages: Counter[str] = field(default_factory=Counter)
    refusals: int = 0
    completions: int = 0
    looks: int = 0
    mismatches: int = 0
    leftovers: int = 0
    partial_files: int = 0
    failed_runs: int = 0
    wrong_answers: int = 0

    @property
    def good(self) -> bool:
        return not (
            self.mismatches
            or self.leftovers
            or self.partial_files
            or self.failed_runs
            or self.wrong_answers
        )


class Watcher:
    """Reads every final name over and over: whole, with the right content, or absent (P2)."""

    def __init__(self, directory: Path, expected: dict[str, str]) -> None:
        self._directory = directory / "shards"
        self._expected = expected
        self._damaged: set[str] = set()
        self._looking = threading.Lock()
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

    @contextmanager
    def excused(self, name: str) -> Iterator[None]:
        """This file is damaged on purpose in the block, and may look so until it is redone."""
        with self._looking:
            yield
            self._damaged.add(name)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            for path in self._directory.glob("*.h5"):
                with self._looking:
                    self._look(path)

    def _look(self, path: Path) -> None:
        try:
            found = sha256_bytes(path.read_bytes())
        except FileNotFoundError:
            return
        self.looks += 1
        if found == self._expected[path.name]:
            self._damaged.discard(path.name)
        elif path.name not in self._damaged:
            self.partial.append(path.name)


def chaos(root: Path, kills: int, seed: int, damages: int = 5, rows: int = ROWS) -> Tally:
    """Kill conversions `kills` times in all; in each round damage every kind of file `damages`
    times: each of `DAMAGES`, then flips within the chunks of shards. What happened."""
    generator = random.Random(seed)
    bench = make_bench(root, rows, SHARD_ROWS)
    bench.order("slow-all", "0.04")
    bench.order(f"raise-{POISON}")
    assert bench.run(out=root / "reference").returncode == 0
    expected = outcome(root / "reference")
    tally = Tally()
    while tally.kills < kills:
        with Watcher(bench.out, shard_digests(root / "reference")) as watcher:
            _until_done(bench, generator, tally, watcher, kills)
        tally.looks += watcher.looks
        tally.partial_files += len(watcher.partial)
        tally.completions += 1
        _compare(bench, tally, expected)
        with _orders(bench):
            held = values(bench.out)
            for number in range(damages):
                kind, data = DAMAGES[number % len(DAMAGES)], number >= len(DAMAGES)
                for path in _one_of_each(bench, generator):
                    _damage_whole(bench, path, (kind, data), generator, tally, expected, held)
            tally.mismatches += not verify(bench.out, data_root=bench.data, full=True).ok
        shutil.rmtree(bench.out)
    return tally


def _compare(bench: Bench, tally: Tally, expected: dict[str, bytes]) -> None:
    found = outcome(bench.out)
    other = sorted(n for n in expected.keys() | found if expected.get(n) != found.get(n))
    if other:
        print(f"not as in the undisturbed run: {', '.join(other)}", file=sys.stderr)
    tally.mismatches += len(other)
    tally.leftovers += len(leftovers(bench.out))


@contextmanager
def _orders(bench: Bench) -> Iterator[None]:
    """The fitter of this process obeys the orders of the bench, but does not sleep."""
    before = os.environ.get(FAULTS_VARIABLE)
    os.environ[FAULTS_VARIABLE] = str(bench.faults)
    bench.order("slow-all", "0")
    try:
        yield
    finally:
        bench.order("slow-all", "0.04")
        del os.environ[FAULTS_VARIABLE]
        if before is not None:
            os.environ[FAULTS_VARIABLE] = before


def _one_of_each(bench: Bench, generator: random.Random) -> list[Path]:
    """One file of every folder and every file at the top, in some order; the label file."""
    kinds: dict[Path, list[Path]] = {}
    for path in damageable(bench.out):
        kinds.setdefault(path if path.parent == bench.out else path.parent, []).append(path)
    chosen = [bench.labels, *(generator.choice(paths) for paths in kinds.values())]
    generator.shuffle(chosen)
    return chosen


def _damage_whole(
    bench: Bench,
    path: Path,
    how: tuple[str, bool],
    generator: random.Random,
    tally: Tally,
    expected: dict[str, bytes],
    held: bytes,
) -> None:
    """Damage a file of a finished dataset: read, convert, compare. held: all its values."""
    right, whole = held + counts(bench.out), path.read_bytes()
    what = _damage_somewhere(path, *how, generator)
    tally.damages[what] += 1
    damaged = _bytes(bench)
    try:
        if answer(bench.out) != right and path != bench.labels:
            tally.wrong_answers += 1
            print(f"another answer without an error: {what}", file=sys.stderr)
    except PipelineError:
        tally.refusals += 1
    try:
        bench.convert(fitter=FAULTY)
    except (InputError, PlanMismatch, UsageError) as error:
        if path not in (bench.labels, bench.out / "plan.json") or damaged != _bytes(bench):
            tally.failed_runs += 1
            print(f"{what}: {error}", file=sys.stderr)
        path.write_bytes(whole)
        bench.convert(fitter=FAULTY)
    if path == bench.labels:
        path.write_bytes(whole)  # a flip may be harmless to a zip archive
        os.utime(path)
        bench.convert(fitter=FAULTY)
    _compare(bench, tally, expected)


def _bytes(bench: Bench) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in damageable(bench.out)}


def _damage_somewhere(path: Path, kind: str, data: bool, generator: random.Random) -> str:
    """Damage a file; says what was done to which kind of file. data: flip within a chunk."""
    place = generator.getrandbits(48)
    what = path.name if path.parent.name in ("out", "data") else path.parent.name
    if path.suffix == ".h5" and kind == "flip":
        inside = [bit for start, stop in sealed_extents(path) for bit in range(8 * start, 8 * stop)]
        outside = sorted(set(range(8 * path.stat().st_size)) - set(inside))
        place = generator.choice(inside if data else outside)
        what = "shards, data" if data else "shards, metadata"
    damage(path, kind, place)
    return f"{what}: {kind}"


def _until_done(
    bench: Bench, generator: random.Random, tally: Tally, watcher: Watcher, kills: int
) -> None:
    retry: tuple[str, ...] = ()
    while True:
        workers = generator.choice([1, 1, 2])
        driver = bench.start("--workers", str(workers), "--quiet", *retry)
        if tally.kills < kills and _wait_for_work(bench, driver, generator):
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
        if generator.random() < 0.5:
            _damage_unfinished(bench, generator, tally, watcher)


def _wait_for_work(bench: Bench, driver: subprocess.Popen[str], generator: random.Random) -> bool:
    """Wait until some shards were begun, however fast the machine, and a little longer; one time in
    five for a while only, which may end before the work. False where the driver ended first."""
    more = generator.choice([0, 1, 2, 3, 5])
    begun = len(bench.calls()) + more
    while len(bench.calls()) < begun and driver.poll() is None:
        time.sleep(0.005)
    try:
        driver.wait(generator.uniform(0.0, 0.2 if more else 2.0))
    except subprocess.TimeoutExpired:
        return True
    return False


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


def _damage_unfinished(
    bench: Bench, generator: random.Random, tally: Tally, watcher: Watcher
) -> None:
    """Damage any file of a run that was killed, but its plan."""
    files = [path for path in damageable(bench.out) if path.name != "plan.json"]
    files = [path for path in files if not path.name.endswith(".tmp")]
    if not files:
        return
    path = generator.choice(files)
    kind, place = generator.choice(DAMAGES), generator.getrandbits(48)
    with watcher.excused(path.name):
        damage(path, kind, place)
    folder = path.parent.name if path.parent != bench.out else path.name
    tally.damages[f"{folder} of a killed run: {kind}"] += 1


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
    for what, count in sorted(tally.damages.items()):
        print(f"  damaged {what}: {count}")
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
