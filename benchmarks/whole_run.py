"""What a whole conversion reaches of the solver's rate: reading, hashing, writing, starts.

    python -m benchmarks.whole_run [--rows 100000] [--pairs 3] [--workers N]

Each pair converts a generated subset in a process of its own (the stand-in bodies, the default fit,
as many workers as `--workers auto` takes) and fits the same rows by the solver alone (in memory,
loaded and compiled, all processors). The ratio of the two rates is taken within a pair, minutes
apart at most; the median over the pairs is reported, with the load. Kernels are compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import ROOT

_SOLVER = """
import json, sys, time
from pathlib import Path
import numpy as np
from pipeline.fitters import DEFAULT_FITTER, registered_fitter
from pipeline.readers import open_source
from skel_fit.default_body import default_body_directory
from skel_fit.recipe import FitRequest
source = open_source(Path(sys.argv[1]), format=None, data_root=Path(sys.argv[1]).parent,
                     smpl_gender="column", skel_gender="column")
rows = source.read(0, source.rows)
pairs = list(zip(rows.smpl_gender.tolist(), rows.skel_gender.tolist()))
factory, models = registered_fitter(DEFAULT_FITTER), Path(default_body_directory())
calibration = factory.calibration(models, set(pairs))
fitter = factory.open(models, "cpu", FitRequest(), calibration)
chosen = {pair: np.array([p == pair for p in pairs]) for pair in set(pairs)}
for pair, some in chosen.items():
    fitter.fit(pair, rows.poses[some][:64], rows.betas[some][:64], rows.transl[some][:64])
wall, cpu = time.perf_counter(), time.process_time()
for pair, some in chosen.items():
    fitter.fit(pair, rows.poses[some], rows.betas[some], rows.transl[some])
print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))
"""


@dataclass(frozen=True)
class Seconds:
    """Of one run: by the clock, and of all processors together."""

    wall: float
    cpu: float


def whole_run(root: Path, manifest: Path, out: Path, workers: str) -> Seconds:
    """A conversion from the command to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "stages.cli", "convert", str(manifest), "--out", str(out)),
            *("--data-root", str(root), "--workers", workers, "--quiet"),
        ],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(time.perf_counter() - started, cpu)


def solver_alone(labels: Path) -> Seconds:
    """The fit of the same rows, without anything around it."""
    done = subprocess.run(
        [sys.executable, "-c", _SOLVER, str(labels)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Seconds(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description="a whole conversion against the solver alone")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shard-rows", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", default="auto")
    arguments = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory(prefix="whole-run-") as folder:
        root = Path(folder)
        manifest = root / "whole.yaml"
        manifest.write_text(
            json.dumps(
                {
                    "name": "whole",
                    "source": {"generator": "demo", "path": "whole.npz", "rows": arguments.rows},
                    "genders": {"smpl": "column", "skel": "column"},
                    "models": "default-body",
                    "shard_rows": arguments.shard_rows,
                }
            )
        )
        # Generates the labels and compiles the kernels, which every later run finds made.
        first = ["--out", str(root / "first"), "--data-root", str(root), "--limit", "1", "--quiet"]
        subprocess.run(
            [sys.executable, "-m", "stages.cli", "convert", str(manifest), *first],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for number in range(arguments.pairs):
            run = whole_run(root, manifest, root / f"out{number}", arguments.workers)
            pairs.append((run, solver_alone(root / "whole.npz")))
            print(number, *pairs[-1], file=sys.stderr, flush=True)
    wall = [solver.wall / run.wall for run, solver in pairs]
    cpu = [solver.cpu / run.cpu for run, solver in pairs]
    rate = arguments.rows / statistics.median(run.wall for run, _ in pairs)
    print(
        f"Conditions: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, numpy {np.__version__}; {arguments.rows:,} rows in shards of "
        f"{arguments.shard_rows:,}, {arguments.workers} workers, {arguments.pairs} pairs\n\n"
        "| | median | all |\n| --- | --- | --- |\n"
        f"| whole run / solver, rates by the clock (bar 0.90) | {statistics.median(wall):.2f} | "
        f"{', '.join(f'{value:.2f}' for value in wall)} |\n"
        f"| the same by processor seconds | {statistics.median(cpu):.2f} | "
        f"{', '.join(f'{value:.2f}' for value in cpu)} |\n"
        f"| rows/s of the whole run | {rate:,.0f} | |"
    )


if __name__ == "__main__":
    main()
