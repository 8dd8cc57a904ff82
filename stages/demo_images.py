"""`hmr-skel demo-images`: render the pictures of generated labels into the data root."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.fitters import models_directory
from pipeline.manifest import data_root, load_manifest

_LINE_SECONDS = 30.0


def run_demo_images(
    subset: str = "demo", *, root: Path | None = None, models: Path | None = None,
    workers: int = 1, quiet: bool = False,
) -> None:  # fmt: skip
    """Render what is missing and say so.

    Raises:
        UsageError: the subset's labels are not generated.
        InputError: they are not there yet, or were made with other rows or another seed.
    """
    from pipeline.demo import SEED
    from pipeline.planning import find_generated
    from stages.regressor.data.demo_pictures import Job, render_demo

    manifest = load_manifest(subset)
    if manifest.source.generator is None:
        raise UsageError(f"{subset}: has real pictures; only generated labels are rendered")
    folder = data_root(root)
    labels = find_generated(manifest, folder)
    pictures = folder / manifest.image_root
    seed = SEED if manifest.source.seed is None else manifest.source.seed
    # Clothes, light and background come from (seed, row): two subsets must not share them, or the
    # test pictures of one would be known from the training pictures of the other. Demo: 0.
    job = Job(labels, models_directory(manifest.models, models), pictures, seed=seed ^ SEED)
    progress = (lambda done, of: None) if quiet else _Progress(manifest.name)
    rendered, count = render_demo(job, workers=workers, report=progress)
    print(f"{count} pictures in {pictures}, {rendered} rendered now")


class _Progress:
    """A bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, subset: str) -> None:
        self._name = f"demo-images {subset}"
        self._bar = None
        self._said = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=of, unit=" pictures", desc=self._name)
            self._bar.update(done - self._bar.n)
            if done == of:
                self._bar.close()
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            print(f"{self._name}: {done} of {of} pictures", file=sys.stderr, flush=True)
