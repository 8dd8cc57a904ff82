"""Cost of everything around the fit: reader, executor, writer, plan, status, resume, reading back.

    python -m benchmarks.data_plane [--rows 1000000] [--fit-rate 20] [--json FILE]

Fakes nothing but the fit (elementwise functions of the pose) and the pictures. Each conversion runs
in a process of its own, whose CPU time and anonymous memory are watched. Prints Markdown with the
conditions; a tenth of the rows first; the 3 M column is the CPU time of the larger run, scaled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import open_dataset
from tests.faults.harness import REPOSITORY, TRIVIAL, Bench, label_columns, write_manifest

SHARD_ROWS = 8192
TRAINING_COLUMNS = ["skel_poses", "skel_betas", "skel_trans", "gtkps", "cam_int", "imgname"]


def make_source(root: Path, rows: int) -> Bench:
    bench = Bench(root)
    bench.data.mkdir(parents=True)
    bench.faults.mkdir()
    np.savez(bench.labels, **label_columns(rows))
    write_manifest(bench.manifest, SHARD_ROWS)
    return bench


def measured(bench: Bench, command: list[str]) -> dict[str, Any]:
    """Run a command; wall and CPU seconds, peak anonymous memory (MB) of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon"):
                        peak = max(peak, int(line.split()[1]))
            except OSError:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(errors)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - started, "cpu": cpu, "peak_mb": peak / 1024}


STEPS = {
    "plan": "plan (`--dry-run`: CRC and SHA-256 of the source)",
    "convert": "convert, trivial fit, 1 worker",
    "resume": "resume of a finished run (SHA-256 of all shards)",
    "status": "status",
    "verify": "verify (every byte, every row, a sample compared)",
    "report": "report",
    "export": "export --format hmr-skel-npz",
}


def figures(bench: Bench, rows: int) -> dict[str, Any]:
    """Every verb once, each in a process of its own, in the order in which a user meets them."""
    command = bench.command("--quiet", "--workers", "1", fitter=TRIVIAL)
    program = command[:3]
    out = str(bench.out)
    exported = bench.root / "exported.npz"
    steps = {
        "start": [*program, "--help"],
        "plan": [*command, "--dry-run"],
        "convert": command,
        "resume": command,
        "status": [*program, "status", out, "--json"],
        "verify": [*program, "verify", out, "--json", "--data-root", str(bench.data)],
        "report": [*program, "report", out],
        "export": [*program, "export", out, "--out", str(exported), "--keypoints3d", "none"],
    }
    found: dict[str, Any] = {"rows": rows}
    for name, step in steps.items():
        found[name] = measured(bench, step)
        took = found[name]
        print(
            f"{rows:,} rows, {name}: {took['cpu']:.1f} s CPU, {took['peak_mb']:.0f} MB",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    found["bytes"] = sum(path.stat().st_size for path in (bench.out / "shards").iterdir())
    found["source_bytes"] = bench.labels.stat().st_size
    exported.unlink()
    return found


def reading_figures(directory: Path, batch: int = 64) -> dict[str, float]:
    """Rows per CPU-second: columns into memory, then random batches of them."""
    dataset = open_dataset(directory)
    started = time.process_time()
    columns = {name: dataset[name] for name in TRAINING_COLUMNS}
    load = time.process_time() - started
    order = np.random.default_rng(0).permutation(len(dataset))
    started = time.process_time()
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        for values in columns.values():
            values[chosen]
    memory = time.process_time() - started
    return {
        "load_rows_per_cpu_s": len(dataset) / load,
        "memory_rows_per_cpu_s": len(order) / memory,
    }


def markdown(found: dict[str, Any]) -> str:
    small, large = found["small"], found["large"]
    factor = 3_000_000 / large["rows"]

    def line(key: str) -> str:
        one, other = small[key], large[key]
        return (
            f"| {STEPS[key]} | {one['cpu']:.1f} s | {one['peak_mb']:.0f} MB | "
            f"{other['cpu']:.1f} s | {other['peak_mb']:.0f} MB | {other['wall']:.0f} s | "
            f"{other['cpu'] * factor:.0f} s |"
        )

    growth = large["convert"]["peak_mb"] / small["convert"]["peak_mb"] - 1
    rate = large["rows"] / large["convert"]["cpu"]
    plane, fit = 1 / rate, 1 / found["fit_rate"]
    read = found["reading"]
    return "\n".join(
        [
            f"Conditions: {found['conditions']}",
            "",
            f"| | {small['rows']:,} rows: CPU | peak memory | {large['rows']:,} rows: CPU | "
            "peak memory | wall | 3 M rows: CPU, extrapolated |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(line(key) for key in STEPS),
            "",
            f"- reader + executor + writer: {rate:,.0f} rows per CPU-second; "
            f"{large['source_bytes'] / 1e6:.0f} MB in, {large['bytes'] / 1e6:.0f} MB out",
            f"- peak anonymous memory of the worker: {small['convert']['peak_mb']:.0f} MB and "
            f"{large['convert']['peak_mb']:.0f} MB ({growth:+.1%}; bar +10 %)",
            f"- share of the time that is not the fit, at {found['fit_rate']:g} fitted rows per "
            f"CPU-second: {plane / (plane + fit):.2%} (bar 10 %)",
            f"- reading back: {read['memory_rows_per_cpu_s']:,.0f} rows per CPU-second from memory "
            f"(bar 200,000), loading {read['load_rows_per_cpu_s']:,.0f}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="benchmark the data plane")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--fit-rate", type=float, default=20.0, help="fitted rows per CPU-second")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data-plane-") as folder:
        root = Path(folder)
        small_rows = arguments.rows // 10
        small = figures(make_source(root / "small", small_rows), small_rows)
        bench = make_source(root / "large", arguments.rows)
        large = figures(bench, arguments.rows)
        reading = reading_figures(bench.out)
    found = {
        "conditions": (
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
            f"numpy {np.__version__}, data in the page cache"
        ),
        "small": small,
        "large": large,
        "reading": reading,
        "fit_rate": arguments.fit_rate,
    }
    print(markdown(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
