"""Does a recipe learn the demo: training runs of several seeds, scored on what they have not seen.

    python -m benchmarks.learning outputs/demo-large --test outputs/demo --out DIR [--seeds 1 2 3]
        [--recipe pyramid] [--set KEY=VALUE ...] [--threads 2] [--train-only] [--no-layers]

DATASET: the converted demo-large with its pictures; --test: the converted demo. Each run is
`hmr-skel train` and resumes; its processor seconds, all threads, are added up in `seconds.json`.
Scored under the protocols demo (unseen segments of the training motion) and demo-actors (other
actors), as it is and layer by layer. Prints Markdown: means over the rows, shares of the mean
pose's, and what coarse-to-fine changes, row by row: mean ± standard error over the rows.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import ROOT

MEAN_POSE, COARSE = "mean pose", "coarse"
METRICS = ("mpjpe", "pa_mpjpe")
UNKNOWN = {MEAN_POSE, COARSE, "SKEL label"}


def call(*words: str, log: Path, threads: int) -> float:
    """Run hmr-skel; the processor seconds it took."""
    log.mkdir(parents=True, exist_ok=True)
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (log / f"{words[0]}.log").open("a", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "stages.cli", *words], check=False, cwd=ROOT,
            env=os.environ | limits, stdout=stream, stderr=stream,
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{log / f'{words[0]}.log'}: ended with code {done.returncode}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(options: argparse.Namespace, seed: int) -> Path:
    """The run of a seed, gone on with where it was."""
    out: Path = options.out / f"seed-{seed}"
    if (out / "summary.json").is_file():
        return out
    changes = [word for change in options.set for word in ("--set", change)]
    spent = call(
        "train", str(options.data), "--recipe", options.recipe, *changes,
        "--set", f"train.seed={seed}", "--set", "train.pictures=0", "--out", str(out),
        log=out, threads=options.threads,
    )  # fmt: skip
    note = out / "seconds.json"
    earlier = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else 0.0
    note.write_text(json.dumps(earlier + spent), encoding="utf-8")
    return out


def scored(options: argparse.Namespace, run: Path, protocol: str, data: Path) -> Path:
    """The folder of an evaluation of a run's best.pt."""
    out = run / protocol
    if not (out / "evaluation.json").is_file():
        layers = ["--layer-estimates"] if options.layers else []
        call(
            "evaluate", protocol, "--shards", str(data), "--checkpoint", str(run / "best.pt"),
            *layers, "--worst", "0", "--out", str(out), log=run, threads=options.threads,
        )  # fmt: skip
    return out


def rows(folder: Path, protocol: str) -> dict[str, np.ndarray]:
    """`predictor/metric` -> millimetres of each row; `own` is the checkpoint's result."""
    with np.load(folder / f"rows-{protocol}.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files if "/" in name}
    names = {name.rpartition("/")[0] for name in found}
    own = [n for n in names - UNKNOWN if not n.startswith("layer ")]
    if len(own) != 1:
        raise SystemExit(f"{folder}: results of {', '.join(own)}; expected one checkpoint's")
    return {
        f"{'own' if name == own[0] else name}/{metric}": found[f"{name}/{metric}"]
        for name in names
        for metric in METRICS
    }


def line(protocol: str, seed: int, found: dict[str, np.ndarray]) -> str:
    """A row of the table."""
    cells = []
    for metric in METRICS:
        own, mean = (float(np.nanmean(found[f"{n}/{metric}"])) for n in ("own", MEAN_POSE))
        cells.append(f"{own:.1f} ({100 * own / mean:.0f} % of {mean:.1f})")
    if f"{COARSE}/pa_mpjpe" in found:
        away = found["own/pa_mpjpe"] - found[f"{COARSE}/pa_mpjpe"]
        away = away[np.isfinite(away)]
        cells.append(f"{away.mean():.2f} ± {away.std(ddof=1) / np.sqrt(len(away)):.2f}")
    else:
        cells.append("")
    return f"| {protocol} | {seed} | {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--recipe", default="pyramid")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-layers", dest="layers", action="store_false")
    parser.add_argument("--train-only", action="store_true")
    options = parser.parse_args(words)
    for name in ("data", "test", "out"):
        setattr(options, name, getattr(options, name).resolve())
    runs = {seed: train(options, seed) for seed in options.seeds}
    if options.train_only:
        return
    print("| protocol | seed | MPJPE, mm | PA-MPJPE, mm | PA-MPJPE minus the coarse one's |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for protocol, data in (("demo", options.test), ("demo-actors", options.data)):
        for seed, run in runs.items():
            folder = scored(options, run, protocol, data)
            print(line(protocol, seed, rows(folder, protocol)))
    for seed, run in runs.items():
        note = run / "seconds.json"
        if note.is_file():
            print(f"seed {seed}: {float(json.loads(note.read_text())) / 60:.1f} CPU minutes")


if __name__ == "__main__":
    main()
