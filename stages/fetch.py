"""`hmr-skel fetch`: a converted dataset from an object store into a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import options
from stages.terminal import Progress


def fetch(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where --upload put it, e.g. s3://bucket/coco.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or a begun one.")],
    quiet: options.Quiet = False,
) -> None:
    """Copy an uploaded dataset into a local folder and check every byte; rerun to go on."""
    from pipeline.upload import fetch as copy

    progress: Progress | None = None

    def report(done: int, of: int) -> None:
        nonlocal progress
        progress = progress or Progress("fetch", of, "files", quiet=quiet)
        progress.update(done - progress.done)

    try:
        states = copy(url, directory, report)
    finally:
        if progress is not None:
            progress.close()
    done = sum(state.state == "done" for state in states)
    print(f"{directory}: {done} of {len(states)} shards, each as its receipt says")
