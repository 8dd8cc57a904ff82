"""Kills, full disks, signals, poison shards: the promises of docs/reliability.md.

Real processes and real signals. `make chaos` runs the random part longer; docs/reliability.md says
which test keeps which promise.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pipeline import open_dataset
from pipeline.dataset import Dataset
from tests.faults.chaos import chaos
from tests.faults.crash import dying_at, record_steps, run_in_child
from tests.faults.harness import (
    DAMAGES,
    FAULTY,
    PATIENCE,
    TRIVIAL,
    Bench,
    copy_code,
    damage,
    damageable,
    leftovers,
    make_bench,
    outcome,
    shard_digests,
    summary,
    tree,
    wait_for_calls,
    wait_for_row,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc of Linux")
SIGKILL = -signal.SIGKILL


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shard digests of an undisturbed run (plan as in `make_bench`, `FaultyFit`)."""
    bench = make_bench(tmp_path_factory.mktemp("reference") / "bench")
    assert bench.run().returncode == 0
    return shard_digests(bench.out)


def check_whole(bench: Bench, reference: dict[str, str]) -> None:
    assert shard_digests(bench.out) == reference
    assert summary(bench.out)["complete"]
    assert leftovers(bench.out) == []


def wait_until_gone(group: int) -> None:
    """Every process of a group has ended (multiprocessing's own tracker needs a moment)."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a child is left"
        time.sleep(0.02)


def test_random_kills_change_nothing(tmp_path: Path) -> None:
    """Promises P1 and P2; the long version is `make chaos`."""
    tally = chaos(tmp_path / "chaos", kills=4, seed=7, damages=1, rows=64)
    assert tally.good, tally
    assert (
        tally.kills == 4
        and sum(tally.damages.values()) >= 7
        and tally.completions >= 1
        and tally.looks > 50
    )


def test_dying_at_every_file_operation(tmp_path: Path) -> None:
    """Promises P1 and P2 without luck: SIGKILL before the n-th open, write, fsync, rename, ..."""
    bench = make_bench(tmp_path / "bench", rows=16)
    # here, so that the children inherit what a process reads and imports once
    assert bench.convert(directory=bench.root / "whole").ok
    whole = shard_digests(bench.root / "whole")
    step, deaths = 0, 0
    while True:
        step += 1 if step < 12 else 4
        ended = run_in_child(dying_at(step, bench.convert))
        found = shard_digests(bench.out) if (bench.out / "shards").exists() else {}
        assert found.items() <= whole.items(), f"a partial file after operation {step}"
        if ended == 0:
            break
        assert ended == SIGKILL
        deaths += 1
        assert run_in_child(bench.convert) == 0, f"no resume after operation {step}"
        check_whole(bench, whole)
        shutil.rmtree(bench.out)
    assert deaths > 15


def test_every_rename_comes_after_fsync_and_before_fsync_of_the_folder(tmp_path: Path) -> None:
    """Promise P2: the order that survives a power cut."""
    bench = make_bench(tmp_path / "bench", rows=16)
    steps = record_steps(bench.convert)
    renames = [index for index, (step, _) in enumerate(steps) if step == "replace"]
    assert len(renames) >= 6
    for index in renames:
        target = Path(steps[index][1])
        written = [path for step, path in steps[:index] if step == "write"][-1]
        assert Path(written).parent == target.parent and written.endswith(".tmp")
        assert steps[index - 1] == ("fsync", written)
        assert steps[index + 1 : index + 3] == [
            ("open", str(target.parent)),
            ("fsync", str(target.parent)),
        ]


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_the_kernel_sees_fsync_before_rename(tmp_path: Path) -> None:
    """Promise P2, by strace."""
    bench = make_bench(tmp_path / "bench", rows=8)
    log = tmp_path / "strace.txt"
    trace = "trace=openat,fsync,rename,renameat,renameat2"
    done = bench.cli(["strace", "-f", "-o", str(log), "-e", trace, *bench.command()])
    if "PTRACE" in done.stderr or not log.exists() or "rename" not in log.read_text():
        pytest.skip("ptrace is not allowed here")
    assert done.returncode == 0, done.stderr
    threads = list(_calls_by_thread(log.read_text()).values())
    renamed = 0
    for calls in threads:
        renames = [i for i, call in enumerate(calls) if call.startswith("rename")]
        for index in (i for i in renames if ".tmp" in calls[i]):
            renamed += 1
            assert calls[index - 1].startswith("fsync(") and calls[index - 1].endswith("= 0")
            assert "O_DIRECTORY" in calls[index + 1] and calls[index + 2].startswith("fsync(")
    assert renamed >= 4


def _calls_by_thread(log: str) -> dict[str, list[str]]:
    """Calls of each thread in order; one that strace shows in two lines is joined."""
    found: dict[str, list[str]] = {}
    for line in log.splitlines():
        thread, call = line.split(maxsplit=1)
        calls = found.setdefault(thread, [])
        if " resumed>" in call:
            calls[-1] = calls[-1].removesuffix("<unfinished ...>") + call.split(" resumed>", 1)[1]
        elif "(" in call:
            calls.append(call)
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_the_run_and_leave_no_process(
    tmp_path: Path, reference: dict[str, str], workers: str, number: int, code: int
) -> None:
    """Promise P17."""
    bench = make_bench(tmp_path / "bench")
    bench.order("slow-all", "0.3")
    bench.order("hold-56")  # the last shard: the signal comes in time, however late
    driver = bench.start("--workers", workers)
    wait_for_calls(bench, 2)
    os.killpg(driver.pid, number) if number == signal.SIGINT else driver.send_signal(number)
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == code, errors
    assert errors.splitlines()[-1].startswith("hmr-skel: ") and "Traceback" not in errors
    wait_until_gone(driver.pid)
    assert leftovers(bench.out) == []
    assert not list((bench.out / "attempts").iterdir()), "a stopped run is no fault of a shard"
    for order in ("slow-all", "hold-56"):
        (bench.faults / order).unlink()
    assert bench.run().returncode == 0
    check_whole(bench, reference)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shard digests of an undisturbed run of `small_bench`."""
    bench = small_bench(tmp_path_factory.mktemp("small") / "bench")
    assert bench.run().returncode == 0
    return shard_digests(bench.out)


def small_bench(root: Path, **changes: Any) -> Bench:
    """Four shards of four rows; where every poison row costs some deaths, few rows are enough."""
    return make_bench(root, 16, 4, bad_rows=(3,), **changes)


def crashed_rows(bench: Bench) -> list[int]:
    """Rows that the dataset says were left out; each is `rejected:crashed`, and nothing else is."""
    named = [row["row"] for item in summary(bench.out)["concessions"] for row in item["crashed"]]
    status = open_dataset(bench.out)["status"]
    assert np.flatnonzero(status == "rejected:crashed").tolist() == named
    return named


def is_verified(bench: Bench) -> bool:
    done = bench.cli([sys.executable, "-m", "tests.faults.cli", "verify", str(bench.out)])
    return done.returncode == 0


def whole_again(bench: Bench, reference: dict[str, str]) -> None:
    """What was conceded is cleared on request: the bytes of an undisturbed run."""
    for order in bench.faults.glob("*-*"):
        order.unlink()
    assert bench.run("--retry-failed").returncode == 0
    check_whole(bench, reference)
    assert not [*(bench.out / "failed").iterdir(), *(bench.out / "concessions").iterdir()]


def test_a_poison_row_costs_one_row(tmp_path: Path, small: dict[str, str]) -> None:
    """Promise P14: three attempts at the shard, then a search by halves; neighbours are kept, the
    dataset is complete; any rerun and any number of workers give the same bytes (P1, P3)."""
    bench = small_bench(tmp_path / "bench")
    for order in ("kill-6", "raise-9", "raise-11", "memory-14"):
        bench.order(order)
    done = bench.run("--workers", "2")
    assert done.returncode == 0, done.stderr
    calls = Counter(row for _, row, rows in bench.sizes() if rows > 2)
    assert calls[0] == 1, "the healthy shard"
    assert calls[4] == 3 + 1, "three attempts, then the shard without the row"
    found = summary(bench.out)
    assert found["complete"] and found["rejected"] == {"crashed": 4, "non_finite_pose": 1}
    assert crashed_rows(bench) == [6, 9, 11, 14]
    reasons = [row["reason"] for item in found["concessions"] for row in item["crashed"]]
    for reason, part in zip(reasons, ("SIGKILL", "row 9", "row 11", "MemoryError"), strict=True):
        assert part in reason
    for said in (done.stderr, done.stdout):
        assert "row 6 (shard 1)" in said and "row 14 (shard 3)" in said
    assert is_verified(bench)
    poisoned = shard_digests(bench.out)
    assert {name for name in poisoned if poisoned[name] == small[name]} == {"shard-00000.h5"}
    again = bench.run("--workers", "2")
    assert again.returncode == 0 and "0 converted now" in again.stdout
    (bench.out / "shards" / "shard-00001.h5").unlink()  # the record says what to leave out
    record = bench.out / "concessions" / "shard-00002.json"
    record.write_bytes(record.read_bytes().replace(b"11", b"10"))  # damaged: found again
    assert bench.run("--workers", "1").returncode == 0
    assert shard_digests(bench.out) == poisoned
    whole_again(bench, small)


def test_what_no_row_is_to_blame_for_is_given_up(tmp_path: Path, reference: dict[str, str]) -> None:
    """Promise P14: every row of a shard fails, so none is; exit 3, the others are done."""
    bench = make_bench(tmp_path / "bench", rows=60, shard_rows=12, bad_rows=())
    for row in range(12, 24):
        bench.order(f"raise-{row}")
    done = bench.run("--workers", "2")
    assert done.returncode == 3, done.stderr
    found = summary(bench.out)
    assert [item["shard"] for item in found["failed"]] == [1] and found["concessions"] == []
    assert "told to fail" in (bench.out / "failed" / "shard-00001.json").read_text()
    assert "more than 8" in done.stderr
    before = len(bench.calls())
    assert bench.run().returncode == 3 and len(bench.calls()) == before, "given up: it waits"
    for row in range(12, 24):
        (bench.faults / f"raise-{row}").unlink()
    assert bench.run("--retry-failed").returncode == 0 and summary(bench.out)["complete"]


def test_a_poison_row_in_process_is_counted_on_disk(tmp_path: Path, small: dict[str, str]) -> None:
    """Promise P14: it takes the driver with it once; then its shard runs apart, and last."""
    bench = small_bench(tmp_path / "bench")
    bench.order("kill-6")
    assert bench.run().returncode == SIGKILL
    assert len(list((bench.out / "attempts").iterdir())) == 1
    done = bench.run()
    assert done.returncode == 0, done.stderr
    calls = [row for _, row in bench.calls()]
    assert all(calls.count(row) == 1 for row in (0, 8, 12)) and calls[-1] == 4, "it comes last"
    assert crashed_rows(bench) == [6]
    whole_again(bench, small)


@pytest.mark.parametrize(("kind", "workers"), [("hang", "1"), ("stop", "2")])
def test_it_always_ends(tmp_path: Path, small: dict[str, str], kind: str, workers: str) -> None:
    """A row that never comes back, a worker that is stopped: seen by the lack of progress, counted,
    tried again, at last left out. Before, such a run waited for ever."""
    bench = small_bench(tmp_path / "bench", limits={"stall": 1.5})
    bench.order(f"{kind}-6")
    done = bench.run("--workers", workers)
    assert done.returncode == 0, done.stderr
    assert "no sign of life within 1.5 s" in done.stderr
    assert crashed_rows(bench) == [6]
    whole_again(bench, small)


def test_a_row_that_hangs_all_of_python_ends_the_run_once(
    tmp_path: Path, small: dict[str, str]
) -> None:
    """Native code that keeps the lock: no thread of the process can notice, a child does. The
    attempt is on record; Ctrl-Z is no hang."""
    bench = small_bench(tmp_path / "bench", limits={"stall": 2})
    bench.order("native-6")
    driver = bench.start()
    wait_for_calls(bench, 2)
    os.kill(driver.pid, signal.SIGSTOP)
    time.sleep(3)
    assert driver.poll() is None
    os.kill(driver.pid, signal.SIGCONT)
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == SIGKILL
    assert "native code kept Python from doing anything for 2 s" in errors
    assert errors.count("\n") <= 2
    wait_until_gone(driver.pid)
    (bench.faults / "native-6").unlink()
    done = bench.run()
    assert done.returncode == 0, done.stderr
    assert [row for _, row in bench.calls()][-1] == 4, "it comes last, in a process of its own"
    check_whole(bench, small)


@pytest.mark.parametrize(("order", "rows", "steps"), [("slow", 512, 8), ("signs", 64, 2)])
def test_slow_is_not_hung(tmp_path: Path, order: str, rows: int, steps: int) -> None:
    """Steps of a shard, and blocks within a step, are signs of life: it may take longer than the
    limit as a whole."""
    fit, limits = {"block_size": 1}, {"stall": 2.5}
    bench = make_bench(tmp_path / "bench", rows, rows // 2, fit=fit, limits=limits)
    bench.order(f"{order}-all", "0.8")
    done = bench.run("--workers", "2")
    assert done.returncode == 0 and "no sign of life" not in done.stderr
    assert len(bench.sizes()) == steps, "four steps a shard, or one"


def test_want_of_memory_is_told_from_poison(tmp_path: Path) -> None:
    """Fewer rows a call first, which changes no byte; then smaller blocks, which stand on record.

    Real allocations against a real limit of 1 GB.
    """
    bench = make_bench(tmp_path / "bench", rows=40, shard_rows=20, fit={"block_size": 8})
    assert bench.run(out=bench.root / "whole").returncode == 0
    whole = shard_digests(bench.root / "whole")
    bench.order("greedy-25", "80")  # 12 rows fit
    done = bench.run("--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "MemoryError" in done.stderr and summary(bench.out)["concessions"] == []
    assert shard_digests(bench.out) == whole
    shutil.rmtree(bench.out)
    bench.order("greedy-25", "300")  # 2 rows fit
    done = bench.run("--workers", "2")
    assert done.returncode == 0, done.stderr
    assert summary(bench.out)["concessions"] == [{"shard": 1, "block_size": 2, "crashed": []}]
    smaller = shard_digests(bench.out)
    assert smaller["shard-00000.h5"] == whole["shard-00000.h5"] and smaller != whole
    assert is_verified(bench)
    (bench.out / "shards" / "shard-00001.h5").unlink()
    (bench.faults / "greedy-25").unlink()
    assert bench.run().returncode == 0
    assert shard_digests(bench.out) == smaller, "what was conceded stays until --retry-failed"
    assert bench.run("--retry-failed").returncode == 0 and shard_digests(bench.out) == whole


def test_a_killed_driver_does_not_condemn_healthy_shards(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    """Five kills in the same shard: the run's end is not held against it."""
    bench = make_bench(tmp_path / "bench")
    bench.order("hold-24")
    for _ in range(5):
        before = len(bench.calls())
        driver = bench.start("--shards", "3")
        wait_for_calls(bench, before + 1)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
    (bench.faults / "hold-24").unlink()
    assert bench.run().returncode == 0
    check_whole(bench, reference)


def test_a_killed_driver_takes_its_workers_along(tmp_path: Path, reference: dict[str, str]) -> None:
    """Promise P15, locally: workers in the middle of a minute's work die too; a restart is safe."""
    bench = make_bench(tmp_path / "bench")
    bench.order("slow-all", "60")
    driver = bench.start("--workers", "2")
    wait_for_calls(bench, 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (bench.faults / "slow-all").unlink()
    assert bench.run("--workers", "2").returncode == 0
    wait_until_gone(driver.pid)
    check_whole(bench, reference)
    driver.communicate()


def test_a_worker_with_other_code_writes_nothing(tmp_path: Path, reference: dict[str, str]) -> None:
    """One run, one code: a worker that starts after an edit refuses; before, its shards were mixed
    in, with exit 0."""
    bench = make_bench(tmp_path / "bench", code=copy_code(tmp_path / "code"))
    bench.order("hold-16")
    driver = bench.start("--workers", "2")
    worker = wait_for_row(bench, 16)
    edited = bench.code / "tests" / "faults" / "fitters.py"  # no part of the plan: may change
    edited.write_text(edited.read_text() + "\n# edited\n")
    edited = bench.code / "pipeline" / "columns.py"
    edited.write_text(edited.read_text() + "\n# edited\n")
    os.kill(worker, signal.SIGKILL)
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 4, errors
    last = errors.splitlines()[-1]
    assert last.startswith("hmr-skel: this worker") and "code.sha256" in last
    assert shard_digests(bench.out).items() <= reference.items()
    assert not summary_exists(bench), "no claim about a mixed dataset"
    assert bench.run().returncode == 4, "a rerun plans with the edited code"
    edited.write_text(edited.read_text().removesuffix("\n# edited\n"))
    (bench.faults / "hold-16").unlink()
    assert bench.run().returncode == 0
    check_whole(bench, reference)


def summary_exists(bench: Bench) -> bool:
    return (bench.out / "summary.json").exists()


def test_a_file_size_limit_ends_cleanly(tmp_path: Path, reference: dict[str, str]) -> None:
    """Promise P8 by RLIMIT_FSIZE: exit 74, path and bytes named, nothing partial."""
    bench = make_bench(tmp_path / "bench")
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "limited", *bench.command()]
    done = bench.cli(limited)
    assert done.returncode == 74, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "shard-00000.h5" in last and "bytes" in last and "Traceback" not in done.stderr
    assert leftovers(bench.out) == [] and shard_digests(bench.out) == {}
    assert not list((bench.out / "attempts").iterdir())
    assert bench.run().returncode == 0
    check_whole(bench, reference)


def test_a_full_disk_ends_cleanly(tmp_path: Path, reference: dict[str, str]) -> None:
    """Promise P8 on a 256 kB file system; needs the right to mount."""
    bench = make_bench(tmp_path / "bench")
    bench.out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(bench.out)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = bench.run("--workers", "2")
        assert done.returncode == 74, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "No space left" in last and "bytes" in last and str(bench.out) in last
        assert leftovers(bench.out) == []
        kept = shard_digests(bench.out)
        assert kept.items() <= reference.items()
        remount = ["mount", "-o", "remount,size=8m", str(bench.out)]
        subprocess.run(remount, check=True)
        assert bench.run().returncode == 0
        check_whole(bench, reference)
    finally:
        subprocess.run(["umount", str(bench.out)], check=True)


def test_shards_open_with_stock_h5py_alone(tmp_path: Path) -> None:
    """Promise P22."""
    bench = make_bench(tmp_path / "bench")
    bench.convert()
    links = tmp_path / "only"
    links.mkdir()
    for module in (h5py, np):
        package = Path(module.__file__).parent
        (links / package.name).symlink_to(package)
        for libraries in package.parent.glob(f"{package.name}.libs"):
            (links / libraries.name).symlink_to(libraries)
    script = (
        f"import sys; sys.path.insert(0, {str(links)!r})\n"
        "import h5py\n"
        f"f = h5py.File({str(bench.out / 'shards' / 'shard-00001.h5')!r})\n"
        "print(sum(f[name][()].shape[0] for name in f), len(f))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        env={"HDF5_PLUGIN_PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, columns = map(int, done.stdout.split())
    assert total == 8 * columns


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """3,000 rows in shards of 700: blocks of 256 and odd ends."""
    bench = make_bench(tmp_path_factory.mktemp("large") / "bench", 3000, 700)
    bench.convert()
    return bench


def read_rows(dataset: Dataset, start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: dataset.read(name, start, stop) for name in ("source_row", "gtkps", "imgname")}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_readers_agree(large: Bench, context: str) -> None:
    """Promise P23: two processes, a handle touched before they start; test_regressor_data.py has
    what the trainer makes of it."""
    dataset = open_dataset(large.out)
    parts = [(0, 1), (690, 1500), (1500, 3000), (0, 3000)]
    expected = {name: dataset[name] for name in read_rows(dataset, 0, 0)}
    with multiprocessing.get_context(context).Pool(2) as pool:
        found = pool.starmap(read_rows, [(dataset, *part) for part in parts])
    for (start, stop), columns in zip(parts, found, strict=True):
        for name, values in columns.items():
            assert values.tobytes() == expected[name][start:stop].tobytes(), name


def test_memory_does_not_grow_with_the_subset(tmp_path: Path) -> None:
    """Promise P21 at 10 times the rows; benchmarks/data_plane.py goes to 300,000."""
    peaks = []
    for rows in (1000, 10_000):
        bench = make_bench(tmp_path / str(rows), rows, 500)
        script = (
            "import sys, threading, time\nfrom pathlib import Path\n"
            "import tests.faults.fitters\nfrom stages import cli\n"
            "peak = 0\n"
            "def watch():\n"
            "    global peak\n"
            "    while True:\n"
            "        for line in Path('/proc/self/status').read_text().splitlines():\n"
            "            if line.startswith('RssAnon'): peak = max(peak, int(line.split()[1]))\n"
            "        time.sleep(0.005)\n"
            "threading.Thread(target=watch, daemon=True).start()\n"
            f"code = cli.run({bench.command('--quiet', '--workers', '1', fitter=TRIVIAL)[3:]!r})\n"
            "print('peak', peak); sys.exit(code)"
        )
        done = bench.cli([sys.executable, "-c", script])
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.rsplit("peak", 1)[1]))
    assert peaks[1] < 1.1 * peaks[0], peaks


def test_broken_sources_need_little_memory(tmp_path: Path) -> None:
    """Promise P9: a member that claims 1.6 PB is refused within 1 GB."""
    import zipfile

    bench = make_bench(tmp_path / "bench")
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (200000000000000,), }"
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    with zipfile.ZipFile(bench.labels, "a") as archive:
        archive.writestr("huge.npy", header + len(text).to_bytes(2, "little") + text + b"\0" * 64)
    limit = (1 << 30, 1 << 30)
    done = subprocess.run(
        bench.command(),
        env=bench.environment,
        cwd=bench.root,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1 and "huge" in done.stderr
    assert not bench.out.exists()


class AnyHistory(RuleBasedStateMachine):
    """Promise P25: runs of some shards, kills, damage, deletions, other worker counts."""

    whole: dict[str, bytes]
    root: Path
    count = 0

    @initialize()
    def begin(self) -> None:
        type(self).count += 1
        self.bench = Bench(self.root)
        shutil.rmtree(self.bench.out, ignore_errors=True)

    @rule(shards=st.sets(st.integers(0, 7), min_size=1, max_size=3))
    def run_some(self, shards: set[int]) -> None:
        ranges = tuple(range(shard, shard + 1) for shard in sorted(shards))
        assert run_in_child(lambda: self.bench.convert(shards=ranges, fitter=FAULTY)) == 0

    @rule(step=st.integers(1, 60))
    def die(self, step: int) -> None:
        work = dying_at(step, lambda: self.bench.convert(fitter=FAULTY))
        assert run_in_child(work) in (0, SIGKILL)

    @rule(which=st.integers(0, 30), kind=st.sampled_from(DAMAGES), place=st.integers(0, 2**20))
    def damage(self, which: int, kind: str, place: int) -> None:
        files = damageable(self.bench.out) if self.bench.out.exists() else []
        if not files:
            return
        path = files[which % len(files)]
        whole = path.read_bytes()
        damage(path, kind, place)
        if path.name == "plan.json":
            assert run_in_child(lambda: self.bench.convert(fitter=FAULTY)) in (0, 70)
            path.write_bytes(whole)

    @rule()
    def resume(self) -> None:
        assert run_in_child(lambda: self.bench.convert(fitter=FAULTY)) == 0

    @rule()
    def resume_with_two_workers(self) -> None:
        assert self.bench.run("--workers", "2").returncode == 0

    def teardown(self) -> None:
        for kind in ("shards", "receipts"):  # whatever came before, this is healed at once
            for path in [*self.bench.out.glob(f"{kind}/*.*")][:1]:
                damage(path, "flip", 4000)
        assert run_in_child(lambda: self.bench.convert(fitter=FAULTY)) == 0
        assert outcome(self.bench.out) == self.whole
        assert leftovers(self.bench.out) == []


def check_histories(root: Path, examples: int, steps: int, *orders: str) -> None:
    bench = make_bench(root)
    for order in orders:
        bench.order(order)
    os.environ["HMR_SKEL_FAULTS"] = str(bench.faults)
    # here, so that the children inherit what a process reads and imports once
    assert bench.convert(fitter=FAULTY, directory=root / "whole").ok
    whole = outcome(root / "whole")
    machine = type("Machine", (AnyHistory,), {"whole": whole, "root": root})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a shorter one takes hours
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_history_ends_well(tmp_path: Path) -> None:
    """Promise P25; `make chaos` runs 200 histories, with a poison row."""
    check_histories(tmp_path / "history", 6, 5)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_many_histories_end_well(tmp_path: Path) -> None:
    check_histories(tmp_path / "history", 200, 8, "raise-21")


def test_a_finished_run_in_a_process_touches_nothing(tmp_path: Path) -> None:
    """Promise P19."""
    bench = make_bench(tmp_path / "bench")
    bench.order("slow-all", "0")
    assert bench.run().returncode == 0
    before = tree(bench.out)
    calls = bench.calls()
    done = bench.run("--workers", "2")
    assert done.returncode == 0 and tree(bench.out) == before and bench.calls() == calls
