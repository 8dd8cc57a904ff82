"""Training at full size, a few steps of the real loop: does it run, what memory does it take?

    python -m benchmarks.dry_runs [--runs vit-h vit-b] [--precision fp32] [--json FILE]

vit-h: recipe `published`, one process of 2 rows with `recompute`; vit-b: two processes of 2
rows under torchrun and with the average of the weights; in float32, or with `--precision bf16`,
slow on a CPU that has none, as the recipe trains. 60 rows of the demo are converted and rendered
for this; checkpoints go to a folder that is removed (ViT-H's are 11 GB). Looks first whether the
memory is there. Memory is the largest resident set of a process, as the kernel counted it. Prints
Markdown; the last lines are the arithmetic for processes of 64 rows, from the configuration.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.measure import ROOT
from stages.regressor.config import Recipe, load_recipe
from stages.regressor.network.model import Regressor

SETS = (
    "data.mixture={shards: 1.0}", "train.epochs=2", "train.validate_every=2", "train.workers=0",
    "train.pictures=0", "train.checkpoint_every=1000000", "optimiser.warmup=0",
    "data.augment.extreme_crop=0",
)  # fmt: skip
STEPS = 2
GIB = 2**30


@dataclass(frozen=True)
class Run:
    """A dry run: changes of `published`, rows a process, processes, GiB that it needs."""

    changes: tuple[str, ...]
    rows: int
    processes: int
    needs: float


RUNS = {
    "vit-h": Run(
        ("changes/vit-h", "model.backbone.recompute=true", "optimiser.ema.decay=0"), 2, 1, 13.5
    ),
    "vit-b": Run(("changes/vit-b",), 2, 2, 8.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--data", type=Path, help="folder `shards` to take; else it is made")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hmr-skel-dry-"))
    try:
        data = options.data or _data(folder)
        found = {
            name: dry_run(name, RUNS[name], data, folder, options.precision)
            for name in options.runs
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        "| run | processes x rows | steps | s a step | peak GiB a process | loss | gradient norm |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in found.items():
        print(
            f"| {name} | {row['processes']} x {row['rows']} | {row['steps']} | "
            f"{row['seconds_per_step']:.1f} | {row['gib']:.1f} | {row['loss']:.2f} | "
            f"{row['gradient_norm']:.1f} |"
        )
    print()
    for name in options.runs:
        print("\n".join(arithmetic(name)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _data(folder: Path) -> Path:
    from tests.regressor_files import demo

    return demo(folder).shards


def dry_run(name: str, run: Run, data: Path, folder: Path, precision: str) -> dict:
    """Train a few steps with the console script; what it took."""
    available = _available()
    if available < run.needs:
        raise SystemExit(f"{name}: {available:.1f} GiB are free, {run.needs:.0f} are needed")
    rows = run.rows * run.processes * STEPS // 2  # of an epoch; two epochs
    sets = (*run.changes, *SETS, f"train.batch_size={run.rows}", f"data.mixture_rows={rows}",
            f"train.precision={precision}")  # fmt: skip
    words = [word for change in sets for word in ("--set", change)]
    command = ["-m", "stages.cli", "train", str(data), "--recipe", "published", *words]
    if run.processes > 1:
        command = ["-m", "torch.distributed.run", f"--nproc-per-node={run.processes}",
                   "--standalone", *command]  # fmt: skip
    out = folder / name
    threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // run.processes, 1)),
               "OMP_WAIT_POLICY": "passive"}  # fmt: skip
    log = folder / f"{name}.log"
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, *command, "--out", str(out)], cwd=ROOT, env=os.environ | threads,
            stdout=stream, stderr=stream, preexec_fn=_first_to_go,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)  # of this run; RUSAGE_CHILDREN is of all so far
    if status:
        raise SystemExit(f"{name}: {log.read_text(encoding='utf-8').strip()[-2000:]}")
    peak = used.ru_maxrss / 2**20
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    last = {name: events.Scalars(name)[-1].value for name in ("loss/total", "run/gradient_norm")}
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)
    print(f"{name}: {time.monotonic() - began:.0f} s in all", file=sys.stderr, flush=True)
    return {
        "rows": run.rows, "processes": run.processes, "steps": summary["steps"], "gib": peak,
        "seconds_per_step": summary["seconds"] / summary["steps"],
        "validation_mpjpe": summary["scores"]["mpjpe"],
        "loss": last["loss/total"], "gradient_norm": last["run/gradient_norm"],
    }  # fmt: skip


def _first_to_go() -> None:
    """Where memory ends after all, this process is the one to be stopped."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _available() -> float:
    """GiB of memory that can be had."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def arithmetic(size: str, rows: int = 64) -> list[str]:
    """Memory of a process of `rows` rows on a GPU, from the configuration, as Markdown lines."""
    recipe = load_recipe("published", [f"changes/{size}"])
    weights, activations, recomputed = parts(recipe, rows)
    fixed = 5 * weights  # weights, gradients, two moments, the average; float32
    return [
        f"- {size}, {rows} rows a process: {fixed:.1f} GB for weights, gradients, moments and "
        f"average ({weights:.2f} each); kept for the backward pass {activations:.1f} GB, with "
        f"`recompute` {recomputed:.1f} GB: {fixed + activations:.0f} or {fixed + recomputed:.0f} GB"
    ]


def parts(recipe: Recipe, rows: int) -> tuple[float, float, float]:
    """GB of the weights, of what the backbone keeps, and of what it keeps with `recompute`."""
    import torch

    with torch.device("meta"):
        count = sum(p.numel() for p in Regressor(recipe.model).parameters())
    backbone = recipe.model.backbone
    height, width = recipe.model.input_size
    tokens = rows * (height // 16) * (width // 16)
    # bf16: q, k, v, attention's output, inputs of linear maps, both sides of the GELU; fp32: the
    # input of a block and the sum in its middle.
    block = 2 * (6 * backbone.width + 2 * backbone.mlp_width) + 4 * 2 * backbone.width
    kept = tokens * block * backbone.depth
    again = tokens * (block + 4 * backbone.width * backbone.depth)
    return 4 * count / 1e9, kept / 1e9, again / 1e9


if __name__ == "__main__":
    main()
