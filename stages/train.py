"""`hmr-skel train`: a converted dataset and a recipe to a trained regressor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.atomic import make_directory
from pipeline.errors import UsageError
from pipeline.fitters import models_directory
from pipeline.manifest import load_manifest
from stages.convert import aligned


def run_train(
    directories: Sequence[Path],
    out: Path,
    *,
    recipe: str = "default",
    changes: Sequence[str] = (),
    images: Sequence[Path] = (),
    models: Path | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> None:
    """Train, or resume, and print the closing table.

    directories: converted datasets; images: where their pictures are (one for each, or none: what
    the conversion recorded); recipe, changes: as `config.load_recipe`.

    Raises:
        PipelineError: see `rows.load_collection`, `training.Trainer.run`.
    """
    from stages.regressor.config import load_recipe
    from stages.regressor.data.rows import Place, load_collection
    from stages.regressor.training.distributed import processes
    from stages.regressor.training.reporting import Reporter
    from stages.regressor.training.run_folder import describe
    from stages.regressor.training.trainer import Trainer

    if images and len(images) != len(directories):
        raise UsageError(
            f"--images: {len(images)} given for {len(directories)} datasets; give one for each"
        )
    chosen = load_recipe(recipe, changes)
    places = [
        Place(directory, images[k] if images else None) for k, directory in enumerate(directories)
    ]
    with processes(device) as process:
        collection = load_collection(places, chosen.data)
        folder = models or collection.models or models_directory("default-body", None)
        speaks = process.is_first and not quiet
        if speaks and collection.skipped:
            left_out = ", ".join(f"{n} {reason}" for reason, n in collection.skipped.items())
            print(f"rows left out: {left_out}", file=sys.stderr)
        make_directory(out)
        log = out / "tensorboard" if process.is_first else None
        reporter = Reporter(log, sys.stderr if speaks else None)
        trainer = Trainer(chosen, collection, folder, out, process, reporter)
        if speaks:
            print(_opening(trainer), file=sys.stderr)
        result = trainer.run()
    if process.is_first:
        print(aligned([("recipe", chosen.name), *describe(result)]))


def _opening(trainer) -> str:  # type: ignore[no-untyped-def]
    count = sum(p.numel() for p in trainer.network.parameters())
    body = " on the stand-in body" if trainer.collection.standin else ""
    return (
        f"{trainer.recipe.name}: {len(trainer.train_set)} training rows, "
        f"{len(trainer.validation_set)} for validation{body}; {count / 1e6:.1f} M parameters, "
        f"{trainer.total_steps} steps on {trainer.process.device}"
    )


def dataset_directories(given: Sequence[Path], subset: str) -> list[Path]:
    """The datasets of a run: those given, else where the subset's conversion puts its own."""
    return list(given) if given else [Path("outputs") / load_manifest(subset).name]


__all__ = ["dataset_directories", "run_train"]
