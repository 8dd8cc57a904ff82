"""`hmr-skel train`: a converted dataset and a recipe to a trained regressor."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import UsageError
from stages import options
from stages.terminal import aligned, say

if TYPE_CHECKING:
    from stages.regressor.training.trainer import Trainer


@dataclass(frozen=True)
class Request:
    """What to train on, how, and where to."""

    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Outputs of conversions.")
    ]
    out: Annotated[Path, typer.Option(help="Folder of the run; given again: resume.")]
    recipe: Annotated[str, typer.Option(help="A name, or a YAML file.")] = "default"
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A recipe to merge on top, or key.path=value; repeatable."),
    ] = None
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder, tar or folder of tars with the pictures; one for each DIR."),
    ] = None
    image_names: Annotated[
        list[str] | None,
        typer.Option(
            help="How labels name pictures: plain, basename, insta, strip:PREFIX, suffix:.jpg; one "
            "for each DIR.",
            show_default="as they are, else as known for the data set",
        ),
    ] = None
    models: options.Models = None
    data_root: options.DataRoot = None
    benchmark_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROTOCOL=PATH",
            help="Label file or converted dataset of one of train.benchmarks; repeatable.",
            show_default="below the data root; for protocols on shards the first DIR",
        ),
    ] = None
    benchmark_images: Annotated[
        list[str] | None,
        typer.Option(metavar="PROTOCOL=PATH", help="And its pictures; repeatable."),
    ] = None
    fov_checkpoint: options.FovCheckpoint = None
    fov_channels: options.FovChannels = "rgb"
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Also record the run in this project.")
    ] = None
    device: Annotated[str, typer.Option(help="cpu or cuda; under torchrun one GPU each.")] = "cpu"
    no_lock: options.NoLock = False
    quiet: options.Quiet = False


@options.command_line(Request)
def train(request: Request) -> None:
    """Train a regressor on converted datasets, or resume where an earlier run stopped."""
    from pipeline.extras import require
    from pipeline.guard import Inputs
    from pipeline.manifest import data_root, models_directory
    from pipeline.output_files import make_directory
    from stages.regressor.config import load_recipe
    from stages.regressor.data.rows import Place, load_collection
    from stages.regressor.training.benchmarks import Places, open_benchmarks
    from stages.regressor.training.distributed import processes
    from stages.regressor.training.reporting import Reporter
    from stages.regressor.training.run_folder import BEST, LAST, SUMMARY, describe
    from stages.regressor.training.trainer import Trainer

    images, directories = request.images or [], request.directories
    if images and len(images) != len(directories):
        raise UsageError(
            f"--images: {len(images)} given for {len(directories)} datasets; give one for each"
        )
    naming = request.image_names or ["auto"] * len(directories)
    if len(naming) != len(directories):
        raise UsageError(
            f"--image-names: {len(naming)} given for {len(directories)} datasets; give one for each"
        )
    if request.wandb is not None:
        require("wandb", "wandb")
    benchmark_data = _by_protocol("--benchmark-data", request.benchmark_data)
    benchmark_images = _by_protocol("--benchmark-images", request.benchmark_images)
    chosen = load_recipe(request.recipe, request.changes or ())
    places = [
        Place(directory, images[k] if images else None, naming[k])
        for k, directory in enumerate(directories)
    ]
    inputs = Inputs(*images, request.models, chosen.model.backbone.weights,
                    chosen.model.weights, request.fov_checkpoint,
                    *benchmark_data.values(), *benchmark_images.values())  # fmt: skip
    for directory in directories:
        inputs = inputs.and_dataset(directory)
    inputs.check(*(request.out / name for name in (LAST, BEST, SUMMARY, ".lock")))
    with processes(request.device) as process:
        collection = load_collection(places, chosen.data)
        models = request.models or collection.models or models_directory("default-body", None)
        speaks = process.is_first and not request.quiet
        if speaks and collection.skipped:
            left_out = ", ".join(f"{n} {reason}" for reason, n in collection.skipped.items())
            say(f"rows left out: {left_out}", file=sys.stderr)
        make_directory(request.out)
        log = request.out / "tensorboard" if process.is_first else None
        reporter = Reporter(
            log, quiet=not speaks, wandb=request.wandb, config=chosen.model_dump(mode="json")
        )
        found = Places(
            benchmark_data, benchmark_images, data_root(request.data_root), directories[0],
            request.fov_checkpoint, request.fov_channels,
        )  # fmt: skip
        trainer = Trainer(
            chosen, collection, models, request.out, process, reporter, no_lock=request.no_lock,
            benchmarks=open_benchmarks(chosen, found, models, collection.standin),
        )  # fmt: skip
        if speaks:
            say(_opening(trainer), file=sys.stderr)
        result = trainer.run()
    if process.is_first:
        say(aligned([("recipe", chosen.name), *describe(result)]))


def _by_protocol(option: str, given: list[str] | None) -> dict[str, Path]:
    """`PROTOCOL=PATH` options. Raises UsageError."""
    found: dict[str, Path] = {}
    for text in given or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in found:
            raise UsageError(f"{option} {text}: expected PROTOCOL=PATH, each protocol once")
        found[name] = Path(path)
    return found


def _opening(trainer: Trainer) -> str:
    count = sum(p.numel() for p in trainer.network.parameters())
    body = " on the stand-in body" if trainer.collection.standin else ""
    return (
        f"{trainer.recipe.name}: {len(trainer.train_set)} training rows, "
        f"{len(trainer.validation_set)} for validation{body}; {count / 1e6:.1f} M parameters, "
        f"{trainer.total_steps} steps on {trainer.process.device}"
    )
