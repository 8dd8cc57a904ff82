"""Paired ablations of the regressor: the same rows, steps, seeds and backbone weights, one change.

    python -m benchmarks.ablations DATASET --out DIR [--test DATASET] [--seeds 1 2 3] [--epochs 1]
        [--batch 16] [--pretrain 6] [--jobs 2] [--variants NAME...] [--json FILE]
        [--recipe NAME --backbone CHECKPOINT] [--set KEY=VALUE ...]

DATASET: a converted dataset with pictures and splits, e.g. outputs/demo-large; --test: the one
whose test split scores, e.g. outputs/demo. First a backbone is taught to find keypoints
(`changes/heatmaps-only`, --pretrain epochs): what ViTPose's weights are to the published network.
Every run starts from it, because an epoch from random weights compares nothing but the way out of
the mean pose. --backbone: a trained network whose backbone is taken instead, of a --recipe that
then stands for every variant's own (`published` by itself is left out); with `pyramid` the switches
want `--set data.cached_crops=0`, whose crops are not the published ones. Each run trains with one
thread and is scored under the protocols demo and demo-skel.
A killed benchmark goes on where it was.
Prints Markdown: mean ± standard deviation over the seeds, and paired differences to the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT


@dataclass(frozen=True)
class Variant:
    """A row of the table: a recipe and the changes on top of it."""

    recipe: str = "tiny"
    changes: tuple[str, ...] = ()


VARIANTS = {
    "default": Variant(),
    "published": Variant("tiny-published"),
    "without coarse-to-fine": Variant(changes=("changes/without-coarse",)),
    "without refinement": Variant(changes=("changes/without-refinement",)),
    "without camera": Variant(changes=("changes/without-camera",)),
    "pooled regression": Variant(changes=("changes/pooled",)),
    "constant picture": Variant(changes=("changes/blank-images",)),
}
# Where `published` is not the public run (docs/regressor.md): each put back, or away, by itself.
# `tiny-published` has the sizes and float32 of `tiny`, and no image defects.
SWITCHES = {
    "published pixels": Variant("tiny-published", ("data.pixels=published",)),
    "continuous pixels": Variant("tiny-published", ("data.pixels=continuous",)),
    "full supervision": Variant("tiny-published", ("data.pixels=published",
                                                   "changes/full-supervision")),
    "looped decoder": Variant("tiny-published", ("data.pixels=published", "changes/looped")),
    "HSMR head": Variant("tiny-published", ("data.pixels=published", "changes/baseline")),
    "bf16": Variant("tiny-published", ("data.pixels=published", "train.precision=bf16")),
    "image defects": Variant("tiny-published", ("data.pixels=published",
                                                "data.augment.photometric=0.3")),
    "Euler target": Variant("tiny-published", ("data.pixels=published", "changes/euler-target")),
    "labels refined": Variant("tiny-published", (
        "data.pixels=published", "refinement.start=100", "refinement.every=100")),
}  # fmt: skip
ALL = VARIANTS | SWITCHES
PROTOCOLS = ("demo", "demo-skel")
COLUMNS = {
    "PA-MPJPE, mm": ("demo", "pa_mpjpe"),
    "MPJPE, mm": ("demo", "mpjpe"),
    "PA-PVE, mm": ("demo", "pa_pve"),
    "PCK@0.05, %": ("demo", "pck@0.05"),
    "demo-skel PA-MPJPE, mm": ("demo-skel", "pa_mpjpe"),
}
MEAN_POSE = "mean pose"
PRETRAIN_SEED = 0
RATE = 7.0e-4  # for half the batch of `tiny`


def train(data: Path, out: Path, recipe: str, changes: Sequence[str], threads: int = 1) -> None:
    """One training run; nothing if it is there."""
    if (out / "summary.json").is_file():
        return
    options = [word for change in changes for word in ("--set", change)]
    _call("train", str(data), "--recipe", recipe, *options, "--out", str(out), log=out,
          threads=threads)  # fmt: skip


def score(data: Path, run: Path) -> dict[str, dict[str, float]]:
    """Test scores: of the run's best checkpoint (`run`) and of the mean pose, by column."""
    out = run / "evaluation"
    if not (out / "evaluation.json").is_file():
        _call("evaluate", *PROTOCOLS, "--shards", str(data), "--checkpoint", str(run / "best.pt"),
              "--out", str(out), log=run)  # fmt: skip
    content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    results = {protocol["name"]: protocol["results"] for protocol in content["protocols"]}
    own = next(iter(set(results["demo"]) - {MEAN_POSE, "SKEL label"}))

    def scores(predictor: str) -> dict[str, float]:
        return {
            column: results[protocol][predictor]["metrics"][metric]["value"]
            for column, (protocol, metric) in COLUMNS.items()
        }

    return {"run": scores(own), MEAN_POSE: scores(MEAN_POSE)}


def _call(*words: str, log: Path, threads: int = 1) -> None:
    log.mkdir(parents=True, exist_ok=True)
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with (log / f"{words[0]}.log").open("a", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "stages.cli", *words], check=False, cwd=ROOT,
            env=os.environ | limits, stdout=stream, stderr=stream,
        )  # fmt: skip
    if done.returncode:
        last = Path(stream.name).read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise SystemExit(f"{stream.name}: {last[0] if last else 'ended without a word'}")


def backbone(options: argparse.Namespace) -> Path:
    """The checkpoint that all runs take their backbone from."""
    out = options.out / "backbone"
    train(options.data, out, "tiny", (
        "changes/heatmaps-only", f"train.epochs={options.pretrain}", "train.minutes=0",
        f"train.validate_every={options.pretrain}", "train.pictures=0",
        f"train.seed={PRETRAIN_SEED}",
    ), threads=options.jobs)  # fmt: skip
    return (out / "last.pt").resolve()


def short_run(seed: int, weights: Path, options: argparse.Namespace) -> tuple[str, ...]:
    """What every run has in common: options.epochs of options.batch rows from these weights."""
    return (
        f"model.backbone.weights={weights}", f"train.seed={seed}",
        f"train.epochs={options.epochs}", "train.minutes=0", "train.pictures=0",
        f"train.validate_every={options.epochs}", f"train.batch_size={options.batch}",
        f"optimiser.rate={RATE}", "optimiser.warmup=0.2", "train.workers=0",
    )  # fmt: skip


def run(
    name: str, seed: int, weights: Path, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Train and score one variant with one seed."""
    variant = ALL[name]
    recipe = options.recipe or variant.recipe
    out = options.out / f"{name.replace(' ', '-')}-{seed}"
    changes = (*variant.changes, *options.set, *short_run(seed, weights, options))
    train(options.data, out, recipe, changes)
    found = score(options.test, out)
    print(f"{name}, seed {seed}: {found['run']}", file=sys.stderr, flush=True)
    return found


def report(results: dict[str, list[dict[str, dict[str, float]]]], file: Path | None) -> None:
    """Print what `score` found of each variant's seeds, and the mean pose's; all of it to a file,
    too, where one is given."""
    if file:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    own = {name: [found["run"] for found in runs] for name, runs in results.items()}
    print(table(own | {MEAN_POSE: [found[MEAN_POSE] for found in next(iter(results.values()))]}))


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean ± standard deviation, and the paired difference of the first column."""
    columns, first = list(COLUMNS), next(iter(results))
    lines = [
        f"| variant | {' | '.join(columns)} | {columns[0]} minus {first}'s, seed by seed |",
        f"| --- |{' ---: |' * (len(columns) + 1)}",
    ]
    for name, runs in results.items():
        cells = [_spread([r[c] for r in runs]) for c in columns]
        pairs = zip(runs, results[first], strict=True)
        change = "" if name == first else _spread([r[columns[0]] - b[columns[0]] for r, b in pairs])
        lines.append(f"| {name} | {' | '.join(cells)} | {change} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--test", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pretrain", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(ALL))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if (options.recipe is None) != (options.backbone is None):
        parser.error("--recipe and --backbone belong together: it is the recipe's backbone")
    if options.recipe and "published" in options.variants:
        parser.error("'published' is a recipe of its own; with --recipe leave it out of --variants")
    options.test = (options.test or options.data).resolve()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    weights = options.backbone.resolve() if options.backbone else backbone(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            name: [pool.submit(run, name, seed, weights, options) for seed in options.seeds]
            for name in options.variants
        }
        results = {name: [f.result() for f in found] for name, found in futures.items()}
    report(results, options.json)


if __name__ == "__main__":
    main()
