"""Training on damaged labels, with and without refining them in the loop, paired by seed.

    python -m benchmarks.damaged_labels DATASET --out DIR --backbone CHECKPOINT [--test DATASET]
        [--seeds 1 2] [--epochs 1] [--batch 16] [--share 0.5] [--degrees 20] [--every 200]
        [--threads 1] [--variants NAME...] [--json FILE]

DATASET, --test: as for `benchmarks.ablations`; --backbone: its `backbone/last.pt`. A share of the
training labels is damaged as `benchmarks.refine` does it (angles, shape, place); keypoints of
the pictures stay, as pseudo labels are wrong where keypoints are right. Recipe `tiny-published` on
published pixels learns from: the labels as they are; the damaged ones; the damaged ones refined
every --every steps with the honest acceptance; and with the published one. Scored under the
protocols demo and demo-skel against undamaged truth. A killed benchmark goes on where it was.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.ablations import report, score, short_run
from benchmarks.refine import SEED, damaged
from skel_fit.keypoint_fit import Start
from stages.regressor.config import load_recipe
from stages.regressor.data.rows import Collection, Place, load_collection
from stages.regressor.training.distributed import Process
from stages.regressor.training.reporting import Reporter
from stages.regressor.training.run_folder import SUMMARY
from stages.regressor.training.trainer import Trainer

CLEAN = "labels as they are"
VARIANTS = {
    CLEAN: None,
    "damaged": None,
    "damaged, refined": "held-out",
    "damaged, refined as published": "published",
}


def damage(found: Collection, share: float, degrees: float) -> tuple[Collection, np.ndarray]:
    """The collection with a share of its training labels damaged, and which (N,)."""
    rows = found.rows
    random = np.random.default_rng(SEED)
    chosen = (rows.split == "train") & (random.random(len(rows)) < share)
    true = Start(*(np.asarray(x, np.float64) for x in (rows.poses, rows.betas, rows.trans)))
    wrong = damaged(true, np.full(len(rows), degrees), random)
    columns = {
        name: np.where(chosen[:, None], getattr(wrong, name), getattr(true, name)).astype(
            getattr(rows, name).dtype
        )
        for name in ("poses", "betas", "trans")
    }
    return replace(found, rows=replace(rows, **columns)), chosen


def train(name: str, seed: int, out: Path, options: argparse.Namespace) -> None:
    """One run, in this process; nothing if it is there."""
    if (out / SUMMARY).is_file():
        return
    acceptance = VARIANTS[name]
    refinement = (
        f"refinement.every={options.every}", f"refinement.start={options.every}",
        f"refinement.acceptance={acceptance}",
    ) if acceptance else ()  # fmt: skip
    changes = (
        *refinement, "data.pixels=published", *short_run(seed, options.backbone, options)
    )  # fmt: skip
    recipe = load_recipe("tiny-published", changes)
    found = load_collection([Place(options.data)], recipe.data)
    if name != CLEAN:
        found, chosen = damage(found, options.share, options.degrees)
        print(f"{name}: {chosen.sum()} labels damaged", file=sys.stderr, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    assert found.models is not None
    here = Process(0, 1, torch.device("cpu"))
    Trainer(recipe, found, found.models, out, here, Reporter(None)).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--degrees", type=float, default=20.0)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.data, options.backbone = options.data.resolve(), options.backbone.resolve()
    if not options.backbone.is_file():
        parser.error(f"--backbone {options.backbone}: no such file; benchmarks.ablations makes one")
    test = (options.test or options.data).resolve()
    torch.set_num_threads(options.threads)
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name in options.variants:
        for seed in options.seeds:
            out = options.out.resolve() / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            train(name, seed, out, options)
            results.setdefault(name, []).append(score(test, out))
            print(f"{name}, seed {seed}: {results[name][-1]['run']}", file=sys.stderr, flush=True)
    report(results, options.json)


if __name__ == "__main__":
    main()
