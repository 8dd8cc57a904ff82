"""Cost of everything around the fit: reader, executor, writer, plan, status, resume, reading back.

    python -m benchmarks.data_plane [--rows 300000] [--fit-rate 20] [--json FILE]

Fakes nothing but the fit (elementwise functions of the pose) and the pictures. Each conversion runs
in a process of its own, whose CPU time and anonymous memory are watched. Prints Markdown with the
conditions; the 3 M column is the 300,000-row figure times ten, shown as such.
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


def convert_figures(bench: Bench, rows: int) -> dict[str, Any]:
    """Dry run (plan), conversion, rerun (resume check), status."""
    command = bench.command("--quiet", fitter=TRIVIAL)
    status = [sys.executable, "-m", "tests.faults.cli", "status", str(bench.out), "--json"]
    start = measured(bench, [sys.executable, "-m", "stages.cli", "--help"])
    figures = {
        "rows": rows,
        "start": start,
        "plan": measured(bench, [*command, "--dry-run"]),
        "convert": measured(bench, command),
        "resume_check": measured(bench, command),
        "status": measured(bench, status),
    }
    figures["bytes"] = sum(path.stat().st_size for path in (bench.out / "shards").iterdir())
    figures["source_bytes"] = bench.labels.stat().st_size
    return figures


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

    def line(name: str, key: str, scale: bool = True) -> str:
        extrapolated = f"{large[key]['wall'] * factor:.0f} s" if scale else "-"
        return (
            f"| {name} | {small[key]['wall']:.1f} s | {large[key]['wall']:.1f} s | "
            f"{large[key]['cpu']:.1f} s | {extrapolated} |"
        )

    growth = large["convert"]["peak_mb"] / small["convert"]["peak_mb"] - 1
    rate = large["rows"] / large["convert"]["cpu"]
    plane = 1 / rate
    fit = 1 / found["fit_rate"]
    read = found["reading"]
    return "\n".join(
        [
            f"Conditions: {found['conditions']}",
            "",
            f"| | {small['rows']:,} rows | {large['rows']:,} rows | CPU | 3 M rows, extrapolated |",
            "| --- | --- | --- | --- | --- |",
            line("plan (`--dry-run`: CRC and SHA-256 of the source)", "plan"),
            line("convert, trivial fit, 1 worker", "convert"),
            line("resume check of a finished run (SHA-256 of all shards)", "resume_check"),
            line("status", "status"),
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
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--fit-rate", type=float, default=20.0, help="fitted rows per CPU-second")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data-plane-") as folder:
        root = Path(folder)
        small_rows = arguments.rows // 10
        small = convert_figures(make_source(root / "small", small_rows), small_rows)
        bench = make_source(root / "large", arguments.rows)
        large = convert_figures(bench, arguments.rows)
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
