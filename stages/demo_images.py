"""`hmr-skel demo-images`: render the pictures of the demo labels into the data root."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.fitters import models_directory
from pipeline.manifest import data_root, find_source, load_manifest

_LINE_SECONDS = 30.0


def run_demo_images(
    subset: str = "demo", *, root: Path | None = None, models: Path | None = None,
    workers: int = 1, quiet: bool = False,
) -> None:  # fmt: skip
    """Render what is missing and say so.

    Raises:
        UsageError: the subset's labels are not generated; InputError: they are not there yet.
    """
    from stages.regressor.demo_pictures import Job, render_demo

    manifest = load_manifest(subset)
    if manifest.source.generator is None:
        raise UsageError(f"{subset}: has real pictures; only generated labels are rendered")
    folder = data_root(root)
    labels = find_source(manifest, folder)
    job = Job(labels, models_directory(manifest.models, models), folder / manifest.image_root)
    progress = (lambda done, of: None) if quiet else _Progress()
    rendered, count = render_demo(job, workers=workers, report=progress)
    print(f"{count} pictures in {folder / manifest.image_root}, {rendered} rendered now")


class _Progress:
    """A bar on a terminal, a line every half minute elsewhere."""

    def __init__(self) -> None:
        self._bar = None
        self._said = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=of, unit=" pictures", desc="demo-images")
            self._bar.update(done - self._bar.n)
            if done == of:
                self._bar.close()
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            print(f"demo-images: {done} of {of} pictures", file=sys.stderr, flush=True)
