"""`hmr-skel demo-images`: render the pictures of generated labels into the data root."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.errors import UsageError
from stages import options
from stages.terminal import Progress, say


def demo_images(
    subset: Annotated[str, typer.Argument(metavar="SUBSET", help="A generated subset.")] = "demo",
    data_root: options.DataRoot = None,
    models: options.Models = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    quiet: options.Quiet = False,
) -> None:
    """Render the pictures of the demo labels into the data root; rerun to complete."""
    from pipeline.demo import SEED
    from pipeline.manifest import data_root as find_data_root
    from pipeline.manifest import load_manifest, models_directory
    from pipeline.planning import find_generated
    from stages.regressor.data.demo_pictures import Job, render_demo

    manifest = load_manifest(subset)
    if manifest.source.generator is None:
        raise UsageError(f"{subset}: has real pictures; only generated labels are rendered")
    folder = find_data_root(data_root)
    labels = find_generated(manifest, folder)
    pictures = folder / manifest.image_root
    seed = SEED if manifest.source.seed is None else manifest.source.seed
    # Clothes, light and background come from (seed, row): two subsets must not share them, or the
    # test pictures of one would be known from the training pictures of the other. Demo: 0.
    job = Job(labels, models_directory(manifest.models, models), pictures, seed=seed ^ SEED)
    progress: Progress | None = None

    def report(done: int, of: int) -> None:
        nonlocal progress
        progress = progress or Progress(f"demo-images {manifest.name}", of, "pictures", quiet=quiet)
        progress.update(done - progress.done)

    try:
        rendered, count = render_demo(job, workers=workers, report=report)
    finally:
        if progress is not None:
            progress.close()
    say(f"{count} pictures in {pictures}, {rendered} rendered now")
